"""Floor 5: edits as data, the context in which they act, and patching between prompts."""

from mechmem.arguments import names_its_arguments
from mechmem.patching.ablation import AblateHeads, AblateNeurons, AblateSites
from mechmem.patching.apply import PatchedModel, patched
from mechmem.patching.base import Edit
from mechmem.patching.clamping import ClampNeurons
from mechmem.patching.conditional import OnlyWhere
from mechmem.patching.directions import AddDirection
from mechmem.patching.erasing import Erase
from mechmem.patching.exporting import export_vectors
from mechmem.patching.interchange import PatchActivations
from mechmem.patching.patch_pairs import activation_patching, attribution_patching
from mechmem.patching.patching_result import PatchingResult
from mechmem.patching.presets import P1Preset, p1_preset
from mechmem.patching.projections import ProjectOut, ScaleProjection, SetProjection
from mechmem.patching.report import EditReport
from mechmem.patching.shifting import ShiftNeurons
from mechmem.patching.skipping import SkipLayers
from mechmem.patching.weights import bake

__all__ = [
    "AblateHeads",
    "AblateNeurons",
    "AblateSites",
    "AddDirection",
    "ClampNeurons",
    "Edit",
    "EditReport",
    "Erase",
    "OnlyWhere",
    "P1Preset",
    "PatchActivations",
    "PatchedModel",
    "PatchingResult",
    "ProjectOut",
    "ScaleProjection",
    "SetProjection",
    "ShiftNeurons",
    "SkipLayers",
    "activation_patching",
    "attribution_patching",
    "bake",
    "export_vectors",
    "p1_preset",
    "patched",
]

names_its_arguments(globals())
