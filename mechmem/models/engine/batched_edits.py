"""Many edits side by side: every part of a batch belongs to a cell, and meets its edits only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Protocol
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.models.engine.backends import Backend, additive_mask, model_device
from mechmem.models.engine.batching import (
    Batch,
    Feed,
    Prefix,
)
from mechmem.models.engine.capabilities import holds, same_logits, tried
from mechmem.models.engine.hooks import Intervention
from mechmem.models.engine.prefixes import PrefixCache, prefix_prompts, run_prefixes
from mechmem.models.engine.shared_forward import SharedForward
from mechmem.models.positions import Positions
from mechmem.models.sites import Site
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.seeding import keyed_rng

Cell = Sequence[Intervention]
"""The interventions of one setting of a grid; empty for the unedited model."""


@dataclass(frozen=True)
class CellPrompt(TokenizedPrompt):
    """A prompt as one cell runs it.

    Attributes:
        cell: Which cell's edits it meets.
    """

    cell: int = 0


def touched_positions(cell: Cell) -> Positions | None:
    """All tokens that the interventions may change; ``None`` when that is not known."""
    parts: dict[str | int, None] = {}
    for item in cell:
        where = getattr(item, "where", None)
        if not isinstance(where, Positions):
            return None
        parts |= dict.fromkeys(where.parts)
    return Positions(tuple(parts))


def copies_per_cell(prompts: Sequence[TokenizedPrompt], cells: int) -> list[CellPrompt]:
    """Every prompt once per cell: all prompts of cell 0, then those of cell 1, ..."""
    names = [part.name for part in fields(TokenizedPrompt)]
    plain = [{name: getattr(prompt, name) for name in names} for prompt in prompts]
    return [CellPrompt(**values, cell=cell) for cell in range(cells) for values in plain]


Split = Mapping[int, tuple[Feed, Any]]
"""For every cell with a part in a pass: what it sees of the pass, and the index of that part."""


def split_by_cell(feed: Feed) -> Split:
    """The rows of every cell, where the prompts are `copies_per_cell`."""
    # Every edited site of a pass asks for the same split, so it is made once per pass.
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
class BatchedEdits:
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
        return touched_positions([item for _, item in self.members])

    def apply(self, activation: Tensor, feed: Feed) -> Tensor | None:
        """The activation with the part of every cell changed by its own interventions."""
        parts = self.split(feed)
        out: Tensor | None = None
        for cell, intervention in self.members:
            if cell not in parts:
                continue
            own, at = parts[cell]
            # A cell may edit a site twice, and the later edit sees what the earlier has made.
            changed = intervention.apply((activation if out is None else out)[at], own)
            if changed is not None:
                out = activation.clone() if out is None else out
                out[at] = changed
        return out


def batch_edits(cells: Sequence[Cell], split: Callable[[Feed], Split]) -> list[BatchedEdits]:
    """One intervention per site for all cells."""
    by_site: dict[Site, list[tuple[int, Intervention]]] = {}
    for number, cell in enumerate(cells):
        for item in cell:
            by_site.setdefault(item.site, []).append((number, item))
    return [BatchedEdits(site, members, split) for site, members in by_site.items()]


class CellLayout(Protocol):
    """A batch that stands in a pass once per cell.

    Attributes:
        feed: What one cell sees of the pass.
        times: How often the batch stands in the pass, down and across.
    """

    feed: Feed
    times: tuple[int, int]

    def split(self, feed: Feed) -> Split:
        """Which part of the pass is whose."""
        ...

    def logits(self, backend: Backend) -> Float[Tensor, "cell row vocab"]:
        """After the last token of every cell and row, in one pass."""
        ...


class StackedCells:
    """The whole batch once per cell, one below the other.

    Args:
        batch: Every prompt, all tokens.
        cells: How many cells.
    """

    def __init__(self, batch: Batch, cells: int) -> None:
        self.batch, self.feed, self.times = batch, batch.feed(), (cells, 1)

    def split(self, feed: Feed) -> Split:
        rows, (cells, _) = len(self.batch.rows), self.times
        return {k: (self.feed, slice(k * rows, (k + 1) * rows)) for k in range(cells)}

    def logits(self, backend: Backend) -> Float[Tensor, "cell row vocab"]:
        ids, mask = (part.repeat(self.times) for part in (self.batch.ids, self.batch.mask))
        logits, _ = backend.forward(ids, mask, last_only=True)
        return logits[:, -1].detach().reshape(self.times[0], len(self.batch.rows), -1)


class PackedCells:
    """The tokens that are not known yet once per cell, side by side in every row.

    Args:
        batch: Those tokens, of every prompt.
        cells: How many cells.
        root: The beginnings, one per row, as they were run without edits.
    """

    def __init__(self, batch: Batch, cells: int, root: PrefixCache) -> None:
        self.batch, self.feed, self.times, self.root = batch, batch.feed(), (1, cells), root

    def split(self, feed: Feed) -> Split:
        width, (_, cells) = self.batch.ids.shape[1], self.times
        tokens = (slice(k * width, (k + 1) * width) for k in range(cells))
        return {k: (self.feed, (slice(None), own)) for k, own in enumerate(tokens)}

    def logits(self, backend: Backend) -> Float[Tensor, "cell row vocab"]:
        width, device = self.batch.ids.shape[1], self.batch.ids.device
        logits, _ = backend.forward(
            self.batch.ids.repeat(self.times), self.mask(self.root.dtype),
            cache=self.root.cache(range(len(self.batch.rows)), False),
            # Padding has the index -1; no token sees it, so any position will do.
            positions=self.batch.index.clamp_min(0).repeat(self.times),
            # Rows are padded on the left, so a cell ends with every prompt's last token.
            keep=torch.arange(1, self.times[1] + 1, device=device) * width - 1,
        )  # fmt: skip
        return logits.detach().transpose(0, 1)

    def mask(self, dtype: torch.dtype) -> Float[Tensor, "row 1 token key"]:
        """What is added to attention scores."""
        own = self.batch.mask.bool()
        (_, width), (_, cells) = own.shape, self.times
        earlier = torch.ones(width, width, dtype=torch.bool, device=own.device).tril()
        same = torch.eye(cells, dtype=torch.bool, device=own.device)
        # Blocks on the diagonal: a token sees its own cell up to itself, and nothing of another's.
        beside = torch.kron(same, earlier)[None] & own.repeat(self.times)[:, None]
        front = self.root.seen.bool()[:, None].expand(-1, beside.shape[1], -1)
        sees = torch.cat([front, beside], dim=2)[:, None]
        return additive_mask(sees, dtype)


def packs_cells(backend: Backend) -> bool:
    """Whether cells abreast give the model's own logits; tried once per model, on random tokens."""
    return tried(
        backend, "abreast", lambda: holds("cells abreast", lambda: _try_packed_cells(backend))
    )


def _try_packed_cells(backend: Backend) -> bool:
    """Prompts of three lengths, cut at two places, three times abreast, against whole runs."""
    cfg, device = backend.model.cfg, model_device(backend.model)
    rng = keyed_rng(0, "abreast check")
    prompts = [
        TokenizedPrompt(str(n), tuple(rng.integers(0, int(cfg.d_vocab), size=n).tolist()), {})
        for n in (8, 6, 3)
    ]
    rows, cuts = range(len(prompts)), [5, 5, 1]
    whole = Batch.collate(prompts, rows, prompts[0].ids[0], device)
    plain, _ = backend.forward(whole.ids, whole.mask, last_only=True)
    fronts = [Prefix(row, cut) for row, cut in zip(rows, cuts, strict=True)]
    front = Batch.collate(prefix_prompts(prompts, fronts), rows, prompts[0].ids[0], device)
    root = run_prefixes(front, lambda cache: backend.forward(front.ids, front.mask, cache=cache))
    rest = Batch.collate(prompts, rows, prompts[0].ids[0], device, skip=cuts)
    found = PackedCells(rest, 3, root).logits(backend)
    return same_logits(found, plain[:, -1].expand_as(found))


@dataclass(frozen=True)
class CellPass:
    """One forward pass: cells, and the rows of a batch by their place in it."""

    cells: tuple[int, ...]
    at: tuple[int, ...]
    start: int
    skip: tuple[int, ...]
    shared: SharedForward
    width: int
    whole: bool

    @property
    def rows(self) -> range:
        """As many as the pass has."""
        return range(len(self.cells) * len(self.at))

    @property
    def prefix_width(self) -> int:
        """Tokens of the longest row that are not computed."""
        return max(self.skip, default=0)

    @property
    def computed(self) -> int:
        """Tokens that the pass computes."""
        return len(self.rows) * self.width

    def halves(self) -> list[CellPass]:
        """Half of the cells each; of one cell, half of the rows each; else nothing."""
        if len(self.cells) > 1:
            # Cells before rows: what is stored of the batch can then be used whole.
            middle = len(self.cells) // 2
            return [
                replace(self, cells=part) for part in (self.cells[:middle], self.cells[middle:])
            ]
        if len(self.at) > 1:
            middle = len(self.at) // 2
            return [replace(self, at=part) for part in (self.at[:middle], self.at[middle:])]
        return []
