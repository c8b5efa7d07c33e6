"""Cosines by layer: states with their direction, directions with each other and with main axes."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from scipy.stats import beta

from mechmem.analysis.directions import Direction, Directions
from mechmem.analysis.held_out import refuse_seen_states, rows_of_two
from mechmem.analysis.intervals import group_mean
from mechmem.caching.activations import Activations
from mechmem.errors import PromptError, SiteError, listed


@dataclass(frozen=True)
class CosineProfile:
    """Cosine of the states of both classes with the direction of their site.

    Attributes:
        rows: Per site and class: mean with a 95 % interval over groups, standard deviation, n.
        model: Name of the model.
        toward, away: The classes.
    """

    rows: pd.DataFrame
    model: str
    toward: str
    away: str

    def table(self) -> pd.DataFrame:
        """One row per site and class."""
        return self.rows.assign(model=self.model, toward=self.toward)


@dataclass(frozen=True)
class DirectionCosines:
    """Cosine between directions of several sources, site by site.

    Attributes:
        rows: Per site and pair of sources: the cosine, and what two random directions of that
            width reach (middle 95 %).
    """

    rows: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """One row per site and pair."""
        return self.rows


@dataclass(frozen=True)
class PrincipalCosines:
    """Cosine of the direction with the first principal components of states, site by site.

    Attributes:
        rows: Per site and component: the cosine's size (an axis has no sign), its share of the
            variance, and the 97.5 % quantile of a random direction's.
    """

    rows: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """One row per site and component."""
        return self.rows


def cosine_profile(
    directions: Directions,
    acts: Activations,
    *,
    by: str | None = None,
    model: str | None = None,
    allow_seen: bool = False,
) -> CosineProfile:
    """Cosine of every state with its site's direction, per class (P2, figure 2).

    Args:
        directions: Fitted elsewhere.
        acts: Held-out states of both classes at one position.
        by: ``"behavior"`` or ``"label"``; default what the directions were fitted by.
        model: What to call the model; default its own name.
        allow_seen: Measure on fitted prompts all the same.

    Raises:
        LeakageError: When the directions have seen a prompt or a group of the states.
        PromptError: When a class is missing.

    What it does not prove: states share a large common part, so both classes can lie on one side
    of 0; what counts is the distance between them.
    """
    if not allow_seen:
        refuse_seen_states(directions, acts, "measure the cosine with the direction")
    rows, positive = rows_of_two(directions, acts, by)
    first = next(iter(directions))
    groups = np.array([acts.prompts[k].group for k in rows])
    out = []
    for direction in directions:
        states = acts[direction.site][rows].flatten(1).double()
        cosines = np.zeros(len(rows))
        if direction.norm:
            lengths = states.norm(dim=-1).clamp_min(torch.finfo(torch.float64).tiny)
            cosines = (direction.project(states) / lengths).numpy()
        for name, mine in ((first.toward, positive), (first.away, ~positive)):
            mean = group_mean(cosines[mine], groups[mine].tolist(), kind="mean")
            out.append(
                {
                    "stream": direction.site.stream,
                    "layer": direction.site.layer,
                    "class": name,
                    **mean.row("cosine", counted=False),
                    "sd": float(cosines[mine].std(ddof=1)) if mine.sum() > 1 else 0.0,
                    "n": mean.n,
                    "groups": mean.groups,
                }
            )
    name = acts.provenance.model.name if model is None else model
    return CosineProfile(pd.DataFrame(out), name, first.toward, first.away)


def compare_directions(sources: Mapping[str, Directions]) -> DirectionCosines:
    """Cosine between the directions of every two sources at the sites they share.

    Sources are data sets, methods, positions or seeds. A direction that points the other way
    between the same two classes is turned; of other classes, `toward` is compared with `toward`.

    Raises:
        PromptError: For fewer than two sources.
        SiteError: When two share no site, or a site differs in width.
    """
    if len(sources) < 2:
        raise PromptError(f"Directions of at least two sources are compared, got {len(sources)}.")
    rows = []
    for (one, mine), (other, theirs) in itertools.combinations(sources.items(), 2):
        shared = [site for site in mine.sites if site in theirs.by_site]
        if not shared:
            raise SiteError(
                f"{one!r} has directions at {listed(map(str, mine.sites), 4)}, {other!r} at "
                f"{listed(map(str, theirs.sites), 4)}: no site in common."
            )
        for site in shared:
            a, b = mine[site], theirs[site]
            if a.vector.shape != b.vector.shape:
                raise SiteError(
                    f"At {site} {one!r} has width {a.vector.numel()} and {other!r} has width "
                    f"{b.vector.numel()}; compare directions of one model."
                )
            rows.append(
                {
                    "stream": site.stream,
                    "layer": site.layer,
                    "one": one,
                    "other": other,
                    "cosine": _cosine(a, b),
                    "random": random_cosine(a.vector.numel(), 0.95),
                }
            )
    return DirectionCosines(pd.DataFrame(rows))


def principal_cosines(
    directions: Directions, acts: Activations, *, components: int = 10
) -> PrincipalCosines:
    """Cosine of each site's direction with the first principal components of states there (P2).

    Args:
        directions: One per site.
        acts: States at the same sites and one position, of any prompts.
        components: How many, at most as many as the states span.

    Raises:
        PromptError: With fewer than two states, or a number of components below 1.

    What it does not prove: a direction along a main axis is visible, not important; one along a
    minor axis can still be what the model uses.
    """
    if components < 1 or len(acts) < 2:
        raise PromptError(
            f"Principal components need at least two states and one component, got {len(acts)} "
            f"states and components={components}."
        )
    rows = []
    for direction in directions:
        states = acts[direction.site].flatten(1).double().numpy()
        _, sizes, axes = np.linalg.svd(states - states.mean(axis=0), full_matrices=False)
        variance = (sizes**2).sum()
        if variance == 0 or direction.norm == 0:
            continue
        random = random_cosine(len(direction.vector), 0.95)
        for k in range(min(components, int((sizes > sizes[0] * 1e-12).sum()))):
            rows.append(
                {
                    "stream": direction.site.stream,
                    "layer": direction.site.layer,
                    "component": k + 1,
                    "cosine": abs(float(axes[k] @ direction.unit.numpy())),
                    "explained": float(sizes[k] ** 2 / variance),
                    "random": random,
                    "n": len(acts),
                    "groups": len(set(acts.prompts.groups)),
                }
            )
    if not rows:
        raise PromptError("No site has states that vary and a direction; choose later sites.")
    return PrincipalCosines(pd.DataFrame(rows))


def random_cosine(d: int, share: float) -> float:
    """What the size of the cosine of two random directions in ``d`` dimensions stays below, in
    ``share`` of all cases: its square follows Beta(1/2, (d - 1) / 2)."""
    return 1.0 if d < 2 else float(np.sqrt(beta.ppf(share, 0.5, (d - 1) / 2)))


def _cosine(one: Direction, other: Direction) -> float:
    if one.norm == 0 or other.norm == 0:
        return float("nan")
    turned = (one.toward, one.away) == (other.away, other.toward)
    return float(one.unit @ other.unit) * (-1.0 if turned else 1.0)
