"""The table that the terminal shows and the page begins with, and the one beside it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pandas as pd

from mechmem.analysis.draws import Beyond
from mechmem.analysis.intervals import Estimate
from mechmem.evaluation.rates import Rates
from mechmem.studies.words import DASH, estimate_of, hundredths
from mechmem.sweeps.result import Sweep, Tested

CLEAN, BEYOND = "clean accuracy %", "edit minus control, points"
DRAWS, MOVED = "draws, spread in points", "moved by edit, control"


def summary_table(found: Sweep, clean: pd.DataFrame) -> pd.DataFrame:
    """What the terminal shows: unedited, the chosen edit both ways, each control, the paper's edit.

    Cells are text: percentages with 95 % intervals. The edit minus a control is the share steered
    to, paired by prompt; for families that were not chosen, the control that they beat by least.
    Beside it stand how many draws the control had, the standard deviation between their shares, and
    how far edit and control moved a state.
    """
    best = found.best
    plain = Rates(found.before)
    accuracy = {str(row["setting"]): row for row in clean.to_dict("records")}
    outcomes = plain.after.allowed
    rows = [_row("unedited", plain.share, outcomes, clean=_clean(accuracy, "unedited"))]
    for toward in reversed(list(best.rates)):
        setting = f"toward {toward}"
        share = best.rates[toward].share
        rows.append(_row(setting, share, outcomes, clean=_clean(accuracy, setting)))
        for control in best.controls[toward]:
            share = partial(best.control_share, toward, control)
            beyond = best.beyond(toward, control)
            rows.append(_row(f"  control: {control}", share, outcomes, beyond))
    for tested in found.tested[1:]:
        for toward, rates in reversed(list(tested.rates.items())):
            beyond = tested.beyond_every_control(toward)
            rows.append(_row(f"{tested.family}, toward {toward}", rates.share, outcomes, beyond))
    return pd.DataFrame(rows)


def beyond_table(tested: Sequence[Tested]) -> pd.DataFrame:
    """How far every family's winner goes beyond the control that it beats by least."""
    rows = []
    for one in tested:
        for toward in one.rates:
            gap = one.beyond_every_control(toward)
            rows.append(
                {
                    "family": one.family,
                    "toward": toward,
                    **gap.row("beyond_every_control", counted=False),
                    "beyond": gap.low > 0,
                    "n": gap.n,
                    "groups": gap.groups,
                    **one.edit.describe(),
                }
                | {"toward": toward}
            )
    return pd.DataFrame(rows)


def _row(
    setting: str,
    share: Callable[[str], Estimate],
    outcomes: tuple[str, ...],
    beyond: Beyond | None = None,
    clean: str = DASH,
) -> dict[str, str]:
    return {
        "setting": setting,
        **{f"{name} %": hundredths(share(name)) for name in outcomes},
        CLEAN: clean,
        BEYOND: DASH if beyond is None else hundredths(beyond, signed=True),
        DRAWS: DASH if beyond is None else _drawn(beyond),
        MOVED: DASH if beyond is None else f"{beyond.size:.3g}, {beyond.control_size:.3g}",
    }


def _drawn(beyond: Beyond) -> str:
    return str(beyond.draws) if beyond.draws < 2 else f"{beyond.draws}, {100 * beyond.spread:.1f}"


def _clean(accuracy: dict[str, dict[Any, Any]], setting: str) -> str:
    row = accuracy.get(setting)
    return DASH if row is None else hundredths(estimate_of(row, "accuracy"))
