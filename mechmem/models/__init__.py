"""Floor 2: the only room that imports TransformerLens."""

from mechmem.models.hooked import Model, ModelInfo
from mechmem.models.loading import lab_models, load_model
from mechmem.models.sites import STREAMS, Site

__all__ = ["STREAMS", "Model", "ModelInfo", "Site", "lab_models", "load_model"]
