"""`steering_grid`: an outcome by layer and strength, both signs on both classes, with controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechmem.analysis.directions import Direction, Directions
from mechmem.analysis.intervals import group_mean
from mechmem.caching.activations import class_names
from mechmem.caching.provenance import Seen
from mechmem.errors import EditError, TaskError, did_you_mean, listed
from mechmem.evaluation.behavior import Observations, observe
from mechmem.evaluation.controls import controls
from mechmem.evaluation.rates import check_before
from mechmem.models.model import Model
from mechmem.models.tokens import PromptsLike, as_prompts
from mechmem.patching.apply import patched
from mechmem.patching.base import Edit
from mechmem.patching.directions import AddDirection, ScaleProjection
from mechmem.tasks.base import Task

__all__ = ["SteeringGrid", "add", "scale_everywhere", "steering_grid"]

Make = Callable[[Direction, float], Edit]


def add(direction: Direction, alpha: float) -> Edit:
    """``h + alpha r`` at the direction's own site, at every position; negative: toward the other
    class."""
    other = direction.toward if alpha >= 0 else direction.away
    return AddDirection(direction, alpha=abs(alpha), toward=other)


def scale_everywhere(direction: Direction, alpha: float) -> Edit:
    """``h + alpha (h . r^) r^`` at every site of every block: P2's released code."""
    return ScaleProjection(direction, scale=alpha, at="everywhere")


@dataclass(frozen=True)
class SteeringGrid:
    """Share of one outcome per site, strength and class of prompt.

    Attributes:
        rows: Per site, signed strength, class and kind (``edit`` or ``random direction``): the
            share with a 95 % interval, and its paired change against the unedited model. Strength 0
            is the unedited model. Rows of the edit carry ``beyond``: its share minus that of the
            random directions of the same length, paired prompt by prompt.
        outcome: What was counted.
        toward: The class that positive strengths push to.
        draws: Random directions averaged per cell.
        seen: Everything that fitting and this measurement have seen: what is chosen from this grid
            must not be reported on these prompts.
    """

    rows: pd.DataFrame
    outcome: str
    toward: str
    draws: int
    seen: Seen

    def table(self) -> pd.DataFrame:
        """One row per site, strength, class and kind."""
        return self.rows.assign(outcome=self.outcome, toward=self.toward, draws=self.draws)


def steering_grid(
    model: Model,
    directions: Directions,
    prompts: PromptsLike,
    *,
    alphas: Sequence[float] = (1.0, 2.0, 4.0),
    task: Task | None = None,
    outcome: str | None = None,
    by: str = "label",
    make: Make = add,
    draws: int = 1,
    before: Observations | None = None,
    seed: int = 0,
    allow_seen: bool = False,
    progress: Callable[[str], None] | None = None,
) -> SteeringGrid:
    """Accuracy (or another outcome) under edits along each site's direction.

    Every strength is tried with both signs on both classes: the sign that helps one class depends
    on the label, which nobody has at inference time.

    Args:
        model: The unedited model.
        directions: Each is tried alone, at its own site.
        prompts: Unseen by the directions.
        alphas: Sizes above 0; the negative ones are added.
        task: Reads the completions.
        outcome: Which outcome to count; default the task's first (``"correct"`` of questions).
        by: ``"label"`` or ``"behavior"``: the classes that are shown apart. Prompts without a class
            count as ``"all"``.
        make: From a direction and a signed strength to an edit: `add` or `scale_everywhere`, or
            your own.
        draws: Random directions per cell, of the same length; 0 for none.
        before: Observations of the unedited model on the same prompts.
        seed: Keys the resampling; random direction k is that of ``controls(..., seed=seed + k)``.
        allow_seen: Measure on fitted prompts all the same.
        progress: Called with a line per site and strength.

    Raises:
        LeakageError: When the directions have seen a prompt or a group of the set.
        EditError: For strengths that are not above 0.
        TaskError: For an unknown outcome.
        PromptError: When ``before`` was observed on other prompts or on another model.
    """
    asked = as_prompts(prompts).require("steer")
    sizes = sorted({float(alpha) for alpha in alphas})
    if not sizes or sizes[0] <= 0:
        raise EditError(f"alphas must be numbers above 0, got {list(alphas)!r}; both signs follow.")
    fitted = directions.provenance.seen
    if not allow_seen:
        fitted.refuse(asked, model.tokenize(asked), "evaluate an edit")
    start = observe(model, asked, task=task, margins=False) if before is None else before
    check_before(start, model, asked, model.tokenize(asked))
    counted = start.allowed[0] if outcome is None else outcome
    if counted not in start.allowed:
        raise TaskError(
            f"Unknown outcome {counted!r}; this task has {listed(start.allowed)}."
            f"{did_you_mean(counted, start.allowed)}"
        )
    names = np.array([name or "all" for name in class_names(asked, by)])
    groups = np.array(asked.groups)
    plain = _hits(start, counted)

    def run(edit: Edit) -> np.ndarray:
        with patched(model, edit) as view:
            return _hits(observe(view, asked, task=task, margins=False), counted)

    rows: list[dict[str, object]] = []
    for direction in directions:
        if direction.norm == 0:
            continue
        for alpha in sorted([*(-size for size in sizes), 0.0, *sizes]):
            edited = plain if alpha == 0 else run(make(direction, alpha))
            kinds = {"edit": edited}
            if draws and alpha == 0:  # strength 0 is the unedited model along any direction
                kinds["random direction"] = plain
            elif draws:
                edits = [
                    controls(make(direction, alpha), model, seed=seed + k)["random direction"]
                    for k in range(draws)
                ]
                kinds["random direction"] = np.mean([run(edit) for edit in edits], axis=0)
            for kind, hits in kinds.items():
                for name in sorted(set(names.tolist())):
                    mine = names == name
                    cell = _cell(hits[mine], plain[mine], groups[mine].tolist(), seed)
                    if kind == "edit" and len(kinds) == 2 and alpha != 0:
                        difference = (hits - kinds["random direction"])[mine]
                        beyond = group_mean(difference, groups[mine].tolist(), kind="change")
                        cell |= {"beyond": beyond.value, "beyond_low": beyond.low}
                        cell |= {"beyond_high": beyond.high}
                    site = {"stream": direction.site.stream, "layer": direction.site.layer}
                    rows.append({**site, "alpha": alpha, "kind": kind, "class": name, **cell})
            if progress is not None:
                progress(f"{direction.site}, alpha {alpha:g}")
    if not rows:
        raise EditError("Every direction is zero, so there is nothing to steer along.")
    seen = fitted | Seen.of(asked, model.tokenize(asked))
    toward = next(iter(directions)).toward
    return SteeringGrid(pd.DataFrame(rows), counted, toward, draws, seen)


def _cell(
    hits: np.ndarray, plain: np.ndarray, groups: list[str], seed: int
) -> dict[str, float | int]:
    share = group_mean(hits, groups, kind="share")
    change = group_mean(hits - plain, groups, kind="change")
    return {
        "share": share.value,
        "low": share.low,
        "high": share.high,
        "change": change.value,
        "change_low": change.low,
        "change_high": change.high,
        "n": share.n,
        "groups": share.groups,
    }


def _hits(seen: Observations, outcome: str) -> np.ndarray:
    return np.array([name == outcome for name in seen.outcomes], dtype=float)
