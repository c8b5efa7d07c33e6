"""Which layers to try: those at which held-out training prompts are told apart best."""

from __future__ import annotations

import numpy as np

from mechmem.analysis.association import auroc
from mechmem.caching.activations import Activations
from mechmem.errors import PromptError, listed
from mechmem.models.sites import Site
from mechmem.seeding import keyed_order

FOLDS = 5


def cross_fitted_auroc(
    acts: Activations, toward: str, away: str, *, by: str = "behavior", seed: int = 0
) -> dict[Site, float]:
    """How well a difference of means tells the classes apart in groups that it was not fitted on.

    Groups are dealt into five folds; in each, prompts are projected on the difference of means of
    the other folds (all positions of a site together), and the areas under the ROC curve are
    averaged. Unlike an area on the fitted prompts, it does not grow with the width of a site.

    Raises:
        PromptError: When a class is missing.
    """
    names = acts.classes(by)
    rows = [k for k, name in enumerate(names) if name in (toward, away)]
    positive = np.array([names[k] == toward for k in rows], dtype=bool)
    if not positive.any() or positive.all():
        raise PromptError(
            f"Layers are chosen by how {toward!r} and {away!r} differ, but these prompts show "
            f"{listed(sorted({str(name) for name in names}))}."
        )
    groups = [acts.prompts[k].group for k in rows]
    order = {name: k for k, name in enumerate(keyed_order(groups, seed, "layer choice"))}
    fold = np.array([order[name] % FOLDS for name in groups])
    out = {}
    for site, state in acts.states.items():
        values = state[rows].flatten(1).double().numpy()
        areas = []
        for k in range(FOLDS):
            held, fitted = fold == k, fold != k
            one, other = values[fitted & positive], values[fitted & ~positive]
            if not len(one) or not len(other):
                continue
            scores = values[held] @ (one.mean(0) - other.mean(0))
            areas.append(auroc(scores, positive[held]))
        known = [area for area in areas if np.isfinite(area)]
        out[site] = float(np.mean(known)) if known else 0.5
    return out


def choose_layers(
    acts: Activations,
    most: int,
    toward: str,
    away: str,
    *,
    by: str = "behavior",
    seed: int = 0,
) -> list[Site]:
    """At most ``most`` sites: the depth is cut into so many bands, and each gives the site that
    tells the classes apart best (`cross_fitted_auroc`).

    Bands, because neighboring layers separate almost alike while what an edit does there differs
    with depth.
    """
    sites = sorted(acts.states, key=lambda site: site.depth)
    if len(sites) <= most:
        return sites
    areas = cross_fitted_auroc(acts, toward, away, by=by, seed=seed)
    bands = np.array_split(np.arange(len(sites)), most)
    return [max((sites[int(k)] for k in band), key=lambda site: areas[site]) for band in bands]
