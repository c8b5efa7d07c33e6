"""Directions: one vector per site that points **toward** a named class."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.analysis.spread import Spread, spreads
from mechmem.artifacts import load_artifact, save_artifact
from mechmem.caching.activations import Activations
from mechmem.caching.moments import Moments
from mechmem.caching.provenance import PROVENANCE, Provenance
from mechmem.errors import ArtifactError, PositionError, PromptError, SiteError, listed
from mechmem.models.sites import Site
from mechmem.numeric import finite_number

_SHAPE = {
    "provenance": PROVENANCE,
    "toward": str,
    "away": str,
    "method": str,
    "means": {str: [(None, float), (None, float)]},
    "boundary": {str: (None, float)},
    "settings": {str: dict},
}


@dataclass(frozen=True)
class Direction:
    """One vector at one site.

    Attributes:
        vector: ``[d]`` float64, in the units of the activation.
        site: Where it lives.
        toward, away: The class it points to and the one it comes from.
        toward_mean, away_mean: Mean projection of each class on the unit vector.
        provenance: Model, positions and what was seen.
        method: How it was made.
        boundary: Projection on the unit vector at which a fitted classifier changes its mind;
            ``None`` for methods that have none, which take the midpoint of the class means.
        reader, center: Of LEACE: ``reader . (h - center)`` is how much of ``vector`` an eraser
            removes. ``None`` for the other methods.
        settings: What the fit was made with (rows, shrinkage, penalty, ...).
        spread: How the states that it was fitted to lie and vary, for its controls; ``None`` where
            that is not known (imported).
    """

    vector: Float[Tensor, " d"]
    site: Site
    toward: str
    away: str
    toward_mean: float
    away_mean: float
    provenance: Provenance
    method: str = "difference_of_means"
    boundary: float | None = None
    reader: Float[Tensor, " d"] | None = None
    center: Float[Tensor, " d"] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    spread: Spread | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        value = self.vector
        real = isinstance(value, Tensor) and value.ndim == 1 and value.is_floating_point()
        real = real and value.layout == torch.strided and value.device.type != "meta"
        if not real or not len(value) or not bool(value.isfinite().all()):
            found = (
                f"{value.dtype} {list(value.shape)}" if isinstance(value, Tensor) else repr(value)
            )
            why = " that is not finite" if real and len(value) else ""
            raise SiteError(
                f"The direction at {self.site} must be a tensor [d] of finite real numbers, got "
                f"{found:.80}{why}. Make it again from finite states."
            )
        numbers = {"toward_mean": self.toward_mean, "away_mean": self.away_mean}
        if self.boundary is not None:
            numbers["boundary"] = self.boundary
        for name, number in numbers.items():
            unknown = name != "boundary" and isinstance(number, float) and isnan(number)
            if not unknown:
                finite_number(number, f"{name} of the direction at {self.site}", error=SiteError)
        pair = [one for one in (self.reader, self.center) if one is not None]
        if len(pair) == 1 or any(
            one.shape != value.shape or not bool(one.isfinite().all()) for one in pair
        ):
            raise SiteError(
                f"reader and center of the direction at {self.site} must both be tensors of finite "
                f"numbers as wide as its vector, {len(value)}, or both None."
            )

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.vector.numpy().astype(dtype) if dtype is not None else self.vector.numpy()

    def __repr__(self) -> str:
        return f"Direction({self.site}, {self.away} -> {self.toward}, norm {self.norm:.3g})"

    @property
    def norm(self) -> float:
        """Euclidean length, in activation units."""
        return float(self.vector.norm())

    @property
    def unit(self) -> Float[Tensor, " d"]:
        """The vector at length 1.

        Raises:
            SiteError: When the vector is zero and so points nowhere.
        """
        if self.norm == 0:
            raise SiteError(
                f"The direction at {self.site} is zero: the two class means coincide; choose "
                "another site."
            )
        return self.vector / self.norm

    @property
    def has_means(self) -> bool:
        """Whether the class means along it are known; those of an imported direction are not."""
        return not (isnan(self.toward_mean) or isnan(self.away_mean))

    @property
    def threshold(self) -> float:
        """Projection that divides the classes: `boundary`, or the midpoint of the class means."""
        middle = (self.toward_mean + self.away_mean) / 2
        return middle if self.boundary is None else self.boundary

    def project(self, states: Tensor) -> Tensor:
        """Signed length along the unit vector, for states ``[..., d]`` of its site."""
        if states.shape[-1] != self.vector.shape[0]:
            raise SiteError(
                f"States of width {states.shape[-1]} cannot be projected on the direction at "
                f"{self.site}, which has width {self.vector.shape[0]}. Project states of its own "
                "site, or of one as wide."
            )
        return states.double() @ self.unit


@dataclass(frozen=True)
class Directions:
    """One `Direction` per site, ``directions["resid_post", 3]``."""

    by_site: Mapping[Site, Direction]

    def __post_init__(self) -> None:
        for site, one in self.by_site.items():
            if tuple(site) != one.site:
                raise SiteError(f"The direction given for {site!r} is that of {one.site}.")
        about = {(one.toward, one.away, one.method, str(one.provenance.positions)) for one in self}
        if len(about) > 1:
            raise SiteError(
                "Directions that belong together point to one class from one other, are made by "
                "one method and read at the same positions, got (toward, away, method, positions) "
                f"{listed(map(str, sorted(map(str, about))), 3)}. Keep them apart."
            )

    def __getitem__(self, site: tuple[str, int]) -> Direction:
        if site not in self.by_site:
            raise SiteError(
                f"No direction at {site!r}; there are {listed(map(str, self.by_site))}. "
                "Cache that site too."
            )
        return self.by_site[Site(*site)]

    def __iter__(self) -> Iterator[Direction]:
        return iter(self.by_site.values())

    def __len__(self) -> int:
        return len(self.by_site)

    def __repr__(self) -> str:
        if not self.by_site:
            return "Directions(0 sites)"
        first = next(iter(self))
        return (
            f"Directions({len(self)} sites, {first.away} -> {first.toward} by "
            f"{first.provenance.by or 'hand'}, {first.method})"
        )

    @property
    def sites(self) -> list[Site]:
        """Sites in order."""
        return list(self.by_site)

    @property
    def provenance(self) -> Provenance:
        """Model and positions, and everything that any of the directions has seen."""
        directions = list(self)
        seen = directions[0].provenance.seen
        for direction in directions[1:]:
            if direction.provenance.seen != seen:
                seen = seen | direction.provenance.seen
        return replace(directions[0].provenance, seen=seen)

    def save(self, path: str | Path) -> Path:
        """Write ``path.safetensors`` and ``path.json``."""
        first = next(iter(self))
        about = {
            "provenance": self.provenance.as_dict(),
            "toward": first.toward,
            "away": first.away,
            "method": first.method,
            "means": {
                d.site.key: [d.toward_mean, d.away_mean] if d.has_means else [None, None]
                for d in self
            },
            "boundary": {d.site.key: d.boundary for d in self},
            "settings": {d.site.key: dict(d.settings) for d in self},
        }
        tensors = {d.site.key: d.vector for d in self}
        for d in self:
            if d.reader is not None and d.center is not None:
                tensors |= {f"{d.site.key}/reader": d.reader, f"{d.site.key}/center": d.center}
            if d.spread is not None:
                tensors[f"{d.site.key}/spread"] = d.spread.packed()
        return save_artifact(path, "directions", tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> Directions:
        """Read what `save` wrote."""
        tensors, about = load_artifact(path, "directions", _SHAPE)
        provenance = Provenance.from_dict(about["provenance"])
        keys = [key for key in tensors if "/" not in key]
        means = {
            key: [float("nan") if value is None else value for value in pair]
            for key, pair in about["means"].items()
        }
        sites = sorted((Site.from_key(key) for key in keys), key=lambda site: site.depth)
        if not sites or {site.key for site in sites} != set(means):
            raise ArtifactError(
                f"{path} holds vectors of {listed(keys, 4) or 'no site'} and class means of "
                f"{listed(means, 4) or 'no site'}. Save it again."
            )
        return cls(
            {
                site: Direction(
                    tensors[site.key],
                    site,
                    about["toward"],
                    about["away"],
                    means[site.key][0],
                    means[site.key][1],
                    provenance,
                    about["method"],
                    about["boundary"].get(site.key),
                    tensors.get(f"{site.key}/reader"),
                    tensors.get(f"{site.key}/center"),
                    about["settings"].get(site.key, {}),
                    Spread.unpacked(tensors[f"{site.key}/spread"], len(tensors[site.key]))
                    if f"{site.key}/spread" in tensors
                    else None,
                )
                for site in sites
            }
        )


def difference_of_means(
    states: Activations | Moments,
    *,
    toward: str,
    away: str | None = None,
    by: str = "behavior",
) -> Directions:
    """Mean of one class minus mean of the other, at every site, in float64 (P2's r).

    On flips each group brings as many memorized as generalized examples, so what belongs to the
    instance cancels; on unpaired sets it does not, and the direction carries the difference in
    content as well.

    Args:
        states: Stored states at one position, or streamed moments.
        toward: The class the direction points to; no sign to remember.
        away: The other class; found by itself when there are two.
        by: ``"behavior"`` (observed) or ``"label"`` (asked for). Moments know their own.

    Returns:
        `Directions`, a vector ``[d]`` per site (heads of ``z`` flattened).

    Raises:
        PromptError: When a class is missing, or the states are not finite.
        PositionError: When the states have several positions.
    """
    if isinstance(states, Activations):
        if len(states) == 0:
            raise PromptError(
                "No examples to take a difference of means of: the set is empty. Cache more "
                "prompts."
            )
        moments = Moments.from_activations(states, by)
    else:
        moments = states
    if len(states.columns) != 1:
        raise PositionError(
            f"A direction belongs to one position, these states have {listed(states.columns)}; "
            "choose one with acts.at('last'), or cache with positions='mean'."
        )
    toward, away = moments.pair(toward, away)
    counts = moments.counts
    provenance = Provenance(
        moments.provenance.model,
        moments.provenance.seen,
        moments.provenance.positions,
        moments.provenance.by,
        ((toward, counts[toward]), (away, counts[away])),
    )
    out, spread = {}, spreads(states, toward, away, by)
    for site in moments.sites:
        high = moments.classes[toward][site].mean.flatten()
        low = moments.classes[away][site].mean.flatten()
        vector = high - low
        unit = vector / vector.norm().clamp_min(torch.finfo(vector.dtype).tiny)
        out[site] = Direction(
            vector, site, toward, away, float(high @ unit), float(low @ unit), provenance,
            spread=spread[site],
        )  # fmt: skip
    return Directions(out)
