"""Intervals that respect the pairing: whole groups are resampled, never single rephrasings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from jaxtyping import Float

from mechmem.errors import PromptError
from mechmem.seeding import keyed_rng

__all__ = ["Estimate", "group_mean", "group_mean_draws"]

DRAWS = 2000


@dataclass(frozen=True)
class Estimate:
    """A mean with its 95 % interval.

    Attributes:
        value: The mean over examples.
        low, high: Percentile interval from resampling groups; equal to the value for one group.
        n: Number of examples.
        groups: Number of groups resampled.
    """

    value: float
    low: float
    high: float
    n: int
    groups: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def group_mean_draws(
    values: Float[np.ndarray, "example quantity"],
    groups: Sequence[str],
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> Float[np.ndarray, "draw quantity"]:
    """Bootstrap draws of the mean over examples, resampling groups with replacement.

    Every group brings all its examples; a draw's mean is the sum over its examples divided by
    their number. The same ``seed`` and groups give the same resamples, so draws of two quantities
    measured on the same groups can be subtracted.
    """
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    sums = np.zeros((len(names), values.shape[1]))
    np.add.at(sums, index, values)
    sizes = np.bincount(index, minlength=len(names)).astype(float)
    weights = _weights(seed, len(names), draws)
    means: np.ndarray = (weights @ sums) / (weights @ sizes)[:, None]
    return means


@lru_cache(16)
def _weights(seed: int, groups: int, draws: int) -> np.ndarray:
    """How often each group is drawn, ``[draw, group]``; the same for all quantities of a table."""
    rng = keyed_rng(seed, "group-bootstrap", groups)
    drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=draws)
    drawn.flags.writeable = False
    return drawn


def group_mean(
    values: Sequence[float] | np.ndarray, groups: Sequence[str], *, seed: int = 0
) -> Estimate:
    """Mean over examples with a 95 % percentile interval over resampled groups.

    What it does not prove: with fewer than about ten groups the interval is too narrow.

    Raises:
        PromptError: When there is nothing to average.
    """
    data = np.asarray(values, dtype=float)
    if data.size == 0:
        raise PromptError("No values to average: the selection is empty.")
    draws = group_mean_draws(data[:, None], groups, seed=seed)[:, 0]
    low, high = np.quantile(draws, [0.025, 0.975])
    return Estimate(float(data.mean()), float(low), float(high), data.size, len(set(groups)))
