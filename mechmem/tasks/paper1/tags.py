"""Memorized tags such as ``<mem-ced71018>``: reading them, and how many a training set holds."""

from __future__ import annotations

from collections.abc import Sequence

from mechmem.errors import TaskError
from mechmem.tasks.prompts import Prompt

TAG_READINGS = ("exact", "any")


def check_tag_reading(tag: str) -> str:
    """``tag`` itself, or an error that names the readings."""
    if tag not in TAG_READINGS:
        raise TaskError(f"tag must be 'exact' (the released code) or 'any', got {tag!r}.")
    return tag


def has_tag(prompt: Prompt, text: str, known: Sequence[str], reading: str) -> bool:
    """Whether a completion begins with the memorized answer.

    Args:
        prompt: Its ``memorized`` is the tag to expect; a prompt without one may get any known tag.
        text: The completion.
        known: Tags of the config, without brackets.
        reading: ``"exact"`` or ``"any"``.
    """
    begin = text.lstrip()
    if reading == "any":
        return begin.startswith("<mem-")
    if prompt.memorized is not None:
        return begin.startswith(prompt.memorized)
    return any(begin.startswith(f"<{tag}>") for tag in known)


def mixed(size: int, share: float, patterns: int) -> list[tuple[str, int]]:
    """Kind and number of every training item: as many of each pattern, the rest without one."""
    memorized = round(size * share / patterns) * patterns
    return [("memorized", k) for k in range(memorized)] + [
        ("other", k) for k in range(size - memorized)
    ]
