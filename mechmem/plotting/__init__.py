"""Floor 6: a result object or its saved table in, a plotly figure out. Nothing is shown."""

from mechmem.arguments import names_its_arguments
from mechmem.plotting.behavior import behavior_mix, margins, mix_table
from mechmem.plotting.clusters import interaction, neuron_clusters
from mechmem.plotting.consistency import layer_shares, split_halves
from mechmem.plotting.cosines import cosine_profile, direction_cosines, principal_cosines
from mechmem.plotting.costs import effect_by_model, model_accuracy, side_effects
from mechmem.plotting.dose import dose_response
from mechmem.plotting.layers import depth_profile, probe_accuracy, separation_profile
from mechmem.plotting.learning_curve import learning_curve
from mechmem.plotting.margin_response import margin_response
from mechmem.plotting.memorization import memorization
from mechmem.plotting.near_ties import near_ties
from mechmem.plotting.neurons import distribution_table, layer_distribution, neuron_map
from mechmem.plotting.rates import rates_bars, transitions
from mechmem.plotting.refits import refits
from mechmem.plotting.registry import FIGURES, figure, figure_of
from mechmem.plotting.save import figure_data, save_figure, save_figures
from mechmem.plotting.scores import score_correlation
from mechmem.plotting.settings import graded_answers, prompting, sampling
from mechmem.plotting.state_maps import state_map
from mechmem.plotting.steering import steering_grid
from mechmem.plotting.sweeps import sweep_cells
from mechmem.plotting.token_maps import token_map
from mechmem.plotting.tokens import token_projection
from mechmem.plotting.training import training_curves
from mechmem.plotting.transfer import axis_matrices, transfer_matrix
from mechmem.style import COLORS, THEMES, house_style

__all__ = [
    "COLORS",
    "FIGURES",
    "THEMES",
    "axis_matrices",
    "behavior_mix",
    "cosine_profile",
    "depth_profile",
    "direction_cosines",
    "distribution_table",
    "dose_response",
    "effect_by_model",
    "figure",
    "figure_data",
    "figure_of",
    "graded_answers",
    "house_style",
    "interaction",
    "layer_distribution",
    "layer_shares",
    "learning_curve",
    "margin_response",
    "margins",
    "memorization",
    "mix_table",
    "model_accuracy",
    "near_ties",
    "neuron_clusters",
    "neuron_map",
    "principal_cosines",
    "probe_accuracy",
    "prompting",
    "rates_bars",
    "refits",
    "sampling",
    "save_figure",
    "save_figures",
    "score_correlation",
    "separation_profile",
    "side_effects",
    "split_halves",
    "state_map",
    "steering_grid",
    "sweep_cells",
    "token_map",
    "token_projection",
    "training_curves",
    "transfer_matrix",
    "transitions",
]

names_its_arguments(globals())
