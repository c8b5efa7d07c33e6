"""Floor 9: a report is a page over a study.

The names are loaded when they are first used: a saved study is read without a model's libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mechmem.arguments import naming_its_arguments

_WHERE = {"from_hub": "hub", "push_to_hub": "hub", "write_report": "report"}

__all__ = ["from_hub", "push_to_hub", "write_report"]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        found = getattr(importlib.import_module(f"mechmem.reports.{_WHERE[name]}"), name)
        return globals().setdefault(name, naming_its_arguments(found, __name__))
    raise AttributeError(f"module 'mechmem.reports' has no attribute {name!r}")


if TYPE_CHECKING:
    from mechmem.reports.hub import from_hub, push_to_hub
    from mechmem.reports.report import write_report
