"""How cells share a forward pass: one below the other, or abreast in every row.

Abreast, the tokens that a cell edits follow those of the cell before, and all follow the same
stored keys and values. A mask keeps every cell from seeing another, and positions of its own let
each continue the beginning as if it were alone. So the beginning is read once for all cells and
copied for none.
"""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.models.engine.backends import Backend, masking, model_device
from mechmem.models.engine.batching import Batch, Feed
from mechmem.models.engine.cells import Split
from mechmem.models.engine.prefix import Root, lone_prompts, run_root
from mechmem.models.engine.trials import holds, same_logits, tried
from mechmem.models.engine.work import Prefix
from mechmem.models.tokens import TokenizedPrompt
from mechmem.seeding import keyed_rng

__all__ = ["Abreast", "Stacked", "Tiling", "stands_abreast"]


class Tiling(Protocol):
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


class Stacked:
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


class Abreast:
    """The tokens that are not known yet once per cell, side by side in every row.

    Args:
        batch: Those tokens, of every prompt.
        cells: How many cells.
        root: The beginnings, one per row, as they were run without edits.
    """

    def __init__(self, batch: Batch, cells: int, root: Root) -> None:
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
            positions=self.batch.index.clamp_min(0).repeat(self.times),
            keep=torch.arange(1, self.times[1] + 1, device=device) * width - 1,
        )  # fmt: skip
        return logits.detach().transpose(0, 1)

    def mask(self, dtype: torch.dtype) -> Float[Tensor, "row 1 token key"]:
        """What is added to attention scores."""
        own = self.batch.mask.bool()
        (_, width), (_, cells) = own.shape, self.times
        earlier = torch.ones(width, width, dtype=torch.bool, device=own.device).tril()
        same = torch.eye(cells, dtype=torch.bool, device=own.device)
        beside = torch.kron(same, earlier)[None] & own.repeat(self.times)[:, None]
        front = self.root.seen.bool()[:, None].expand(-1, beside.shape[1], -1)
        sees = torch.cat([front, beside], dim=2)[:, None]
        return masking(sees, dtype)


def stands_abreast(backend: Backend) -> bool:
    """Whether cells abreast give the model's own logits; tried once per model, on random tokens."""
    return tried(backend, "abreast", lambda: holds("cells abreast", lambda: _try(backend)))


def _try(backend: Backend) -> bool:
    """Prompts of three lengths, cut at three places, three times abreast, against whole runs."""
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
    front = Batch.collate(lone_prompts(prompts, fronts), rows, prompts[0].ids[0], device)
    root = run_root(front, lambda cache: backend.forward(front.ids, front.mask, cache=cache))
    rest = Batch.collate(prompts, rows, prompts[0].ids[0], device, skip=cuts)
    found = Abreast(rest, 3, root).logits(backend)
    return same_logits(found, plain[:, -1].expand_as(found))
