"""Edits are data: operation, vector, sites, positions, strength. What they do is in one method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mechmem.analysis.directions import Direction
from mechmem.analysis.neurons import NeuronScores, NeuronSet
from mechmem.caching.provenance import Provenance, Seen
from mechmem.errors import EditError, listed
from mechmem.models.engine.batching import Feed
from mechmem.models.engine.positions import Positions, PositionSpec
from mechmem.models.hooked import Model
from mechmem.models.sites import STREAMS, Site, SiteSpec

__all__ = [
    "AblateNeurons",
    "AddDirection",
    "Edit",
    "ProjectOut",
    "ScaleProjection",
    "SetProjection",
    "ShiftNeurons",
]

Change = Callable[[Tensor, Feed], Tensor | None]
"""From an activation ``[row, token, d]`` and what the pass sees to the changed activation."""


class Edit(ABC):
    """An intervention as data. Subclasses are frozen dataclasses."""

    force: bool

    @abstractmethod
    def changes(self, model: Model) -> dict[Site, Change]:
        """What to do at each site of this model.

        Raises:
            EditError: When the edit does not fit the model.
        """

    @property
    @abstractmethod
    def provenance(self) -> Provenance | None:
        """Where its vector came from; ``None`` for an edit that nothing was fitted for."""

    @property
    def seen(self) -> Seen:
        """What was seen in making it."""
        return self.provenance.seen if self.provenance is not None else Seen()

    def check(self, model: Model) -> None:
        """Refuse a model that the edit was not made for, unless ``force``."""
        if self.provenance is not None and not self.force:
            self.provenance.check_model(model, f"{type(self).__name__}")

    def describe(self) -> dict[str, Any]:
        """JSON-ready summary for tables and manifests."""
        return {"edit": type(self).__name__}


@dataclass(frozen=True)
class _DirectionEdit(Edit):
    """Shared by the edits along one direction."""

    direction: Direction
    at: SiteSpec | None = None
    positions: PositionSpec = "all"
    force: bool = False

    @property
    def provenance(self) -> Provenance:
        return self.direction.provenance

    def _sites(self, model: Model) -> list[Site]:
        if self.at is None:
            return model.sites([self.direction.site])
        if self.at == "everywhere":
            return model.sites(["resid_pre", "attn_out", "mlp_out"])
        return model.sites(self.at)

    def _everywhere(self, model: Model, change: Callable[[Tensor], Tensor]) -> dict[Site, Change]:
        """The same change at every site, kept to the positions."""
        where = Positions.parse(self.positions)
        _refuse_pooled(where)

        def masked(activation: Tensor, feed: Feed) -> Tensor | None:
            mask = feed.mask(where).to(activation.device)
            if not mask.any():
                return None
            _check_width(activation, self.direction.vector.numel(), self.direction.site)
            changed = change(activation.flatten(2)).reshape(activation.shape)
            return torch.where(_expand(mask, activation), changed, activation)

        return dict.fromkeys(self._sites(model), masked)

    def describe(self) -> dict[str, Any]:
        return {
            "edit": type(self).__name__,
            "direction": self.direction.site.key,
            "toward": self.direction.toward,
            "at": self.direction.site.key if self.at is None else str(self.at),
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
    """

    alpha: float = 1.0
    toward: str | None = None

    def changes(self, model: Model) -> dict[Site, Change]:
        if _check_number(self.alpha, "alpha") == 0:
            return self._everywhere(model, lambda h: h)
        sign = _sign(self.toward, self.direction.toward, self.direction.away)
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
        unit, scale = self.direction.unit, _check_number(self.scale, "scale")

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
        sign = _sign(self.toward, self.direction.toward, self.direction.away)
        mean = self.direction.toward_mean if sign > 0 else self.direction.away_mean

        def place(h: Tensor) -> Tensor:
            along = unit.to(h)
            return h + (mean - h @ along)[..., None] * along

        return self._everywhere(model, place)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "toward": self.toward or self.direction.toward}


@dataclass(frozen=True)
class ShiftNeurons(Edit):
    """``h[i] += alpha * shift_i`` on the chosen neurons (P1's inference-time intervention).

    The shift is +NMD toward the first class and -NMD toward the second. With scores of one
    position it acts at ``positions`` (P1: ``"each_step"``, the last prompt token and every
    generated one). With scores of several positions (a window) every position gets its own shift,
    there and nowhere else.

    Attributes:
        scores: From `neuron_mean_difference`.
        top: Number (integer) or share (float) of neurons; ranked by ``by`` in ``scope``.
        alpha: In units of the mean difference. 0 leaves the model exactly as it is.
        toward: The class to steer to.
        at: Sites to edit, default all that were scored.
        positions: Default ``"each_step"`` for one position, the scored positions for a window.
        by, scope: Ranking, see `NeuronScores.top`.
        shifts: Replaces the mean difference (used by controls); ``[position, d]`` per site.
    """

    scores: NeuronScores
    top: float = 0.05
    alpha: float = 1.0
    toward: str = "generalized"
    at: SiteSpec | None = None
    positions: PositionSpec | None = None
    by: str = "correlation"
    scope: str = "global"
    shifts: dict[Site, Tensor] | None = field(default=None, repr=False)
    force: bool = False

    @property
    def provenance(self) -> Provenance:
        return self.scores.provenance

    def neurons(self, model: Model) -> NeuronSet:
        """The chosen neurons."""
        sites = None if self.at is None else model.sites(self.at)
        missing = [str(site) for site in sites or () if site not in self.scores.mean_difference]
        if missing:
            raise EditError(
                f"No neuron scores at {', '.join(missing)}; scored were "
                f"{listed(map(str, self.scores.sites))}. Cache those sites first."
            )
        return self.scores.top(self.top, by=self.by, scope=self.scope, sites=sites)

    def shift(self, model: Model) -> dict[Site, Tensor]:
        """``[position, d]`` added at every site that has a chosen neuron, ``alpha`` included."""
        if self.shifts is not None:
            chosen = {site: value for site, value in self.shifts.items() if bool(value.any())}
            values = chosen or dict(list(self.shifts.items())[:1])
        else:
            neurons = self.neurons(model)
            values = {
                site: self.scores.mean_difference[site] * neurons.mask(site)
                for site in neurons.index
                if len(neurons.index[site])
            }
        sign = _sign(self.toward, self.scores.first, self.scores.second)
        strength = sign * _check_number(self.alpha, "alpha")
        return {site: value * strength for site, value in values.items()}

    def changes(self, model: Model) -> dict[Site, Change]:
        shift = self.shift(model)
        window = len(self.scores.columns) > 1
        if window and self.positions is not None:
            raise EditError(
                f"These scores have their own positions {listed(self.scores.columns)}; leave "
                "positions= out, or use scores of one position."
            )
        where = Positions.parse(
            self.provenance.positions if window else self.positions or "each_step"
        )
        _refuse_pooled(where)
        return {
            site: _adder(value, where, window, self.alpha == 0) for site, value in shift.items()
        }

    def describe(self) -> dict[str, Any]:
        positions = self.provenance.positions if len(self.scores.columns) > 1 else self.positions
        return {
            "edit": "ShiftNeurons",
            "top": self.top,
            "alpha": self.alpha,
            "toward": self.toward,
            "at": "all scored" if self.at is None else str(self.at),
            "positions": str(Positions.parse(positions or "each_step")),
        }

    def toward_class(self, name: str) -> ShiftNeurons:
        """The same edit in the direction of a class."""
        return replace(self, toward=name)


@dataclass(frozen=True)
class AblateNeurons(Edit):
    """Set chosen neurons to zero or to their mean.

    Attributes:
        neurons: From `NeuronScores.top`.
        mode: ``"zero"``, or ``"mean"`` (mean over both classes, each weighted equally).
        positions: Where in the text, as for `ShiftNeurons`.
    """

    neurons: NeuronSet
    mode: str = "mean"
    positions: PositionSpec | None = None
    force: bool = False

    @property
    def provenance(self) -> Provenance:
        return self.neurons.scores.provenance

    def changes(self, model: Model) -> dict[Site, Change]:
        if self.mode not in ("zero", "mean"):
            raise EditError(f"mode must be 'zero' or 'mean', got {self.mode!r}.")
        scores = self.neurons.scores
        window = len(scores.columns) > 1
        where = Positions.parse(
            self.provenance.positions if window else self.positions or "each_step"
        )
        _refuse_pooled(where)
        out: dict[Site, Change] = {}
        for site, index in self.neurons.index.items():
            if len(index):
                mean = scores.mean[site]
                value = mean if self.mode == "mean" else torch.zeros_like(mean)
                out[site] = _setter(value, self.neurons.mask(site), where, window)
        return out

    def describe(self) -> dict[str, Any]:
        return {"edit": "AblateNeurons", "neurons": len(self.neurons), "mode": self.mode}


def _adder(value: Tensor, where: Positions, window: bool, nothing: bool) -> Change:
    def add(activation: Tensor, feed: Feed) -> Tensor | None:
        return _placed(
            activation, feed, where, window, lambda h, k: h if nothing else h + value[k].to(h)
        )

    return add


def _setter(value: Tensor, mask: Tensor, where: Positions, window: bool) -> Change:
    def put(activation: Tensor, feed: Feed) -> Tensor | None:
        return _placed(
            activation,
            feed,
            where,
            window,
            lambda h, k: torch.where(mask[k].to(h.device), value[k].to(h), h),
        )

    return put


def _placed(
    activation: Tensor,
    feed: Feed,
    where: Positions,
    window: bool,
    change: Callable[[Tensor, int], Tensor],
) -> Tensor | None:
    """Apply ``change(h, position number)`` where the positions are; ``None`` when nowhere."""
    flat = activation.flatten(2)
    if not window:
        mask = feed.mask(where).to(activation.device)
        if not mask.any():
            return None
        return torch.where(mask[..., None], change(flat, 0), flat).reshape(activation.shape)
    columns = feed.columns(where).to(activation.device)
    if not (columns >= 0).any():
        return None
    out = flat.clone()
    for k in range(columns.shape[1]):
        rows = (columns[:, k] >= 0).nonzero()[:, 0]
        at = columns[rows, k]
        out[rows, at] = change(flat[rows, at], k)
    return out.reshape(activation.shape)


def _expand(mask: Tensor, activation: Tensor) -> Tensor:
    return mask.reshape(*mask.shape, *(1 for _ in activation.shape[2:]))


def _check_width(activation: Tensor, width: int, site: Site) -> None:
    if activation.flatten(2).shape[-1] != width:
        raise EditError(
            f"The direction comes from {site} and has width {width}, but the activation edited has "
            f"width {activation.flatten(2).shape[-1]}; edit a stream of the same width "
            f"({listed(s for s in STREAMS if s not in ('z', 'mlp_post'))} share the model's width)."
        )


def _check_number(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise EditError(f"{name} must be a number, got {value!r}.")
    if value in (float("inf"), float("-inf")):
        raise EditError(f"{name} must be finite, got {value!r}.")
    return float(value)


def _sign(toward: str | None, first: str, second: str) -> int:
    if toward is None or toward == first:
        return 1
    if toward == second:
        return -1
    raise EditError(f"toward={toward!r} is neither {first!r} nor {second!r}.")


def _refuse_pooled(where: Positions) -> None:
    if where.pooled:
        raise EditError(
            "positions='mean' is for reading; an edit needs tokens, for example 'last'."
        )


def as_edits(edit: Edit | Sequence[Edit]) -> list[Edit]:
    """One edit or several, as a list.

    Raises:
        EditError: For something that is no edit, or an empty list.
    """
    edits = [edit] if isinstance(edit, Edit) else list(edit) if isinstance(edit, Sequence) else []
    wrong = [item for item in edits if not isinstance(item, Edit)]
    if wrong or not edits:
        raise EditError(
            f"Expected an edit such as mm.ShiftNeurons(...) or a list of edits, got {edit!r:.80}."
        )
    return edits
