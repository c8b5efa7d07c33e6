"""`margin_response`: is a shift a switch or a dial? The answer margin against the strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mechmem.analysis.draws import DRAWS, Beyond, beyond_draws, mean_of_draws
from mechmem.analysis.intervals import Estimate, IntervalKind, group_mean
from mechmem.errors import EditError
from mechmem.evaluation.behavior import hits, observe
from mechmem.evaluation.controls import draws_of_one, size_of
from mechmem.evaluation.many_edits import evaluate_each
from mechmem.evaluation.shared import (
    behaviors_of,
    need_margins,
    refuse_seen,
    sign_toward,
    steered,
)
from mechmem.models.model import Model
from mechmem.models.tokenizing import PromptsLike
from mechmem.numeric import MOST, finite_numbers, whole_number
from mechmem.patching.base import Edit
from mechmem.tasks.base import Task

DOSES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


@dataclass(frozen=True)
class MarginResponse:
    """Margin and label over a range of strengths.

    Attributes:
        alphas: Strengths, from 0 upwards.
        change: ``change[toward][kind][k]``: mean change of the answer margin toward the class, in
            nats; kind is ``"edit"`` or ``"control"`` (over its draws).
        beyond: ``beyond[toward][k]``: the edit's change minus the control's.
        share: The same for the share of prompts that came out as the class.
        spread: Middle 80 % over prompts of the change of the margin, ``(low, high)`` per strength.
        largest_step: Of the way that a prompt's margin goes over all strengths, the share that
            falls into its largest single step, averaged over prompts. 1 would be a switch.
        steady_step: What a margin that moves in proportion to the strength would give.
        linearity: Squared correlation of a prompt's margin with the strength, averaged.
        control: Name of the control.
    """

    alphas: tuple[float, ...]
    change: Mapping[str, Mapping[str, tuple[Estimate, ...]]]
    share: Mapping[str, Mapping[str, tuple[Estimate, ...]]]
    spread: Mapping[str, Mapping[str, tuple[tuple[float, float], ...]]]
    largest_step: Mapping[str, Estimate]
    steady_step: float
    linearity: Mapping[str, Estimate]
    control: str
    beyond: Mapping[str, tuple[Beyond, ...]]

    def table(self) -> pd.DataFrame:
        """One row per class steered to, kind and strength."""
        rows: list[dict[str, Any]] = []
        for toward, kinds in self.change.items():
            for kind, changes in kinds.items():
                for k, alpha in enumerate(self.alphas):
                    low, high = self.spread[toward][kind][k]
                    rows.append(
                        {
                            "toward": toward,
                            "kind": kind,
                            "alpha": alpha,
                            **changes[k].row("change", counted=False),
                            "spread_low": low,
                            "spread_high": high,
                            **self.share[toward][kind][k].row("share", counted=False),
                            **(self.beyond[toward][k].row() if kind == "edit" else {}),
                            "n": changes[k].n,
                            "groups": changes[k].groups,
                        }
                    )
        return pd.DataFrame(rows)

    def summary(self) -> pd.DataFrame:
        """One row per class steered to: how gradual the margin moves."""
        return pd.DataFrame(
            [
                {
                    "toward": toward,
                    **step.row("largest_step", counted=False),
                    "steady_step": self.steady_step,
                    **self.linearity[toward].row("linearity", counted=False),
                    "n": step.n,
                    "groups": step.groups,
                }
                for toward, step in self.largest_step.items()
            ]
        )


def margin_response(
    model: Model,
    edit: Edit,
    prompts: PromptsLike,
    *,
    task: Task | None = None,
    doses: Sequence[float] = DOSES,
    toward: Sequence[str] | None = None,
    control: str | None = None,
    draws: int = DRAWS,
    allow_seen: bool = False,
    seed: int = 0,
) -> MarginResponse:
    """The answer margin and the label over multiples of the edit's own ``alpha``.

    A label can only be one or the other, so a share that rises steadily says nothing about the
    single prompt. The margin of every prompt does: it moves in one step, or little by little.

    Args:
        model: The unedited model.
        edit: With ``alpha`` and ``toward``, such as `ShiftNeurons` or `AddDirection`.
        prompts: With `memorized` and `generalized`; none of them seen in making the edit.
        task: Reads the completions.
        doses: Multiples of the edit's alpha, rising; 0 is added.
        toward: Classes to steer to; default the task's two behaviors.
        control: Name of the control beside it; default random neurons or a random direction of
            the same size.
        draws: Draws of the control.
        allow_seen: Measure on fitted prompts all the same.
        seed: Keys control and resampling.

    Raises:
        LeakageError: When the edit has seen a prompt or a group of the set.
        EditError: For an edit without ``alpha`` or ``toward``, fewer than two strengths, or
            no draws.
    """
    whole_number(draws, "draws", most=MOST, error=EditError)
    steps = sorted({0.0, *finite_numbers(doses, "doses", error=EditError)})
    if len(steps) < 2 or steps[0] < 0:
        raise EditError(f"doses must be positive multiples of alpha, got {tuple(steps)}.")
    asked = model.encode(prompts, "measure the response")
    dosed: Any = edit
    if not hasattr(dosed, "alpha") or not dosed.alpha:
        raise EditError(
            f"{type(edit).__name__} needs an alpha other than 0 to be dosed; for example "
            "mm.ShiftNeurons(scores, alpha=1.0)."
        )
    if not allow_seen:
        refuse_seen(edit, asked, "measure the response to an edit")
    start = observe(model, asked, task=task)
    rows = need_margins(start.margins, "The response of the margin")
    groups = [asked[int(row)].group for row in rows]
    change: dict[str, dict[str, tuple[Estimate, ...]]] = {}
    share: dict[str, dict[str, tuple[Estimate, ...]]] = {}
    spread: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {}
    largest, linear, used = {}, {}, ""
    further: dict[str, tuple[Beyond, ...]] = {}
    for target in toward or behaviors_of(task):
        sign = sign_toward(target, task)
        aimed: Any = steered(edit, target)
        used, mixed = draws_of_one(aimed, model, draws=draws, seed=seed, name=control)
        every: list[Any] = [aimed, *mixed]
        plan = [replace(one, alpha=aimed.alpha * dose) for dose in steps if dose for one in every]
        done = iter(evaluate_each(model, asked, plan, task=task, before=start, allow_seen=True))
        # [strength][edit or draw], each over the rows with a margin
        seen = [[next(done).after if dose else start for _ in every] for dose in steps]
        margins = [
            np.stack([sign * (one.margins - start.margins)[rows] for one in row]) for row in seen
        ]
        labels = [np.stack([hits(one, target)[rows] for one in row]) for row in seen]
        change[target] = _both(margins, groups, "mean")
        share[target] = _both(labels, groups, "share")
        parts = {"edit": [m[:1] for m in margins], "control": [m[1:] for m in margins]}
        spread[target] = {
            kind: tuple((float(np.quantile(m, 0.1)), float(np.quantile(m, 0.9))) for m in part)
            for kind, part in parts.items()
        }
        further[target] = tuple(
            beyond_draws(
                m[0], m[1:], groups, kind="mean",
                sizes=(row[0].moved, size_of(row[1:])) if dose else (0.0, 0.0),
            )
            for m, row, dose in zip(margins, seen, steps, strict=True)
        )  # fmt: skip
        way = np.stack([m[0] for m in margins])
        largest[target] = group_mean(_largest_step(way), groups, kind="share")
        linear[target] = group_mean(_linearity(way, np.array(steps)), groups, kind="share")
    gaps = np.diff(steps)
    return MarginResponse(
        tuple(dosed.alpha * dose for dose in steps),
        change,
        share,
        spread,
        largest,
        float(gaps.max() / gaps.sum()),
        linear,
        used,
        further,
    )


def _both(
    values: Sequence[np.ndarray], groups: Sequence[str], kind: IntervalKind
) -> dict[str, tuple[Estimate, ...]]:
    """Of the edit (first row) and of its draws (the others), at every strength."""
    return {
        "edit": tuple(group_mean(one[0], groups, kind=kind) for one in values),
        "control": tuple(mean_of_draws(one[1:], groups, kind=kind) for one in values),
    }


def _largest_step(way: np.ndarray) -> np.ndarray:
    steps = np.abs(np.diff(way, axis=0))
    total = steps.sum(0)
    out: np.ndarray = steps.max(0) / np.where(total > 0, total, np.inf)
    return out


def _linearity(way: np.ndarray, alphas: np.ndarray) -> np.ndarray:
    x, y = alphas - alphas.mean(), way - way.mean(0)
    spread = (y**2).sum(0) * (x**2).sum()
    out: np.ndarray = (x @ y) ** 2 / np.where(spread > 0, spread, np.inf)
    return out
