"""What the cells of a grid have in common on one batch: residuals, keys and values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
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

__all__ = ["Base", "make_base", "together"]


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


def together(bases: Iterable[Base], most: int) -> Iterator[Base]:
    """Neighbors joined while they stay within ``most`` keys, padding included: short passes over
    many rows do not mind padding, as those that made the bases did."""
    waiting: list[Base] = []
    for base in bases:
        both = [*waiting, base]
        if sum(len(one.rows) for one in both) * max(one.width for one in both) > most:
            yield from _joined(waiting)
            both = [base]
        waiting = both
    yield from _joined(waiting)


def _joined(bases: Sequence[Base]) -> list[Base]:
    if len(bases) < 2:
        return list(bases)

    def stacked(parts: Sequence[Tensor], dim: int) -> Tensor:
        """One below the other, the last tokens aligned."""
        width = max(part.shape[dim] for part in parts)
        shape = list(parts[0].shape)
        shape[0], shape[dim] = sum(part.shape[0] for part in parts), width
        out, row = parts[0].new_zeros(shape), 0
        for part in parts:
            to = out[row : row + part.shape[0]]
            to.narrow(dim, width - part.shape[dim], part.shape[dim]).copy_(part)
            row += part.shape[0]
        return out

    return [
        Base(
            tuple(row for base in bases for row in base.rows),
            stacked([base.mask for base in bases], 1),
            {
                start: stacked([base.residuals[start] for base in bases], 1)
                for start in bases[0].residuals
            },
            [
                (stacked([pair[0] for pair in layer], 2), stacked([pair[1] for pair in layer], 2))
                for layer in zip(*(base.layers for base in bases), strict=True)
            ],
        )
    ]


def _whole(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer's beginning and of what followed it."""
    spread = getattr(layer, "spread", None)
    return (layer.keys, layer.values) if spread is None else spread()
