"""What a pass takes beside the weights: measured on a few short ones, and carried over to any."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import nnls
from torch.utils._python_dispatch import TorchDispatchMode

from mechmem.models.engine.batching import PlannedBatch, Prefix
from mechmem.models.engine.capabilities import bytes_per_token
from mechmem.models.engine.plan import PassPlan
from mechmem.models.engine.reading import take_states
from mechmem.models.model import Model
from mechmem.models.positions import Positions
from mechmem.models.sites import Site
from mechmem.models.tokenizing import TokenizedPrompt

LONG, SHORT = 1024, 32
"""Tokens of the passes that are measured."""


class Meter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that are made inside and alive together.

    Attributes:
        peak: The most of them.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._own = {t.untyped_storage()._cdata for t in (*model.parameters(), *model.buffers())}
        self._alive: dict[int, int] = {}
        self._now = self.peak = 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        out = function(*args, **(kwargs or {}))
        for made in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(made, torch.Tensor):
                self._count(made.untyped_storage())
        return out

    def _count(self, storage: Any) -> None:
        key = storage._cdata
        if key in self._alive or key in self._own:
            return
        self._alive[key] = storage.nbytes()
        self._now += storage.nbytes()
        self.peak = max(self.peak, self._now)
        weakref.finalize(storage, self._gone, key)

    def _gone(self, key: int) -> None:
        self._now -= self._alive.pop(key, 0)


@dataclass(frozen=True)
class Memory:
    """Bytes of a pass: a part of its own, one per token, and one per pair of tokens.

    Attributes:
        own: Whatever the pass is.
        token: Per token, padding included.
        pair: Per query and key of a row, in rows without padding.
        masked_pair: The same where rows are padded or shared, so that a mask says who sees whom.
        kept: Per token of a shared beginning, whose keys and values wait for the rows.
        spread: Per key of every row that goes on from one.
    """

    own: float
    token: float
    pair: float
    masked_pair: float
    kept: float
    spread: float

    def of(self, work: PlannedBatch, *, padded: bool = True, keeps: bool = False) -> int:
        """Bytes of one batch, states left out.

        Args:
            work: The batch.
            padded: Whether its rows differ in length.
            keeps: Whether keys and values of its tokens are kept, as a shared beginning's are.
        """
        keys = work.width + work.prefix_width
        pair = self.masked_pair if padded or work.lane_of or work.prefixes else self.pair
        held = sum(prefix.length for prefix in work.prefixes) + (work.computed if keeps else 0)
        spread = self.spread * work.lanes * keys if work.prefixes else 0.0
        return round(
            self.own + self.token * work.computed + pair * work.computed * keys
            + self.kept * held + spread
        )  # fmt: skip

    def peak(self, plan: PassPlan, per_prompt: int) -> int:
        """Bytes of the largest batch of a plan, ``per_prompt`` of them for a prompt's states."""
        lengths = [len(prompt.ids) for prompt in plan.prompts]
        sizes = [
            self.of(work, padded=len({lengths[row] for row in work.rows}) > 1)
            + per_prompt * len(work.rows)
            for work in plan.works
        ]
        for group in plan.prefix_passes:
            root = PlannedBatch(tuple(p.row for p in group), max(p.length for p in group))
            sizes.append(self.of(root, padded=len({p.length for p in group}) > 1, keeps=True))
        return max(sizes, default=0)


def measured_memory(model: Model, sites: Sequence[Site], longest: int) -> Memory:
    """Run four short passes of random tokens and see what they take.

    Args:
        model: The model, as it will run.
        sites: What will be read.
        longest: Tokens of the longest prompt; no pass is longer.
    """
    wide = max(min(LONG, longest, model.info.n_ctx or LONG), 2)
    narrow = min(wide, SHORT)
    shapes = [(1, narrow), (1, wide), (8, narrow)]
    taken = [_bytes(model, sites, [width] * rows) for rows, width in shapes]
    table = np.array([[1, rows * width, rows * width**2] for rows, width in shapes], dtype=float)
    scale = table.max(0)
    own, token, pair = nnls(table / scale, np.array(taken, dtype=float))[0] / scale
    lengths = [wide, max(wide - 1, 1)]
    rest = _bytes(model, sites, lengths) - own - token * 2 * wide
    cfg, size = model.tl.cfg, next(model.tl.parameters()).element_size()
    return Memory(
        own,
        token,
        pair,
        max(rest / (2 * wide**2), pair),
        bytes_per_token(model.backend),
        2 * int(cfg.n_heads) * int(cfg.d_head) * size,
    )


def _bytes(model: Model, sites: Sequence[Site], lengths: Sequence[int]) -> int:
    run = short_pass(model, sites, lengths, Positions.parse("last"))
    with Meter(model.tl) as meter:
        run()
    return int(meter.peak)


def short_pass(
    model: Model, sites: Sequence[Site], lengths: Sequence[int], where: Positions, shared: int = 0
) -> Callable[[], None]:
    """A pass over random tokens, without edits.

    Args:
        lengths: Tokens of every row.
        where: What is read of them.
        shared: How many tokens at the start of all rows are one beginning, run first.
    """
    rng = np.random.default_rng(0)
    drawn = [rng.integers(model.info.vocab_size, size=n).tolist() for n in lengths]
    prompts = [
        TokenizedPrompt(str(k), (*drawn[0][:shared], *ids[shared:]), {})
        for k, ids in enumerate(drawn)
    ]
    rows = tuple(range(len(lengths)))
    work = PlannedBatch(rows, max(lengths))
    if shared:
        work = PlannedBatch(rows, max(lengths) - shared, (Prefix(0, shared),), (0,) * len(rows))
    plan = PassPlan((work,), tuple(prompts))

    def run() -> None:
        for _taken in take_states(
            model.backend, prompts, sites, where, pad_id=model.tokens.pad_id, plan=plan
        ):
            pass

    return run
