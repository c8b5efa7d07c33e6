"""How long passes take: measured on a few short ones, and carried over to any."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import nnls

from mechmem.caching.memory import LONG, SHORT, short_pass
from mechmem.models.engine.backends import model_device
from mechmem.models.engine.batching import PlannedBatch
from mechmem.models.engine.plan import PassPlan
from mechmem.models.model import Model
from mechmem.models.positions import Positions
from mechmem.models.sites import Site


@dataclass(frozen=True)
class Speed:
    """Seconds of a pass: a part of its own, one per token, and one per pair of tokens.

    Attributes:
        own: Whatever the pass is.
        token: Per token, padding included.
        pair: Per query and key of a row, in rows without padding.
        masked_pair: The same where rows are padded or shared, so that a mask says who sees whom.
        spread: Per key of every row that goes on from a shared beginning.
    """

    own: float
    token: float
    pair: float
    masked_pair: float
    spread: float = 0.0

    def of(self, work: PlannedBatch, padded: bool) -> float:
        """Seconds of one batch, without its beginnings."""
        keys = work.width + work.prefix_width
        pair = self.masked_pair if padded or work.lane_of or work.prefixes else self.pair
        spread = self.spread * work.lanes * keys if work.prefixes else 0.0
        return self.own + work.computed * (self.token + pair * keys) + spread

    def total(self, plan: PassPlan) -> float:
        """Seconds of all passes of a plan."""
        lengths = [len(prompt.ids) for prompt in plan.prompts]
        roots = [
            (PlannedBatch(tuple(p.row for p in group), max(p.length for p in group)),
             [p.length for p in group])
            for group in plan.prefix_passes
        ]  # fmt: skip
        rows = [(work, [lengths[row] for row in work.rows]) for work in plan.works]
        return sum(self.of(work, len(set(sizes)) > 1) for work, sizes in [*roots, *rows])


def measured_speed(
    model: Model, sites: Sequence[Site], positions: Positions, plan: PassPlan
) -> Speed:
    """Time a few short passes of random tokens, which must have run before (`measured_memory`).

    Args:
        model: The model, without its edits.
        sites, positions: What will be read.
        plan: What will run: no pass is longer, but on an accelerator, which is only as fast as its
            batches are large, the largest one is timed, too.
    """
    where = Positions.parse("mean" if positions.pooled else "last")
    longest = max(len(prompt.ids) for prompt in plan.prompts)
    wide = max(min(LONG, longest, model.info.n_ctx or LONG), 2)
    narrow = min(wide, SHORT)

    def seconds(lengths: Sequence[int], shared: int = 0) -> float:
        run = short_pass(model, sites, lengths, where, shared)
        return min(_timed(run) for _ in range(3 if sum(lengths) < LONG else 1))

    shapes = [(1, narrow), (1, wide), (8, narrow)]
    if model_device(model.tl).type != "cpu":
        largest = max(plan.works, key=lambda work: work.computed)
        shapes.append((largest.lanes, largest.width))
    took = np.array([seconds([width] * rows) for rows, width in shapes])
    table = np.array([[1, rows * width, rows * width**2] for rows, width in shapes], dtype=float)
    scale = table.max(0)
    shares = table / scale / took[:, None]  # all shapes count alike, however short
    own, token, pair = nnls(shares, np.ones(len(took)))[0] / scale
    rest = seconds([wide, wide - 1]) - own - token * 2 * wide
    found = Speed(own, token, pair, max(rest / (2 * wide**2), pair))
    if not plan.prefix_passes or wide <= narrow:
        return found
    front = wide - narrow
    rest = seconds([wide] * 8, front) - found.of(PlannedBatch((0,), front), padded=False)
    rest -= own + 8 * narrow * (token + found.masked_pair * wide)
    return Speed(own, token, pair, found.masked_pair, max(rest, 0.0) / (8 * wide))


def _timed(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start
