"""Floor 2: the only room that imports TransformerLens."""

from mechmem.arguments import names_its_arguments
from mechmem.models.check.report import CheckReport, check_model
from mechmem.models.loading import load_model
from mechmem.models.model import Model, ModelInfo
from mechmem.models.shipped import lab_models, real_models
from mechmem.models.sites import STREAMS, Site

__all__ = [
    "STREAMS",
    "CheckReport",
    "Model",
    "ModelInfo",
    "Site",
    "check_model",
    "lab_models",
    "load_model",
    "real_models",
]

names_its_arguments(globals())
