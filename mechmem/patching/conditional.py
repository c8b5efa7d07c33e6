"""`OnlyWhere`: an edit behind a gate that opens token by token."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, replace
from math import isnan
from typing import Any

import torch
from torch import Tensor

from mechmem.analysis.directions import Direction, Directions
from mechmem.caching.provenance import Provenance, Seen
from mechmem.errors import EditError, listed
from mechmem.models.engine.batching import Feed
from mechmem.models.engine.reading import over_features
from mechmem.models.model import Model
from mechmem.models.positions import Positions
from mechmem.models.sites import Site
from mechmem.patching.base import Change, Edit, Watcher, check_number, signed


@dataclass(frozen=True)
class OnlyWhere(Edit):
    """The edit, only at tokens whose activation lies on one class's side of a direction.

    At a site with a gate of its own, the gate reads the activation that the edit would change,
    before it changes it. At other sites it needs a single gate, at a site that the network computes
    earlier: what that gate said of a token holds for the token at every later site of the pass. How
    many tokens it kept from being moved is counted as ``closed`` in the report.

    Attributes:
        edit: What to do where the gate is open.
        gate: A direction, for example of a fitted probe
            (``mm.fit_directions(..., method="logistic")``), or `Directions`, one per site edited.
        when: The class on whose side of the threshold the gate opens.
        threshold: Projection on the unit direction; default where the gate's own classifier
            changes its mind, and the midpoint of the two class means for a gate without one.
    """

    edit: Edit
    gate: Direction | Directions
    when: str
    threshold: float | None = None
    force: bool = False

    @property
    def provenance(self) -> Provenance | None:
        return self.edit.provenance

    @property
    def where(self) -> Positions | None:
        return self.edit.where

    @property
    def gates(self) -> dict[Site, Direction]:
        """The direction of every site that has one."""
        gates = [self.gate] if isinstance(self.gate, Direction) else list(self.gate)
        return {gate.site: gate for gate in gates}

    @property
    def seen(self) -> Seen:
        out = self.edit.seen
        for gate in self.gates.values():
            out = out | gate.provenance.seen
        return out

    def check(self, model: Model) -> None:
        self.edit.check(model)
        for gate in () if self.force else self.gates.values():
            gate.provenance.check_model(model, "OnlyWhere")

    def changes(self, model: Model) -> dict[Site, Change]:
        changes, gates = self.edit.changes(model), self.gates
        far = [site for site in changes if site not in gates]
        self._refuse_unreachable(far)
        out: dict[Site, Change] = {}
        reading = _Reading(next(iter(gates.values())), self.where) if far else None
        for site, change in changes.items():
            if site in gates:
                out[site] = _Gated(change, *self._side(gates[site]))
            elif reading is not None:
                gated = _GatedFar(change, *self._side(reading.gate), reading)
                if site == far[0]:
                    gated.watches = reading
                out[site] = gated
        return out

    def _refuse_unreachable(self, far: list[Site]) -> None:
        gates = list(self.gates)
        if far and len(gates) > 1:
            raise EditError(
                f"The gate has directions at {listed(map(str, gates))}, but the edit also acts at "
                f"{', '.join(map(str, far))}; pass Directions of those sites, or a single gate at "
                "an earlier one."
            )
        early = [str(site) for site in far if site.depth < gates[0].depth]
        if early:
            raise EditError(
                f"The gate reads {gates[0]}, but the edit also acts at {', '.join(early)}, which "
                "the network computes before it; take a gate at an earlier site, or edit later "
                "ones."
            )

    def _side(self, gate: Direction) -> tuple[Tensor, float]:
        sign = signed(self.when, gate.toward, gate.away)
        if self.threshold is None and isnan(gate.threshold):
            raise EditError(
                f"The class means along the gate at {gate.site} are not known, so there is no "
                "midpoint; it was imported. Say threshold=."
            )
        limit = gate.threshold
        if self.threshold is not None:
            limit = check_number(self.threshold, "threshold")
        return gate.unit * sign, limit * sign

    def describe(self) -> dict[str, Any]:
        inner = {f"inner_{key}": value for key, value in self.edit.describe().items()}
        gates = "+".join(site.key for site in self.gates)
        own = {"edit": "OnlyWhere", "when": self.when, "gate": gates, "threshold": self.threshold}
        return {**own, **inner}

    not_weights = "acts on some tokens only"

    @property
    def settled(self) -> frozenset[str]:
        return self.edit.settled

    def controls(self, model: Model, seed: int) -> dict[str, Edit]:
        """Those of the edit inside that the same gate can hold, behind it."""
        found: dict[str, Edit] = {}
        for name, control in self.edit.controls(model, seed).items():
            gated = replace(self, edit=control)
            with suppress(EditError):  # it acts at a site that the gate does not reach
                gated.changes(model)
                found[name] = gated
        return found


class _Gated:
    """A change that is kept where the projection of what it changes is above the limit."""

    def __init__(self, change: Change, unit: Tensor, limit: float) -> None:
        self.change, self.unit, self.limit = change, unit, limit
        self.closed = 0
        self.watches: Watcher | None = getattr(change, "watches", None)

    def __call__(self, activation: Tensor, feed: Feed) -> Tensor | None:
        changed = self.change(activation, feed)
        if changed is None:
            return None
        opened = self.opened(self.read(activation))
        meant = (changed != activation).flatten(2).any(dim=-1)
        self.closed += int((meant & ~opened).sum())
        return torch.where(over_features(opened, activation), changed, activation)

    def read(self, activation: Tensor) -> Tensor:
        """What the gate reads."""
        return activation

    def opened(self, read: Tensor) -> Tensor:
        """Which tokens ``[row, token]`` are on the gate's side."""
        flat = read.flatten(2)
        unit = self.unit.to(flat.device, torch.promote_types(flat.dtype, torch.float32))
        return flat.to(unit.dtype) @ unit > self.limit


class _GatedFar(_Gated):
    """The same, by what the gate read at an earlier site of the pass."""

    def __init__(self, change: Change, unit: Tensor, limit: float, reading: _Reading) -> None:
        super().__init__(change, unit, limit)
        if self.watches is not None:
            raise EditError(
                f"A skipped layer needs a gate at its own site; this one is at {reading.site}. "
                "Pass a direction of the layer's end."
            )
        self.reading = reading

    def read(self, activation: Tensor) -> Tensor:
        assert self.reading.value is not None
        return self.reading.value.to(activation.device)


class _Reading(Watcher):
    """Remembers the gate's site in this pass, all edits there included."""

    def __init__(self, gate: Direction, where: Positions | None) -> None:
        self.gate, self.site, self.where = gate, gate.site, where
        self.value: Tensor | None = None

    def apply(self, activation: Tensor, feed: Feed) -> None:
        self.value = activation
