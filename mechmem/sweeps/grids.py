"""Which edits a study tries, by family."""

from __future__ import annotations

from mechmem.analysis.directions import Directions
from mechmem.analysis.neurons import NeuronScores
from mechmem.patching.base import Edit
from mechmem.patching.directions import AddDirection
from mechmem.patching.neurons import ShiftNeurons
from mechmem.patching.presets import p1_preset

__all__ = ["default_grid"]


def default_grid(
    scores: NeuronScores, window: NeuronScores, directions: Directions
) -> dict[str, list[Edit]]:
    """Edits that a study tries, by family.

    ``P1 as published`` shifts the top neurons of all layers at the last position of every pass.
    ``one layer, own shift per position`` shifts all coordinates of one layer, each position of the
    window by its own mean difference. ``one direction`` adds the difference of means at one layer
    to every position.
    """
    layers = [site for site in scores.sites if site.stream == "resid_post"]
    return {
        "P1 as published": list(p1_preset("p1-paper").grid(scores)),
        "one layer, own shift per position": [
            ShiftNeurons(window, top=1.0, alpha=alpha, at=[site])
            for site in layers
            for alpha in (0.5, 1.0, 1.5, 2.0)
        ],
        "one direction": [
            AddDirection(directions[site], alpha=alpha)
            for site in layers
            for alpha in (1.0, 2.0, 4.0)
        ],
    }
