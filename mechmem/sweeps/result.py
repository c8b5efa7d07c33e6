"""What a sweep found: every edit on validation, the winners and their controls on test."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from mechmem.analysis.draws import Beyond
from mechmem.analysis.intervals import Estimate
from mechmem.caching.provenance import Seen
from mechmem.evaluation.behavior import Observations
from mechmem.evaluation.controls import beyond, share_of_draws
from mechmem.evaluation.rates import Rates
from mechmem.evaluation.shared import row_of
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
        return share_of_draws(
            self._draws(toward, name),
            outcome,
            drawn=name not in self.edit.settled,
        )

    def beyond(
        self,
        toward: str,
        name: str,
        outcome: str | None = None,
        *,
        rows: np.ndarray | None = None,
    ) -> Beyond:
        """Share under the edit minus share under a control, its draws a sample like the prompts;
        default outcome: the one that counts (`goal`), default ``rows``: all prompts."""
        return beyond(
            self.rates[toward].after,
            self._draws(toward, name),
            outcome or self.goal(toward),
            rows=rows,
            drawn=name not in self.edit.settled,
        )

    def beyond_every_control(self, toward: str) -> Beyond:
        """`beyond` for the control that it beats least surely: the one with the lowest lower bound,
        one that is not known before all."""
        return min(
            (self.beyond(toward, name) for name in self.controls[toward]),
            key=lambda estimate: -math.inf if math.isnan(estimate.low) else estimate.low,
        )

    def turned(self, toward: str, start: str, name: str | None = None) -> dict[str, Estimate]:
        """What became of the prompts that were ``start`` without the edit: shares of the outcomes
        among them, under the edit or under a control (averaged over its draws). P1's own measure.
        """
        edited = self.rates[toward]
        before = edited.before
        assert before is not None  # a sweep always has it
        draws = [edited.after] if name is None else self._draws(toward, name)
        rows = np.flatnonzero([outcome == start for outcome in before.outcomes])
        # A settled control has no other draws, so its one adds no spread of its own.
        drawn = name is not None and name not in self.edit.settled
        return {
            outcome: share_of_draws(draws, outcome, rows=rows, drawn=drawn)
            for outcome in before.allowed
        }

    def _draws(self, toward: str, name: str) -> list[Observations]:
        return [rates.after for rates in self.controls[toward][name]]


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
        rows.append({"family": "", **row_of("unedited"), **_shares(plain.share, plain)})
        for tested in self.tested:
            for toward, rates in tested.rates.items():
                change = rates.change(tested.goal(toward))
                rows.append(
                    {
                        "family": tested.family,
                        **row_of("edit", toward),
                        **_shares(rates.share, rates),
                        **change.row("change", counted=False),
                        "size": rates.after.moved,
                    }
                )
                for name in tested.controls[toward]:
                    gap = tested.beyond(toward, name)

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
                            **row_of("control", toward, name),
                            **_shares(share, rates),
                            **gap.row("edit_minus_control"),
                        }
                    )
        return pd.DataFrame(rows)

    def turned_table(self) -> pd.DataFrame:
        """Test: what became of the prompts that did the other behavior before, by edit and control.

        One row per family, class steered to, edit or control, and outcome: P1's own table. Rows of
        a control carry the edit's share minus its own, and what that was judged by.
        """
        rows = []
        for tested in self.tested:
            for toward in tested.rates:
                for start in tested.rates:
                    if start == toward or start not in self.before.outcomes:
                        continue
                    here = np.flatnonzero([outcome == start for outcome in self.before.outcomes])
                    for name in (None, *tested.controls[toward]):
                        for outcome, share in tested.turned(toward, start, name).items():
                            judged: dict[str, Any] = {"size": tested.rates[toward].after.moved}
                            if name is not None:
                                gap = tested.beyond(toward, name, outcome, rows=here)
                                judged = gap.row("edit_minus_control")
                            rows.append(
                                {
                                    "family": tested.family,
                                    **row_of("control" if name else "edit", toward, name or ""),
                                    "before": start,
                                    "outcome": outcome,
                                    **share.row("share"),
                                    **judged,
                                }
                            )
        return pd.DataFrame(rows)


def _shares(share: Callable[[str], Estimate], rates: Rates) -> dict[str, float]:
    row: dict[str, float] = {}
    for outcome in rates.after.allowed:
        row |= share(outcome).row(outcome, counted=False)
    return {**row, "n": len(rates.after), "groups": len(set(rates.after.prompts.groups))}
