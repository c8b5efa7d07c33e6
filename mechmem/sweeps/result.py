"""What a sweep found: every edit on validation, the winners and their controls on test."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.caching.provenance import Seen
from mechmem.evaluation.behavior import Observations
from mechmem.evaluation.rates import Rates
from mechmem.patching.base import Edit


@dataclass(frozen=True)
class Cell:
    """One edit of the grid on the validation prompts."""

    family: str
    edit: Edit
    rates: Mapping[str, Rates]
    score: float


@dataclass(frozen=True)
class Tested:
    """A winner on the test prompts, beside its controls.

    Attributes:
        family: The family it won.
        edit: The winner.
        rates: Per class steered to.
        controls: Per class steered to and control name, one `Rates` per draw.
        counts: Per class steered to, the outcome that counts as having got there.
    """

    family: str
    edit: Edit
    rates: Mapping[str, Rates]
    controls: Mapping[str, Mapping[str, Sequence[Rates]]]
    counts: Mapping[str, str] = field(default_factory=dict)

    def goal(self, toward: str) -> str:
        """The outcome that counts when steering toward a class."""
        return self.counts.get(toward, toward)

    def control_share(self, toward: str, name: str, outcome: str) -> Estimate:
        """Share under a control, averaged over its draws."""
        return self._averaged(self.controls[toward][name], outcome, None)

    def beyond(self, toward: str, name: str, outcome: str | None = None) -> Estimate:
        """Share under the edit minus share under a control (averaged over its draws), paired
        prompt by prompt; default outcome: the one that counts (`goal`)."""
        goal = outcome or self.goal(toward)
        return self._averaged(self.controls[toward][name], goal, self.rates[toward])

    def beyond_every_control(self, toward: str) -> Estimate:
        """`beyond` for the control that it beats by least."""
        return min(
            (self.beyond(toward, name) for name in self.controls[toward]),
            key=lambda estimate: estimate.low,
        )

    def turned(self, toward: str, start: str, name: str | None = None) -> dict[str, Estimate]:
        """What became of the prompts that were ``start`` without the edit: shares of the outcomes
        among them, under the edit or under a control (averaged over its draws). P1's own measure.
        """
        draws = [self.rates[toward]] if name is None else self.controls[toward][name]
        before = draws[0].before
        assert before is not None  # a sweep always has it
        rows = np.flatnonzero(_hits(before, start))
        groups = [before.prompts[int(k)].group for k in rows]
        return {
            outcome: group_mean(
                np.mean([_hits(draw.after, outcome)[rows] for draw in draws], axis=0),
                groups,
                kind="share",
            )
            for outcome in before.allowed
        }

    def _averaged(self, draws: Sequence[Rates], outcome: str, edited: Rates | None) -> Estimate:
        values = np.mean([_hits(draw.after, outcome) for draw in draws], axis=0)
        groups = draws[0].after.prompts.groups
        if edited is None:
            return group_mean(values, groups, kind="share")
        return group_mean(_hits(edited.after, outcome) - values, groups, kind="change")


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        cells: Every edit on the validation prompts.
        tested: The winner of every family on the test prompts, best validation score first.
        before: Observations of the unedited model on the test prompts.
        seen: Everything that fitting and choosing has seen.
        checked: Cells that were compared with a fresh run of their own, hooks on: the largest
            ``difference`` of their logits, in units of the spread of a prompt's logits.
        refits: For every refit on exchanged classes what `tested` is for the grid, but no controls.
    """

    cells: Sequence[Cell]
    tested: Sequence[Tested]
    before: Observations
    seen: Seen
    checked: pd.DataFrame = field(default_factory=pd.DataFrame)
    refits: Sequence[Sequence[Tested]] = ()

    @property
    def best(self) -> Tested:
        """The winner over all families, chosen on validation."""
        return self.tested[0]

    def table(self) -> pd.DataFrame:
        """Validation: one row per edit and class steered to."""
        rows = []
        for cell in self.cells:
            for toward, rates in cell.rates.items():
                row = {"family": cell.family, **cell.edit.describe(), "toward": toward}
                row |= {name: rates.share(name).value for name in rates.after.allowed}
                rows.append({**row, "score": cell.score})
        return pd.DataFrame(rows)

    def test_table(self) -> pd.DataFrame:
        """Test: unedited, every winner and every control, with intervals and paired differences."""
        rows: list[dict[str, Any]] = []
        plain = Rates(self.before)
        rows.append(
            {"family": "", "setting": "unedited", "toward": "", **_shares(plain.share, plain)}
        )
        for tested in self.tested:
            for toward, rates in tested.rates.items():
                change = rates.change(tested.goal(toward))
                rows.append(
                    {
                        "family": tested.family,
                        "setting": "edit",
                        "toward": toward,
                        **_shares(rates.share, rates),
                        "change": change.value,
                        "change_low": change.low,
                        "change_high": change.high,
                    }
                )
                for name in tested.controls[toward]:
                    beyond = tested.beyond(toward, name)

                    def share(
                        outcome: str,
                        tested: Tested = tested,
                        toward: str = toward,
                        name: str = name,
                    ) -> Estimate:
                        return tested.control_share(toward, name, outcome)

                    rows.append(
                        {
                            "family": tested.family,
                            "setting": name,
                            "toward": toward,
                            **_shares(share, rates),
                            "edit_minus_control": beyond.value,
                            "edit_minus_control_low": beyond.low,
                            "edit_minus_control_high": beyond.high,
                        }
                    )
        return pd.DataFrame(rows)

    def turned_table(self) -> pd.DataFrame:
        """Test: what became of the prompts that did the other behavior before, by edit and control.

        One row per family, class steered to, setting and outcome; P1 reports its intervention so.
        """
        rows = []
        for tested in self.tested:
            for toward in tested.rates:
                for start in tested.rates:
                    if start == toward or start not in self.before.outcomes:
                        continue
                    for name in (None, *tested.controls[toward]):
                        for outcome, share in tested.turned(toward, start, name).items():
                            rows.append(
                                {
                                    "family": tested.family,
                                    "setting": name or "edit",
                                    "toward": toward,
                                    "before": start,
                                    "outcome": outcome,
                                    "share": share.value,
                                    "low": share.low,
                                    "high": share.high,
                                    "n": share.n,
                                    "groups": share.groups,
                                }
                            )
        return pd.DataFrame(rows)


def _hits(seen: Observations, outcome: str) -> np.ndarray:
    return np.array([name == outcome for name in seen.outcomes], dtype=float)


def _shares(share: Callable[[str], Estimate], rates: Rates) -> dict[str, float]:
    row: dict[str, float] = {}
    for outcome in rates.after.allowed:
        estimate = share(outcome)
        row |= {
            outcome: estimate.value,
            f"{outcome}_low": estimate.low,
            f"{outcome}_high": estimate.high,
        }
    return {**row, "n": len(rates.after), "groups": len(set(rates.after.prompts.groups))}
