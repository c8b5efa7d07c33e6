"""Covariances of a contrast in float64, shrunk by a named rule, from states or from moments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechmem.errors import MechmemError

Shrinkage = float | str
Vector = Float[np.ndarray, " d"]
Matrix = Float[np.ndarray, "d d"]


@dataclass(frozen=True)
class Scatter:
    """Counts, means and pooled scatter of two classes at one site.

    Attributes:
        counts: Examples of the class pointed to, and of the other.
        high, low: Their means ``[d]``.
        within: Sum over both classes of products of deviations from the own mean, ``[d, d]``.
    """

    counts: tuple[int, int]
    high: Vector
    low: Vector
    within: Matrix

    @classmethod
    def of(cls, high: Sequence[Sequence[float]] | np.ndarray, low: np.ndarray) -> Scatter:
        """From the states of the two classes, ``[example, d]`` each."""
        parts = [np.asarray(part, dtype=np.float64) for part in (high, low)]
        means = [part.mean(axis=0) for part in parts]
        within = np.zeros((parts[0].shape[1],) * 2)
        for part, mean in zip(parts, means, strict=True):
            away = part - mean
            within += away.T @ away
        return cls((len(parts[0]), len(parts[1])), means[0], means[1], within)

    @property
    def n(self) -> int:
        """Examples of both classes."""
        return sum(self.counts)

    @property
    def difference(self) -> Vector:
        """Mean of the one class minus mean of the other."""
        out: np.ndarray = self.high - self.low
        return out

    @property
    def center(self) -> Vector:
        """Mean over all examples."""
        n1, n0 = self.counts
        out: np.ndarray = (n1 * self.high + n0 * self.low) / (n1 + n0)
        return out

    @property
    def pooled(self) -> Matrix:
        """Covariance within the classes, ``within / (n - 2)``."""
        out: np.ndarray = self.within / max(self.n - 2, 1)
        return out

    @property
    def total(self) -> Matrix:
        """Covariance of all examples around their common mean, ``/ (n - 1)``."""
        n1, n0 = self.counts
        between = n1 * n0 / (n1 + n0) * np.outer(self.difference, self.difference)
        out: np.ndarray = (self.within + between) / max(self.n - 1, 1)
        return out


def oas_shrinkage(covariance: Matrix, n: int) -> float:
    """Oracle-approximating shrinkage of a covariance of ``n`` examples (Chen et al. 2010, eq. 23),
    in the form of scikit-learn, without the terms in ``2 / d``.

    It needs nothing but the covariance itself, so moments are enough.
    """
    d = len(covariance)
    trace, square = float(np.trace(covariance)), float((covariance**2).sum())
    bottom = (n + 1) * (square - trace**2 / d)
    return 1.0 if bottom <= 0 else float(min(1.0, (square + trace**2) / bottom))


def shrunk(covariance: Matrix, n: int, shrinkage: Shrinkage) -> tuple[Matrix, float]:
    """``(1 - s) S + s mean(diag S) I`` and the ``s`` that was used.

    Args:
        covariance: ``S``.
        n: Examples it was estimated from.
        shrinkage: ``"oas"``, or a number from 0 (none) to 1 (a multiple of the identity).

    Raises:
        MechmemError: For another word or a number outside.
    """
    if isinstance(shrinkage, str):
        if shrinkage != "oas":
            raise MechmemError(f"shrinkage must be 'oas' or 0 to 1, got {shrinkage!r}.")
        amount = oas_shrinkage(covariance, n)
    elif (
        isinstance(shrinkage, bool)
        or not isinstance(shrinkage, (int, float))
        or not 0 <= shrinkage <= 1
    ):
        raise MechmemError(f"shrinkage must be 'oas' or 0 to 1, got {shrinkage!r}.")
    else:
        amount = float(shrinkage)
    level = float(np.trace(covariance)) / len(covariance)
    return (1 - amount) * covariance + amount * level * np.eye(len(covariance)), amount


def solved(covariance: Matrix, vector: Vector) -> tuple[Vector, int]:
    """``S^+ v`` over the directions in which the data vary, and how many these are."""
    values, axes = np.linalg.eigh(covariance)
    keep = values > values[-1] * len(values) * np.finfo(np.float64).eps
    inside = axes[:, keep]
    out: np.ndarray = inside @ ((inside.T @ vector) / values[keep])
    return out, int(keep.sum())
