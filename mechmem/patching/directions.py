"""Edits along one direction, what they share, and `AddDirection`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from mechmem.analysis.directions import Direction, Directions
from mechmem.caching.provenance import Provenance
from mechmem.errors import EditError, listed
from mechmem.models.architectures import module_outputs
from mechmem.models.engine.batching import Feed
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.sites import STREAMS, Site, SiteSpec, named
from mechmem.patching.base import (
    NOWHERE,
    CachedTensor,
    Change,
    Edit,
    at_random,
    check_number,
    kept_to,
    signed,
    tokens_of,
)
from mechmem.patching.writers import Writers
from mechmem.seeding import keyed_rng

Move = Callable[[Tensor], Tensor]
"""From states ``[row, token, d]`` to the changed ones."""


@dataclass(frozen=True)
class DirectionEdit(Edit):
    """Shared by the edits along a direction.

    One `Direction` acts at every site of ``at`` (default its own); `Directions` act each at its own
    site, and with ``at=`` each at the sites of its own layer. ``at="everywhere"`` is the input of
    every block and what its attention and MLP modules give back, where the released codes hook.
    ``at="stream"`` is the input of every block and what the two branches add to the stream: the
    same, unless a norm follows the modules (Gemma 2, OLMo 2).

    ``preserve_norm=True`` rescales every edited token to the length it had before: ``h' |h|/|h'|``.

    Controls are ``random direction`` (isotropic) and, where the covariance of the states is known,
    ``covariance direction``: random, with the covariance of the states that the direction was
    fitted to, one draw for all sites. Both are as long as the direction. An edit that reads the
    states along its direction gets one on which the states lie alike (`moves`), so that the two
    move as much: of the states that the direction was fitted to, at their site.
    """

    moves: ClassVar[str] = "length"
    """What an edit's size goes by: the direction's ``"length"``, the states' ``"projection"`` on
    it, or how far that ``"varies"``."""

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
            return [*model.sites("resid_pre"), *module_outputs(model.backend)]
        if self.at == "stream":
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

    def controls(self, model: Model, seed: int) -> dict[str, Edit]:
        every = [self.direction] if isinstance(self.direction, Direction) else list(self.direction)
        names = ["random direction"]
        if all(one.spread is not None and one.spread.known for one in every):
            names += ["covariance direction"]
        return {name: replace(self, direction=self._drawn(name, seed)) for name in names}

    def _drawn(self, name: str, seed: int) -> Direction | Directions:
        if isinstance(self.direction, Direction):
            return _random(self.direction, name, seed, self.moves)
        some = self.direction.by_site.items()
        return Directions({site: _random(one, name, seed, self.moves) for site, one in some})

    def _everywhere_in_text(self) -> None:
        """Refuse what weights cannot tell apart."""
        if Positions.parse(self.positions) != Positions.parse("all"):
            raise EditError(
                f"Weights act at every position, this {type(self).__name__} at "
                f"{self.positions!r}; use positions='all', or mm.patched(model, edit)."
            )
        if self.preserve_norm:
            raise EditError("preserve_norm=True depends on the token; weights cannot express it.")

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
        at: One site, a list, a stream, ``"everywhere"`` or ``"stream"``; default the direction's
            own site.
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
        if (alpha := check_number(self.alpha, "alpha")) == 0:
            return self.moving(model, lambda direction: lambda h: h)
        size = signed(self.toward, self.first.toward, self.first.away) * alpha

        def add(direction: Direction) -> Move:
            vector = CachedTensor(direction.vector * size)
            return lambda h: h + vector.like(h)

        return self.moving(model, add)

    def controls(self, model: Model, seed: int) -> dict[str, Edit]:
        return super().controls(model, seed) | {"alpha 0": replace(self, alpha=0.0)}

    def biases(self, model: Model) -> list[Site]:
        self._everywhere_in_text()
        return [site for site in self.sites(model) if site != Site("resid_pre", 0)]

    def bake(self, model: Model, writers: Writers) -> None:
        """``b' = b + alpha r`` where it is written."""
        sign = signed(self.toward, self.first.toward, self.first.away)
        for site in self.sites(model):
            writers.add(site, self.of(site).vector * (sign * check_number(self.alpha, "alpha")))

    def exported(self, model: Model) -> dict[Site, Tensor]:
        if not self.force:
            self.provenance.check_model(model, "The edit to export")
        self.refuse_positions()
        if self.preserve_norm:
            raise EditError("preserve_norm=True adds no fixed vector; export without it.")
        sign = signed(self.toward, self.first.toward, self.first.away)
        size = sign * check_number(self.alpha, "alpha")
        return {site: self.of(site).vector * size for site in self.sites(model)}

    def describe(self) -> dict[str, Any]:
        return {
            **super().describe(),
            "alpha": self.alpha,
            "toward": self.toward or self.first.toward,
        }


def _random(direction: Direction, name: str, seed: int, moves: str) -> Direction:
    """A random direction as long; its class means lie as far from the states' mean as the own ones.

    What it reads (of LEACE) stays, so that an eraser takes as much away along the random one.
    """
    spread, key = direction.spread, ("control", name)
    if name == "random direction":
        vector = at_random(direction.vector, keyed_rng(seed, *key, direction.site.key))
    else:
        assert spread is not None
        vector = spread.drawn(keyed_rng(seed, *key))
        vector = vector * (direction.norm / float(vector.norm()))
    if direction.norm == 0:
        return replace(direction, vector=torch.zeros_like(direction.vector), method="random")
    toward, away = direction.toward_mean, direction.away_mean
    if spread is not None:
        if moves != "length" and spread.known:
            vector = spread.alike(vector, direction.vector, about_zero=moves == "projection")
        center = spread.center.double()
        offset = float(center @ vector) / float(vector.norm()) - float(center @ direction.unit)
        toward, away = toward + offset, away + offset
    return replace(
        direction, vector=vector, method="random", toward_mean=toward, away_mean=away, boundary=None
    )


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
