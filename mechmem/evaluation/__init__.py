"""Floor 6: what the model does, before and after an edit, beside its controls."""

from mechmem.arguments import names_its_arguments
from mechmem.evaluation.axes import AxisComparison, compare_axes
from mechmem.evaluation.behavior import Observations, observe
from mechmem.evaluation.controls import controls
from mechmem.evaluation.determinism import Determinism, determinism
from mechmem.evaluation.graded import GradedAnswers, graded_answers
from mechmem.evaluation.interaction import Interaction, interaction, split_shift
from mechmem.evaluation.many_edits import evaluate_each
from mechmem.evaluation.margin_response import MarginResponse, margin_response
from mechmem.evaluation.models_compared import (
    EffectByModel,
    ModelComparison,
    compare_models,
    effect_by_model,
)
from mechmem.evaluation.near_ties import NearTies, near_ties
from mechmem.evaluation.perturbation import PerturbationalMemorization, perturbational_memorization
from mechmem.evaluation.prompting import Prompting, prompting
from mechmem.evaluation.rates import Rates, evaluate
from mechmem.evaluation.recitation import Recitation, recitation
from mechmem.evaluation.sampling import Sampling, sampling
from mechmem.evaluation.selection import Selection, select_direction
from mechmem.evaluation.side_effects import SideEffects, side_effects
from mechmem.evaluation.steering import SteeringGrid, steering_grid
from mechmem.evaluation.token_maps import TokenMap, margin_map, projection_map
from mechmem.evaluation.transfer import EditTransfer, ProbeTransfer, edit_transfer, probe_transfer

__all__ = [
    "AxisComparison",
    "Determinism",
    "EditTransfer",
    "EffectByModel",
    "GradedAnswers",
    "Interaction",
    "MarginResponse",
    "ModelComparison",
    "NearTies",
    "Observations",
    "PerturbationalMemorization",
    "ProbeTransfer",
    "Prompting",
    "Rates",
    "Recitation",
    "Sampling",
    "Selection",
    "SideEffects",
    "SteeringGrid",
    "TokenMap",
    "compare_axes",
    "compare_models",
    "controls",
    "determinism",
    "edit_transfer",
    "effect_by_model",
    "evaluate",
    "evaluate_each",
    "graded_answers",
    "interaction",
    "margin_map",
    "margin_response",
    "near_ties",
    "observe",
    "perturbational_memorization",
    "probe_transfer",
    "projection_map",
    "prompting",
    "recitation",
    "sampling",
    "select_direction",
    "side_effects",
    "split_shift",
    "steering_grid",
]

names_its_arguments(globals())
