"""Shared beginnings: run once, their keys and values handed to every prompt that continues them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from mechmem.errors import PositionError
from mechmem.models.architectures import attends_to_all, length_class
from mechmem.models.engine.backends import Backend, model_device
from mechmem.models.engine.batching import Batch, Prefix
from mechmem.models.engine.capabilities import has_hooks, holds, same_logits, tried
from mechmem.models.engine.hooks import Intervention
from mechmem.models.engine.kv_cache import PrefixedLayer
from mechmem.models.positions import Positions
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.seeding import keyed_rng

MIN_PREFIX = 8
"""Shorter beginnings are not worth a pass of their own."""


@dataclass
class _Node:
    """A beginning shared by the prompts from ``left`` on in sorted order."""

    depth: int
    left: int
    saved: int = 0
    best_prefixes: list[tuple[int, int, int]] = field(default_factory=list)

    def take(self, child: _Node) -> None:
        self.saved += child.saved
        self.best_prefixes += child.best_prefixes

    def close(self, right: int) -> None:
        """Share at this depth, where that saves more than sharing deeper."""
        # All rows but one are saved the beginning; at a tie, one of many rows is taken.
        own = (right - self.left) * self.depth
        if self.depth >= MIN_PREFIX and own >= self.saved:
            self.saved, self.best_prefixes = own, [(self.depth, self.left, right)]


def best_prefixes(keys: Sequence[tuple[int, ...]]) -> list[tuple[int, list[int]]]:
    """Which rows share how long a beginning: the choice that saves most tokens."""
    everywhere = _common(min(keys), max(keys))  # a header of all of them: not worth comparing
    order = sorted(range(len(keys)), key=lambda row: (keys[row][everywhere:], row))
    # -1 behind the last row closes all beginnings that are still open.
    same = [0, *(_common(keys[a], keys[b]) for a, b in pairwise(order)), -1]
    stack = [_Node(0, 0)]
    for place in range(len(order)):
        depth, child, left = same[place + 1], _Node(0, place), place
        # Longer beginnings end here: each takes what lies deeper, then says whether it saves more.
        while stack and stack[-1].depth > depth:
            node = stack.pop()
            node.take(child)
            node.close(place)
            child, left = node, node.left
        if depth < 0:
            break
        if stack and stack[-1].depth == depth:
            stack[-1].take(child)
        else:
            node = _Node(depth, left)
            node.take(child)
            stack.append(node)
    return [(depth, sorted(order[left : right + 1])) for depth, left, right in child.best_prefixes]


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Length of the common beginning, by comparing slices: long ones compare fast."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


@dataclass
class PrefixCache:
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

    def cache(self, prefix_of: Sequence[int], grows: bool) -> Any:
        """A cache for rows that continue these beginnings."""
        rows = torch.tensor(list(prefix_of))
        cache: Any = DynamicCache()
        cache.layers = [PrefixedLayer(keys, values, rows, grows) for keys, values in self.layers]
        return cache

    def mask(self, prefix_of: Sequence[int], rest: Tensor) -> Tensor:
        """The attention mask of the rows: their beginning's, then their own."""
        rows = torch.tensor(list(prefix_of), device=rest.device)
        return torch.cat([self.seen[rows], rest], dim=1)


def run_prefixes(batch: Batch, run: Callable[[Any], object]) -> PrefixCache:
    """Run beginnings and keep their keys and values.

    Args:
        run: Called with the empty cache; makes the forward pass, or as much of it as is needed.
    """
    cache: Any = DynamicCache()
    run(cache)
    # Of the layers that ran: the pass may have been left early.
    return PrefixCache(batch.mask, [(layer.keys, layer.values) for layer in cache.layers])


def prefix_prompts(
    prompts: Sequence[TokenizedPrompt], prefixes: Sequence[Prefix]
) -> list[TokenizedPrompt]:
    """The beginnings as prompts of their own."""
    return [
        TokenizedPrompt(prompts[p.row].id, prompts[p.row].ids[: p.length], {}) for p in prefixes
    ]


def shareable_lengths(
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
    if not attends_to_all(backend.model, 2 * longest) or has_hooks(backend.model):
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


def can_continue_prefixes(backend: Backend) -> bool:
    """Whether continuing gives the model's own logits; tried once per model, on random tokens."""
    return tried(
        backend, "continues", lambda: holds("continuing a prompt", lambda: _try_continuing(backend))
    )


def _try_continuing(backend: Backend) -> bool:
    """Two beginnings of different lengths, three rests of different lengths, against whole runs."""
    cfg, device = backend.model.cfg, model_device(backend.model)
    rng = keyed_rng(0, "prefix check")
    ids = [tuple(rng.integers(0, int(cfg.d_vocab), size=n).tolist()) for n in (6, 4, 1, 3, 2)]
    whole = [ids[0] + ids[2], ids[0] + ids[3], ids[1] + ids[4]]
    prompts = [TokenizedPrompt(str(k), tokens, {}) for k, tokens in enumerate(whole)]
    prefixes, prefix_of = [Prefix(0, 6), Prefix(2, 4)], [0, 0, 1]
    alone = Batch.collate(prompts, range(3), ids[0][0], device)
    plain, _ = backend.forward(alone.ids, alone.mask, last_only=True)
    first = Batch.collate(prefix_prompts(prompts, prefixes), range(2), ids[0][0], device)
    root = run_prefixes(first, lambda cache: backend.forward(first.ids, first.mask, cache=cache))
    rest = Batch.collate(prompts, range(3), ids[0][0], device, skip=[6, 6, 4])
    mask = root.mask(prefix_of, rest.mask)
    found, _ = backend.forward(rest.ids, mask, cache=root.cache(prefix_of, False), last_only=True)
    return same_logits(found, plain)
