"""Floor 7: the whole question, asked once: sweeps, studies, training and the report."""

from mechmem.experiments.study import Study, run_study
from mechmem.experiments.sweep import Sweep, Tested, sweep
from mechmem.experiments.training import train_lab_model

__all__ = ["Study", "Sweep", "Tested", "run_study", "sweep", "train_lab_model"]
