"""`fit_directions`: directions by several methods behind one interface."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mechmem.analysis.covariance import Scatter
from mechmem.analysis.direction_methods import Contrast, Fitted, method_of
from mechmem.analysis.directions import Direction, Directions, difference_of_means
from mechmem.caching.activations import Activations
from mechmem.caching.moments import Moments
from mechmem.errors import MechmemWarning, PromptError, listed
from mechmem.models.sites import Site


def fit_directions(
    states: Activations | Moments,
    *,
    method: str = "difference_of_means",
    toward: str,
    away: str | None = None,
    by: str = "behavior",
    **options: Any,
) -> Directions:
    """A direction toward a class at every site, by one of several methods, in float64.

    ============================ ==================================================== =============
    method                       axis                                                 options
    ============================ ==================================================== =============
    ``"difference_of_means"``    difference of the class means (P2)
    ``"mass_mean"``              ``S^-1`` times it, ``S`` the covariance in classes   ``shrinkage``
    ``"lda"``                    the same as scikit-learn estimates it                ``shrinkage``
    ``"logistic"``               normal of a logistic classifier                      ``C``
    ``"pca"``                    first axis of the paired differences (RepE)
    ``"leace"``                  difference of means, with what LEACE erases along it ``shrinkage``
    ============================ ==================================================== =============

    Every vector points toward the class: the class mean of ``toward`` projects higher than that of
    ``away``. Its **length is the distance between the class means along it**, in activation units,
    whatever the method, so that ``alpha=1`` of `mechmem.AddDirection` always means: as far as one
    class mean lies from the other.

    Where all states of a site are the same (the input, when all prompts end alike) the direction is
    zero, points nowhere, and says so when it is used.

    ``shrinkage`` mixes the covariance with a multiple of the identity: ``"oas"`` (mass_mean) and
    ``"auto"`` (lda, Ledoit and Wolf) estimate how much, 0 takes none. The amount used is in
    ``Direction.settings``.

    Args:
        states: Stored states at one position, or streamed moments (difference_of_means; mass_mean
            and leace when the moments kept their covariance).
        method: See above.
        toward: The class the direction points to.
        away: The other class; found by itself when there are two.
        by: ``"behavior"`` (observed) or ``"label"`` (asked for). Moments know their own.
        **options: Of the method.

    Raises:
        PromptError: When a class is missing, states are not finite, the class means coincide, or
            there is too little to fit the method to.
        PositionError: When the states have several positions.
        MechmemError: For an unknown method or option.

    Warns:
        MechmemWarning: When a method that estimates a covariance or a classifier has fewer
            examples than coordinates: what it finds then depends on the regularization.

    What it does not prove: a direction that tells the classes apart need not be what the model
    uses; ``mass_mean``, ``lda`` and ``logistic`` also use coordinates that only cancel noise.
    """
    function, settings = method_of(method, options)
    if method == "difference_of_means":
        return difference_of_means(states, toward=toward, away=away, by=by)
    if isinstance(states, Activations) and not len(states):
        raise PromptError("No examples to fit a direction to: the set is empty. Cache more.")
    moments = states if isinstance(states, Moments) else Moments.from_activations(states, by)
    means = difference_of_means(states, toward=toward, away=away, by=by)
    out, short = {}, []
    for plain in means:
        contrast = _contrast(states, moments, plain, by)
        if plain.norm == 0 and contrast.covariance and not contrast.scatter.within.any():
            # All states are one and the same, as at the input where all prompts end alike.
            out[plain.site] = replace(plain, method=method, settings={"nothing_varies": True})
            continue
        fitted = function(contrast, settings)
        out[plain.site] = _direction(plain, contrast.scatter, fitted, method)
        if contrast.scatter.n < len(contrast.scatter.high) and method != "pca":
            short.append(plain.site)
    if short:
        contrast_n = sum(count for _, count in means.provenance.counts)
        warnings.warn(
            f"method={method!r} was fitted to {contrast_n} examples in more coordinates than that "
            f"at {listed(map(str, short), 3)}: what it finds depends on its regularization "
            f"({', '.join(f'{key}={value}' for key, value in settings.items())}).",
            MechmemWarning,
            stacklevel=2,
        )
    return Directions(out)


def _contrast(
    states: Activations | Moments, moments: Moments, plain: Direction, by: str
) -> Contrast:
    """The two classes at the site of a direction."""
    site = plain.site
    if isinstance(states, Moments):
        return _from_moments(moments, plain)
    names = states.classes(by)
    rows = [[k for k, name in enumerate(names) if name == side] for side in _sides(plain)]
    high, low = (states[site][index].flatten(1).double().numpy() for index in rows)
    groups = [tuple(states.prompts[k].group for k in index) for index in rows]
    return Contrast(str(site), Scatter.of(high, low), high, low, (groups[0], groups[1]))


def _from_moments(moments: Moments, plain: Direction) -> Contrast:
    high, low = (moments.classes[side][plain.site] for side in _sides(plain))
    kept = high.cross is not None and low.cross is not None
    d = high.mean.numel()
    within = np.zeros((d, d))
    if high.cross is not None and low.cross is not None:
        within = (high.cross[0] + low.cross[0]).numpy()
    means = [part.mean.flatten().numpy() for part in (high, low)]
    scatter = Scatter((high.count, low.count), means[0], means[1], within)
    return Contrast(str(plain.site), scatter, covariance=kept)


def _sides(direction: Direction) -> tuple[str, str]:
    return direction.toward, direction.away


def _direction(plain: Direction, scatter: Scatter, fitted: Fitted, method: str) -> Direction:
    """At the house's sign and length."""
    site: Site = plain.site
    size = float(np.linalg.norm(fitted.axis))
    unit = fitted.axis / size if size > 0 else fitted.axis
    distance = float(unit @ scatter.difference)
    if not math.isfinite(distance) or distance == 0:
        raise PromptError(
            f"method={method!r} finds no side at {site}: the class means of {plain.toward!r} and "
            f"{plain.away!r} coincide along what it found. Choose another site or method."
        )
    sign = math.copysign(1.0, distance)
    unit = unit * sign
    boundary = None
    if fitted.intercept is not None:
        boundary = -fitted.intercept * sign / size
    constant = int((np.diag(scatter.within) == 0).sum())
    return Direction(
        torch.from_numpy(unit * abs(distance)),
        site,
        plain.toward,
        plain.away,
        float(scatter.high @ unit),
        float(scatter.low @ unit),
        plain.provenance,
        method,
        boundary,
        None if fitted.reader is None else torch.from_numpy(fitted.reader),
        None if fitted.center is None else torch.from_numpy(np.array(fitted.center)),
        {**fitted.settings, "examples": scatter.n, "constant_coordinates": constant},
        plain.spread,
    )
