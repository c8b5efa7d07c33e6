"""Linear classifiers of two classes, and the folds that keep every group on one side."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import nan

import numpy as np
from jaxtyping import Float
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.preprocessing import StandardScaler

from mechmem.errors import MechmemError, MechmemWarning, listed

REGULARIZATION = (0.003, 0.03, 0.3)


@dataclass(frozen=True)
class LinearClassifier:
    """``x @ weight + bias``: above 0 the second class, in the units of the states.

    Attributes:
        weight: ``[d]``.
        bias: The threshold's negative.
        kind: Which rule it was fitted by.
        inner: Accuracy in the inner folds of what it was fitted to, by which a site can be chosen
            without looking at what is held out; NaN where the folds have too few of one class.
    """

    weight: Float[np.ndarray, " d"]
    bias: float
    kind: str
    inner: float = nan

    def score(self, states: Float[np.ndarray, "example d"]) -> Float[np.ndarray, " example"]:
        """How far on the second class's side."""
        out: np.ndarray = states @ self.weight + self.bias
        return out

    def predict(self, states: Float[np.ndarray, "example d"]) -> np.ndarray:
        """1 for the second class, else 0."""
        return (self.score(states) > 0).astype(int)


def fit_classifier(
    features: Float[np.ndarray, "example d"],
    target: np.ndarray,
    groups: np.ndarray,
    kind: str = "logistic",
) -> LinearClassifier:
    """A classifier of 0 against 1.

    Args:
        features: States, in float64.
        target: 0 or 1 per example; both occur.
        groups: Group per example, for the inner folds.
        kind: ``"logistic"``: L2 penalty, its strength chosen among `REGULARIZATION` by three inner
            folds that keep groups together, on standardized features. ``"lda"``: Gaussian classes
            with one shared covariance, shrunk as Ledoit and Wolf (2004) do. ``"mean_difference"``:
            the difference of the two means, cut half-way between them.

    Raises:
        MechmemError: For another kind.
    """
    if kind not in CLASSIFIERS:
        raise MechmemError(f"Unknown classifier {kind!r}; allowed are {listed(CLASSIFIERS)}.")
    weight, bias, inner = CLASSIFIERS[kind](features, target, groups)
    return LinearClassifier(weight, bias, kind, inner)


def _logistic(
    features: np.ndarray, target: np.ndarray, groups: np.ndarray
) -> tuple[np.ndarray, float, float]:
    strength, best = REGULARIZATION[1], nan
    inner = _inner(target.tobytes(), tuple(groups.tolist()))
    if inner:  # else too few of one class to choose anything by
        right = np.zeros(len(REGULARIZATION))
        for train, test in inner:
            scaler = StandardScaler().fit(features[train])
            known, held = scaler.transform(features[train]), scaler.transform(features[test])
            for k, c in enumerate(REGULARIZATION):
                model = LogisticRegression(C=c, max_iter=2000).fit(known, target[train])
                guess = held @ model.coef_[0] + model.intercept_[0] > 0
                right[k] += (guess == target[test]).mean() / len(inner)
        strength, best = REGULARIZATION[int(np.argmax(right))], float(right.max())
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=strength, max_iter=2000).fit(scaler.transform(features), target)
    weight = model.coef_[0] / scaler.scale_
    return weight, float(model.intercept_[0] - scaler.mean_ @ weight), best


def _lda(features: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    varies = np.ptp(features, axis=0) > 0
    weight = np.zeros(features.shape[1])
    bias = float(np.log(target.mean() / (1 - target.mean())))
    if varies.any():
        model = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
        model.fit(features[:, varies], target)
        weight[varies], bias = model.coef_[0], float(model.intercept_[0])
    return weight, bias


def _mean_difference(features: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, float]:
    one, zero = features[target == 1].mean(0), features[target == 0].mean(0)
    weight = one - zero
    return weight, float(-weight @ (one + zero) / 2)


Fit = Callable[[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, float, float]]
Plain = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, float]]


def _with_inner(plain: Plain) -> Fit:
    """A rule that chooses nothing, with its accuracy in the inner folds."""

    def fit(
        features: np.ndarray, target: np.ndarray, groups: np.ndarray
    ) -> tuple[np.ndarray, float, float]:
        right = []
        for train, test in _inner(target.tobytes(), tuple(groups.tolist())):
            weight, bias = plain(features[train], target[train])
            right.append(((features[test] @ weight + bias > 0) == target[test]).mean())
        return *plain(features, target), float(np.mean(right)) if right else nan

    return fit


CLASSIFIERS: dict[str, Fit] = {
    "logistic": _logistic,
    "lda": _with_inner(_lda),
    "mean_difference": _with_inner(_mean_difference),
}
"""Kinds of classifier by name."""


@lru_cache(64)
def _inner(target: bytes, groups: tuple[str, ...]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Inner folds, the same for every site of a contrast, whose training sides show both."""
    known = np.frombuffer(target, dtype=int)
    most = min(3, int(np.bincount(known).min()), len(set(groups)))
    folds = folds_of(most, known, np.array(groups))
    return [(train, test) for train, test in folds if len(set(known[train].tolist())) == 2]


def folds_of(
    n: int, target: np.ndarray, groups: np.ndarray, seed: int | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of every fold's training and test side; no group is on both."""
    if n < 2:
        return []
    splitter = StratifiedGroupKFold(n, shuffle=seed is not None, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer examples than folds is missing from some test sides: no matter.
        warnings.filterwarnings("ignore", message="The least populated class")
        return list(splitter.split(np.zeros((len(target), 1)), target, groups))


def token_features(token_ids: list[tuple[int, ...]]) -> Float[np.ndarray, "example feature"]:
    """One-hot of the token at every position counted from the end, as far back as all reach.

    Warns when one short prompt hides most of the others.
    """
    lengths = [len(ids) for ids in token_ids]
    depth = min(lengths)
    if depth < np.median(lengths) / 2:
        warnings.warn(
            f"The baseline on input tokens sees the last {depth} tokens only, as many as the "
            f"shortest prompt has; half of the prompts have {int(np.median(lengths))} or more. "
            "Leave short prompts out to make it a fair one.",
            MechmemWarning,
            stacklevel=1,  # one place, so that Python says it once
        )
    columns = []
    for back in range(1, depth + 1):
        here = np.array([ids[-back] for ids in token_ids])
        for token in np.unique(here)[1:]:
            columns.append(here == token)
    return np.stack(columns, axis=1).astype(float) if columns else np.zeros((len(token_ids), 1))
