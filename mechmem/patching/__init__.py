"""Floor 5: edits as data, and the context in which they act."""

from mechmem.patching.apply import patched
from mechmem.patching.edits import (
    AblateNeurons,
    AddDirection,
    Edit,
    ProjectOut,
    ScaleProjection,
    SetProjection,
    ShiftNeurons,
)

__all__ = [
    "AblateNeurons",
    "AddDirection",
    "Edit",
    "ProjectOut",
    "ScaleProjection",
    "SetProjection",
    "ShiftNeurons",
    "patched",
]
