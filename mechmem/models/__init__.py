"""Floor 2: the only room that imports TransformerLens."""

from mechmem.models.check import CheckReport, check_model
from mechmem.models.hooked import Model, ModelInfo
from mechmem.models.loading import lab_models, load_model
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
]
