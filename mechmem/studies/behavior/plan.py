"""What a study fits, and the rule that makes a grid of edits from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from mechmem.analysis.directions import Directions, difference_of_means
from mechmem.analysis.layer_choice import choose_layers
from mechmem.analysis.neurons import NeuronScores, neuron_mean_difference
from mechmem.caching.activations import Activations
from mechmem.patching.base import Edit
from mechmem.patching.directions import AddDirection
from mechmem.patching.presets import p1_preset
from mechmem.patching.shifting import ShiftNeurons
from mechmem.tasks.base import BEHAVIORS
from mechmem.tasks.prompts import PromptSet

MOST_LAYERS = 6
PUBLISHED, SHIFT, ADD = (
    "P1 as published",
    "one layer, own shift per position",
    "one direction",
)
REFINE = {SHIFT: (0.7, 1.4), ADD: (0.6, 1.7)}
"""Multiples of the best strength of a family that are tried after the grid."""


@dataclass(frozen=True)
class Fit:
    """What is fitted on the training flips, or on the same flips with exchanged behaviors.

    Attributes:
        last: States of the output of every block at the last prompt token.
        window: The same at the task's own positions.
        scores, window_scores: Neurons there.
        directions: Difference of means toward the second behavior per site, at the last token.
    """

    last: Activations
    window: Activations
    scores: NeuronScores
    window_scores: NeuronScores
    directions: Directions

    @classmethod
    def of(
        cls,
        last: Activations,
        window: Activations,
        prompts: PromptSet,
        behaviors: Sequence[str] = BEHAVIORS,
    ) -> Fit:
        """Of states whose prompts' behaviors are those of ``prompts``."""
        first, second = behaviors
        same = window is last
        last = last.select(prompts)
        window = last if same else window.select(prompts)
        scores = neuron_mean_difference(last, first=first, second=second)
        return cls(
            last,
            window,
            scores,
            scores if same else neuron_mean_difference(window, first=first, second=second),
            difference_of_means(last, toward=second),
        )


Grid = Callable[[Fit], Mapping[str, Sequence[Edit]]]


def default_grid(fit: Fit) -> dict[str, list[Edit]]:
    """Edits that a study tries, by family.

    ``P1 as published`` shifts the top neurons of all layers at the last position of every pass.
    ``one layer, own shift per position`` shifts all coordinates of one layer, each position of the
    window by its own mean difference. ``one direction`` adds the difference of means at one layer
    to the last position of every pass. At most six layers are tried, chosen by how well held-out
    training flips are told apart there (`choose_layers`); few strengths, and more around the best
    (``REFINE``).
    """
    first, second = fit.scores.first, fit.scores.second
    return {
        PUBLISHED: list(p1_preset("p1-paper").grid(fit.scores, toward=second)),
        SHIFT: [
            ShiftNeurons(fit.window_scores, top=1.0, alpha=alpha, at=[site], toward=second)
            for site in choose_layers(fit.window, MOST_LAYERS, second, first)
            for alpha in (1.0, 2.0)
        ],
        ADD: [
            AddDirection(fit.directions[site], alpha=alpha, positions="each_step")
            for site in choose_layers(fit.last, MOST_LAYERS, second, first)
            for alpha in (1.0, 3.0)
        ],
    }
