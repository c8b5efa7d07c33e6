"""What an edit is, and the helpers that every kind of edit places its change with."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from mechmem.caching.provenance import Provenance, Seen
from mechmem.errors import EditError
from mechmem.models.engine.batching import Feed
from mechmem.models.engine.positions import Positions
from mechmem.models.hooked import Model
from mechmem.models.sites import Site

__all__ = ["Change", "Edit", "as_edits", "check_number", "placed", "refuse_pooled", "signed"]

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


def placed(
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


def check_number(value: float, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != value:
        raise EditError(f"{name} must be a number, got {value!r}.")
    if value in (float("inf"), float("-inf")):
        raise EditError(f"{name} must be finite, got {value!r}.")
    return float(value)


def signed(toward: str | None, first: str, second: str) -> int:
    if toward is None or toward == first:
        return 1
    if toward == second:
        return -1
    raise EditError(f"toward={toward!r} is neither {first!r} nor {second!r}.")


def refuse_pooled(where: Positions) -> None:
    if where.pooled:
        raise EditError(
            "positions='mean' is for reading; an edit needs tokens, for example 'last'."
        )
