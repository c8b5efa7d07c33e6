"""`steering_grid`: an outcome by layer and strength, both signs on both classes, with controls."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechmem.analysis.directions import Direction, Directions
from mechmem.analysis.draws import DRAWS
from mechmem.caching.activations import class_names
from mechmem.caching.provenance import Seen
from mechmem.errors import EditError, TaskError, did_you_mean, listed
from mechmem.evaluation.behavior import Observations, observe
from mechmem.evaluation.controls import (
    beyond,
    change_of_draws,
    draws_of_one,
    share_of_draws,
    size_of,
)
from mechmem.evaluation.many_edits import evaluate_each
from mechmem.evaluation.rates import check_before
from mechmem.models.model import Model
from mechmem.models.tokenizing import PromptsLike
from mechmem.numeric import MOST, finite_numbers, whole_number
from mechmem.patching.base import Edit
from mechmem.patching.directions import AddDirection
from mechmem.patching.projections import ScaleProjection
from mechmem.tasks.base import Task

RANDOM = "random direction"
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
        rows: Per site, signed strength, class and kind (``edit``, or ``control``: a random
            direction): the share with a 95 % interval, and its paired change against the unedited
            model. Strength 0 is the unedited model. Rows of the edit carry ``beyond``: its
            share minus that of the random directions of the same size, with what
            `mechmem.analysis.draws.Beyond` holds.
        outcome: What was counted.
        toward: The class that positive strengths push to.
        draws: Random directions per cell.
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
    draws: int = DRAWS,
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
        draws: Random directions per cell, of the same size; 0 for none.
        before: Observations of the unedited model on the same prompts.
        seed: Keys the resampling; random direction k is that of ``controls(..., seed=seed + k)``.
        allow_seen: Measure on fitted prompts all the same.
        progress: Called with a line per site and strength.

    Raises:
        LeakageError: When the directions have seen a prompt or a group of the set.
        EditError: For strengths that are not above 0, or draws that are no number of them.
        TaskError: For an unknown outcome.
        PromptError: When ``before`` was observed on other prompts or on another model.
    """
    sizes = sorted(set(finite_numbers(alphas, "alphas", above=0, error=EditError)))
    whole_number(draws, "draws", 0, most=MOST, error=EditError)
    asked = model.encode(prompts, "steer")
    fitted = directions.provenance.seen
    if not allow_seen:
        fitted.refuse(asked, asked.rows, "evaluate an edit")
    start = observe(model, asked, task=task, margins=False) if before is None else before
    check_before(start, model, asked, asked.rows)
    counted = start.allowed[0] if outcome is None else outcome
    if counted not in start.allowed:
        raise TaskError(
            f"Unknown outcome {counted!r}; this task has {listed(start.allowed)}."
            f"{did_you_mean(counted, start.allowed)}"
        )
    names = np.array([name or "all" for name in class_names(asked, by)])

    rows: list[dict[str, object]] = []
    strengths = sorted([*(-size for size in sizes), 0.0, *sizes])
    for direction in directions:
        if direction.norm == 0:
            continue
        edits = {alpha: make(direction, alpha) for alpha in strengths if alpha}
        drawn = {
            alpha: draws_of_one(edit, model, draws=draws, seed=seed, name=RANDOM)[1]
            for alpha, edit in edits.items()
            if draws
        }
        every = [one for alpha, edit in edits.items() for one in (edit, *drawn.get(alpha, ()))]
        done = iter(
            evaluate_each(
                model, asked, every, task=task, before=start, allow_seen=True, margins=False
            )
        )
        for alpha in strengths:
            # Strength 0 is the unedited model along any direction.
            edited = next(done).after if alpha else start
            others = [next(done).after if alpha else start for _ in range(draws)]
            for kind, many in (("edit", [edited]), ("control", others)):
                for name in sorted(set(names.tolist())) if many else ():
                    mine = np.flatnonzero(names == name)
                    cell = _cell(many, start, counted, mine, kind == "control" and alpha != 0)
                    if kind == "edit" and others and alpha:
                        cell |= beyond(edited, others, counted, rows=mine).row()
                    site = {"stream": direction.site.stream, "layer": direction.site.layer}
                    which = RANDOM if kind == "control" else ""
                    about = {"alpha": alpha, "kind": kind, "control": which, "class": name}
                    rows.append({**site, **about, **cell})
            if progress is not None:
                progress(f"{direction.site}, alpha {alpha:g}")
    if not rows:
        raise EditError("Every direction is zero, so there is nothing to steer along.")
    seen = fitted | Seen.of(asked, asked.rows)
    toward = next(iter(directions)).toward
    return SteeringGrid(pd.DataFrame(rows), counted, toward, draws, seen)


def _cell(
    seen: Sequence[Observations],
    start: Observations,
    outcome: str,
    mine: np.ndarray,
    drawn: bool,
) -> dict[str, float | int]:
    share = share_of_draws(seen, outcome, rows=mine, drawn=drawn)
    change = change_of_draws(seen, start, outcome, rows=mine, drawn=drawn)
    return {
        **share.row("share", counted=False),
        **change.row("change", counted=False),
        "n": share.n,
        "groups": share.groups,
        "size": size_of(seen),
    }
