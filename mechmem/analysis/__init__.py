"""Floor 4: what the states say: directions, neurons, probes."""

from mechmem.analysis.classifiers import LinearClassifier, fit_classifier
from mechmem.analysis.clusters import NeuronClusters, neuron_clusters
from mechmem.analysis.consistency import NeuronOverlap, SplitHalves, neuron_overlap, split_halves
from mechmem.analysis.correlation import ScoreCorrelation, score_correlation
from mechmem.analysis.cosines import (
    CosineProfile,
    DirectionCosines,
    PrincipalCosines,
    compare_directions,
    cosine_profile,
    principal_cosines,
)
from mechmem.analysis.depth_profile import DepthProfile, depth_profile
from mechmem.analysis.directions import Direction, Directions, difference_of_means
from mechmem.analysis.fitting import fit_directions
from mechmem.analysis.geometry import Separation, separation
from mechmem.analysis.importing import import_directions
from mechmem.analysis.input_words import InputWords, fit_input_words
from mechmem.analysis.intervals import Estimate
from mechmem.analysis.layer_distribution import LayerDistribution, layer_distribution
from mechmem.analysis.learning_curve import LearningCurve, learning_curve
from mechmem.analysis.neurons import NeuronScores, NeuronSet, neuron_mean_difference
from mechmem.analysis.probes import Probes, fit_probes
from mechmem.analysis.state_map import StateMap, state_map
from mechmem.analysis.token_projections import TokenProjections, project_tokens
from mechmem.arguments import names_its_arguments

__all__ = [
    "CosineProfile",
    "DepthProfile",
    "Direction",
    "DirectionCosines",
    "Directions",
    "Estimate",
    "InputWords",
    "LayerDistribution",
    "LearningCurve",
    "LinearClassifier",
    "NeuronClusters",
    "NeuronOverlap",
    "NeuronScores",
    "NeuronSet",
    "PrincipalCosines",
    "Probes",
    "ScoreCorrelation",
    "Separation",
    "SplitHalves",
    "StateMap",
    "TokenProjections",
    "compare_directions",
    "cosine_profile",
    "depth_profile",
    "difference_of_means",
    "fit_classifier",
    "fit_directions",
    "fit_input_words",
    "fit_probes",
    "import_directions",
    "layer_distribution",
    "learning_curve",
    "neuron_clusters",
    "neuron_mean_difference",
    "neuron_overlap",
    "principal_cosines",
    "project_tokens",
    "score_correlation",
    "separation",
    "split_halves",
    "state_map",
]

names_its_arguments(globals())
