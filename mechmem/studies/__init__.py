"""Floor 8: a study is a list of results with words."""

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
