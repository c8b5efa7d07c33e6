"""Floor 4: what the states say: directions, neurons, probes."""

from mechmem.analysis.directions import Direction, Directions, difference_of_means
from mechmem.analysis.geometry import Separation, separation
from mechmem.analysis.intervals import Estimate
from mechmem.analysis.neurons import NeuronScores, NeuronSet, neuron_mean_difference
from mechmem.analysis.probes import Probes, fit_probes

__all__ = [
    "Direction",
    "Directions",
    "Estimate",
    "NeuronScores",
    "NeuronSet",
    "Probes",
    "Separation",
    "difference_of_means",
    "fit_probes",
    "neuron_mean_difference",
    "separation",
]
