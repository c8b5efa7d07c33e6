"""The one error family of the library, and the helpers that word its messages."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class MechmemError(ValueError):
    """Base of every error that mechmem raises on purpose.

    A message names the value that was given, what would have been allowed, and the way out.
    """


class MechmemWarning(UserWarning):
    """Something that was asked for happened, and changes what a result means."""


class PromptError(MechmemError):
    """A prompt or a set of prompts cannot be used as it is."""


class TaskError(MechmemError):
    """An unknown task, or a task asked for something it cannot make."""


class ModelError(MechmemError):
    """A model cannot be loaded or run as asked."""


class SiteError(MechmemError):
    """A stream or layer that the model does not have, or cannot read or edit truthfully."""


class PositionError(MechmemError):
    """A position that a prompt does not have, or that makes no sense for reading."""


class EditError(MechmemError):
    """An edit that does not fit the model, or that never reached it."""


class LeakageError(MechmemError):
    """An evaluation on prompts or groups that fitting or choosing has already seen."""


class ArtifactError(MechmemError):
    """A file that cannot be written, or read back as what it claims to be."""


def listed(values: Iterable[object], limit: int = 12) -> str:
    """Comma-separated ``repr``s, cut after ``limit`` with the number left out."""
    items = list(values)
    shown = ", ".join(repr(item) for item in items[:limit])
    rest = len(items) - limit
    return f"{shown} and {rest} more" if rest > 0 else shown


def shown(value: object, limit: int = 200) -> str:
    """The beginning of a ``repr``, or what it is of where Python cannot write it out."""
    try:
        return f"{value!r:.{limit}}"
    except (ValueError, RecursionError):  # a number of 5,000 digits, a list in itself 5,000 deep
        return f"a {type(value).__name__} that is too large to show"


def did_you_mean(value: str, allowed: Iterable[str]) -> str:
    """A hint `` Did you mean 'x'?`` when something close is allowed, else an empty string."""
    close = difflib.get_close_matches(str(value), list(allowed), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
