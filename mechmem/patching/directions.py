"""Edits along one direction: add it, remove it, stretch it, set it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechmem.analysis.directions import Direction
from mechmem.caching.provenance import Provenance
from mechmem.errors import EditError, listed
from mechmem.models.engine.batching import Feed
from mechmem.models.engine.positions import Positions, PositionSpec
from mechmem.models.hooked import Model
from mechmem.models.sites import STREAMS, Site, SiteSpec, named
from mechmem.patching.base import NOWHERE, Change, Edit, check_number, signed, tokens_of

__all__ = ["AddDirection", "ProjectOut", "ScaleProjection", "SetProjection"]


@dataclass(frozen=True)
class _DirectionEdit(Edit):
    """Shared by the edits along one direction.

    ``preserve_norm=True`` rescales every edited token to the length it had before: ``h' |h|/|h'|``.
    """

    direction: Direction
    at: SiteSpec | None = None
    positions: PositionSpec = "all"
    force: bool = False
    preserve_norm: bool = False

    @property
    def provenance(self) -> Provenance:
        return self.direction.provenance

    def _sites(self, model: Model) -> list[Site]:
        if self.at is None:
            return model.sites([self.direction.site])
        if self.at == "everywhere":
            return model.sites(["resid_pre", "attn_out", "mlp_out"])
        return model.sites(self.at)

    @property
    def where(self) -> Positions:
        return tokens_of(self.positions)

    def _everywhere(self, model: Model, change: Callable[[Tensor], Tensor]) -> dict[Site, Change]:
        """The same change at every site, kept to the positions."""
        where = tokens_of(self.positions)

        def masked(activation: Tensor, feed: Feed) -> Tensor | None:
            mask = feed.mask(where).to(activation.device)
            if not mask.any():
                return None
            _check_width(activation, self.direction.vector.numel(), self.direction.site)
            flat = activation.flatten(2)
            changed = change(flat)
            if self.preserve_norm:
                changed = _at_length_of(flat, changed)
            return torch.where(mask[..., None], changed, flat).reshape(activation.shape)

        return dict.fromkeys(self._sites(model), masked)

    def describe(self) -> dict[str, Any]:
        return {
            "edit": type(self).__name__,
            "direction": self.direction.site.key,
            "toward": self.direction.toward,
            "at": self.direction.site.key if self.at is None else named(self.at),
            "positions": str(Positions.parse(self.positions)),
        }


@dataclass(frozen=True)
class AddDirection(_DirectionEdit):
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
            return self._everywhere(model, lambda h: h)
        sign = signed(self.toward, self.direction.toward, self.direction.away)
        vector = self.direction.vector * (sign * self.alpha)
        return self._everywhere(model, lambda h: h + vector.to(h))

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "alpha": self.alpha,
            "toward": self.toward or self.direction.toward,
        }


@dataclass(frozen=True)
class ProjectOut(_DirectionEdit):
    """``h' = h - (h . r^) r^``: the component along the direction is removed (P2's ablation)."""

    def changes(self, model: Model) -> dict[Site, Change]:
        unit = self.direction.unit

        def remove(h: Tensor) -> Tensor:
            along = unit.to(h)
            return h - (h @ along)[..., None] * along

        return self._everywhere(model, remove)


@dataclass(frozen=True)
class ScaleProjection(_DirectionEdit):
    """``h' = h + scale (h . r^) r^``: P2's released code, where ``at="everywhere"``.

    ``scale=-1`` removes the component. At every site it compounds with depth, about
    ``(1 + scale)^(layers left)`` on what an early layer wrote.
    """

    scale: float = 0.1

    def changes(self, model: Model) -> dict[Site, Change]:
        unit, scale = self.direction.unit, check_number(self.scale, "scale")

        def stretch(h: Tensor) -> Tensor:
            along = unit.to(h)
            return h + scale * (h @ along)[..., None] * along

        return self._everywhere(model, stretch)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "scale": self.scale}


@dataclass(frozen=True)
class SetProjection(_DirectionEdit):
    """``h' = h + (m - h . r^) r^``: the projection becomes a class's mean projection ``m``.

    Attributes:
        toward: The class whose mean is set; default the direction's own.
    """

    toward: str | None = None

    def changes(self, model: Model) -> dict[Site, Change]:
        unit = self.direction.unit
        sign = signed(self.toward, self.direction.toward, self.direction.away)
        mean = self.direction.toward_mean if sign > 0 else self.direction.away_mean

        def place(h: Tensor) -> Tensor:
            along = unit.to(h)
            return h + (mean - h @ along)[..., None] * along

        return self._everywhere(model, place)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "toward": self.toward or self.direction.toward}


def _at_length_of(before: Tensor, changed: Tensor) -> Tensor:
    """``h' |h| / |h'|`` for every token; what an edit has made zero stays zero."""
    wide = torch.promote_types(before.dtype, torch.float32)
    length = changed.to(wide).norm(dim=-1, keepdim=True)
    ratio = before.to(wide).norm(dim=-1, keepdim=True) / length
    scaled = changed.to(wide) * torch.where(length > 0, ratio, torch.ones_like(ratio))
    return scaled.to(changed.dtype)


def _check_width(activation: Tensor, width: int, site: Site) -> None:
    if activation.flatten(2).shape[-1] != width:
        raise EditError(
            f"The direction comes from {site} and has width {width}, but the activation edited has "
            f"width {activation.flatten(2).shape[-1]}; edit a stream of the same width "
            f"({listed(s for s in STREAMS if s not in ('z', 'mlp_post'))} share the model's width)."
        )
