"""`ShiftNeurons`: the mean difference of single neurons added to them (P1), and its controls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mechmem.analysis.neurons import NeuronScores, NeuronSet
from mechmem.caching.provenance import Provenance
from mechmem.errors import EditError, listed
from mechmem.models.engine.batching import Feed
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.sites import Site, SiteSpec, named
from mechmem.patching.base import (
    NOWHERE,
    CachedTensor,
    Change,
    Edit,
    at_random,
    check_number,
    placed,
    region,
    signed,
)
from mechmem.patching.neurons import editable, neuron_shifts
from mechmem.seeding import keyed_rng


def capped(shift: Tensor, states: Tensor, cap: float) -> Tensor:
    """The shift, no longer than ``cap`` times the length of each state."""
    wide = torch.promote_types(states.dtype, torch.float32)
    limit = cap * torch.linalg.vector_norm(states.to(wide), dim=-1, keepdim=True)
    length = torch.linalg.vector_norm(shift.to(wide), dim=-1, keepdim=True)
    factor: Tensor = (limit / length.clamp_min(torch.finfo(wide).tiny)).clamp_max(1)
    return shift * factor.to(shift)


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
            return editable(chosen)
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
            held = CachedTensor(value[None])

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
                name: value if isinstance(value, (str, int, float)) else named(value)
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

    def exported(self, model: Model) -> dict[Site, Tensor]:
        if not self.force:
            self.provenance.check_model(model, "The edit to export")
        self.refuse_positions()
        if self.cap is not None:
            raise EditError(
                "cap= adds no fixed vector, as it depends on the state; export without it."
            )
        return {site: value[0] for site, value in self.shift(model).items()}

    @property
    def settled(self) -> frozenset[str]:
        return frozenset({"alpha 0", "low-rank neurons"})

    def controls(self, model: Model, seed: int) -> dict[str, Edit]:
        """All but ``uniform noise`` are as long as the shift, per site and position.

        * ``alpha 0``: must equal the unedited model exactly.
        * ``permuted``: the same neurons with the shift values exchanged among them; left out when
          no site and position has two different values.
        * ``random neurons``: as many random neurons per site and position.
        * ``low-rank neurons``: as many of the lowest-ranking ones with their own differences; left
          out when every neuron was chosen.
        * ``random direction``: a Gaussian vector over all coordinates.
        * ``covariance direction``: a Gaussian vector with the covariance of the states that were
          scored, the same draw at every site; left out where that is not known.
        * ``uniform noise``: P1's own control. As many neurons of all that were scored, values
          uniform between plus and minus the largest shift.
        """
        # In scored units and toward the first class, so that alpha and toward still apply.
        plain = replace(self, alpha=1.0, toward=self.scores.first).shift(model)
        made = {
            "permuted": _each_row(plain, seed, "permuted", _permuted),
            "random neurons": _each_row(plain, seed, "neurons", _moved),
            "low-rank neurons": _lowest(self, plain),
            "random direction": _each_row(plain, seed, "direction", at_random),
            "covariance direction": _varying(self, plain, seed),
            "uniform noise": _uniform(self, model, plain, seed),
        }
        if not any(len(row[row != 0].unique()) > 1 for value in plain.values() for row in value):
            del made["permuted"]
        out: dict[str, Edit] = {"alpha 0": replace(self, alpha=0.0)}
        return out | {
            name: replace(self, shifts=shifts)
            for name, shifts in made.items()
            if any(bool(value.any()) for value in shifts.values())
        }


def _each_row(
    shift: dict[Site, Tensor],
    seed: int,
    name: str,
    make: Callable[[Tensor, np.random.Generator], Tensor],
) -> dict[Site, Tensor]:
    return {
        site: torch.stack(
            [
                make(row, keyed_rng(seed, "control", name, site.key, k))
                for k, row in enumerate(value)
            ]
        )
        for site, value in shift.items()
    }


def _permuted(row: Tensor, rng: np.random.Generator) -> Tensor:
    chosen = row.nonzero()[:, 0]
    out = torch.zeros_like(row)
    out[chosen] = row[chosen][torch.from_numpy(rng.permutation(len(chosen)))]
    if torch.equal(out, row):  # few values may fall back into their places
        out[chosen] = row[chosen].roll(1)
    return out


def _moved(row: Tensor, rng: np.random.Generator) -> Tensor:
    """Random coordinates with random signs and the sizes of the shift: the same length."""
    values = row[row != 0]
    out = torch.zeros_like(row)
    at = torch.from_numpy(rng.choice(len(row), len(values), replace=False))
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], len(values)))
    out[at] = values[torch.from_numpy(rng.permutation(len(values)))] * signs
    return out


def _lowest(edit: ShiftNeurons, plain: dict[Site, Tensor]) -> dict[Site, Tensor]:
    ranking = edit.scores.ranking(edit.by)
    out = {}
    for site, value in plain.items():
        own = neuron_shifts(edit.scores, site, edit.units)
        out[site] = torch.stack(
            [_lowest_row(row, ranking[site][k], own[k]) for k, row in enumerate(value)]
        )
    return out


def _lowest_row(row: Tensor, rank: Tensor, own: Tensor) -> Tensor:
    free = (row == 0) & (own != 0)  # a neuron without a difference has no shift to scale
    number = min(int((row != 0).sum()), int(free.sum()))
    out = torch.zeros_like(row)
    if number:
        at = torch.where(free, rank, torch.inf).argsort(stable=True)[:number]
        out[at] = own[at] * (row.norm() / own[at].norm())
    return out


def _uniform(
    edit: ShiftNeurons, model: Model, plain: dict[Site, Tensor], seed: int
) -> dict[Site, Tensor]:
    """Drawn over everything that was ranked, as P1's code does; what falls on a site that is not
    edited is dropped, as there."""
    scores = edit.scores
    edited = scores.sites if edit.at is None else model.sites(edit.at)
    sites = edited
    if edit.among is not None:
        sites = scores.sites if edit.among == "scored" else model.sites(edit.among)
    if edit.shifts is None:
        chosen = scores.top(edit.top, by=edit.by, scope=edit.scope, sites=sites)
        number = len(chosen)
        values = [
            neuron_shifts(scores, site, edit.units).flatten()[index]
            for site, index in chosen.index.items()
        ]
    else:
        values = [value[value != 0] for value in plain.values()]
        number = sum(len(value) for value in values)
    largest = float(torch.cat(values).abs().max())
    shapes = [scores.mean_difference[site].shape for site in sites]
    total = sum(shape.numel() for shape in shapes)
    rng = keyed_rng(seed, "control", "uniform noise")
    drawn = np.zeros(total)
    at = rng.choice(total, min(number, total), replace=False)
    drawn[at] = rng.uniform(-largest, largest, len(at))
    parts = torch.split(torch.from_numpy(drawn), [shape.numel() for shape in shapes])
    return {
        site: part.reshape(shape)
        for site, part, shape in zip(sites, parts, shapes, strict=True)
        if site in edited
    }


def _varying(edit: ShiftNeurons, plain: dict[Site, Tensor], seed: int) -> dict[Site, Tensor]:
    """One draw over all sites with the states' covariance, each row as long as the shift's."""
    out = {}
    for site, value in plain.items():
        spread = edit.scores.spread.get(site)
        if spread is not None and spread.known:
            drawn = spread.drawn(keyed_rng(seed, "control", "covariance direction"))
            rows = drawn.reshape(value.shape)
            length = rows.norm(dim=1, keepdim=True).clamp_min(torch.finfo(rows.dtype).tiny)
            out[site] = rows * (value.norm(dim=1, keepdim=True) / length)
    return out
