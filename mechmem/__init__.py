"""mechmem: is this language model remembering or thinking, where does it decide, can we turn it?

The names below are the public API; each is loaded when it is first used, so that importing mechmem
costs nothing. What is typed rarely is in its room: questions put to a finding in
`mechmem.evaluation` (``mm.evaluation.near_ties``), classes of results that nobody makes by hand in
`mechmem.analysis` and the others.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_HOME = {
    "errors": (
        "ArtifactError EditError LeakageError MechmemError MechmemWarning ModelError "
        "PositionError PromptError SiteError TaskError"
    ),
    "tasks": "Chat Choice Prompt PromptSet Task available_tasks get_task register_task",
    "models": "Model Site check_model lab_models load_model",
    "caching": (
        "ActivationStore Activations Histograms Moments cache_activations cache_moments "
        "extract_activations extract_moments hidden_states merge_moments plan_extraction"
    ),
    "analysis": (
        "Direction Directions NeuronScores compare_directions cosine_profile depth_profile "
        "difference_of_means fit_directions fit_probes import_directions layer_distribution "
        "learning_curve neuron_clusters neuron_mean_difference neuron_overlap "
        "principal_cosines project_tokens score_correlation separation split_halves state_map"
    ),
    "patching": (
        "AblateHeads AblateNeurons AblateSites AddDirection ClampNeurons Edit Erase OnlyWhere "
        "PatchActivations ProjectOut ScaleProjection SetProjection ShiftNeurons SkipLayers "
        "activation_patching attribution_patching bake export_vectors p1_preset patched"
    ),
    "evaluation": (
        "Observations Rates controls evaluate evaluate_each observe select_direction side_effects "
        "steering_grid"
    ),
    "sweeps": "sweep",
    "training": "TrainingSettings train train_lab_model",
    "studies": (
        "Study counterfactual_memorization read_labels run_memorization_study "
        "run_reasoning_study run_study"
    ),
    "reports": "from_hub push_to_hub write_report",
    "app": "open",
}
_WHERE = {name: room for room, names in _HOME.items() for name in names.split()}
_ROOMS = (
    "tasks",
    "models",
    "caching",
    "analysis",
    "patching",
    "evaluation",
    "plotting",
    "sweeps",
    "training",
    "studies",
    "reports",
)

# `from mechmem import *` must leave Python's own `open` alone.
__all__ = ["__version__", *_ROOMS, *(name for name in _WHERE if name != "open")]


def __getattr__(name: str) -> Any:
    if name in _WHERE:
        return getattr(importlib.import_module(f"mechmem.{_WHERE[name]}"), name)
    if name in _ROOMS:
        return importlib.import_module(f"mechmem.{name}")
    raise AttributeError(f"module 'mechmem' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, "open"])


if TYPE_CHECKING:
    from mechmem.analysis import *
    from mechmem.app import open as open  # noqa: A004
    from mechmem.caching import *
    from mechmem.errors import *
    from mechmem.evaluation import *
    from mechmem.models import *
    from mechmem.patching import *
    from mechmem.reports import *
    from mechmem.studies import *
    from mechmem.sweeps import *
    from mechmem.tasks import *
    from mechmem.training import *
