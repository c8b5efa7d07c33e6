"""Edits of single neurons: shift them, or keep them within bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mechmem.analysis.neurons import NeuronScores, NeuronSet
from mechmem.caching.provenance import Provenance
from mechmem.errors import EditError, listed
from mechmem.models.engine.batching import Feed
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.sites import NORMED, Site, SiteSpec, named
from mechmem.patching.base import (
    NOWHERE,
    Change,
    Edit,
    Held,
    check_number,
    placed,
    region,
    signed,
    site_width,
)

__all__ = [
    "ClampNeurons",
    "Neurons",
    "ShiftNeurons",
    "count_neurons",
    "neuron_columns",
    "neuron_masks",
    "neuron_shifts",
]

Neurons = NeuronSet | Mapping[tuple[str, int], Sequence[int]]
"""From `NeuronScores.top`, or coordinates by site: ``{("mlp_post", 3): [5, 17]}``."""


def neuron_masks(neurons: Neurons, model: Model) -> dict[Site, Tensor]:
    """``[position or 1, d]`` True at the chosen neurons of every site that has one.

    Raises:
        EditError: For a coordinate that the site does not have, or when none is chosen.
    """
    if isinstance(neurons, NeuronSet):
        index = _editable(neurons).index
        masks = {site: neurons.mask(site) for site, chosen in index.items() if len(chosen)}
    else:
        masks = {}
        for key, chosen in neurons.items():
            (site,) = model.sites([key])
            width = site_width(model, site)
            wrong = [index for index in chosen if not 0 <= index < width]
            if wrong:
                raise EditError(
                    f"{site} has neurons 0 to {width - 1}, so {listed(wrong, 5)} cannot be edited."
                )
            mask = torch.zeros(1, width, dtype=torch.bool)
            mask[0, list(chosen)] = True
            if len(chosen):
                masks[site] = mask
    if not masks:
        raise EditError("No neuron is chosen; for example neurons={('mlp_post', 0): [5]}.")
    return masks


def neuron_shifts(scores: NeuronScores, site: Site, units: str) -> Tensor:
    """``[position, d]``: what one unit of ``alpha`` adds to each neuron, toward the first class.

    Raises:
        EditError: For unknown units.
    """
    if units not in ("difference", "sd"):
        raise EditError(f"units must be 'difference' or 'sd', got {units!r}.")
    difference = scores.mean_difference[site]
    return difference if units == "difference" else difference.sign() * scores.std[site]


def capped(shift: Tensor, states: Tensor, cap: float) -> Tensor:
    """The shift, no longer than ``cap`` times the length of each state."""
    wide = torch.promote_types(states.dtype, torch.float32)
    limit = cap * torch.linalg.vector_norm(states.to(wide), dim=-1, keepdim=True)
    length = torch.linalg.vector_norm(shift.to(wide), dim=-1, keepdim=True)
    factor: Tensor = (limit / length.clamp_min(torch.finfo(wide).tiny)).clamp_max(1)
    return shift * factor.to(shift)


def _editable(neurons: NeuronSet) -> NeuronSet:
    if any(len(rows) and site.stream == NORMED for site, rows in neurons.index.items()):
        raise EditError(
            f"Some chosen neurons lie at {NORMED!r}, after the final norm, where nothing can be "
            "edited; say at= which sites to edit, and among='scored' to rank them beside it."
        )
    return neurons


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
        among: Sites whose neurons compete for the top, default those of ``at``. With ``"scored"``
            every scored site competes and only what was chosen at ``at`` is edited (P1's code).
        units: ``"difference"``: ``alpha`` mean differences (P1). ``"sd"``: ``alpha`` pooled
            standard deviations of the neuron, in the direction of its mean difference.
        cap: Longest shift of a token's activation at a site, as a share of the activation's own
            length there; a longer one is shortened, its direction kept. Default none (P1).
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
    among: SiteSpec | None = None
    units: str = "difference"
    cap: float | None = None
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
        if self.among is None:
            rank = sites
        else:
            rank = self.scores.sites if self.among == "scored" else model.sites(self.among)
        chosen = self.scores.top(self.top, by=self.by, scope=self.scope, sites=rank)
        if sites is None:
            return _editable(chosen)
        index = {site: rows for site, rows in chosen.index.items() if site in sites}
        return NeuronSet(self.scores, index)

    def shift(self, model: Model) -> dict[Site, Tensor]:
        """``[position, d]`` added at every site that has a chosen neuron, ``alpha`` included."""
        if self.shifts is not None:
            chosen = {site: value for site, value in self.shifts.items() if bool(value.any())}
            values = chosen or dict(list(self.shifts.items())[:1])
        else:
            neurons = self.neurons(model)
            values = {
                site: neuron_shifts(self.scores, site, self.units) * neurons.mask(site)
                for site in neurons.index
                if len(neurons.index[site])
            }
            if not values:
                raise EditError(
                    f"None of the top {self.top} neurons lies at {named(self.at or ())}; choose "
                    "more, or rank the edited sites alone (among=None)."
                )
        sign = signed(self.toward, self.scores.first, self.scores.second)
        strength = sign * check_number(self.alpha, "alpha")
        return {site: value * strength for site, value in values.items()}

    def changes(self, model: Model) -> dict[Site, Change]:
        shift = self.shift(model)
        where, window = self._region()
        nothing, cap = self.alpha == 0, self._cap()

        def adder(value: Tensor) -> Change:
            held = Held(value[None])

            def add(activation: Tensor, feed: Feed) -> Tensor | None:
                return placed(
                    activation,
                    feed,
                    where,
                    window,
                    lambda h, v: h if nothing else h + (v if cap is None else capped(v, h, cap)),
                    held.like(activation),
                )

            return add

        return {site: adder(value) for site, value in shift.items()}

    @property
    def where(self) -> Positions:
        return NOWHERE if self.alpha == 0 else self._region()[0]

    def _region(self) -> tuple[Positions, bool]:
        return region(
            self.positions, self.scores.columns, self.provenance.positions, default="each_step"
        )

    def describe(self) -> dict[str, Any]:
        return {
            "edit": "ShiftNeurons",
            "top": self.top,
            "alpha": self.alpha,
            "toward": self.toward,
            "at": "all scored" if self.at is None else named(self.at),
            "positions": str(self._region()[0]),
            **{
                name: value if isinstance(value, (str, float)) else named(value)
                for name, value, usual in (
                    ("among", self.among, None),
                    ("units", self.units, "difference"),
                    ("cap", self.cap, None),
                )
                if value != usual and value is not None
            },
        }

    def _cap(self) -> float | None:
        if self.cap is None:
            return None
        if check_number(self.cap, "cap") <= 0:
            raise EditError(
                f"cap is a share of the activation's length above 0, got {self.cap!r}; leave it "
                "out for no cap."
            )
        return float(self.cap)

    def toward_class(self, name: str) -> ShiftNeurons:
        """The same edit in the direction of a class."""
        return replace(self, toward=name)


@dataclass(frozen=True)
class ClampNeurons(Edit):
    """``h[i]' = min(max(h[i], minimum), maximum)`` on the chosen neurons.

    Attributes:
        neurons: A `NeuronSet`, or coordinates by site.
        minimum, maximum: Bounds in units of the activation; ``None`` for no bound. Equal bounds set
            the neurons to a value.
        positions: Default ``"each_step"``; neurons chosen in a window are clamped each at the
            position it was chosen at.
    """

    neurons: Neurons
    minimum: float | None = None
    maximum: float | None = None
    positions: PositionSpec | None = None
    force: bool = False

    @property
    def provenance(self) -> Provenance | None:
        return self.neurons.scores.provenance if isinstance(self.neurons, NeuronSet) else None

    def changes(self, model: Model) -> dict[Site, Change]:
        if self.minimum is None and self.maximum is None:
            raise EditError(
                "ClampNeurons needs a minimum, a maximum, or both; for example minimum=0.0."
            )
        low = None if self.minimum is None else check_number(self.minimum, "minimum")
        high = None if self.maximum is None else check_number(self.maximum, "maximum")
        if low is not None and high is not None and low > high:
            raise EditError(f"minimum={low} is above maximum={high}; exchange the two.")
        where, window = self._region()

        def clamp(mask: Tensor) -> Change:
            def bound(activation: Tensor, feed: Feed) -> Tensor | None:
                return placed(
                    activation,
                    feed,
                    where,
                    window,
                    lambda h, chosen: torch.where(chosen.bool(), h.clamp(low, high), h),
                    mask[None],
                )

            return bound

        return {site: clamp(mask) for site, mask in neuron_masks(self.neurons, model).items()}

    @property
    def where(self) -> Positions:
        return self._region()[0]

    def _region(self) -> tuple[Positions, bool]:
        columns, read_at = neuron_columns(self.neurons)
        return region(self.positions, columns, read_at, default="each_step")

    def describe(self) -> dict[str, Any]:
        return {
            "edit": "ClampNeurons",
            "neurons": count_neurons(self.neurons),
            "minimum": self.minimum,
            "maximum": self.maximum,
            "positions": str(self._region()[0]),
        }


def neuron_columns(neurons: Neurons) -> tuple[tuple[str, ...], Any]:
    """Names of the positions that the neurons were chosen at, and where those were read."""
    if isinstance(neurons, NeuronSet):
        return neurons.scores.columns, neurons.scores.provenance.positions
    return ("any",), None


def count_neurons(neurons: Neurons) -> int:
    """How many neurons are chosen."""
    if isinstance(neurons, NeuronSet):
        return len(neurons)
    return sum(len(set(chosen)) for chosen in neurons.values())
