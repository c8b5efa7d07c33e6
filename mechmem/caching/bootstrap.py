"""A bootstrap that needs no rows: every group draws its weights from its own name.

Resampling groups with replacement gives each a count that is about Poisson(1) in every replicate
(Chamandy et al. 2012, "Estimating uncertainty for massive data streams"). Drawn from a key instead
of in turn, the weights do not depend on order, batches or shards, so parts add up exactly.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.errors import MechmemError, PromptError, listed
from mechmem.models.sites import Site, as_site
from mechmem.numeric import MOST, whole_number
from mechmem.seeding import keyed_rng, keyed_seed


def group_weights(
    groups: Iterable[str], replicates: int, seed: int
) -> Float[Tensor, "example replicate"]:
    """How often every replicate drew the group of each example: Poisson(1), keyed by its name."""
    known: dict[str, Tensor] = {}
    for group in (wanted := list(groups)):
        if group not in known:
            drawn = keyed_rng(seed, "poisson bootstrap", group).poisson(1.0, replicates)
            known[group] = torch.from_numpy(drawn.astype(np.float64))
    return torch.stack([known[group] for group in wanted])


@dataclass
class WeightedMean:
    """Means of one class at one site, one for every replicate.

    Attributes:
        weight: ``[replicate]`` sum of the weights.
        mean: ``[replicate, position, *feature]`` float64; 0 where nothing was drawn.
    """

    weight: Tensor
    mean: Tensor

    @classmethod
    def of(cls, values: Tensor, weights: Tensor) -> WeightedMean:
        """Of ``[example, position, *feature]`` under ``[example, replicate]``."""
        total = weights.sum(0)
        share = weights / total.clamp_min(1.0)  # weights are whole numbers
        mean = share.T @ values.double().flatten(1)
        return cls(total, mean.reshape(len(total), *values.shape[1:]))

    def merged(self, other: WeightedMean) -> WeightedMean:
        """Both together."""
        weight = self.weight + other.weight
        share = (other.weight / weight.clamp_min(1.0)).reshape(
            -1, *(1 for _ in self.mean.shape[1:])
        )
        # A side on which nothing was drawn has share 0 or 1, and its mean does not count.
        return WeightedMean(weight, self.mean + (other.mean - self.mean) * share)


@dataclass
class Bootstrap:
    """Weighted means of every class at every site.

    Attributes:
        replicates: How many.
        seed: Keys the weights, together with a group's name.
        classes: ``bootstrap.classes["memorized"][site]`` is a `WeightedMean`.
    """

    replicates: int
    seed: int = 0
    classes: dict[str, dict[Site, WeightedMean]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        keyed_seed(self.seed)
        if whole_number(self.replicates, "bootstrap", 0, most=MOST) < 2:
            raise MechmemError(
                f"An interval needs replicates to compare, got {self.replicates}; 200 is usual."
            )

    @classmethod
    def asked(cls, replicates: int, seed: int) -> Bootstrap | None:
        """One in which nothing was drawn yet; ``None`` for 0 replicates.

        Raises:
            MechmemError: For what is no number of replicates, or no seed.
        """
        keyed_seed(seed)
        wanted = whole_number(replicates, "bootstrap", 0, most=MOST)
        return cls(replicates, seed) if wanted else None

    def update(
        self, states: Mapping[Site, Tensor], names: Sequence[str | None], groups: Sequence[str]
    ) -> None:
        """Add a batch: ``[example, position, *feature]`` per site, its classes and groups."""
        weights = group_weights(groups, self.replicates, self.seed)
        for name in sorted({name for name in names if name is not None}):
            rows = torch.tensor([k for k, other in enumerate(names) if other == name])
            known = self.classes.setdefault(name, {})
            for site, values in states.items():
                batch = WeightedMean.of(values[rows], weights[rows])
                known[site] = known[site].merged(batch) if site in known else batch

    def merge(self, other: Bootstrap) -> Bootstrap:
        """Both together, as if all examples had gone into one.

        Raises:
            MechmemError: When their weights were drawn differently.
        """
        if (self.replicates, self.seed) != (other.replicates, other.seed):
            raise MechmemError(
                f"Cannot merge a bootstrap of {self.replicates} replicates, seed {self.seed}, with "
                f"one of {other.replicates}, seed {other.seed}; use the same two numbers."
            )
        merged = {name: dict(sites) for name, sites in self.classes.items()}
        for name, sites in other.classes.items():
            known = merged.setdefault(name, {})
            for site, moments in sites.items():
                known[site] = known[site].merged(moments) if site in known else moments
        return Bootstrap(self.replicates, self.seed, merged)

    def difference(
        self, site: tuple[str, int], toward: str, away: str
    ) -> Float[Tensor, "replicate position *feature"]:
        """Mean of one class minus mean of the other; replicates that drew none of one are left out.

        Raises:
            PromptError: For a class or site that is not there.
        """
        place = as_site(site)
        for name in (toward, away):
            if place not in self.classes.get(name, {}):
                raise PromptError(
                    f"No means of class {name!r} at {place}; the classes are "
                    f"{listed(sorted(self.classes))}."
                )
        one, other = self.classes[toward][place], self.classes[away][place]
        drawn = (one.weight > 0) & (other.weight > 0)
        return one.mean[drawn] - other.mean[drawn]

    def interval(
        self, site: tuple[str, int], toward: str, away: str, level: float = 0.95
    ) -> tuple[Tensor, Tensor]:
        """Percentile interval of the mean difference, ``[position, *feature]`` low and high.

        It covers which groups happened to be asked, and nothing else: not another model, not
        another kind of prompt, and no correction for looking at many coordinates.
        """
        if not 0 < level < 1:
            raise MechmemError(f"level must lie between 0 and 1, got {level!r}.")
        found = self.difference(site, toward, away)
        low, high = ((1 - level) / 2, (1 + level) / 2)
        return found.quantile(low, dim=0), found.quantile(high, dim=0)
