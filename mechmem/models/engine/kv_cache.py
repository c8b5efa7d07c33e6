"""Keys and values while text is written: they grow in place, and rows that are done leave them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

MOST_KEPT = 2 << 30
"""Bytes of keys and values that rows which write may hold at once. A step costs nearly the same for
few rows as for many, until these take longer to read than the weights."""


def tokens_kept(bytes_per_token: int, token_budget: int) -> int:
    """Most tokens of rows that write at once: of one to eight batches."""
    return max(token_budget, min(MOST_KEPT // max(1, bytes_per_token), 8 * token_budget))


class GrowingLayer(DynamicLayer):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Keys and values with room for what will follow, so that no step copies what is there.

    Args:
        keys, values: ``[row, head, token, d]`` known so far; several stand one below the other,
            their last tokens in one column.
        room: Tokens that will follow at most.
    """

    def __init__(self, keys: Sequence[Tensor], values: Sequence[Tensor], room: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        # transformers sets these at the first `update`, which is another here.
        self.dtype, self.device, self.is_initialized = keys[0].dtype, keys[0].device, True
        self.length = max(int(part.shape[-2]) for part in keys)
        self._whole = tuple(_with_room(parts, self.length, room) for parts in (keys, values))
        self._show()

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones last."""
        end = self.length + int(key_states.shape[-2])
        for part, new in zip(self._whole, (key_states, value_states), strict=True):
            part[:, :, self.length : end] = new
        self.length = end
        return self._show()

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the rows."""
        self._whole = tuple(part.index_select(0, indices) for part in self._whole)
        self._show()

    def _show(self) -> tuple[Tensor, Tensor]:
        keys, values = (part[:, :, : self.length] for part in self._whole)
        self.keys, self.values = keys, values
        return keys, values


def _with_room(parts: Sequence[Tensor], tokens: int, room: int) -> Tensor:
    _, heads, _, width = parts[0].shape
    rows = sum(len(part) for part in parts)
    whole, row = parts[0].new_empty(rows, heads, tokens + room, width), 0
    for part in parts:
        own, start = whole[row : row + len(part)], tokens - part.shape[-2]
        own[:, :, :start] = 0  # nobody looks there, but nothing times NaN is NaN
        own[:, :, start:tokens] = part
        row += len(part)
    return whole


def joins(cache: Any) -> bool:
    """Whether other rows can be put below those of a cache: keys and values are all it holds."""
    layers = getattr(cache, "layers", None) or []
    # Exactly this type: others may hold a window, shared beginnings or states.
    return bool(layers) and all(type(layer) is GrowingLayer for layer in layers)


def join_rows(
    cache: Any, mask: Tensor, other: Any, other_mask: Tensor, room: int
) -> tuple[Any, Tensor]:
    """Rows of a second cache below those of one that `joins`, in place of it; columns that no row
    uses are left out.

    Args:
        mask, other_mask: ``[row, key]`` 1 on real tokens.
        room: Tokens that will follow at most.

    Returns:
        The cache, and its mask.
    """
    # From the first column that any row uses: padding that was needed for rows that have left.
    masks = [part[:, int(part.any(0).long().argmax()) :] for part in (mask, other_mask)]
    for k, (one, two) in enumerate(zip(cache.layers, other.layers, strict=True)):
        pairs = [(one.keys, one.values), two.joined() if isinstance(two, PrefixedLayer) else
                 (two.keys, two.values)]  # fmt: skip
        keys, values = (
            [part[:, :, -own.shape[1] :] for part, own in zip(parts, masks, strict=True)]
            for parts in zip(*pairs, strict=True)
        )
        cache.layers[k] = GrowingLayer(keys, values, room)
    width = max(part.shape[1] for part in masks)
    return cache, torch.cat([F.pad(part, (width - part.shape[1], 0)) for part in masks])


def reserve(cache: Any, room: int) -> None:
    """Let the layers of a cache grow in place by this many tokens.

    Rows that continue shared beginnings get copies of their own, where memory allows; otherwise
    those are copied anew at every step. Layers that are anything but plain lists of keys and values
    are left as they are.
    """
    layers = getattr(cache, "layers", None) or []
    spreads = sum(layer.joined_bytes(room) for layer in layers if isinstance(layer, PrefixedLayer))
    for k, layer in enumerate(layers):
        keys, values = getattr(layer, "keys", None), getattr(layer, "values", None)
        if keys is None or values is None or keys.dim() != 4:
            continue  # a recurrent layer, or one that has seen nothing
        if isinstance(layer, PrefixedLayer) and spreads <= MOST_KEPT:
            keys, values = layer.joined()
            layers[k] = GrowingLayer([keys], [values], room)
        elif type(layer) is DynamicLayer:  # not of a window, which drops tokens
            layers[k] = GrowingLayer([keys], [values], room)
            layer.keys = layer.values = None  # freed now, not after the last layer


def keep_rows(cache: Any, rows: Sequence[int]) -> bool:
    """Keep these rows of a cache only; False, and nothing done, where that is not known to work."""
    if hasattr(cache, "layers"):
        known = (DynamicLayer, DynamicSlidingWindowLayer, GrowingLayer)
        if not all(
            type(layer) in known or isinstance(layer, PrefixedLayer) for layer in cache.layers
        ):
            return False
        for layer in cache.layers:
            layer.batch_select_indices(torch.tensor(list(rows), device=layer.device))
        return True
    # TransformerLens's own cache, behind a HookedTransformer.
    if hasattr(cache, "entries") and hasattr(cache, "previous_attention_mask"):
        for entry in cache.entries:
            at = torch.tensor(list(rows), device=entry.past_keys.device)
            entry.past_keys = entry.past_keys.index_select(0, at)
            entry.past_values = entry.past_values.index_select(0, at)
        before = cache.previous_attention_mask
        cache.previous_attention_mask = before[torch.tensor(list(rows), device=before.device)]
        return True
    return False


class PrefixedLayer(DynamicLayer):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Keys and values of the beginnings, never copied per row for longer than one layer runs, and
    of what came after them, kept only when more is to come.

    Args:
        keys, values: ``[beginning, head, token, d]`` of the beginnings.
        prefix_of: For every row, which beginning it continues.
        grows: Whether later passes continue this one.
    """

    def __init__(self, keys: Tensor, values: Tensor, prefix_of: Tensor, grows: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.front, self.grows = (keys, values), grows
        # Compared here, on the CPU: asking later would make an accelerator wait at every layer.
        self._in_order = torch.equal(prefix_of, torch.arange(keys.shape[0]))
        self.prefix_of = prefix_of.to(keys.device)
        self.keys: Tensor | None = None
        self.values: Tensor | None = None
        self.dtype, self.device, self.is_initialized = keys.dtype, keys.device, True

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """All keys and values of every row, the new ones last."""
        if self.keys is not None and self.values is not None:
            key_states = torch.cat([self.keys, key_states], dim=-2)
            value_states = torch.cat([self.values, value_states], dim=-2)
        if self.grows:
            self.keys, self.values = key_states, value_states
        return self._after(self.front[0], key_states), self._after(self.front[1], value_states)

    def joined(self) -> tuple[Tensor, Tensor]:
        """Keys and values of every row's beginning and of what has followed it."""
        assert self.keys is not None
        assert self.values is not None
        return self._after(self.front[0], self.keys), self._after(self.front[1], self.values)

    def joined_bytes(self, room: int) -> int:
        """Memory of `joined` with room for more tokens."""
        front, rows = self.front[0], len(self.prefix_of)
        each = 2 * front.shape[1] * front.shape[3] * front.element_size()
        return int(rows * (self.get_seq_length() + room) * each)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the rows."""
        self.prefix_of, self._in_order = self.prefix_of[indices], False
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[indices], self.values[indices]

    def get_seq_length(self) -> int:
        """Tokens known so far, padding included."""
        own = 0 if self.keys is None else int(self.keys.shape[-2])
        return int(self.front[0].shape[-2]) + own

    def _after(self, front: Tensor, own: Tensor) -> Tensor:
        if front.shape[0] == 1:
            front = front.expand(len(own), -1, -1, -1)
        elif not self._in_order:
            front = front.index_select(0, self.prefix_of)
        return torch.cat([front, own], dim=-2)
