"""The table that the terminal shows and the page begins with."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pandas as pd

from mechmem.analysis.intervals import Estimate
from mechmem.evaluation.rates import Rates
from mechmem.studies.behavior.results import BehaviorResults
from mechmem.sweeps.result import Tested

__all__ = ["summary_table"]

DASH = "–"
CLEAN, BEYOND = "clean accuracy %", "edit minus control, points"


def summary_table(study: BehaviorResults) -> pd.DataFrame:
    """What the terminal shows: unedited, the chosen edit both ways, each control, the paper's edit.

    Cells are text: percentages with 95 % intervals. The edit minus a control is the share steered
    to, paired by prompt; for families that were not chosen, the control that they beat by least.
    """
    best = study.sweep.best
    plain = Rates(study.sweep.before, seed=study.seed)
    clean = _records(study.clean)
    outcomes = plain.after.allowed
    rows = [
        {
            "setting": "unedited",
            **_shares(plain.share, outcomes),
            CLEAN: _clean(clean, "unedited"),
            BEYOND: DASH,
        }
    ]
    for toward in reversed(list(best.rates)):
        rows.append(
            {
                "setting": f"toward {toward}",
                **_shares(best.rates[toward].share, outcomes),
                CLEAN: _clean(clean, f"toward {toward}"),
                BEYOND: DASH,
            }
        )
        for control in best.controls[toward]:
            rows.append(
                {
                    "setting": f"  control: {control}",
                    **_shares(partial(best.control_share, toward, control), outcomes),
                    CLEAN: DASH,
                    BEYOND: _cell(best.beyond(toward, control), signed=True),
                }
            )
    for tested in study.sweep.tested[1:]:
        rows += _other_family(tested, outcomes)
    return pd.DataFrame(rows)


def _other_family(tested: Tested, outcomes: tuple[str, ...]) -> list[dict[str, str]]:
    """The winner of a family that was not chosen, beside the strongest of its controls."""
    return [
        {
            "setting": f"{tested.family}, toward {toward}",
            **_shares(rates.share, outcomes),
            CLEAN: DASH,
            BEYOND: _cell(tested.beyond_every_control(toward), signed=True),
        }
        for toward, rates in reversed(list(tested.rates.items()))
    ]


def _cell(estimate: Estimate, signed: bool = False) -> str:
    value, low, high = (100 * part for part in (estimate.value, estimate.low, estimate.high))
    if signed:
        return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _clean(clean: dict[Any, Any], setting: str) -> str:
    row = clean.get(setting)
    if row is None:
        return DASH
    return f"{100 * row['accuracy']:.1f} [{100 * row['low']:.1f}, {100 * row['high']:.1f}]"


def _records(clean: pd.DataFrame) -> dict[Any, Any]:
    return {} if clean.empty else {row["setting"]: row for row in clean.to_dict("records")}


def _shares(share: Callable[[str], Estimate], outcomes: tuple[str, ...]) -> dict[str, str]:
    return {f"{name} %": _cell(share(name)) for name in outcomes}
