"""Edits along one direction: add it, remove it, stretch it, set it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechmem.analysis.directions import Direction, Directions
from mechmem.caching.provenance import Provenance
from mechmem.errors import EditError, listed
from mechmem.models.engine.batching import Feed
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.sites import STREAMS, Site, SiteSpec, named
from mechmem.patching.base import (
    NOWHERE,
    Change,
    Edit,
    Held,
    check_number,
    kept_to,
    signed,
    tokens_of,
)

__all__ = [
    "AddDirection",
    "DirectionEdit",
    "Move",
    "ProjectOut",
    "ScaleProjection",
    "SetProjection",
]

Move = Callable[[Tensor], Tensor]
"""From states ``[row, token, d]`` to the changed ones."""


@dataclass(frozen=True)
class DirectionEdit(Edit):
    """Shared by the edits along a direction.

    One `Direction` acts at every site of ``at`` (default its own); `Directions` act each at its own
    site, and with ``at=`` each at the sites of its own layer.

    ``preserve_norm=True`` rescales every edited token to the length it had before: ``h' |h|/|h'|``.
    """

    direction: Direction | Directions
    at: SiteSpec | None = None
    positions: PositionSpec = "all"
    force: bool = False
    preserve_norm: bool = False

    @property
    def provenance(self) -> Provenance:
        return self.direction.provenance

    @property
    def first(self) -> Direction:
        """The direction, or the first of several: they share their classes."""
        one = self.direction
        return one if isinstance(one, Direction) else next(iter(one))

    def of(self, site: Site) -> Direction:
        """The direction that acts at a site.

        Raises:
            EditError: When several belong to its layer, or none.
        """
        if isinstance(self.direction, Direction):
            return self.direction
        if site in self.direction.by_site:
            return self.direction.by_site[site]
        near = [one for one in self.direction if one.site.layer == site.layer]
        if len(near) != 1:
            raise EditError(
                f"No direction of {site} itself, and {len(near)} of its layer "
                f"({listed(str(one.site) for one in near) or 'none'}); give directions with one "
                "for every layer, or leave at= out."
            )
        return near[0]

    def sites(self, model: Model) -> list[Site]:
        """Where it acts in this model."""
        if self.at is None:
            one = self.direction
            return model.sites([one.site] if isinstance(one, Direction) else one.sites)
        if self.at == "everywhere":
            return model.sites(["resid_pre", "attn_out", "mlp_out"])
        return model.sites(self.at)

    @property
    def where(self) -> Positions:
        return tokens_of(self.positions)

    def moving(self, model: Model, move: Callable[[Direction], Move]) -> dict[Site, Change]:
        """What each site's direction does there, kept to the positions."""
        made: dict[Site, Change] = {}
        out = {}
        for site in self.sites(model):
            own = self.of(site)
            if own.site not in made:
                made[own.site] = self._masked(own, move(own))
            out[site] = made[own.site]
        return out

    def _masked(self, direction: Direction, move: Move) -> Change:
        where = tokens_of(self.positions)

        def moved(h: Tensor) -> Tensor:
            return _at_length_of(h, move(h)) if self.preserve_norm else move(h)

        def masked(activation: Tensor, feed: Feed) -> Tensor | None:
            _check_width(activation, direction.vector.numel(), direction.site)
            return kept_to(feed, where, activation, moved)

        return masked

    def describe(self) -> dict[str, Any]:
        one = self.direction
        own = one.site.key if isinstance(one, Direction) else named(one.sites)
        return {
            "edit": type(self).__name__,
            "direction": own,
            "toward": self.first.toward,
            "at": own if self.at is None else named(self.at),
            "positions": str(Positions.parse(self.positions)),
        }


@dataclass(frozen=True)
class AddDirection(DirectionEdit):
    """``h' = h + alpha r`` (P2's addition).

    Attributes:
        direction: Points toward its class; ``toward=`` the other class turns it round.
        alpha: In lengths of the direction. 0 leaves the model exactly as it is.
        toward: The class to steer to; default the direction's own.
        at: One site, a list, a stream, or ``"everywhere"`` (block input, attention output, MLP
            output of every block); default the direction's own site.
        positions: Where in the text.
        preserve_norm: Turn the activation without lengthening it: the result is rescaled to the
            token's length before the edit.
    """

    alpha: float = 1.0
    toward: str | None = None

    @property
    def where(self) -> Positions:
        return NOWHERE if self.alpha == 0 else super().where

    def changes(self, model: Model) -> dict[Site, Change]:
        if check_number(self.alpha, "alpha") == 0:
            return self.moving(model, lambda direction: lambda h: h)
        sign = signed(self.toward, self.first.toward, self.first.away)

        def add(direction: Direction) -> Move:
            vector = Held(direction.vector * (sign * self.alpha))
            return lambda h: h + vector.like(h)

        return self.moving(model, add)

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "alpha": self.alpha,
            "toward": self.toward or self.first.toward,
        }


@dataclass(frozen=True)
class ProjectOut(DirectionEdit):
    """``h' = h - (h . r^) r^``: the component along the direction is removed (P2's ablation)."""

    def changes(self, model: Model) -> dict[Site, Change]:
        return self.moving(model, lambda direction: _stretch(direction, -1.0))


@dataclass(frozen=True)
class ScaleProjection(DirectionEdit):
    """``h' = h + scale (h . r^) r^``: P2's released code, where ``at="everywhere"``.

    ``scale=-1`` removes the component. At every site it compounds with depth, about
    ``(1 + scale)^(layers left)`` on what an early layer wrote.
    """

    scale: float = 0.1

    def changes(self, model: Model) -> dict[Site, Change]:
        scale = check_number(self.scale, "scale")
        return self.moving(model, lambda direction: _stretch(direction, scale))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "scale": self.scale}


@dataclass(frozen=True)
class SetProjection(DirectionEdit):
    """``h' = h + (m - h . r^) r^``: the projection becomes a class's mean projection ``m``.

    Attributes:
        toward: The class whose mean is set; default the direction's own.
    """

    toward: str | None = None

    def changes(self, model: Model) -> dict[Site, Change]:
        sign = signed(self.toward, self.first.toward, self.first.away)

        def place(direction: Direction) -> Move:
            unit = Held(direction.unit)
            if not direction.has_means:
                raise EditError(
                    f"The class means along the direction at {direction.site} are not known, so "
                    "nothing can be set to them; it was imported. Use AddDirection or ProjectOut."
                )
            mean = direction.toward_mean if sign > 0 else direction.away_mean

            def placed(h: Tensor) -> Tensor:
                along = unit.like(h)
                return h + (mean - h @ along)[..., None] * along

            return placed

        return self.moving(model, place)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "toward": self.toward or self.first.toward}


def _stretch(direction: Direction, scale: float) -> Move:
    unit = Held(direction.unit)

    def stretched(h: Tensor) -> Tensor:
        along = unit.like(h)
        return h + scale * (h @ along)[..., None] * along

    return stretched


def _at_length_of(before: Tensor, changed: Tensor) -> Tensor:
    """``h' |h| / |h'|`` for every token; what an edit has made zero stays zero."""
    wide = torch.promote_types(before.dtype, torch.float32)
    length = changed.to(wide).norm(dim=-1, keepdim=True)
    ratio = before.to(wide).norm(dim=-1, keepdim=True) / length
    scaled = changed.to(wide) * torch.where(length > 0, ratio, torch.ones_like(ratio))
    return scaled.to(changed.dtype)


def _check_width(activation: Tensor, width: int, site: Site) -> None:
    found = math.prod(activation.shape[2:])
    if found != width:
        raise EditError(
            f"The direction comes from {site} and has width {width}, but the activation edited has "
            f"width {found}; edit a stream of the same width "
            f"({listed(s for s in STREAMS if s not in ('z', 'mlp_post'))} share the model's width)."
        )
