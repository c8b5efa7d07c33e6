"""`beyond_draws`: an edit against the draws of a control, which are a sample like the prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, isnan, nan, sqrt
from typing import Any

import numpy as np
from jaxtyping import Float
from scipy import stats

from mechmem.analysis.intervals import Estimate, IntervalKind, group_mean
from mechmem.errors import MechmemError

DRAWS = 30
"""Draws of a control wherever an edit is compared with one."""


@dataclass(frozen=True)
class Beyond(Estimate):
    """How far an edit goes beyond a control, and what that was judged by.

    Attributes:
        value: The edit's mean minus the mean over all draws.
        low, high: 95 % interval of the difference from **one more draw**, prompts being a sample
            too; NaN where a single draw leaves the spread unknown.
        draws: Draws of the control; 1 for a control in which nothing is drawn.
        spread: Standard deviation between the draws' means; NaN for one.
        rank: Place of the edit among all, largest first, ties against it: 1 is beyond every draw.
        size: How far the edit moved an activation, on average; NaN where it was not measured.
        control_size: The same of the draws.
    """

    draws: int = 1
    spread: float = nan
    rank: int = 1
    size: float = nan
    control_size: float = nan

    @property
    def p(self) -> float:
        """Chance of so high a rank if the edit were one more draw: ``rank / (draws + 1)``. It does
        not go below ``1 / (draws + 1)``."""
        return self.rank / (self.draws + 1)

    def row(self, name: str = "beyond", *, counted: bool = False) -> dict[str, Any]:
        """Columns of a table: the number with its ends, and what it was judged by."""
        return {
            **super().row(name, counted=counted),
            "draws": self.draws,
            "spread": self.spread,
            "rank": self.rank,
            "size": self.size,
            "control_size": self.control_size,
        }


def beyond_draws(
    edit: Float[np.ndarray, " example"],
    draws: Float[np.ndarray, "draw example"],
    groups: Sequence[str],
    *,
    drawn: bool = True,
    kind: IntervalKind = "change",
    sizes: tuple[float, float] = (nan, nan),
) -> Beyond:
    """The edit minus its control, paired prompt by prompt, the draws a sample of what control does.

    The question is whether the edit does more than one more draw would, so the interval holds what
    draws differ by, and not only what their mean is uncertain by. With ``s^2`` the variance between
    the draws' means, of which ``e^2`` is their noise over prompts (what each group deviates from
    the mean draw, over the number of groups), the half-widths are ``sqrt(g^2 + t^2 (s^2 - e^2)(1 +
    1 / D))``: ``g`` those of the paired difference over groups, ``t`` Student's quantile with
    ``D - 1`` degrees of freedom, ``s^2 - e^2`` not below 0.

    Args:
        edit: What is averaged, per prompt: 1 where the outcome came, a margin, a loss.
        draws: The same under every draw of the control, on the same prompts.
        groups: Group of every prompt.
        drawn: False for a control in which nothing is drawn: then the prompts alone are the sample.
        kind: Of the paired difference, as in `mechmem.analysis.intervals.group_mean`.
        sizes: How far edit and control moved activations, for the table.

    Raises:
        MechmemError: For no draws, or draws of other prompts.

    What it does not prove: a fit chosen as the best of many is more than one draw even where there
    is nothing; only refits on exchanged labels answer that.
    """
    own, others = _checked(draws, groups, edit)
    middle = others.mean(0)
    mean = group_mean(own - middle, groups, kind=kind)
    means = others.mean(1)
    rank = 1 + int((means >= own.mean() - 1e-12).sum())
    count = len(others)
    spread = float(means.std(ddof=1)) if count > 1 else nan
    low, high = mean.low, mean.high
    if drawn:
        more = _between(others, groups) * (1 + 1 / count)
        low, high = (mean.value + side for side in _wider(mean, count, more))
    return Beyond(mean.value, low, high, mean.n, mean.groups, count, spread, rank, *sizes)


def mean_of_draws(
    draws: Float[np.ndarray, "draw example"],
    groups: Sequence[str],
    *,
    drawn: bool = True,
    kind: IntervalKind = "share",
) -> Estimate:
    """Mean over draws and prompts, both of them samples; NaN bounds for a single draw (unless
    nothing is ``drawn``).

    Raises:
        MechmemError: For no draws, or draws of other prompts.
    """
    _, others = _checked(draws, groups)
    mean = group_mean(others.mean(0), groups, kind=kind)
    if not drawn:
        return mean
    low, high = _wider(mean, len(others), _between(others, groups) / len(others))
    least, most = {"share": (0.0, 1.0), "change": (-1.0, 1.0), "mean": (-inf, inf)}[kind]
    low, high = mean.value + low, mean.value + high
    if not isnan(low):
        low, high = max(low, least), min(high, most)
    return Estimate(mean.value, low, high, mean.n, mean.groups)


def _checked(
    draws: np.ndarray, groups: Sequence[str], edit: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    others = np.asarray(draws, dtype=float)
    own = np.asarray(others[:1].mean(0) if edit is None else edit, dtype=float)
    alike = others.ndim == 2 and others.shape[1:] == own.shape == (len(groups),)
    if not alike or not len(others):
        raise MechmemError(
            f"A control needs at least one draw on the prompts of the edit; got draws of shape "
            f"{others.shape} beside {own.shape} values in {len(groups)} rows. Pass draws=1 or more."
        )
    return own, others


def _between(draws: np.ndarray, groups: Sequence[str]) -> float:
    """Variance between draws beyond what prompts account for; NaN for a single draw."""
    count = len(draws)
    if count < 2:
        return nan
    names, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    away = draws - draws.mean(0)
    away = away - away.mean(1, keepdims=True)
    sums = np.zeros((len(names), count))
    np.add.at(sums, index, away.T)
    few = len(names) / max(len(names) - 1, 1)
    noise = float((sums**2).sum() / count * few / draws.shape[1] ** 2 * count / (count - 1))
    return max(0.0, float(draws.mean(1).var(ddof=1)) - noise)


def _wider(mean: Estimate, count: int, more: float) -> tuple[float, float]:
    """Distances of the bounds from the value, with the variance ``more`` added."""
    t = float(stats.t.ppf(0.975, count - 1)) if count > 1 else nan
    below, above = mean.value - mean.low, mean.high - mean.value
    return -sqrt(below**2 + t**2 * more), sqrt(above**2 + t**2 * more)
