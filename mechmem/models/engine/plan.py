"""What will run, batch by batch, decided before anything runs.

Prompts that begin alike run their common beginning once. Which ones, is read off the token ids: of
all ways to give each prompt at most one shared beginning, the one that saves most tokens is taken.
Prompts that share nothing may share rows.
"""

from __future__ import annotations

import hashlib
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass, field
from functools import cached_property
from typing import NamedTuple

from mechmem.models.engine.backends import Backend, model_device
from mechmem.models.engine.batching import (
    DEFAULT_TOKEN_BUDGET,
    MAX_BATCH_ROWS,
    MAX_PAIRS,
    PlannedBatch,
    Prefix,
    rows_that_fit,
)
from mechmem.models.engine.packing import pack
from mechmem.models.engine.prefixes import best_prefixes
from mechmem.models.tokenizing import TokenizedPrompt

PASS_COST = 128.0
"""What starting a forward pass costs, in tokens, when the model is not known."""

MUST_SAVE = 0.1
"""Share of the work that shared beginnings must save, or they are left."""

LANES_MUST_SAVE = 0.05
"""And shared rows, which cost nothing to make."""


@dataclass(frozen=True)
class PassPlan:
    """All batches, in the order in which they run.

    Attributes:
        works: The batches.
        prompts: What will run.
        extra: Tokens that every row may grow by (generation).
    """

    works: tuple[PlannedBatch, ...]
    prompts: tuple[TokenizedPrompt, ...] = field(repr=False)
    extra: int = 0

    @cached_property
    def digest(self) -> str:
        """Hash of the batches and of every token in them: equal plans compute equal numbers."""
        digest = hashlib.sha256(str(self.extra).encode())
        for prompt in self.prompts:
            # Lengths too, so that two prompts are not taken for one of both.
            digest.update(array("q", [len(prompt.ids), *prompt.ids]).tobytes())
        for work in self.works:
            digest.update(repr(astuple(work)).encode())  # values only: names may change
        return digest.hexdigest()[:16]

    @cached_property
    def tokens(self) -> int:
        """Tokens of all prompts."""
        return sum(len(prompt.ids) for prompt in self.prompts)

    @property
    def shared(self) -> int:
        """Tokens that need not be computed because another prompt begins alike."""
        return sum(sum(work.skip) for work in self.works) - self.prefix_tokens

    @property
    def prefix_tokens(self) -> int:
        """Tokens of the shared beginnings, each once."""
        return sum(prefix.length for group in self.prefix_passes for prefix in group)

    @property
    def prefix_passes(self) -> list[tuple[Prefix, ...]]:
        """The passes over shared beginnings; batches in a row with the same ones share a pass."""
        out: list[tuple[Prefix, ...]] = []
        for work in self.works:
            if work.prefixes and (not out or out[-1] != work.prefixes):
                out.append(work.prefixes)
        return out

    @property
    def computed(self) -> int:
        """Tokens that are computed, padding included."""
        prefix_passes = sum(
            len(group) * max(prefix.length for prefix in group) for group in self.prefix_passes
        )
        return prefix_passes + sum(work.computed for work in self.works)

    @property
    def passes(self) -> int:
        """Forward passes."""
        return len(self.works) + len(self.prefix_passes)

    @property
    def packs(self) -> bool:
        """Whether prompts share rows."""
        return any(work.lane_of for work in self.works)

    def cost(self, pass_cost: float, pair_cost: float = 0.0) -> float:
        """Tokens computed; passes, and how far tokens look back, counted as tokens too."""
        # Every token that is written is a pass of its batch.
        steps = len(self.works) * (1 + self.extra) + len(self.prefix_passes)
        pairs = sum(work.computed * (work.width + work.prefix_width) for work in self.works)
        return self.computed + pass_cost * steps + pair_cost * pairs

    def __str__(self) -> str:
        computed = self.tokens - self.shared
        prefixes = len({prefix for group in self.prefix_passes for prefix in group})
        padding = 1 - computed / self.computed if self.computed else 0.0
        return (
            f"{len(self.prompts)} prompts, {self.tokens} tokens, in {len(self.works)} batches; "
            f"{self.shared} tokens shared by {prefixes} prefixes; "
            f"{self.computed} tokens computed, {padding:.0%} of them padding"
        )


def make_plan(
    prompts: Sequence[TokenizedPrompt],
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    *,
    extra: int = 0,
    kept: int | None = None,
    limits: Sequence[int] | None = None,
    pass_cost: float = PASS_COST,
    pair_cost: float | None = None,
    n_ctx: float = math.inf,
) -> PassPlan:
    """Batches of the prompts under a token budget.

    Args:
        prompts: What to run.
        token_budget: Most tokens in a batch, padding included; one prompt always fits.
        extra: Tokens that every row will grow by (generation).
        kept: Most tokens that the rows of a batch may hold in the end, where the passes that follow
            read new tokens only; ``None`` where a pass may read them all.
        limits: How many tokens at the start of every prompt may be shared; at least one token of
            a prompt always runs by itself. ``None`` shares nothing.
        pass_cost: What starting a forward pass costs, in tokens: what is saved by padding less, or
            by sharing, must be worth more.
        pair_cost: What it costs, in tokens, that a token stands in a row one token wider; ``None``
            gives every prompt a row of its own.
        n_ctx: Nothing is shared in rows that are wider, stored tokens counted.
    """
    # Another batch costs its passes for new tokens as well.
    fill = _Fill(token_budget, extra, kept, pass_cost * (1 + extra), pair_cost, n_ctx)
    plain = PassPlan(tuple(_plain(prompts, range(len(prompts)), fill)), tuple(prompts), extra)
    if limits is None or len(prompts) < 2:
        return plain
    keys = [
        prompt.ids[: max(0, min(len(prompt.ids) - 1, limit))]
        for prompt, limit in zip(prompts, limits, strict=True)
    ]
    found = best_prefixes(keys)
    if not found:
        return plain
    works = list(_shared(prompts, found, fill))
    alone = set(range(len(prompts))) - {row for work in works for row in work.rows}
    works += _plain(prompts, sorted(alone), fill)
    shared = PassPlan(tuple(works), tuple(prompts), extra)
    costs = [plan.cost(pass_cost, pair_cost or 0.0) for plan in (shared, plain)]
    return shared if costs[0] <= (1 - MUST_SAVE) * costs[1] else plain


def plan_batches(
    prompts: Sequence[TokenizedPrompt],
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    extra: int = 0,
    kept: int | None = None,
    pass_cost: float = math.inf,
) -> Iterator[tuple[int, ...]]:
    """Rows of each batch: longest prompts first, so that little is padded and memory peaks early.

    Args:
        prompts: What to run.
        token_budget: Most tokens in a batch, padding included; one prompt always fits.
        extra: Tokens that every row will grow by (generation).
        kept: Most tokens that the rows of a batch may hold in the end, where the passes that follow
            read new tokens only; ``None`` where a pass may read them all.
        pass_cost: What another batch costs, in tokens: more padding than that, and it is made.
    """
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row].ids), row))
    start = 0
    while start < len(order):
        width = len(prompts[order[start]].ids)
        size = rows_that_fit(token_budget, width + extra)
        if kept is not None:
            size = rows_that_fit(token_budget, width, most=kept // (width + extra))
        lengths = [len(prompts[row].ids) for row in order[start : start + size]]
        size = unpadded(lengths, pass_cost)
        yield tuple(order[start : start + size])
        start += size


def unpadded(lengths: Sequence[int], allowed: float) -> int:
    """How many rows, longest first, go together before they need more padding than is allowed."""
    padding = 0
    for k, length in enumerate(lengths):
        padding += lengths[0] - length
        if padding > allowed:
            return k
    return len(lengths)


class _Fill(NamedTuple):
    """When a batch is full."""

    token_budget: int
    extra: int
    kept: int | None
    padding: float
    pair: float | None
    n_ctx: float


def _plain(
    prompts: Sequence[TokenizedPrompt], rows: Sequence[int], fill: _Fill
) -> list[PlannedBatch]:
    """Without shared beginnings: a row for every prompt, or rows that prompts share."""
    chosen, budget = [prompts[row] for row in rows], fill.token_budget
    alone = [
        PlannedBatch(tuple(rows[k] for k in batch), len(chosen[batch[0]].ids))
        for batch in plan_batches(chosen, budget, fill.extra, fill.kept, fill.padding)
    ]
    if fill.pair is None:
        return alone
    lengths = [len(prompt.ids) for prompt in chosen]
    packed = [
        PlannedBatch.of(
            [rows[k] for k in batch.rows], batch.lane_of, [lengths[k] for k in batch.rows]
        )
        for batch in pack(lengths, budget, fill.padding, fill.pair, fill.n_ctx)
    ]

    def cost(works: Sequence[PlannedBatch], pair: float) -> float:
        return sum(work.computed * (1 + pair * work.width) + fill.padding for work in works)

    saves = cost(packed, fill.pair) <= (1 - LANES_MUST_SAVE) * cost(alone, fill.pair)
    return packed if saves else alone


def _shared(
    prompts: Sequence[TokenizedPrompt],
    found: Sequence[tuple[int, list[int]]],
    fill: _Fill,
) -> Iterator[PlannedBatch]:
    """Batches of whole families; a family that fills a batch alone is cut into several."""

    def rest(row: int, length: int) -> int:
        return len(prompts[row].ids) - length

    def most_rows(width: int, known: int) -> int:
        own = width + fill.extra
        size = rows_that_fit(fill.token_budget, own, known + own)
        if fill.kept is None:
            return size
        # What is known is copied for every row where that fits, and read where it is otherwise.
        most = max(fill.kept // (known + own), size)
        return rows_that_fit(fill.token_budget, width, known + width, most)

    sized = []
    for length, rows in found:
        ordered = sorted(rows, key=lambda row: (-rest(row, length), row))
        sized.append((length, rest(ordered[0], length), ordered))
    # The longest beginnings first, like ones side by side: they are padded to one width.
    sized.sort(key=lambda family: (-family[0], -family[1], family[2]))
    waiting: list[tuple[int, int, list[int]]] = []

    def fits(group: Sequence[tuple[int, int, list[int]]]) -> bool:
        prefix_width, width = group[0][0], max(width for _, width, _ in group)
        rows = sum(len(rows) for _, _, rows in group)
        padding = sum(prefix_width - length for length, _, _ in group)
        padding += sum(width - rest(row, length) for length, _, rows in group for row in rows)
        return (
            rows <= most_rows(width, prefix_width)
            and len(group) <= MAX_BATCH_ROWS
            and len(group) * prefix_width <= fill.token_budget
            and len(group) * prefix_width * prefix_width <= MAX_PAIRS
            and padding <= 2 * fill.padding  # its two passes
            # Rests of several beginnings stand behind padding, which may outgrow the context.
            and (len(group) == 1 or prefix_width + width + fill.extra <= fill.n_ctx)
        )

    def work(group: Sequence[tuple[int, int, list[int]]]) -> PlannedBatch:
        return PlannedBatch(
            tuple(row for _, _, rows in group for row in rows),
            max(width for _, width, _ in group),
            tuple(Prefix(min(rows), length) for length, _, rows in group),
            tuple(k for k, (_, _, rows) in enumerate(group) for _ in rows),
        )

    for length, width, rows in sized:
        family = (length, width, rows)
        if waiting and not fits([*waiting, family]):
            yield work(waiting)
            waiting = []
        if fits([*waiting, family]):
            waiting.append(family)
            continue
        # One name for all parts, so that batches in a row find the beginning run already.
        start, first = 0, Prefix(min(rows), length)
        while start < len(rows):
            own = rest(rows[start], length)
            size = most_rows(own, length)
            rests = [rest(row, length) for row in rows[start : start + size]]
            size = unpadded(rests, fill.padding)
            part = tuple(rows[start : start + size])
            yield PlannedBatch(part, own, (first,), (0,) * len(part))
            start += size
    if waiting:
        yield work(waiting)


def pass_cost(backend: Backend) -> float:
    """What starting a forward pass costs on this model, in tokens.

    Python's work for every block and one reading of the weights, against the arithmetic of a token,
    with round numbers for a CPU core and for a datacenter GPU. It need not be exact, but it must be
    the same for every process that works on one plan.
    """
    cfg, device = backend.model.cfg, model_device(backend.model)
    width, d_mlp = int(cfg.d_model), int(cfg.d_mlp or 4 * cfg.d_model)
    # As if every MLP had a gate.
    weights = int(cfg.n_layers) * (4 * width * width + 3 * width * d_mlp)
    bytes_per_second, flops = (1e10, 1.5e11) if device.type == "cpu" else (2e12, 2e14)
    start = int(cfg.n_layers) * 1.2e-3 + 4 * weights / bytes_per_second
    return start / (2 * weights / flops)


def pair_cost(backend: Backend) -> float:
    """What it costs, in tokens, that a token stands in a row one token wider: its scores in every
    layer, against all its arithmetic. By that alone it would be a sixth of 1 / d_model; written out
    and normalized as scores are, it was measured as 0.54 / d_model on a CPU."""
    return 1 / (2 * int(backend.model.cfg.d_model))
