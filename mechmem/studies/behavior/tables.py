"""The tables and figures of a behavior study: everything that the report shows, by name."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechmem import plotting
from mechmem.patching.neurons import ShiftNeurons
from mechmem.studies.behavior.results import BehaviorResults
from mechmem.studies.behavior.summary import summary_table
from mechmem.studies.behavior.words import PAPER


def tables(study: BehaviorResults) -> dict[str, pd.DataFrame]:
    """Every table by name; the figures are drawn from these numbers."""
    best = study.sweep.best
    out = {
        "summary": summary_table(study),
        "behavior_mix": plotting.mix_table(study.observed),
        "test": study.sweep.test_table(),
        "turned": study.sweep.turned_table(),
        "beyond_controls": _beyond(study),
        "validation": study.sweep.table(),
        "dose": study.dose,
        "clean": study.clean,
        "depth_profile": study.depth.table(),
        "separation": study.separation.table(),
        "probes": study.probes.table(),
        "neurons": study.scores.table(),
        "mlp_neurons": study.mlp_scores.table(),
        "layer_distribution": plotting.distribution_table(study.scores, top=_top(study)),
        "mlp_layer_distribution": plotting.distribution_table(study.mlp_scores, top=_top(study)),
    }
    if study.window_scores is not study.scores:
        out["window_neurons"] = study.window_scores.table()
    for toward, rates in best.rates.items():
        out[f"transitions_{toward}"] = rates.transitions.reset_index()
    for name, part in study.observed.items():
        out[f"observations_{name}"] = part.table()
    for toward, rates in best.rates.items():
        out[f"observations_test_{toward}"] = rates.after.table()
    if study.tokens is not None:
        out["tokens"] = study.tokens.table()
    if study.negative is not None:
        out["negative_behavior_mix"] = plotting.mix_table(study.negative.observed)
        out["negative_test"] = study.negative.sweep.test_table()
    return {name: table for name, table in out.items() if not table.empty}


def figures(
    study: BehaviorResults, *, theme: str = "light", found: Mapping[str, pd.DataFrame] | None = None
) -> dict[str, go.Figure]:
    """Every figure by name, in the order of the report.

    Args:
        study: What is drawn.
        theme: ``"light"`` or ``"dark"``.
        found: Its `tables`, where they are at hand already.
    """
    best = study.sweep.best
    table = tables(study) if found is None else found
    out = {"behavior_mix": plotting.behavior_mix(table["behavior_mix"], theme=theme)}
    if np.isfinite(study.observed["test"].margins).any():
        out["margins"] = plotting.margins(study.observed["test"], theme=theme)
    out["rates"] = plotting.rates_bars(table["test"], theme=theme)
    if "dose" in table:
        out["dose_response"] = plotting.dose_response(study.dose, theme=theme)
    for toward, rates in best.rates.items():
        fig = plotting.transitions(rates, theme=theme)
        out[f"transitions_{toward}"] = fig.update_layout(title_text=f"Steered toward {toward}")
    if study.negative is not None:
        fig = plotting.rates_bars(table["negative_test"], theme=theme)
        out["negative_rates"] = fig.update_layout(title_text="The same on the negative control")
    out |= {
        "depth_profile": plotting.depth_profile(study.depth, theme=theme),
        "neuron_map": plotting.neuron_map(study.scores, theme=theme),
        "layer_distribution": plotting.layer_distribution(
            study.scores, top=_top(study), theme=theme
        ),
        "separation": plotting.separation_profile(study.separation, theme=theme),
        "probes": plotting.probe_accuracy(study.probes, theme=theme),
        "mlp_neuron_map": plotting.neuron_map(study.mlp_scores, theme=theme).update_layout(
            title_text="The same for MLP neurons"
        ),
        "sweep": plotting.sweep_cells(table["validation"], theme=theme),
    }
    return out


def _beyond(study: BehaviorResults) -> pd.DataFrame:
    """How far every family's winner goes beyond the control that it beats by least."""
    rows = []
    for tested in study.sweep.tested:
        for toward in tested.rates:
            gap = tested.beyond_every_control(toward)
            rows.append(
                {
                    "family": tested.family,
                    "toward": toward,
                    "beyond_every_control": gap.value,
                    "low": gap.low,
                    "high": gap.high,
                    "beyond": gap.low > 0,
                    "n": gap.n,
                    "groups": gap.groups,
                    **tested.edit.describe(),
                }
                | {"toward": toward}
            )
    return pd.DataFrame(rows)


def _top(study: BehaviorResults) -> float:
    """Which share of the neurons the published form chose; where it was not tried, 5 %."""
    for tested in study.sweep.tested:
        if tested.family.startswith(PAPER) and isinstance(tested.edit, ShiftNeurons):
            return tested.edit.top
    return 0.05
