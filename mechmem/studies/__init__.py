"""Floor 8: a study is a list of results with words.

The names are loaded when they are first used: a saved study is read without a model's libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from mechmem.arguments import naming_its_arguments

_WHERE = {
    "BehaviorStudy": "behavior.study",
    "CounterfactualMemorization": "memorization.counterfactual",
    "MemorizationStudy": "memorization.study",
    "QuestionReading": "reasoning.read_only",
    "ReasoningStudy": "reasoning.study",
    "Study": "base",
    "Together": "together",
    "counterfactual_memorization": "memorization.counterfactual",
    "read_labels": "reasoning.read_only",
    "run_memorization_study": "memorization.run",
    "run_reasoning_study": "reasoning.run",
    "run_study": "behavior.run",
}

__all__ = [
    "BehaviorStudy",
    "CounterfactualMemorization",
    "MemorizationStudy",
    "QuestionReading",
    "ReasoningStudy",
    "Study",
    "Together",
    "counterfactual_memorization",
    "read_labels",
    "run_memorization_study",
    "run_reasoning_study",
    "run_study",
]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        found = getattr(importlib.import_module(f"mechmem.studies.{_WHERE[name]}"), name)
        return globals().setdefault(name, naming_its_arguments(found, __name__))
    raise AttributeError(f"module 'mechmem.studies' has no attribute {name!r}")


if TYPE_CHECKING:
    from mechmem.studies.base import Study
    from mechmem.studies.behavior.run import run_study
    from mechmem.studies.behavior.study import BehaviorStudy
    from mechmem.studies.memorization.counterfactual import (
        CounterfactualMemorization,
        counterfactual_memorization,
    )
    from mechmem.studies.memorization.run import run_memorization_study
    from mechmem.studies.memorization.study import MemorizationStudy
    from mechmem.studies.reasoning.read_only import QuestionReading, read_labels
    from mechmem.studies.reasoning.run import run_reasoning_study
    from mechmem.studies.reasoning.study import ReasoningStudy
    from mechmem.studies.together import Together
