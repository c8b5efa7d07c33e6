"""Many edits side by side: every part of a batch belongs to a cell, and meets its edits only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mechmem.models.engine.batching import Feed
from mechmem.models.engine.positions import Positions
from mechmem.models.engine.wiring import Intervention
from mechmem.models.sites import Site
from mechmem.models.tokens import TokenizedPrompt

__all__ = [
    "Cell",
    "CellPrompt",
    "Chorus",
    "Split",
    "by_tag",
    "choir",
    "tagged",
    "touched",
]

Cell = Sequence[Intervention]
"""The interventions of one setting of a grid; empty for the unedited model."""


@dataclass(frozen=True)
class CellPrompt(TokenizedPrompt):
    """A prompt as one cell runs it.

    Attributes:
        cell: Which cell's edits it meets.
    """

    cell: int = 0


def touched(cell: Cell) -> Positions | None:
    """All tokens that the interventions may change; ``None`` when that is not known."""
    parts: dict[str | int, None] = {}
    for item in cell:
        where = getattr(item, "where", None)
        if not isinstance(where, Positions):
            return None
        parts |= dict.fromkeys(where.parts)
    return Positions(tuple(parts))


def tagged(prompts: Sequence[TokenizedPrompt], cells: int) -> list[CellPrompt]:
    """Every prompt once per cell: all prompts of cell 0, then those of cell 1, ..."""
    names = [part.name for part in fields(TokenizedPrompt)]
    plain = [{name: getattr(prompt, name) for name in names} for prompt in prompts]
    return [CellPrompt(**values, cell=cell) for cell in range(cells) for values in plain]


Split = Mapping[int, tuple[Feed, Any]]
"""For every cell with a part in a pass: what it sees of the pass, and the index of that part."""


def by_tag(feed: Feed) -> Split:
    """The rows of every cell, where the prompts are `tagged`."""
    if feed not in _SPLITS:
        rows: dict[int, list[int]] = {}
        for row, prompt in enumerate(feed.prompts):
            cell = prompt.cell if isinstance(prompt, CellPrompt) else 0
            rows.setdefault(cell, []).append(row)
        device = feed.index.device
        _SPLITS[feed] = {
            cell: (feed.only(own), torch.tensor(own, device=device)) for cell, own in rows.items()
        }
    return _SPLITS[feed]


_SPLITS: WeakKeyDictionary[Feed, Split] = WeakKeyDictionary()


@dataclass
class Chorus:
    """What all cells do at one site, each to its own part.

    Attributes:
        site: Where.
        members: The cell and one of its interventions, in the order in which they act.
        split: Which part is whose.
    """

    site: Site
    members: list[tuple[int, Intervention]]
    split: Callable[[Feed], Split]

    @property
    def where(self) -> Positions | None:
        """The tokens that may come out changed in any cell."""
        return touched([item for _, item in self.members])

    def apply(self, activation: Tensor, feed: Feed) -> Tensor | None:
        """The activation with the part of every cell changed by its own interventions."""
        parts = self.split(feed)
        out: Tensor | None = None
        for cell, intervention in self.members:
            if cell not in parts:
                continue
            own, at = parts[cell]
            changed = intervention.apply((activation if out is None else out)[at], own)
            if changed is not None:
                out = activation.clone() if out is None else out
                out[at] = changed
        return out


def choir(cells: Sequence[Cell], split: Callable[[Feed], Split]) -> list[Chorus]:
    """One intervention per site for all cells."""
    by_site: dict[Site, list[tuple[int, Intervention]]] = {}
    for number, cell in enumerate(cells):
        for item in cell:
            by_site.setdefault(item.site, []).append((number, item))
    return [Chorus(site, members, split) for site, members in by_site.items()]
