"""Which neurons an edit is about, how far they differ, and others like them for its controls."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechmem.analysis.neurons import NeuronScores, NeuronSet
from mechmem.caching.activations import Activations
from mechmem.caching.moments import Moments
from mechmem.errors import EditError, listed
from mechmem.models.model import Model
from mechmem.models.sites import NORMED, Site
from mechmem.patching.base import site_width
from mechmem.seeding import keyed_rng

Moved = Callable[[Tensor, Tensor], Tensor]
"""From mean and standard deviation of neurons to how far an edit moves each of them."""

Neurons = NeuronSet | Mapping[tuple[str, int], Sequence[int]]
"""From `NeuronScores.top`, or coordinates by site: ``{("mlp_post", 3): [5, 17]}``."""


def one_site(model: Model, key: Any) -> Site:
    """The site that a key of an edit names.

    Raises:
        EditError: When it names several, as a stream does.
    """
    found = model.sites([key])
    if len(found) != 1:
        raise EditError(
            f"{key!r} names {len(found)} sites; say which one, for example {tuple(found[-1])!r}."
        )
    return found[0]


def indices(chosen: Any, below: int, what: str) -> list[int]:
    """Which of ``below`` things are chosen.

    Raises:
        EditError: Unless all are whole numbers from 0 to ``below - 1``.
    """
    several = isinstance(chosen, Iterable) and not isinstance(chosen, str)
    given = list(chosen) if several else [chosen]
    wrong = [one for one in given if not _is_index(one, below)]
    if wrong:
        raise EditError(f"{what} 0 to {below - 1}, so {listed(wrong, 5)} cannot be edited.")
    return [int(one) for one in given]


def _is_index(value: Any, below: int) -> bool:
    try:
        return 0 <= operator.index(value) < below and not isinstance(value, bool)
    except TypeError:
        return False


def neuron_masks(neurons: Neurons, model: Model) -> dict[Site, Tensor]:
    """``[position or 1, d]`` True at the chosen neurons of every site that has one.

    Raises:
        EditError: For a coordinate that the site does not have, or when none is chosen.
    """
    if isinstance(neurons, NeuronSet):
        index = editable(neurons).index
        masks = {site: neurons.mask(site) for site, chosen in index.items() if len(chosen)}
    else:
        masks = {}
        for key, chosen in neurons.items():
            site = one_site(model, key)
            width = site_width(model, site)
            found = indices(chosen, width, f"{site} has neurons")
            if found:
                masks.setdefault(site, torch.zeros(1, width, dtype=torch.bool))[0, found] = True
    if not masks:
        raise EditError("No neuron is chosen; for example neurons={('mlp_post', 0): [5]}.")
    return masks


def neuron_shifts(scores: NeuronScores, site: Site, units: str) -> Tensor:
    """``[position, d]``: what one unit of ``alpha`` adds to each neuron, toward the first class.

    Raises:
        EditError: For unknown units.
    """
    if units not in ("difference", "sd"):
        raise EditError(f"units must be 'difference' or 'sd', got {units!r}.")
    difference = scores.mean_difference[site]
    return difference if units == "difference" else difference.sign() * scores.std[site]


def editable(neurons: NeuronSet) -> NeuronSet:
    """Refuse neurons that lie where nothing can be edited."""
    if any(len(rows) and site.stream == NORMED for site, rows in neurons.index.items()):
        raise EditError(
            f"Some chosen neurons lie at {NORMED!r}, after the final norm, where nothing can be "
            "edited; say at= which sites to edit, and among='scored' to rank them beside it."
        )
    return neurons


def neuron_columns(neurons: Neurons) -> tuple[tuple[str, ...], Any]:
    """Names of the positions that the neurons were chosen at, and where those were read."""
    if isinstance(neurons, NeuronSet):
        return neurons.scores.columns, neurons.scores.provenance.positions
    return ("any",), None


def count_neurons(neurons: Neurons) -> int:
    """How many neurons are chosen."""
    if isinstance(neurons, NeuronSet):
        return len(neurons)
    return sum(len(set(chosen)) for chosen in neurons.values())


def other_neurons(
    neurons: Neurons,
    model: Model,
    seed: int,
    moved: Moved,
    source: Activations | Moments | NeuronScores | None = None,
) -> Neurons:
    """As many neurons of each site that the edit leaves alone, moved about as far by it.

    Every neuron gets a partner from a random half of the others: the one that the edit would move
    most nearly as far, by the mean and standard deviation of each where these are known.

    Args:
        neurons: The edit's own.
        model: Knows the width of sites.
        seed: Keys the draw.
        moved: How far a neuron is moved.
        source: Where statistics come from for neurons that bring no scores.

    Raises:
        EditError: When a site has fewer others than are needed.
    """
    known = neurons.scores if isinstance(neurons, NeuronSet) else source

    def draw(site: Site, total: int, chosen: Sequence[int]) -> np.ndarray:
        rng = keyed_rng(seed, "control", "random neurons", site.key)
        free = rng.permutation(np.setdiff1d(np.arange(total), chosen))
        if len(free) < len(chosen):
            raise EditError(
                f"A control needs {len(chosen)} other neurons of {site}, but only {len(free)} are "
                "left; edit fewer."
            )
        if known is None or site not in known.sites:
            return free[: len(chosen)]
        far = moved(*_lie(known, site, total)).numpy()
        pool = free[: max(len(chosen), -(-len(free) // 2))]
        lengths, out = far[pool], []
        for own in rng.permutation(chosen):
            best = int(np.argmin(np.abs(lengths - far[own])))
            out.append(int(pool[best]))
            lengths[best] = np.inf
        return np.array(out, dtype=int)

    if isinstance(neurons, NeuronSet):
        sizes = neurons.scores.mean_difference
        index = {
            site: torch.from_numpy(draw(site, sizes[site].numel(), chosen.tolist()))
            for site, chosen in neurons.index.items()
        }
        return NeuronSet(neurons.scores, index)
    joined: dict[Site, set[int]] = {}
    for key, chosen in neurons.items():
        joined.setdefault(one_site(model, key), set()).update(chosen)
    return {
        site: [int(k) for k in draw(site, site_width(model, site), sorted(own))]
        for site, own in joined.items()
    }


def _lie(
    source: Activations | Moments | NeuronScores, site: Site, total: int
) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every neuron over both classes, flattened; averaged over
    positions where the neurons belong to none."""
    if isinstance(source, NeuronScores):
        between = source.mean_difference[site] / 2
        mean, square = source.mean[site], source.std[site] ** 2 + between**2
    elif isinstance(source, Activations):
        states = source[site].double().flatten(2)
        mean, square = states.mean(0), states.var(0, unbiased=False)
    else:
        classes = [sites[site] for sites in source.classes.values() if site in sites]
        n = sum(one.count for one in classes)
        mean = (sum(one.mean * (one.count / n) for one in classes) + torch.zeros(())).flatten(1)
        square = torch.zeros_like(mean)
        for one in classes:
            away = one.mean.flatten(1) - mean
            square += (one.m2.flatten(1) + one.count * away**2) / n
    if mean.numel() != total:
        mean, square = mean.mean(0), square.mean(0)
    return mean.flatten(), square.sqrt().flatten()
