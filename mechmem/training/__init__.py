"""Floor 7: models trained on the paper's tasks, watched on conflict items."""

from mechmem.arguments import names_its_arguments
from mechmem.training.lab.recipes import train_lab_model
from mechmem.training.run import Training, train
from mechmem.training.settings import TrainingSettings

__all__ = ["Training", "TrainingSettings", "train", "train_lab_model"]

names_its_arguments(globals())
