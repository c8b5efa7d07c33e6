"""What each method makes of the states of two classes at one site: one function per method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from mechmem.analysis.covariance import Scatter, shrunk, solved
from mechmem.errors import MechmemError, PromptError, did_you_mean, listed

Options = Mapping[str, Any]


@dataclass(frozen=True)
class Contrast:
    """Two classes at one site.

    Attributes:
        name: The site, for messages.
        scatter: Means, and the pooled scatter where it is there.
        high, low: States ``[example, d]`` of the class pointed to and of the other; ``None`` when
            only moments are there.
        groups: Group of every example, of the one class and of the other.
        covariance: Whether the scatter may be used: stored states, or moments that kept it.
    """

    name: str
    scatter: Scatter
    high: Float[np.ndarray, "one d"] | None = None
    low: Float[np.ndarray, "other d"] | None = None
    groups: tuple[tuple[str, ...], tuple[str, ...]] = ((), ())
    covariance: bool = True

    def stacked(self, method: str) -> tuple[np.ndarray, np.ndarray]:
        """States of both classes and 1 for the class pointed to.

        Raises:
            PromptError: When only moments are there.
        """
        if self.high is None or self.low is None:
            raise PromptError(
                f"method={method!r} reads the single states; moments keep only their statistics. "
                "Cache activations: mm.cache_activations(...)."
            )
        target = np.r_[np.ones(len(self.high)), np.zeros(len(self.low))]
        return np.concatenate([self.high, self.low]), target

    def spread(self, method: str) -> Scatter:
        """The scatter, for methods that need the covariance.

        Raises:
            PromptError: When moments did not keep it, or nothing varies within the classes.
        """
        if not self.covariance:
            raise PromptError(
                f"method={method!r} needs the covariance at {self.name}, which these moments did "
                "not keep; ask for it: mm.cache_moments(..., covariance=sites)."
            )
        if not np.trace(self.scatter.within) > 0:
            raise PromptError(
                f"Nothing varies within the classes at {self.name}: all states of a class are the "
                "same. Choose a later site, or prompts that differ."
            )
        return self.scatter


@dataclass(frozen=True)
class Fitted:
    """What a method found.

    Attributes:
        axis: The direction, at any length and sign.
        boundary: Of a classifier ``axis . h + intercept``: the intercept; ``None`` without one.
        reader, center: Of LEACE.
        settings: What it was fitted with.
    """

    axis: Float[np.ndarray, " d"]
    intercept: float | None = None
    reader: Float[np.ndarray, " d"] | None = None
    center: Float[np.ndarray, " d"] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)


Method = Callable[[Contrast, Options], Fitted]
METHODS: dict[str, tuple[Method, Mapping[str, Any]]] = {}
"""Every method with the options it takes and their defaults."""


def register_method(name: str, **options: Any) -> Callable[[Method], Method]:
    """Make a function a method of `mechmem.fit_directions`, with its options and defaults."""

    def add(function: Method) -> Method:
        METHODS[name] = (function, options)
        return function

    return add


def method_of(name: str, options: Options) -> tuple[Method, dict[str, Any]]:
    """A method and its options, defaults filled in.

    Raises:
        MechmemError: For an unknown method or option.
    """
    if name not in METHODS:
        raise MechmemError(
            f"Unknown method {name!r}; there are {listed(METHODS)}.{did_you_mean(name, METHODS)}"
        )
    method, defaults = METHODS[name]
    unknown = [key for key in options if key not in defaults]
    if unknown:
        raise MechmemError(
            f"method={name!r} has no option {unknown[0]!r}; it has "
            f"{listed(defaults) or 'none'}.{did_you_mean(unknown[0], defaults)}"
        )
    return method, {**defaults, **options}


@register_method("difference_of_means")
def _difference(contrast: Contrast, options: Options) -> Fitted:
    """``mean(toward) - mean(away)``."""
    return Fitted(contrast.scatter.difference)


@register_method("mass_mean", shrinkage="oas")
def _mass_mean(contrast: Contrast, options: Options) -> Fitted:
    """``S^-1 (mean(toward) - mean(away))``, ``S`` the pooled covariance within the classes (Marks &
    Tegmark 2310.06824, the form for independent examples)."""
    scatter = contrast.spread("mass_mean")
    covariance, amount = shrunk(scatter.pooled, scatter.n, options["shrinkage"])
    _refuse_singular(contrast, amount, "mass_mean")
    axis, rank = solved(covariance, scatter.difference)
    return Fitted(axis, settings={"shrinkage": amount, "rank": rank})


@register_method("lda", shrinkage="auto")
def _lda(contrast: Contrast, options: Options) -> Fitted:
    """scikit-learn's linear discriminant (``solver="lsqr"``), classes weighted equally."""
    states, target = contrast.stacked("lda")
    amount = options["shrinkage"]
    wrong_number = isinstance(amount, bool) or not isinstance(amount, (int, float))
    if amount != "auto" and (wrong_number or not 0 <= amount <= 1):
        raise MechmemError(f"shrinkage of lda must be 'auto' or 0 to 1, got {amount!r}.")
    contrast.spread("lda")
    if amount == 0:
        _refuse_singular(contrast, 0.0, "lda")
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=amount, priors=[0.5, 0.5])
    with threadpool_limits(1 if states.size < 1_000_000 else None):
        lda.fit(states, target)
    return Fitted(lda.coef_[0], float(lda.intercept_[0]), settings={"shrinkage": amount})


@register_method("logistic", C=0.03)
def _logistic(contrast: Contrast, options: Options) -> Fitted:
    """scikit-learn's logistic regression on standardized coordinates, taken back to activations.

    ``C`` is the inverse strength of the L2 penalty; classes weigh the same.
    """
    states, target = contrast.stacked("logistic")
    strength = options["C"]
    if isinstance(strength, bool) or not isinstance(strength, (int, float)) or not strength > 0:
        raise MechmemError(f"C of logistic must be a number above 0, got {strength!r}.")
    scaler = StandardScaler().fit(states)
    model = LogisticRegression(C=strength, class_weight="balanced", max_iter=5000, tol=1e-6)
    with threadpool_limits(1 if states.size < 1_000_000 else None):
        model.fit(scaler.transform(states), target)
    axis = model.coef_[0] / scaler.scale_
    intercept = float(model.intercept_[0] - axis @ scaler.mean_)
    return Fitted(axis, intercept, settings={"C": float(strength)})


@register_method("pca")
def _pca(contrast: Contrast, options: Options) -> Fitted:
    """First principal axis of the paired differences ``toward - away`` of every group (RepE).

    The differences are taken in both orders, so they are centered at zero; the axis explains the
    largest share of their sum of squares, which is kept as ``explained``.
    """
    contrast.stacked("pca")
    assert contrast.high is not None
    assert contrast.low is not None
    sides = []
    for states, groups in zip((contrast.high, contrast.low), contrast.groups, strict=True):
        rows: dict[str, list[int]] = {}
        for row, group in enumerate(groups):
            rows.setdefault(group, []).append(row)
        sides.append({name: states[index].mean(axis=0) for name, index in rows.items()})
    both = [name for name in sides[0] if name in sides[1]]
    if not both:
        raise PromptError(
            f"method='pca' takes the differences within groups, but no group at {contrast.name} "
            "has an example of each class; give pairs the same Prompt.group, or use another method."
        )
    differences = np.stack([sides[0][name] - sides[1][name] for name in both])
    _, sizes, axes = np.linalg.svd(differences, full_matrices=False)
    if sizes[0] == 0:
        raise PromptError(
            f"All paired differences at {contrast.name} are zero; choose a later site."
        )
    unpaired = sum(len(side) for side in sides) - 2 * len(both)
    explained = float(sizes[0] ** 2 / (sizes**2).sum())
    settings = {"pairs": len(both), "unpaired_groups": unpaired, "explained": explained}
    return Fitted(axes[0], settings=settings)


@register_method("leace", shrinkage=0.0)
def _leace(contrast: Contrast, options: Options) -> Fitted:
    """LEACE (Belrose et al. 2306.03819, theorem 4.3) for two classes, in closed form.

    The eraser is ``h' = h - vector (reader . (h - center))``: ``vector`` is the difference of
    means, ``reader`` is ``S^+ vector`` at the length where ``reader . vector = 1``, ``S`` the
    covariance of all examples, ``center`` their mean. Class means coincide after it.
    """
    scatter = contrast.spread("leace")
    covariance, amount = shrunk(scatter.total, scatter.n, options["shrinkage"])
    reader, rank = solved(covariance, scatter.difference)
    along = float(reader @ scatter.difference)
    if along <= 0:
        raise PromptError(
            f"The class means at {contrast.name} coincide: there is nothing to erase; choose "
            "another site."
        )
    settings = {"shrinkage": amount, "rank": rank}
    return Fitted(scatter.difference, None, reader / along, scatter.center, settings)


def _refuse_singular(contrast: Contrast, amount: float, method: str) -> None:
    varying = int((np.diag(contrast.scatter.within) > 0).sum())
    if amount == 0 and contrast.scatter.n - 2 < varying:
        raise PromptError(
            f"method={method!r} without shrinkage needs more examples than coordinates: "
            f"{contrast.scatter.n} examples at {contrast.name} against {varying} coordinates that "
            "vary, so the covariance is singular. Leave shrinkage= at its default, or cache more."
        )
