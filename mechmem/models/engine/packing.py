"""Short prompts in one row, one behind the other: little is padded, and passes are few and long.

A mask keeps the prompts of a row from seeing each other, and every token has its own place in its
prompt; see `mechmem.models.engine.packing`. Here it is decided which prompts stand where.
"""

from __future__ import annotations

import math
from bisect import bisect_right, insort
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.models.engine.backends import Backend, additive_mask, model_device, model_dtype
from mechmem.models.engine.batching import MAX_BATCH_ROWS, MAX_PAIRS, Batch, rows_that_fit
from mechmem.models.engine.capabilities import holds, same_logits, tried
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.seeding import keyed_rng

ENOUGH = 16
"""A pass this many times as long as what starting it costs gains little by being longer, and small
passes are easier to share between processes."""

_WIDTHS = (1.0, 1.25, 1.5, 1.75, 2.0)
"""Rows are tried at these multiples of the longest prompt."""


class Packed(NamedTuple):
    """One batch.

    Attributes:
        rows: The prompts, lane by lane.
        lane_of: For every prompt, in which row of the pass it stands.
    """

    rows: tuple[int, ...]
    lane_of: tuple[int, ...]


def pack(
    lengths: Sequence[int],
    token_budget: int,
    pass_cost: float,
    pair_cost: float,
    n_ctx: float = math.inf,
) -> Iterator[Packed]:
    """Rows filled with the longest prompts that fit, from the longest one on.

    Every batch is as wide as makes its tokens cheapest.

    Args:
        lengths: Tokens of every prompt.
        token_budget: Most tokens in a batch, padding included; one prompt always fits.
        pass_cost: What another batch costs, in tokens. A row is left to the next batch before more
            than that is wasted in this one, on padding or on attention of rows that are wider than
            their longest prompt.
        pair_cost: What it costs, in tokens, that a token stands in a row one token wider.
        n_ctx: No row of several prompts is wider.
    """
    pool = _Pool(lengths)
    largest = min(token_budget, ENOUGH * pass_cost)
    # The pairs of one row are the square of its width.
    widest = min(largest, n_ctx, math.isqrt(MAX_PAIRS))

    def fill(width: int) -> list[list[int]]:
        lanes: list[list[int]] = []
        most = min(rows_that_fit(token_budget, width), max(1, int(largest / width)))
        held, wasted = 0, 0.0
        while pool.sizes and len(lanes) < most:
            longest = pool.sizes[-1]
            lane, room = pool.take(width)
            held += len(lane)
            wasted += room + (width - room) * (width - longest) * pair_cost
            if lanes and (wasted > pass_cost or held > MAX_BATCH_ROWS):
                pool.give(lane)
                break
            lanes.append(lane)
        return lanes

    def tokens(lane: Sequence[int]) -> int:
        return sum(lengths[row] for row in lane)

    def price(width: int) -> float:
        """Of one token, in tokens."""
        # Filled on trial and given back: the price of a width depends on what finds room in it.
        lanes = fill(width)
        for lane in reversed(lanes):
            pool.give(lane)
        wide = max(map(tokens, lanes))
        cost = pass_cost + len(lanes) * wide * (1 + pair_cost * wide)
        return cost / sum(map(tokens, lanes))

    while pool.sizes:
        longest = pool.sizes[-1]
        widths = [int(longest * times) for times in _WIDTHS]
        # The longest prompt always has a row, however narrow the limits are.
        lanes = fill(min((w for w in widths if w <= max(longest, widest)), key=price))
        yield Packed(
            tuple(row for lane in lanes for row in lane),
            tuple(k for k, lane in enumerate(lanes) for _ in lane),
        )


class _Pool:
    """Prompts by length; of equal ones the first comes first.

    Attributes:
        sizes: The lengths there are, ascending.
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths
        self.stacks: dict[int, list[int]] = {}
        for row in reversed(range(len(lengths))):  # `pop` takes from the end
            self.stacks.setdefault(lengths[row], []).append(row)
        self.sizes = sorted(self.stacks)

    def take(self, room: int) -> tuple[list[int], int]:
        """Prompts that fit one behind the other, the longest first, and the room that is left."""
        taken: list[int] = []
        while (place := bisect_right(self.sizes, room)) and len(taken) < MAX_BATCH_ROWS:
            size = self.sizes[place - 1]
            taken.append(self.stacks[size].pop())
            room -= size
            if not self.stacks[size]:
                del self.stacks[size], self.sizes[place - 1]
        return taken, room

    def give(self, rows: Sequence[int]) -> None:
        """Put back what was taken last."""
        for row in reversed(rows):
            size = self.lengths[row]
            if size not in self.stacks:
                self.stacks[size] = []
                insort(self.sizes, size)
            self.stacks[size].append(row)


def packed_causal_mask(batch: Batch, dtype: torch.dtype) -> Float[Tensor, "row 1 token key"]:
    """What is added to attention scores: a token sees the earlier ones of its own prompt. Padding
    before the prompts of a row sees itself, so that no token is without any."""
    # Every prompt starts at position 0: counted along the row, that numbers the prompts, and
    # padding before them is number 0.
    prompt = (batch.index == 0).cumsum(1)
    width = prompt.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=prompt.device).tril()
    return additive_mask((prompt[:, :, None] == prompt[:, None, :]) & earlier, dtype)[:, None]


def can_pack(backend: Backend) -> bool:
    """Whether prompts that share rows get the model's own logits; tried once per model, on random
    tokens."""
    return tried(
        backend, "packs", lambda: holds("prompts in one row", lambda: _try_packing(backend))
    )


def _try_packing(backend: Backend) -> bool:
    """Prompts of five lengths in two rows, one of them padded, against a row for each."""
    cfg, device = backend.model.cfg, model_device(backend.model)
    rng = keyed_rng(0, "packing check")
    prompts = [
        TokenizedPrompt(str(n), tuple(rng.integers(0, int(cfg.d_vocab), size=n).tolist()), {})
        for n in (5, 3, 4, 2, 1)
    ]
    rows, pad = range(len(prompts)), prompts[0].ids[0]
    alone = Batch.collate(prompts, rows, pad, device)
    plain, _ = backend.forward(alone.ids, alone.mask)
    batch = Batch.collate(prompts, rows, pad, device, lane_of=(0, 0, 1, 1, 1))
    found, _ = backend.forward(
        batch.ids, packed_causal_mask(batch, model_dtype(backend.model)),
        positions=batch.index.clamp_min(0),
    )  # fmt: skip
    assert batch.starts is not None
    places = zip(prompts, batch.starts.tolist(), strict=True)
    return all(
        same_logits(found[lane, start : start + len(prompt.ids)], plain[row, -len(prompt.ids) :])
        for row, (prompt, (lane, start)) in enumerate(places)
    )
