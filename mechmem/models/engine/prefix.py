"""Shared beginnings: run once, their keys and values handed to every prompt that continues them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from mechmem.errors import PositionError
from mechmem.models.engine.anatomy import is_internal, without_hooks
from mechmem.models.engine.backends import Backend, model_device
from mechmem.models.engine.batching import Batch
from mechmem.models.engine.plan import Prefix
from mechmem.models.engine.positions import Positions
from mechmem.models.engine.wiring import Intervention
from mechmem.models.tokens import TokenizedPrompt
from mechmem.seeding import keyed_rng

__all__ = ["Root", "continues_truly", "has_hooks", "limits", "lone_prompts", "run_root"]


class _Desk:
    """Memory that one layer after the other writes to: fresh memory costs more than the copy."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def room(self, place: str, like: Tensor, shape: tuple[int, ...]) -> Tensor:
        """A tensor of this shape; what was asked for here before is overwritten."""
        if like.requires_grad:
            return like.new_empty(shape)
        key = (place, like.device, like.dtype)
        held = self._held.get(key)
        if held is None or held.shape != shape:
            held = self._held[key] = like.new_empty(shape)
        return held


class _Continued(DynamicLayer):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Keys and values of the beginnings, never copied per row for longer than one layer runs, and
    of what came after them, kept only when more is to come.

    Args:
        keys, values: ``[beginning, head, token, d]`` of the beginnings.
        root_of: For every row, which beginning it continues.
        grows: Whether later passes continue this one.
        desk: Room for what one layer needs while it runs, shared by all layers of a cache.
    """

    def __init__(
        self, keys: Tensor, values: Tensor, root_of: Tensor, grows: bool, desk: _Desk
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.front, self.desk = (keys, values), desk
        tile = torch.arange(keys.shape[0])
        self.tiled = len(root_of) % len(tile) == 0 and bool(
            (root_of.cpu().view(-1, len(tile)) == tile).all()
        )
        self.root_of, self.grows = root_of.to(keys.device), grows
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
        return (
            self._after(self.front[0], key_states, "keys"),
            self._after(self.front[1], value_states, "values"),
        )

    def spread(self) -> tuple[Tensor, Tensor]:
        """Keys and values of every row's beginning and of what has followed it."""
        assert self.keys is not None
        assert self.values is not None
        return self._after(self.front[0], self.keys), self._after(self.front[1], self.values)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the rows."""
        self.root_of = self.root_of[indices]
        if self.keys is not None and self.values is not None:
            self.keys, self.values = self.keys[indices], self.values[indices]

    def get_seq_length(self) -> int:
        """Tokens known so far, padding included."""
        own = 0 if self.keys is None else int(self.keys.shape[-2])
        return int(self.front[0].shape[-2]) + own

    def _after(self, front: Tensor, own: Tensor, place: str | None = None) -> Tensor:
        if front.shape[0] == 1:
            return torch.cat([front.expand(len(self.root_of), -1, -1, -1), own], dim=-2)
        if not self.tiled:
            return torch.cat([front.index_select(0, self.root_of), own], dim=-2)
        # The same beginnings once per cell of a grid: copied once, straight to their place.
        (rows, heads, fresh, width), known = own.shape, front.shape[-2]
        shape = (rows, heads, known + fresh, width)
        out = own.new_empty(shape) if place is None else self.desk.room(place, own, shape)
        tiles = out.view(-1, front.shape[0], heads, known + fresh, width)
        tiles[..., :known, :] = front
        out[:, :, known:] = own
        return out


@dataclass
class Root:
    """A batch of beginnings that have been run.

    Attributes:
        seen: ``[beginning, token]`` 1 on real tokens.
        layers: Keys and values of every layer that ran.
    """

    seen: Int[Tensor, "beginning token"]
    layers: list[tuple[Tensor, Tensor]]

    def cache(self, root_of: Sequence[int], grows: bool) -> Any:
        """A cache for rows that continue these beginnings."""
        rows = torch.tensor(list(root_of))
        cache: Any = DynamicCache()
        desk = _Desk()
        cache.layers = [_Continued(k, v, rows, grows, desk) for k, v in self.layers]
        return cache

    def mask(self, root_of: Sequence[int], rest: Tensor) -> Tensor:
        """The attention mask of the rows: their beginning's, then their own."""
        rows = torch.tensor(list(root_of), device=rest.device)
        return torch.cat([self.seen[rows], rest], dim=1)


def run_root(batch: Batch, run: Callable[[Any], object]) -> Root:
    """Run beginnings and keep their keys and values.

    Args:
        run: Called with the empty cache; makes the forward pass, or as much of it as is needed.
    """
    cache: Any = DynamicCache()
    run(cache)
    return Root(batch.mask, [(layer.keys, layer.values) for layer in cache.layers])


def lone_prompts(
    prompts: Sequence[TokenizedPrompt], prefixes: Sequence[Prefix]
) -> list[TokenizedPrompt]:
    """The beginnings as prompts of their own."""
    return [
        TokenizedPrompt(prompts[p.row].id, prompts[p.row].ids[: p.length], {}) for p in prefixes
    ]


def limits(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    interventions: Sequence[Intervention],
    extra: int = 0,
    least: int = 2,
) -> list[int] | None:
    """How many tokens at the start of every prompt may be run elsewhere; ``None`` for none at all.

    Edits that say which tokens they touch (``where``) keep everything before those tokens; edits
    that do not, and hooks of the user's own, which may do anything, keep nothing. Neither do models
    without a cache that can be continued so, and sliding windows that a prompt could outgrow.

    Args:
        prompts: With the spans that edits ask for.
        extra: Tokens that every row will grow by.
        least: Fewest prompts for which anything is shared.
    """
    if len(prompts) < least or backend.kind != "TransformerBridge":
        return None
    longest = max(len(prompt.ids) for prompt in prompts) + extra
    if not _sees_everything(backend.model, 2 * longest) or has_hooks(backend.model):
        return None
    touched = [getattr(item, "where", None) for item in interventions]
    if not all(isinstance(where, Positions) for where in touched):
        return None
    return [
        min([len(prompt.ids) - 1, *(_first(where, prompt) for where in touched if where)])
        for prompt in prompts
    ]


def _first(where: Positions, prompt: TokenizedPrompt) -> int:
    """The first prompt token that is meant, or the prompt's length."""
    try:
        columns = where.columns(prompt)
    except PositionError:  # it will be raised, in its own words, where the edit is applied
        return 0
    return min((index for _, index in columns), default=len(prompt.ids))


def has_hooks(model: Any) -> bool:
    """Whether somebody other than the libraries themselves has hooked the model."""
    return any(
        not is_internal(hook)
        for module in model.modules()
        for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
    ) or any(point.fwd_hooks for point in model.hook_dict.values())


def _sees_everything(model: Any, tokens: int) -> bool:
    """Whether attention of every layer reaches back over this many tokens.

    The gap of padding between a beginning and a shorter rest widens distances, so a window that
    prompts just fit into is not enough.
    """
    config = getattr(getattr(model, "original_model", None), "config", None)
    if config is None:
        return False
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and not set(kinds) <= {"full_attention", "sliding_attention"}:
        return False
    window = getattr(config, "sliding_window", None)
    slides = getattr(config, "use_sliding_window", True) is not False
    if kinds is not None:
        slides = "sliding_attention" in kinds
    if getattr(config, "attention_chunk_size", None) is not None:
        return False
    return not slides or window is None or int(window) >= tokens


def continues_truly(backend: Backend) -> bool:
    """Whether continuing gives the model's own logits; tried once per model, on random tokens."""
    if backend not in _TRIED:
        with torch.no_grad(), without_hooks(backend.model):
            try:
                _TRIED[backend] = _try(backend)
            except (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError):
                _TRIED[backend] = False  # a model that cannot be continued so runs without
    return _TRIED[backend]


_TRIED: WeakKeyDictionary[Backend, bool] = WeakKeyDictionary()


def _try(backend: Backend) -> bool:
    """Two beginnings of different lengths, three rests of different lengths, against whole runs."""
    cfg, device = backend.model.cfg, model_device(backend.model)
    rng = keyed_rng(0, "prefix check")
    ids = [tuple(rng.integers(0, int(cfg.d_vocab), size=n).tolist()) for n in (6, 4, 1, 3, 2)]
    whole = [ids[0] + ids[2], ids[0] + ids[3], ids[1] + ids[4]]
    prompts = [TokenizedPrompt(str(k), tokens, {}) for k, tokens in enumerate(whole)]
    prefixes, root_of = [Prefix(0, 6), Prefix(2, 4)], [0, 0, 1]
    alone = Batch.collate(prompts, range(3), ids[0][0], device)
    plain, _ = backend.forward(alone.ids, alone.mask, last_only=True)
    first = Batch.collate(lone_prompts(prompts, prefixes), range(2), ids[0][0], device)
    root = run_root(first, lambda cache: backend.forward(first.ids, first.mask, cache=cache))
    rest = Batch.collate(prompts, range(3), ids[0][0], device, skip=[6, 6, 4])
    mask = root.mask(root_of, rest.mask)
    found, _ = backend.forward(rest.ids, mask, cache=root.cache(root_of, False), last_only=True)
    off = (found - plain).double().norm(dim=-1) / plain.double().norm(dim=-1)
    return bool((off <= max(1e-4, 16 * torch.finfo(plain.dtype).eps)).all())
