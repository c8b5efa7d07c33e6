"""Intervals that respect the pairing: the groups are the sample, never single rephrasings.

Nothing is drawn for a mean, a share, a change or a ratio: their intervals are computed from what
the groups deviate by, so they depend on no seed and on no order. What has no such form (a choice
made again) is resampled with `group_counts`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

from mechmem.errors import PromptError
from mechmem.seeding import keyed_rng

Z = float(stats.norm.ppf(0.975))
IntervalKind = Literal["share", "change", "mean"]


@dataclass(frozen=True)
class Estimate:
    """A number with its 95 % interval.

    Attributes:
        value: The number, over all examples.
        low, high: The interval over groups; NaN where the groups are too few to say anything.
        n: Number of examples.
        groups: Number of groups.
    """

    value: float
    low: float
    high: float
    n: int
    groups: int

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"

    def row(self, name: str, *, counted: bool = True) -> dict[str, Any]:
        """Columns of a table: ``name, name_low, name_high``, and with ``counted`` ``n, groups``."""
        ends = {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}
        return {**ends, "n": self.n, "groups": self.groups} if counted else ends

    @classmethod
    def exact(cls, value: float, groups: Sequence[str]) -> Estimate:
        """A number that no other sample would change, such as the effect of strength 0."""
        return cls(value, value, value, len(groups), len(set(groups)))


NOT_MEASURED = Estimate(float("nan"), float("nan"), float("nan"), 0, 0)


def group_mean(
    values: Sequence[float] | np.ndarray, groups: Sequence[str], *, kind: IntervalKind | None = None
) -> Estimate:
    """Mean over examples with a 95 % interval over groups.

    ``"share"`` (values in [0, 1]): Clopper and Pearson's exact interval for as many independent
    examples as the groups are worth, ``n / deff`` (Korn and Graubard 1998). The design effect
    ``deff`` is the variance of the group sums over that of independent examples, estimated with
    two more groups that agree within themselves, one each way: where all groups agree, it is what
    wholly dependent members have, so the interval is that of the groups and never without width.

    ``"change"`` (paired differences in [-1, 1]): Bonett and Price (2012), a normal interval after
    adding one change each way, on the same effective number of examples.

    ``"mean"`` (no bounds): Student's t on the deviations of the group sums, with one less degree of
    freedom than there are groups of equal size worth as much (Kish). NaN ends below two such.

    Args:
        values: One per example.
        groups: Group of every example.
        kind: Default: a share when all values are 0 or 1, a change when all are -1, 0 or 1, else a
            mean. Say it for changes: a sample of them may have none downwards.

    What it does not prove: that other groups would be asked alike. Few groups of very skewed
    values without bounds are covered less often (exponential values in 10 groups: 90 %). Groups
    that agree exactly in a quantity without bounds leave no width: nothing says how far apart they
    could be.

    Raises:
        PromptError: When there is nothing to average.
    """
    data = np.asarray(values, dtype=float)
    if data.size == 0:
        raise PromptError("No values to average: the selection is empty.")
    (data,), index, sizes = _sorted(groups, data)
    value = float(data.mean())
    counted = data.size, len(sizes)
    if not np.isfinite(data).all():
        return Estimate(value, float("nan"), float("nan"), *counted)
    kind = kind or _kind_of(data)
    if kind == "mean":
        error, most = _error(np.bincount(index, data - value), sizes, data.size)
        return Estimate(value, value - most * error, value + most * error, *counted)
    if kind == "share":
        spread = np.bincount(index, data)  # of 0 and 1 the squares are the values themselves
        n = data.size / _design_effect(np.bincount(index, data), spread, sizes, (1.0, 0.0))
        yes, no = value * n, (1 - value) * n
        low = float(stats.beta.ppf(0.025, yes, no + 1)) if yes > 0 else 0.0
        high = float(stats.beta.ppf(0.975, yes + 1, no)) if no > 0 else 1.0
        return Estimate(value, min(low, value), max(high, value), *counted)
    spread = np.bincount(index, data**2)
    n = data.size / _design_effect(np.bincount(index, data), spread, sizes, (1.0, -1.0))
    middle = value * n / (n + 2)
    # One change more each way: the sum stays, the squares gain two.
    square = (float(spread.sum()) / data.size * n + 2) / (n + 2)
    half = Z * float(np.sqrt(max(square - middle**2, 0.0) / (n + 2)))
    low, high = max(-1.0, middle - half), min(1.0, middle + half)
    # The middle is drawn toward 0, so that the value itself may come to lie outside.
    return Estimate(value, min(low, value), max(high, value), *counted)


def group_ratio(
    top: Sequence[float] | np.ndarray,
    bottom: Sequence[float] | np.ndarray,
    groups: Sequence[str],
) -> Estimate:
    """``sum(top) / sum(bottom)`` with Fieller's 95 % interval over groups.

    The interval holds every ratio ``r`` for which the mean of ``top - r bottom`` may be 0. Its ends
    are NaN where the sum below may itself be 0: then the ratio means nothing.
    """
    (above, below), index, sizes = _sorted(
        groups, np.asarray(top, float), np.asarray(bottom, float)
    )
    n, total = len(above), float(below.sum())
    value = float(above.sum()) / total if total else float("nan")
    a, b = (np.bincount(index, each - each.mean()) for each in (above, below))
    _, most = _error(a, sizes, n)
    # As in `_error`: few groups deviate from their own mean by less than from the true one.
    few = len(sizes) / max(len(sizes) - 1, 1) * most**2
    aa, ab, bb = few * float(a @ a), few * float(a @ b), few * float(b @ b)
    lead = total**2 - bb
    ends = float("nan"), float("nan")
    if lead > 0:  # else the sum below may be 0, and so it is for NaN
        half = float(above.sum()) * total - ab
        root = np.sqrt(max(half**2 - lead * (float(above.sum()) ** 2 - aa), 0.0))
        ends = float((half - root) / lead), float((half + root) / lead)
    return Estimate(value, *ends, n, len(sizes))


def group_counts(groups: int, draws: int, seed: int, *key: object) -> Int[np.ndarray, "draw group"]:
    """How often each group is drawn when as many as there are are drawn with replacement."""
    rng = keyed_rng(seed, *key)
    drawn: np.ndarray = rng.multinomial(groups, np.full(groups, 1 / groups), size=draws)
    return drawn


def effective_groups(sizes: Float[np.ndarray, " group"]) -> float:
    """How many groups of equal size are worth as much (Kish): ``(sum m)^2 / sum m^2``."""
    return float(sizes.sum() ** 2 / (sizes**2).sum())


def _sorted(
    groups: Sequence[str], *columns: np.ndarray
) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    """The columns in an order of their own, so that sums come out alike to the last digit; the
    group number of every row; and the sizes of the groups."""
    _, index = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    order = np.lexsort((*columns, index))
    return [column[order] for column in columns], index[order], np.bincount(index).astype(float)


def _kind_of(values: np.ndarray) -> IntervalKind:
    if not np.isin(values, (-1.0, 0.0, 1.0)).all():
        return "mean"
    return "change" if (values < 0).any() else "share"


def _error(away: np.ndarray, sizes: np.ndarray, n: int) -> tuple[float, float]:
    """Standard error of a mean from the sums of the groups' deviations, and Student's quantile."""
    count, worth = len(sizes), effective_groups(sizes)
    if worth < 2:
        return float("nan"), float("nan")
    error = float(np.sqrt(count / (count - 1) * (away**2).sum())) / n
    return error, float(stats.t.ppf(0.975, worth - 1))


def _design_effect(
    sums: np.ndarray, squares: np.ndarray, sizes: np.ndarray, more: tuple[float, float]
) -> float:
    """Variance of group sums over that of independent examples, with two more groups that agree.

    The two are of the size in which an example finds itself on average.
    """
    each = float((sizes**2).sum() / sizes.sum())
    totals = np.concatenate([sums, each * np.array(more)])
    counts = np.concatenate([sizes, [each, each]])
    middle = totals.sum() / counts.sum()
    spread = float(squares.sum()) + each * float(np.square(more).sum())
    away = totals - middle * counts
    return float((away**2).sum() / (spread - counts.sum() * middle**2))
