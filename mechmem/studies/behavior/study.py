"""`BehaviorStudy`: what `run_study` found, with its words, tables, figures and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechmem import plotting
from mechmem.analysis.depth_profile import DepthProfile
from mechmem.analysis.directions import Directions
from mechmem.analysis.geometry import Separation
from mechmem.analysis.neurons import NeuronScores
from mechmem.analysis.probes import Probes
from mechmem.analysis.token_projections import TokenProjections
from mechmem.evaluation.behavior import Observations
from mechmem.evaluation.controls import CONTROL_NAMES
from mechmem.patching.shifting import ShiftNeurons
from mechmem.studies.base import Study
from mechmem.studies.behavior import words
from mechmem.studies.behavior.plan import Plan
from mechmem.studies.behavior.summary import beyond_table, summary_table
from mechmem.studies.token_reading import answers_table
from mechmem.studies.verdict import Verdict
from mechmem.sweeps.result import Sweep
from mechmem.tasks.prompts import PromptSet


@dataclass(frozen=True)
class BehaviorStudy(Study):
    """What a study of one behavior found; every part is a result object of its own.

    Attributes:
        splits: Prompts of each part; parts share no group.
        observed: What the unedited model did, per part; with answer margins for the test part.
        flips: Flips of the training part, on which everything is fitted.
        depth: Size of the mean difference at every depth, on the training flips.
        scores: Residual-stream neurons at the last prompt token, every layer.
        mlp_scores: MLP neurons at the last prompt token, every layer.
        window_scores: Residual neurons at the task's own positions; `scores` where it has none.
        directions: Difference of means per site at the last prompt token.
        separation: Along those directions, on the flips of the test part.
        probes: On the training flips, cross-validated by group.
        sweep: Edits chosen on validation, tested once.
        dose: Rates over a range of alphas on the test part, the edit beside its control.
        clean: Accuracy on ordinary items, unedited and under the chosen edit.
        tokens: The first test flips, token by token along the direction.
        verdict: What may be claimed, from refits on exchanged behaviors.
        negative: The same study on a model without a shared mode, if there is one.
        seconds: Wall-clock time, of the negative control too.
        plan: What was tried; ``None`` for a grid of one's own.
        failed_control: What the negative control failed with, when it did.
    """

    kind = "behavior"

    splits: Mapping[str, PromptSet]
    observed: Mapping[str, Observations]
    flips: PromptSet
    depth: DepthProfile
    scores: NeuronScores
    mlp_scores: NeuronScores
    window_scores: NeuronScores
    directions: Directions
    separation: Separation
    probes: Probes
    sweep: Sweep
    dose: pd.DataFrame
    clean: pd.DataFrame
    tokens: TokenProjections | None
    verdict: Verdict
    negative: BehaviorStudy | None
    seconds: float
    plan: Plan | None = None
    failed_control: str = ""

    def headline(self) -> str:
        return self.verdict.headline

    def answer(self) -> str:
        return words.answer(self.sweep, self.card, self.verdict)

    def notes(self) -> list[str]:
        negative = self.negative_note()
        return [
            *words.notes(self.sweep, self.clean, self.probes, self.verdict),
            *([negative] if negative else []),
        ]

    def limits(self) -> list[str]:
        return list(
            words.limits(
                len(set(self.sweep.before.prompts.groups)),
                self.probes,
                planted=bool(self.card.get("planted")),
                clean=not self.clean.empty,
                negative=self.negative is not None,
                seed=self.seed,
                left_out=self.left_out(),
            )
        )

    def left_out(self) -> list[str]:
        """What the whole plan has beyond the one that was run."""
        if self.plan is None:
            return []
        sizes = {name: len(part) for name, part in self.splits.items()}
        return self.plan.left_out(sizes, self.model.n_layers)

    def negative_note(self) -> str:
        """What the winning family found where no effect was expected; empty without a control."""
        if self.failed_control:
            return words.failed_control(self.failed_control)
        inner = self.negative
        return "" if inner is None else words.negative_note(inner.model.name, inner.verdict)

    def summary(self) -> pd.DataFrame:
        return summary_table(self.sweep, self.clean)

    def tables(self) -> dict[str, pd.DataFrame]:
        best, top = self.sweep.best, self._top()
        out = {
            "summary": self.summary(),
            "behavior_mix": plotting.mix_table(self.observed),
            "examples": answers_table(self.sweep),
            "refits": self.verdict.table(),
            "test": self.sweep.test_table(),
            "turned": self.sweep.turned_table(),
            "beyond_controls": beyond_table(self.sweep.tested),
            "validation": self.sweep.table(),
            "dose": self.dose,
            "clean": self.clean,
            "depth_profile": self.depth.table(),
            "separation": self.separation.table(),
            "probes": self.probes.table(),
            "neurons": self.scores.table(),
            "mlp_neurons": self.mlp_scores.table(),
            "layer_distribution": plotting.distribution_table(self.scores, top=top),
            "mlp_layer_distribution": plotting.distribution_table(self.mlp_scores, top=top),
        }
        if self.window_scores is not self.scores:
            out["window_neurons"] = self.window_scores.table()
        for toward, rates in best.rates.items():
            out[f"transitions_{toward}"] = rates.transitions.reset_index()
        for name, part in self.observed.items():
            out[f"observations_{name}"] = part.table()
        for toward, rates in best.rates.items():
            out[f"observations_test_{toward}"] = rates.after.table()
        if self.tokens is not None:
            out["tokens"] = self.tokens.table()
        if self.negative is not None:
            out["negative_behavior_mix"] = plotting.mix_table(self.negative.observed)
            out["negative_test"] = self.negative.sweep.test_table()
        return {name: table for name, table in out.items() if not table.empty}

    def figures(self, *, theme: str = "light") -> dict[str, Any]:
        """Every figure by name, in the order of the report; ``theme`` is light or dark."""
        out = {"behavior_mix": plotting.behavior_mix(self.observed, theme=theme)}
        if np.isfinite(self.observed["test"].margins).any():
            out["margins"] = plotting.margins(self.observed["test"], theme=theme)
        if self.verdict.shuffles:
            out["refits"] = plotting.refits(self.verdict, theme=theme)
        out["rates"] = plotting.rates_bars(self.sweep, theme=theme)
        if not self.dose.empty:
            out["dose_response"] = plotting.dose_response(self.dose, theme=theme)
        for toward, rates in self.sweep.best.rates.items():
            fig = plotting.transitions(rates, theme=theme)
            out[f"transitions_{toward}"] = fig.update_layout(title_text=f"Steered toward {toward}")
        if self.negative is not None:
            fig = plotting.rates_bars(self.negative.sweep, theme=theme)
            out["negative_rates"] = fig.update_layout(title_text="The same on the negative control")
        out |= {
            "depth_profile": plotting.depth_profile(self.depth, theme=theme),
            "neuron_map": plotting.neuron_map(self.scores, theme=theme),
            "layer_distribution": plotting.layer_distribution(
                self.scores, top=self._top(), theme=theme
            ),
            "separation": plotting.separation_profile(self.separation, theme=theme),
            "probes": plotting.probe_accuracy(self.probes, theme=theme),
            "mlp_neuron_map": plotting.neuron_map(self.mlp_scores, theme=theme).update_layout(
                title_text="The same for MLP neurons"
            ),
            "sweep": plotting.sweep_cells(self.sweep.table(), theme=theme),
        }
        return out

    def details(self) -> dict[str, Any]:
        best = self.sweep.best
        named = next(iter(best.controls.values()))
        tried = next(iter(self.sweep.cells[0].rates.values())).after.prompts
        return {
            "splits": {
                name: {"prompts": len(part), "groups": sorted(set(part.groups))}
                for name, part in self.splits.items()
            },
            "classes": list(best.rates),
            "outcomes": list(self.sweep.before.allowed),
            "reading": self.sweep.before.reading,
            "choice": asdict(choice) if (choice := self.sweep.before.choice) else None,
            "flips": len(self.flips) // 2,
            "by_flips": all(
                len({p.behavior for p in members}) > 1 for members in self.flips.by_group().values()
            ),
            "steered": {
                name: {"prompts": len(part), "groups": len(set(part.groups))}
                for name, part in (("validation", tried), ("test", self.sweep.before.prompts))
            },
            "chosen": [
                {"family": tested.family, **tested.edit.describe()} for tested in self.sweep.tested
            ],
            "controls": {name: CONTROL_NAMES[name] for name in named if name in CONTROL_NAMES},
            "draws": max(len(d) for each in best.controls.values() for d in each.values()),
            "refits": self.verdict.as_dict(),
            "negative": self.negative_note(),
            "seconds": self.seconds,
            "plan": None if self.plan is None else asdict(self.plan),
            "left_out": self.left_out(),
        }

    def write_artifacts(self, folder: Path) -> None:
        self.scores.save(folder / "neurons")
        self.mlp_scores.save(folder / "mlp_neurons")
        if self.window_scores is not self.scores:
            self.window_scores.save(folder / "window_neurons")
        self.directions.save(folder / "directions")
        if self.plan is not None:
            self.plan.save(folder / "plan.json")
        self.flips.to_jsonl(folder / "flips.jsonl")
        for name, part in self.observed.items():
            part.behaving.to_jsonl(folder / f"prompts_{name}.jsonl")

    def _top(self) -> float:
        """Which share of the neurons the published form chose; where it was not tried, 5 %."""
        for tested in self.sweep.tested:
            if tested.family.startswith(words.P1) and isinstance(tested.edit, ShiftNeurons):
                return tested.edit.top
        return 0.05
