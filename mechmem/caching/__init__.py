"""Floor 3: states read from a model, stored or summed up."""

from mechmem.arguments import names_its_arguments
from mechmem.caching.activations import Activations
from mechmem.caching.bootstrap import Bootstrap
from mechmem.caching.extract import cache_activations, cache_moments
from mechmem.caching.hidden_states import hidden_states
from mechmem.caching.histograms import Histograms
from mechmem.caching.jobs import extract_activations, extract_moments, merge_moments
from mechmem.caching.moments import Moments
from mechmem.caching.planning import ExtractionPlan, plan_extraction
from mechmem.caching.provenance import Provenance, Seen
from mechmem.caching.store import ActivationStore

__all__ = [
    "ActivationStore",
    "Activations",
    "Bootstrap",
    "ExtractionPlan",
    "Histograms",
    "Moments",
    "Provenance",
    "Seen",
    "cache_activations",
    "cache_moments",
    "extract_activations",
    "extract_moments",
    "hidden_states",
    "merge_moments",
    "plan_extraction",
]

names_its_arguments(globals())
