"""Small helpers that the results of this room share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import numpy as np

from mechmem.caching.provenance import Seen
from mechmem.errors import EditError, MechmemError, PromptError, listed
from mechmem.models.tokenizing import EncodedPrompts
from mechmem.patching.base import Edit, as_edits
from mechmem.tasks.base import BEHAVIORS, Task


def behaviors_of(task: Task | None) -> tuple[str, str]:
    """What a task calls the two behaviors."""
    return BEHAVIORS if task is None else task.behaviors


def sign_toward(toward: str, task: Task | None) -> int:
    """The sign with which the answer margin moves toward a behavior.

    Raises:
        MechmemError: For something that is not a behavior of the task.
    """
    known = behaviors_of(task)
    if toward not in known:
        raise MechmemError(f"toward={toward!r} is not a behavior; say one of {listed(known)}.")
    return 1 if toward == known[0] else -1


def can_steer(edit: Edit) -> bool:
    """Whether the edit can be told which class to steer to."""
    return "toward" in {field.name for field in fields(edit)}  # type: ignore[arg-type]


def steered(edit: Edit, toward: str) -> Edit:
    """The same edit toward a class.

    Raises:
        EditError: For an edit that has no ``toward``.
    """
    if not can_steer(edit):
        raise EditError(
            f"{type(edit).__name__} cannot be steered toward a class; use ShiftNeurons, "
            "AddDirection or SetProjection, or evaluate it on its own: mm.evaluate(..., edit=...)."
        )
    changed: Any = edit
    return replace(changed, toward=toward)  # type: ignore[no-any-return]


def refuse_seen(edit: Edit | Sequence[Edit], prompts: EncodedPrompts, what: str) -> None:
    """Raise when one of the prompts, or a rephrasing, was seen in making an edit.

    Raises:
        LeakageError: Naming them.
    """
    seen = Seen()
    for item in as_edits(edit):
        seen = seen | item.seen
    seen.refuse(prompts, prompts.rows, what)


def row_of(kind: str, toward: str = "", control: str = "") -> dict[str, str]:
    """What was run, as every table says it: `kind` is ``unedited``, ``edit``, ``control`` or
    ``refit``, and `control` names which one."""
    return {"kind": kind, "toward": toward, "control": control}


def need_margins(margins: np.ndarray, what: str) -> np.ndarray:
    """Rows with a margin.

    Raises:
        PromptError: When there is none.
    """
    rows = np.flatnonzero(np.isfinite(margins))
    if rows.size == 0:
        raise PromptError(
            f"{what} needs the answer margin: prompts with `memorized` and `generalized`, and "
            "observe(..., margins=True)."
        )
    return rows
