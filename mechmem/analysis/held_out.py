"""What measurements on states share: unseen prompts, and rows of two classes."""

from __future__ import annotations

import numpy as np

from mechmem.analysis.directions import Directions
from mechmem.caching.activations import Activations
from mechmem.errors import PromptError
from mechmem.models.tokenizing import TokenizedPrompt


def refuse_seen_states(directions: Directions, acts: Activations, purpose: str) -> None:
    """Refuse states of prompts that the directions have seen.

    Raises:
        LeakageError: Naming the prompts.
    """
    tokenized = [
        TokenizedPrompt(name, ids, {})
        for name, ids in zip(acts.prompts.ids, acts.token_ids, strict=True)
    ]
    directions.provenance.seen.refuse(acts.prompts, tokenized, purpose)


def own_by(directions: Directions, by: str | None) -> str:
    """What classes go by: as asked, else as the directions were fitted."""
    return by or directions.provenance.by or "behavior"


def rows_of_two(
    directions: Directions, acts: Activations, by: str | None
) -> tuple[list[int], np.ndarray]:
    """Rows of the directions' two classes, and whether each is of the class pointed to; by default
    by what the directions were fitted by.

    Raises:
        PromptError: When a class is missing.
    """
    first = next(iter(directions))
    by = own_by(directions, by)
    names = acts.classes(by, required=1)
    rows = [k for k, name in enumerate(names) if name in (first.toward, first.away)]
    positive = np.array([names[k] == first.toward for k in rows], dtype=bool)
    if positive.all() or not positive.any():
        raise PromptError(
            f"Both {first.toward!r} and {first.away!r} are needed; these prompts show "
            f"{'neither' if not rows else 'one'} of them by {by}."
        )
    return rows, positive
