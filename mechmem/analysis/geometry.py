"""How far apart the two classes lie along a direction, site by site, on prompts it has not seen."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from mechmem.analysis.association import auroc, group_auroc
from mechmem.analysis.directions import Direction, Directions
from mechmem.analysis.held_out import own_by, refuse_seen_states
from mechmem.analysis.intervals import Estimate
from mechmem.caching.activations import Activations
from mechmem.errors import PromptError
from mechmem.models.sites import Site
from mechmem.seeding import keyed_rng

RANDOM_DIRECTIONS = 100


@dataclass(frozen=True)
class Separation:
    """Per site, how well the projection on the direction tells the classes apart.

    Attributes:
        auroc: Probability that a random example of ``toward`` projects higher than one of
            ``away``; 0.5 is chance.
        effect_size: Cohen's d of the projections.
        random: Middle 95 % of the AUROC of random directions at the same site.
        toward, away: The classes.
    """

    auroc: dict[Site, Estimate]
    effect_size: dict[Site, float]
    random: dict[Site, tuple[float, float]]
    toward: str
    away: str

    def table(self) -> pd.DataFrame:
        """One row per site."""
        return pd.DataFrame(
            [
                {
                    "stream": site.stream,
                    "layer": site.layer,
                    **value.row("auroc", counted=False),
                    "effect_size": self.effect_size[site],
                    "random_low": self.random[site][0],
                    "random_high": self.random[site][1],
                    "n": value.n,
                    "groups": value.groups,
                }
                for site, value in self.auroc.items()
            ]
        )


def separation(
    directions: Directions,
    acts: Activations,
    *,
    by: str | None = None,
    seed: int = 0,
    allow_seen: bool = False,
) -> Separation:
    """Separation of the two classes along each site's direction, on held-out states.

    Args:
        directions: Fitted elsewhere.
        acts: States with both classes at the same sites, at one position.
        by: ``"behavior"`` or ``"label"``; default what the directions were fitted by.
        seed: Keys the random directions.
        allow_seen: Measure on fitted prompts all the same.

    Raises:
        LeakageError: When the directions have seen a prompt or a group of the states.
        PromptError: When a class is missing.
    """
    if not allow_seen:
        refuse_seen_states(directions, acts, "measure the separation")
    first = next(iter(directions))
    names = acts.classes(own_by(directions, by))
    rows = [k for k, name in enumerate(names) if name in (first.toward, first.away)]
    positive = np.array([names[k] == first.toward for k in rows])
    if positive.all() or not positive.any():
        raise PromptError(
            f"Separation needs both {first.toward!r} and {first.away!r}; these prompts show one."
        )
    groups = [acts.prompts[k].group for k in rows]
    aurocs, sizes, randoms = {}, {}, {}
    for direction in directions:
        site = direction.site
        states = acts[site][rows].flatten(1).double()
        # Where the class means coincide (the input, when all prompts end alike) nothing separates.
        scores = direction.project(states).numpy() if direction.norm else np.zeros(len(rows))
        aurocs[site] = group_auroc(scores, positive, groups)
        sizes[site] = _cohens_d(scores, positive)
        randoms[site] = _random_range(states, positive, direction, seed)
    return Separation(aurocs, sizes, randoms, first.toward, first.away)


def _cohens_d(scores: np.ndarray, positive: np.ndarray) -> float:
    one, zero = scores[positive], scores[~positive]
    within = ((one - one.mean()) ** 2).sum() + ((zero - zero.mean()) ** 2).sum()
    spread = float(np.sqrt(within / max(len(scores) - 2, 1)))
    return float(one.mean() - zero.mean()) / spread if spread > 0 else 0.0


def _random_range(
    states: torch.Tensor, positive: np.ndarray, direction: Direction, seed: int
) -> tuple[float, float]:
    rng = keyed_rng(seed, "separation", "random", direction.site.key)
    noise = torch.from_numpy(rng.standard_normal((states.shape[1], RANDOM_DIRECTIONS)))
    values = [auroc(column, positive) for column in (states @ noise).numpy().T]
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
