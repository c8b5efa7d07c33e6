"""What the cells of a grid have in common on one batch: residuals, keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from mechmem.models.engine.backends import Backend
from mechmem.models.engine.passes import Ready, running
from mechmem.models.engine.prefix import Root
from mechmem.models.engine.resuming import Keep
from mechmem.models.engine.truth import wired
from mechmem.models.engine.wiring import StopForward
from mechmem.models.sites import Site

__all__ = ["Base", "make_base"]


@dataclass(frozen=True)
class Base:
    """Some prompts, run once without edits.

    Attributes:
        rows: The prompts, by their place in the list that was planned.
        mask: ``[row, key]`` 1 on every token, shared beginnings included, in order.
        residuals: By block, what enters it: ``[row, token, d]``, the last tokens.
        layers: Keys and values ``[row, head, key, d]`` of every layer, if they are needed.
    """

    rows: tuple[int, ...]
    mask: Int[Tensor, "row key"]
    residuals: dict[int, Tensor]
    layers: list[tuple[Tensor, Tensor]]

    @property
    def width(self) -> int:
        """Keys of the longest row."""
        return int(self.mask.shape[1])

    @property
    def bytes(self) -> int:
        """Memory of what is stored."""
        held = [*self.residuals.values(), *(part for pair in self.layers for part in pair)]
        return sum(value.numel() * value.element_size() for value in held)

    def residual(self, start: int, at: Sequence[int], width: int) -> Float[Tensor, "row token d"]:
        """What enters a block in some of the rows, at their last ``width`` tokens."""
        stored = self.residuals[start]
        stored = stored if len(at) == len(stored) else stored[list(at)]
        return stored[:, stored.shape[1] - width :]

    def root(self, at: Sequence[int], skip: Sequence[int]) -> Root:
        """The keys and values of the first ``skip`` tokens of some of the rows."""
        rows = torch.tensor(list(at), device=self.mask.device)
        mask = self.mask[rows]
        mask = mask * (mask.cumsum(1) <= torch.tensor(list(skip), device=mask.device)[:, None])
        used = int(mask.any(0).nonzero().max()) + 1 if bool(mask.any()) else 0
        every = len(at) == self.mask.shape[0]
        layers = [
            (
                (keys if every else keys[rows])[:, :, :used],
                (values if every else values[rows])[:, :, :used],
            )
            for keys, values in self.layers
        ]
        return Root(mask[:, :used], layers)


def make_base(
    backend: Backend, ready: Ready, starts: Sequence[int], keys: bool, last: int | None = None
) -> Base:
    """Run a batch without edits and keep what cells need.

    Args:
        starts: Blocks whose input is kept, from 1 on.
        keys: Whether keys and values are kept as well.
        last: How many tokens of every row's input are kept; default all.
    """
    keeps = [Keep(Site("resid_post", start - 1)) for start in starts]
    cache: Any = ready.cache
    if keys and cache is None:
        cache = DynamicCache()
    if keeps or keys:
        hooks = wired(backend, ready.batch.feed(), (), keeps, not keys)
        with running(backend), hooks, suppress(StopForward):
            backend.forward(ready.batch.ids, ready.mask, cache=cache, last_only=True)
    residuals = {
        start: keep.value if last is None else keep.value[:, -last:].clone()
        for start, keep in zip(starts, keeps, strict=True)
        if keep.value is not None
    }
    layers = [_whole(layer) for layer in cache.layers] if keys else []
    return Base(ready.batch.rows, ready.mask, residuals, layers)


def _whole(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer's beginning and of what followed it."""
    spread = getattr(layer, "spread", None)
    return (layer.keys, layer.values) if spread is None else spread()
