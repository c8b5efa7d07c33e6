"""The arithmetic of ranking neurons: p values, areas under the curve, and how many are chosen."""

from __future__ import annotations

from typing import Any

import torch
from scipy import special, stats
from torch import Tensor

from mechmem.caching.activations import Activations
from mechmem.caching.histograms import Histograms
from mechmem.caching.moments import Moments
from mechmem.errors import MechmemError
from mechmem.models.sites import Site

RANKINGS = ("correlation", "mean_difference", "effect_size", "auc")
"""Words for ``by=`` in `mechmem.NeuronScores.top`; each ranks by its absolute value, ``auc`` by its
distance from one half."""

CONSTANTS_FIRST = "correlation_constants_first"
"""By |r|, but behind all neurons that never vary: P1's released code sorts the NaN of their r first
(`mechmem.p1_preset`)."""

COLUMNS_AT_ONCE = 4096


def ranking_score(by: str, values: Tensor) -> Tensor:
    """How far a statistic is from saying nothing."""
    return (values - 0.5).abs() if by == "auc" else values.abs()


def welch_p(difference: Tensor, var1: Tensor, var0: Tensor, n1: int, n0: int) -> Tensor:
    """Two-sided p value of Welch's t test from the classes' unbiased variances."""
    a, b = var1 / n1, var0 / n0
    freedom = safe_ratio((a + b) ** 2, a**2 / (n1 - 1) + b**2 / (n0 - 1)).clamp_min(1)
    t = safe_ratio(difference, (a + b).sqrt())
    return torch.from_numpy(2 * special.stdtr(freedom.numpy(), -t.abs().numpy()))


def area_under_curve(one: Tensor, zero: Tensor) -> Tensor:
    """Chance that a random example of the first has the larger value, ties counted half.

    The Mann-Whitney U statistic over the number of pairs, exact and in float64.

    Args:
        one, zero: ``[example, *unit]``, each with its own number of examples.

    Returns:
        ``[*unit]``.
    """
    n1, n0 = len(one), len(zero)
    both = torch.cat([one.flatten(1), zero.flatten(1)])
    parts = []
    for start in range(0, both.shape[1], COLUMNS_AT_ONCE):
        ranks = stats.rankdata(both[:, start : start + COLUMNS_AT_ONCE].double().numpy(), axis=0)
        above = ranks[:n1].sum(0) - n1 * (n1 + 1) / 2
        parts.append(torch.from_numpy(above / (n1 * n0)))
    return torch.cat(parts).reshape(one.shape[1:])


def areas(
    states: Activations | Moments,
    moments: Moments,
    auc: bool | Histograms,
    first: str,
    second: str,
    by: str,
) -> dict[Site, Tensor] | None:
    """Areas under the curve of every neuron, ``[position, d]`` per site; see
    `mechmem.neuron_mean_difference`."""
    if auc is False:
        return None
    if isinstance(auc, Histograms):
        out = {}
        for site in moments.sites:
            area = torch.full_like(moments.classes[first][site].mean.flatten(1), torch.nan)
            if site in auc.units:
                area.view(-1)[auc.units[site]] = auc.auc(site, first, second)[0]
            out[site] = area
        return out
    if not isinstance(states, Activations):
        raise MechmemError(
            "auc=True needs stored activations: mean and variance do not hold an area. Pass "
            "cache_activations(...), or auc=Histograms that were streamed."
        )
    names = states.classes(by)
    rows = [torch.tensor([k for k, name in enumerate(names) if name == c]) for c in (first, second)]
    return {
        site: area_under_curve(*(states.states[site][index].flatten(2) for index in rows))
        for site in moments.sites
    }


def safe_ratio(top: Tensor, bottom: Tensor) -> Tensor:
    """0 where a coordinate never varies (a constant says nothing about the class), infinite where
    it varies with the class alone."""
    at_zero = torch.where(top == 0, top, top.sign() * torch.inf)
    return torch.where(bottom > 0, top / bottom.clamp_min(1e-300), at_zero)


def largest(values: Tensor, k: int) -> Tensor:
    """Indices of the k largest, in order of place; of equal values the first are taken."""
    edge = values.kthvalue(len(values) - k + 1).values
    taken = values > edge
    ties = (values == edge).nonzero()[: k - int(taken.sum()), 0]
    taken[ties] = True
    return taken.nonzero()[:, 0]


def how_many(k: Any, total: int) -> int:
    """A number (integer) or share (float) of neurons as a number.

    Raises:
        MechmemError: For anything else, or more than there are.
    """
    if (
        not isinstance(k, (int, float))
        or isinstance(k, bool)
        or (isinstance(k, int) and k < 1)
        or (isinstance(k, float) and not 0 < k <= 1)
    ):
        raise MechmemError(
            f"top must be a number of neurons (an integer from 1) or a share (a float in (0, 1]), "
            f"got {k!r}."
        )
    if isinstance(k, float):
        return max(1, round(k * total))
    if k > total:
        raise MechmemError(
            f"top={k} neurons asked for, but only {total} were scored; ask for fewer, or for a "
            "share such as 0.05."
        )
    return k
