"""Floor 3: states read from a model, stored or summed up."""

from mechmem.caching.activations import Activations
from mechmem.caching.extract import cache_activations, cache_moments
from mechmem.caching.moments import Moments
from mechmem.caching.provenance import Provenance, Seen

__all__ = [
    "Activations",
    "Moments",
    "Provenance",
    "Seen",
    "cache_activations",
    "cache_moments",
]
