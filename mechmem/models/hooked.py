"""The old place of `Model`, for code that is on its way."""

from mechmem.models.model import Model as Model
from mechmem.models.model import ModelInfo as ModelInfo
