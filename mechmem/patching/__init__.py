"""Floor 5: edits as data, and the context in which they act."""

from mechmem.patching.apply import patched
from mechmem.patching.base import Edit
from mechmem.patching.directions import AddDirection, ProjectOut, ScaleProjection, SetProjection
from mechmem.patching.neurons import AblateNeurons, ShiftNeurons

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
