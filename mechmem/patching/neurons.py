"""Edits of single neurons: shift them, or set them to zero or their mean."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mechmem.analysis.neurons import NeuronScores, NeuronSet
from mechmem.caching.provenance import Provenance
from mechmem.errors import EditError, listed
from mechmem.models.engine.batching import Feed
from mechmem.models.engine.positions import Positions, PositionSpec
from mechmem.models.hooked import Model
from mechmem.models.sites import Site, SiteSpec, named
from mechmem.patching.base import Change, Edit, check_number, placed, refuse_pooled, signed

__all__ = ["AblateNeurons", "ShiftNeurons"]


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
        sign = signed(self.toward, self.scores.first, self.scores.second)
        strength = sign * check_number(self.alpha, "alpha")
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
        refuse_pooled(where)
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
            "at": "all scored" if self.at is None else named(self.at),
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
        refuse_pooled(where)
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
        return placed(
            activation, feed, where, window, lambda h, k: h if nothing else h + value[k].to(h)
        )

    return add


def _setter(value: Tensor, mask: Tensor, where: Positions, window: bool) -> Change:
    def put(activation: Tensor, feed: Feed) -> Tensor | None:
        return placed(
            activation,
            feed,
            where,
            window,
            lambda h, k: torch.where(mask[k].to(h.device), value[k].to(h), h),
        )

    return put
