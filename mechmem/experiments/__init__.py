"""Floor 7: the whole question, asked once: sweeps, studies, training and the report."""

from mechmem.experiments.counterfactual import (
    CounterfactualMemorization,
    counterfactual_memorization,
)
from mechmem.experiments.hub import from_hub, push_to_hub
from mechmem.experiments.memorization_study import MemorizationStudy, run_memorization_study
from mechmem.experiments.reasoning_study import ReasoningStudy, run_reasoning_study
from mechmem.experiments.study import Study, run_study
from mechmem.experiments.sweep import Sweep, Tested, sweep
from mechmem.experiments.training import train_lab_model
from mechmem.experiments.training_run import Training, train
from mechmem.experiments.training_settings import TrainingSettings

__all__ = [
    "CounterfactualMemorization",
    "MemorizationStudy",
    "ReasoningStudy",
    "Study",
    "Sweep",
    "Tested",
    "Training",
    "TrainingSettings",
    "counterfactual_memorization",
    "from_hub",
    "push_to_hub",
    "run_memorization_study",
    "run_reasoning_study",
    "run_study",
    "sweep",
    "train",
    "train_lab_model",
]
