"""One saved study and its page, shared by the tests of the open page."""

from __future__ import annotations

import tempfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from small_study import small_study

from mechmem.app.page import Page
from mechmem.app.source import Source
from mechmem.reports.saved import load_study


@lru_cache
def saved() -> Path:
    return small_study().save(Path(tempfile.mkdtemp(prefix="mechmem-app-")) / "study")


@lru_cache
def page() -> Page:
    """Shared: its worker lives as long as the tests."""
    return Page(Source(load_study(saved())))


def text_of(part: Any) -> str:
    """Everything that is written in a part of the page."""
    if isinstance(part, (list, tuple)):
        return " ".join(text_of(one) for one in part)
    if part is None or isinstance(part, (int, float, str)):
        return "" if part is None else str(part)
    return text_of(getattr(part, "children", None))


def names_of(part: Any) -> list[str]:
    """The kinds of element in a part of the page."""
    if isinstance(part, (list, tuple)):
        return [name for one in part for name in names_of(one)]
    if part is None or isinstance(part, (int, float, str)):
        return []
    return [type(part).__name__, *names_of(getattr(part, "children", None))]
