"""How well one number tells two classes apart, or goes with another: areas and correlations."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats
from scipy.optimize import brentq
from scipy.stats import rankdata

from mechmem.analysis.intervals import Estimate, effective_groups

FEWEST_GROUPS = 5
"""Groups of equal size below which a correlation has no interval but [-1, 1]."""


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half; NaN when a class is missing."""
    n1 = int(positive.sum())
    n0 = len(positive) - n1
    if n1 == 0 or n0 == 0:
        return float("nan")
    ranks = rankdata(scores)
    return float((ranks[positive].sum() - n1 * (n1 + 1) / 2) / (n1 * n0))


def pearson(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation; NaN without variation."""
    a, b = one - one.mean(), other - other.mean()
    size = float(np.sqrt((a @ a) * (b @ b)))
    return float(a @ b) / size if size > 0 else float("nan")


def spearman(one: np.ndarray, other: np.ndarray) -> float:
    """Pearson's correlation of the ranks, ties at their mean rank; NaN without variation."""
    return pearson(rankdata(one), rankdata(other))


def group_auroc(
    scores: Float[np.ndarray, " example"], positive: np.ndarray, groups: Sequence[str]
) -> Estimate:
    """`auroc` with a 95 % interval over groups.

    The areas that a score test would not reject, with Newcombe's variance (2006, method 5), which
    does not vanish at 1, on as many examples of each class as the groups are worth: DeLong's
    variance of the group sums (Obuchowski 1997) over that of independent examples. NaN ends with
    fewer than two groups of a class.
    """
    index, sizes = _numbered(groups)
    value, yes = auroc(scores, positive), np.asarray(positive, dtype=bool)
    counted = len(scores), len(sizes)
    one, zero = (np.bincount(index[side], minlength=len(sizes)) for side in (yes, ~yes))
    if np.isnan(value) or min((one > 0).sum(), (zero > 0).sum()) < 2:
        return Estimate(value, float("nan"), float("nan"), *counted)
    n1, n0 = int(one.sum()), int(zero.sum())
    ranks, away = rankdata(scores), np.zeros(len(scores))
    # Ranks among all minus ranks within the class count the others below: DeLong's placements.
    away[yes] = ((ranks[yes] - rankdata(scores[yes])) / n0 - value) / n1
    away[~yes] = (1 - (ranks[~yes] - rankdata(scores[~yes])) / n1 - value) / n0
    found = len(sizes) / (len(sizes) - 1) * float((np.bincount(index, away) ** 2).sum())
    worth = [effective_groups(side.astype(float)) for side in (one, zero)]
    # As for shares: a little of what wholly dependent members have, all of it at an area of 1.
    members = max(n1 / worth[0], n0 / worth[1])
    more = sum(1 / each**2 for each in worth) / 8 / members
    effect = (found + more * members) / (_independent(value, n1, n0) + more)
    most = float(stats.t.ppf(0.975, sum(worth) - 2))

    def outside(area: float) -> float:
        return (value - area) ** 2 - most**2 * _independent(area, n1 / effect, n0 / effect)

    return Estimate(value, _end(outside, value, 0.0), _end(outside, value, 1.0), *counted)


def group_correlation(
    one: Float[np.ndarray, " example"],
    other: Float[np.ndarray, " example"],
    groups: Sequence[str],
    *,
    ranks: bool = False,
) -> Estimate:
    """`pearson` (with ``ranks`` `spearman`) with a 95 % interval over groups.

    Student's t on Fisher's z, whose variance comes from the influence of the groups (that on the
    ranks included), a little pulled to what wholly dependent members would have. With fewer than
    five groups of equal size worth as much the interval is [-1, 1]: nothing is known.
    """
    index, sizes = _numbered(groups)
    value = (spearman if ranks else pearson)(one, other)
    n, worth = len(one), effective_groups(sizes)
    if np.isnan(value):
        return Estimate(value, value, value, n, len(sizes))
    if worth < FEWEST_GROUPS:
        return Estimate(value, -1.0, 1.0, n, len(sizes))
    x, y = (_standard(rankdata(v) / n if ranks else v) for v in (one, other))
    away = x[0] * y[0] - value * (x[0] ** 2 + y[0] ** 2) / 2
    if ranks:
        away += _through_ranks((y[0] - value * x[0]) / x[1] / n, one)
        away += _through_ranks((x[0] - value * y[0]) / y[1] / n, other)
    # At 1 there is no arctanh.
    most = 1 - 1 / worth**2
    inner, members = float(np.clip(value, -most, most)), n / worth
    found = float((np.bincount(index, away) ** 2).sum()) / n / (1 - inner**2) ** 2
    effect = (found * worth + 2 * members) / (worth + 2)
    if abs(value) > most:  # all on one line: no group deviates, and none tells by how much
        effect = members
    # Fisher's n - 3, in what the groups are worth.
    half = float(stats.t.ppf(0.975, worth - 2)) / np.sqrt(n / effect * (1 - 3 / worth))
    middle = np.arctanh(inner)
    low, high = float(np.tanh(middle - half)), float(np.tanh(middle + half))
    return Estimate(value, min(low, value), max(high, value), n, len(sizes))


def _numbered(groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return index, np.bincount(index).astype(float)


def _independent(area: float, n1: float, n0: float) -> float:
    """Variance of an area measured on independent examples (Hanley and McNeil 1982, with the mean
    of the two numbers above the line as Newcombe has it)."""
    both = (n1 + n0) / 2 - 1
    inner = 1 + both * ((1 - area) / (2 - area) + area / (1 + area))
    return area * (1 - area) * inner / (n1 * n0)


def _end(outside: Callable[[float], float], value: float, side: float) -> float:
    """Where the score test begins to reject, between the value and the end of the scale."""
    # `abs`: just inside the scale at either end, where the variance is not 0 yet.
    if value == side or outside(abs(side - 1e-12)) <= 0:
        return side
    inner = value + (side - value) * 1e-9
    return float(brentq(outside, inner, abs(side - 1e-12)))


def _standard(values: np.ndarray) -> tuple[np.ndarray, float]:
    away = values - values.mean()
    size = float(np.sqrt((away**2).mean()))
    return away / size, size


def _through_ranks(change: np.ndarray, values: np.ndarray) -> np.ndarray:
    """What an example does to the correlation by raising the ranks of those above it, centered."""
    _, at = np.unique(values, return_inverse=True)
    total = np.bincount(at, change)
    above = total[::-1].cumsum()[::-1] - total / 2  # tied examples count half
    out: np.ndarray = above[at] - above[at].mean()
    return out
