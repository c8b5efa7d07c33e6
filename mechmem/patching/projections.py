"""Edits of the projection on a direction: remove it, stretch it, set it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from mechmem.analysis.directions import Direction
from mechmem.errors import EditError
from mechmem.models.model import Model
from mechmem.models.sites import Site
from mechmem.patching.base import CachedTensor, Change, check_number, signed
from mechmem.patching.directions import DirectionEdit, Move
from mechmem.patching.writers import Writers


@dataclass(frozen=True)
class ProjectOut(DirectionEdit):
    """``h' = h - (h . r^) r^``: the component along the direction is removed (P2's ablation)."""

    moves: ClassVar[str] = "projection"

    def changes(self, model: Model) -> dict[Site, Change]:
        return self.moving(model, lambda direction: _stretch(direction, -1.0))

    def biases(self, model: Model) -> list[Site]:
        self._everywhere_in_text()
        return []

    def bake(self, model: Model, writers: Writers) -> None:
        """Every writer loses its part along the direction: ``W' = (I - r^ r^T) W``."""
        units = {site: self.of(site).unit for site in self.sites(model)}
        writers.project(units, -1.0, type(self).__name__)


@dataclass(frozen=True)
class ScaleProjection(DirectionEdit):
    """``h' = h + scale (h . r^) r^``: P2's released code, where ``at="everywhere"``.

    P2's hooks sit on the modules: in Gemma 2 and OLMo 2, two of its four models, before the norm
    that follows them. ``at="stream"`` scales what the branches add behind it, another intervention.
    ``scale=-1`` removes the component. At every site it compounds with depth, about
    ``(1 + scale)^(layers left)`` on what an early layer wrote.
    """

    moves: ClassVar[str] = "projection"
    scale: float = 0.1

    def changes(self, model: Model) -> dict[Site, Change]:
        scale = check_number(self.scale, "scale")
        return self.moving(model, lambda direction: _stretch(direction, scale))

    def biases(self, model: Model) -> list[Site]:
        self._everywhere_in_text()
        return []

    def bake(self, model: Model, writers: Writers) -> None:
        """``W' = (I + scale r^ r^T) W`` for everything that writes at the sites."""
        units = {site: self.of(site).unit for site in self.sites(model)}
        writers.project(units, check_number(self.scale, "scale"), type(self).__name__)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "scale": self.scale}


@dataclass(frozen=True)
class SetProjection(DirectionEdit):
    """``h' = h + (m - h . r^) r^``: the projection becomes a class's mean projection ``m``.

    Attributes:
        toward: The class whose mean is set; default the direction's own.
    """

    moves: ClassVar[str] = "varies"
    toward: str | None = None

    def changes(self, model: Model) -> dict[Site, Change]:
        sign = signed(self.toward, self.first.toward, self.first.away)

        def place(direction: Direction) -> Move:
            unit = CachedTensor(direction.unit)
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
    unit = CachedTensor(direction.unit)

    def stretched(h: Tensor) -> Tensor:
        along = unit.like(h)
        return h + scale * (h @ along)[..., None] * along

    return stretched
