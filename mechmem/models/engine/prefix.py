"""Shared beginnings: run once, their keys and values handed to every prompt that continues them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from mechmem.errors import PositionError
from mechmem.models.architectures import length_class
from mechmem.models.engine.anatomy import has_hooks
from mechmem.models.engine.backends import Backend, model_device
from mechmem.models.engine.batching import Batch
from mechmem.models.engine.positions import Positions
from mechmem.models.engine.trials import holds, same_logits, tried
from mechmem.models.engine.wiring import Intervention
from mechmem.models.engine.work import Prefix
from mechmem.models.tokens import TokenizedPrompt
from mechmem.seeding import keyed_rng

__all__ = [
    "Root",
    "continues_truly",
    "limits",
    "lone_prompts",
    "run_root",
    "sees_everything",
]


class _Continued(DynamicLayer):  # type: ignore[misc, no-untyped-call, unused-ignore]
    """Keys and values of the beginnings, never copied per row for longer than one layer runs, and
    of what came after them, kept only when more is to come.

    Args:
        keys, values: ``[beginning, head, token, d]`` of the beginnings.
        root_of: For every row, which beginning it continues.
        grows: Whether later passes continue this one.
    """

    def __init__(self, keys: Tensor, values: Tensor, root_of: Tensor, grows: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.front, self.grows = (keys, values), grows
        # Compared here, on the CPU: asking later would make an accelerator wait at every layer.
        self._in_order = torch.equal(root_of, torch.arange(keys.shape[0]))
        self.root_of = root_of.to(keys.device)
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

    def spread(self) -> tuple[Tensor, Tensor]:
        """Keys and values of every row's beginning and of what has followed it."""
        assert self.keys is not None
        assert self.values is not None
        return self._after(self.front[0], self.keys), self._after(self.front[1], self.values)

    def own_bytes(self, room: int) -> int:
        """Memory of `spread` with room for more tokens."""
        front, rows = self.front[0], len(self.root_of)
        each = 2 * front.shape[1] * front.shape[3] * front.element_size()
        return int(rows * (self.get_seq_length() + room) * each)

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some of the rows."""
        self.root_of, self._in_order = self.root_of[indices], False
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
            front = front.index_select(0, self.root_of)
        return torch.cat([front, own], dim=-2)


@dataclass
class Root:
    """A batch of beginnings that have been run.

    Attributes:
        seen: ``[beginning, token]`` 1 on real tokens.
        layers: Keys and values of every layer that ran.
    """

    seen: Int[Tensor, "beginning token"]
    layers: list[tuple[Tensor, Tensor]]

    @property
    def dtype(self) -> torch.dtype:
        """In which keys and values are kept."""
        return self.layers[0][0].dtype

    def cache(self, root_of: Sequence[int], grows: bool) -> Any:
        """A cache for rows that continue these beginnings."""
        rows = torch.tensor(list(root_of))
        cache: Any = DynamicCache()
        cache.layers = [_Continued(keys, values, rows, grows) for keys, values in self.layers]
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
    # The gap of padding between a beginning and a shorter rest widens distances, so a window that
    # prompts just fit into is not enough.
    if not sees_everything(backend.model, 2 * longest) or has_hooks(backend.model):
        return None
    touched = [getattr(item, "where", None) for item in interventions]
    if not all(isinstance(where, Positions) for where in touched):
        return None
    rule = length_class(backend.model)

    def steady(prompt: TokenizedPrompt) -> bool:
        """Whether the beginning and the whole are computed by one rule, that gap included."""
        return rule(1) == rule(2 * (len(prompt.ids) + extra))

    return [
        0
        if not steady(prompt)
        else min([len(prompt.ids) - 1, *(_first(where, prompt) for where in touched if where)])
        for prompt in prompts
    ]


def _first(where: Positions, prompt: TokenizedPrompt) -> int:
    """The first prompt token that is meant, or the prompt's length."""
    try:
        columns = where.columns(prompt)
    except PositionError:  # it will be raised, in its own words, where the edit is applied
        return 0
    return min((index for _, index in columns), default=len(prompt.ids))


def sees_everything(model: Any, tokens: int) -> bool:
    """Whether attention of every layer reaches back over this many tokens."""
    config = getattr(getattr(model, "original_model", None), "config", None)
    if config is None:
        return False
    config = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    kinds = getattr(config, "layer_types", None)
    if kinds is not None and not set(kinds) <= {"full_attention", "sliding_attention"}:
        return False
    window = getattr(config, "sliding_window", None)
    if "local" in getattr(config, "attention_layers", ()):  # GPT-Neo's words
        window = config.window_size
    slides = getattr(config, "use_sliding_window", True) is not False
    if kinds is not None:
        slides = "sliding_attention" in kinds
    if getattr(config, "attention_chunk_size", None) is not None:
        return False
    return not slides or window is None or int(window) >= tokens


def continues_truly(backend: Backend) -> bool:
    """Whether continuing gives the model's own logits; tried once per model, on random tokens."""
    return tried(backend, "continues", lambda: holds("continuing a prompt", lambda: _try(backend)))


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
    return same_logits(found, plain)
