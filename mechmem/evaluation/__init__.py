"""Floor 6: what the model does, before and after an edit, beside its controls."""

from mechmem.evaluation.behavior import Observations, observe
from mechmem.evaluation.controls import controls
from mechmem.evaluation.rates import Rates, evaluate

__all__ = ["Observations", "Rates", "controls", "evaluate", "observe"]
