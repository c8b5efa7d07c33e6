"""`margin_response`: is a shift a switch or a dial? The answer margin against the strength."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd

from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.errors import EditError
from mechmem.evaluation.behavior import observe
from mechmem.evaluation.rows import (
    hits,
    need_margins,
    numbers,
    one_control,
    refuse_seen,
    sign_toward,
    steered,
)
from mechmem.models.model import Model
from mechmem.models.tokens import PromptsLike, as_prompts
from mechmem.patching.apply import patched
from mechmem.patching.base import Edit
from mechmem.tasks.base import BEHAVIORS, Task

__all__ = ["MarginResponse", "margin_response"]

DOSES = (0.0, 0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 1.75, 2.0)


@dataclass(frozen=True)
class MarginResponse:
    """Margin and label over a range of strengths.

    Attributes:
        alphas: Strengths, from 0 upwards.
        change: ``change[toward][kind][k]``: mean change of the answer margin toward the class, in
            nats; kind is ``"edit"`` or ``"control"``.
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
                            **numbers(changes[k], "change"),
                            "spread_low": low,
                            "spread_high": high,
                            **numbers(self.share[toward][kind][k], "share"),
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
                    **numbers(step, "largest_step"),
                    "steady_step": self.steady_step,
                    **numbers(self.linearity[toward], "linearity"),
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
    toward: Sequence[str] = BEHAVIORS,
    control: str | None = None,
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
        toward: Classes to steer to.
        control: Name of the control beside it; default random neurons or a random direction of
            the same length.
        allow_seen: Measure on fitted prompts all the same.
        seed: Keys control and resampling.

    Raises:
        LeakageError: When the edit has seen a prompt or a group of the set.
        EditError: For an edit without ``alpha`` or ``toward``, or fewer than two strengths.
    """
    asked = as_prompts(prompts).require("measure the response")
    dosed: Any = edit
    if not hasattr(dosed, "alpha") or not dosed.alpha:
        raise EditError(
            f"{type(edit).__name__} needs an alpha other than 0 to be dosed; for example "
            "mm.ShiftNeurons(scores, alpha=1.0)."
        )
    steps = sorted({0.0, *(float(dose) for dose in doses)})
    if len(steps) < 2 or steps[0] < 0:
        raise EditError(f"doses must be positive multiples of alpha, got {tuple(doses)}.")
    if not allow_seen:
        refuse_seen(model, edit, asked, "measure the response to an edit")
    start = observe(model, asked, task=task)
    rows = need_margins(start.margins, "The response of the margin")
    groups = [asked[int(row)].group for row in rows]
    change: dict[str, dict[str, tuple[Estimate, ...]]] = {}
    share: dict[str, dict[str, tuple[Estimate, ...]]] = {}
    spread: dict[str, dict[str, tuple[tuple[float, float], ...]]] = {}
    largest, linear, used = {}, {}, ""
    for target in toward:
        sign = sign_toward(target)
        aimed: Any = steered(edit, target)
        used, placebo = one_control(aimed, model, seed, control)
        change[target], share[target], spread[target] = {}, {}, {}
        for kind, item in (("edit", aimed), ("control", placebo)):
            margins, labels = [], []
            for dose in steps:
                seen = start
                if dose:
                    stronger: Any = item
                    with patched(model, replace(stronger, alpha=aimed.alpha * dose)) as view:
                        seen = observe(view, asked, task=task)
                margins.append(sign * (seen.margins - start.margins)[rows])
                labels.append(hits(seen, target)[rows])
            change[target][kind] = tuple(group_mean(m, groups, kind="mean") for m in margins)
            share[target][kind] = tuple(group_mean(m, groups, kind="share") for m in labels)
            spread[target][kind] = tuple(
                (float(np.quantile(m, 0.1)), float(np.quantile(m, 0.9))) for m in margins
            )
            if kind == "edit":
                way = np.stack(margins)
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
    )


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
