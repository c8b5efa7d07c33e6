"""What measurements on states share: unseen prompts, rows of two classes, resampled groups."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from mechmem.analysis.directions import Directions
from mechmem.analysis.intervals import Estimate
from mechmem.caching.activations import Activations
from mechmem.errors import PromptError
from mechmem.models.tokens import TokenizedPrompt
from mechmem.seeding import keyed_rng

__all__ = ["group_draws", "refuse_seen", "resampled", "rows_of_two"]

DRAWS = 1000


def refuse_seen(directions: Directions, acts: Activations, purpose: str) -> None:
    """Refuse states of prompts that the directions have seen.

    Raises:
        LeakageError: Naming the prompts.
    """
    tokenized = [
        TokenizedPrompt(name, ids, {})
        for name, ids in zip(acts.prompts.ids, acts.token_ids, strict=True)
    ]
    directions.provenance.seen.refuse(acts.prompts, tokenized, purpose)


def rows_of_two(directions: Directions, acts: Activations, by: str) -> tuple[list[int], np.ndarray]:
    """Rows of the directions' two classes, and whether each is of the class pointed to.

    Raises:
        PromptError: When a class is missing.
    """
    first = next(iter(directions))
    names = acts.classes(by, required=1)
    rows = [k for k, name in enumerate(names) if name in (first.toward, first.away)]
    positive = np.array([names[k] == first.toward for k in rows], dtype=bool)
    if positive.all() or not positive.any():
        raise PromptError(
            f"Both {first.toward!r} and {first.away!r} are needed; these prompts show "
            f"{'neither' if not rows else 'one'} of them by {by}."
        )
    return rows, positive


def group_draws(groups: Sequence[str], seed: int, *names: object) -> list[np.ndarray]:
    """Rows of resampled data: whole groups drawn with replacement, `DRAWS` times."""
    members: dict[str, list[int]] = {}
    for row, group in enumerate(groups):
        members.setdefault(group, []).append(row)
    blocks = [np.array(rows) for rows in members.values()]
    rng = keyed_rng(seed, "group-draws", len(blocks), *names)
    drawn = rng.integers(len(blocks), size=(DRAWS, len(blocks)))
    return [np.concatenate([blocks[k] for k in row]) for row in drawn]


def resampled(
    statistic: Callable[[np.ndarray], float], groups: Sequence[str], draws: Sequence[np.ndarray]
) -> Estimate:
    """A statistic of rows with its 95 % percentile interval over resampled groups.

    Draws on which it is not defined (a class that is missing, no variation) are left out.
    """
    value = statistic(np.arange(len(groups)))
    values = np.array([statistic(rows) for rows in draws])
    values = values[np.isfinite(values)]
    low, high = np.quantile(values, [0.025, 0.975]) if len(values) else (np.nan, np.nan)
    return Estimate(float(value), float(low), float(high), len(groups), len(set(groups)))
