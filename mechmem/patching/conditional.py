"""`OnlyWhere`: an edit behind a gate that opens token by token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mechmem.analysis.directions import Direction, Directions
from mechmem.caching.provenance import Provenance, Seen
from mechmem.errors import EditError, listed
from mechmem.models.engine.batching import Feed
from mechmem.models.engine.positions import Positions
from mechmem.models.hooked import Model
from mechmem.models.sites import Site
from mechmem.patching.base import Change, Edit, check_number, over_features, signed

__all__ = ["OnlyWhere"]


@dataclass(frozen=True)
class OnlyWhere(Edit):
    """The edit, only at tokens whose activation lies on one class's side of a direction.

    The gate reads the activation that the edit would change, before it changes it. How many tokens
    it kept from being moved is counted as ``closed`` in the report.

    Attributes:
        edit: What to do where the gate is open.
        gate: A direction at the edit's site; `Directions` for an edit at several sites.
        when: The class on whose side of the threshold the gate opens.
        threshold: Projection on the unit direction; default the midpoint of the two class means.
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
        missing = [str(site) for site in changes if site not in gates]
        if missing:
            raise EditError(
                f"The gate has directions at {listed(map(str, gates))}, but the edit also acts at "
                f"{', '.join(missing)}; pass Directions of those sites."
            )
        return {site: self._gated(change, gates[site]) for site, change in changes.items()}

    def _gated(self, change: Change, gate: Direction) -> Change:
        sign = signed(self.when, gate.toward, gate.away)
        middle = (gate.toward_mean + gate.away_mean) / 2
        limit = middle if self.threshold is None else check_number(self.threshold, "threshold")
        return _Gated(change, gate.unit * sign, limit * sign)

    def describe(self) -> dict[str, Any]:
        inner = {f"inner_{key}": value for key, value in self.edit.describe().items()}
        return {"edit": "OnlyWhere", "when": self.when, "threshold": self.threshold, **inner}


class _Gated:
    """A change that is kept where the projection is above the limit."""

    def __init__(self, change: Change, unit: Tensor, limit: float) -> None:
        self.change, self.unit, self.limit = change, unit, limit
        self.closed = 0
        self.watches = getattr(change, "watches", None)

    def __call__(self, activation: Tensor, feed: Feed) -> Tensor | None:
        changed = self.change(activation, feed)
        if changed is None:
            return None
        flat = activation.flatten(2)
        unit = self.unit.to(flat.device, torch.promote_types(flat.dtype, torch.float32))
        opened = flat.to(unit.dtype) @ unit > self.limit
        meant = (changed != activation).flatten(2).any(dim=-1)
        self.closed += int((meant & ~opened).sum())
        return torch.where(over_features(opened, activation), changed, activation)
