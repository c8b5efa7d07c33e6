"""A grid of edits on the same prompts: what cells have in common is computed once.

Three things are shared, wherever that cannot change a number: the blocks below the first edited
site, whose output is stored; the tokens before the first edited one, whose keys and values are
stored; and the forward passes themselves. Where all tokens run, a pass holds the batch once per
cell; where only the edited ones do, the cells stand abreast in every row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.models.check.site_check import checked_hooks, require_sites
from mechmem.models.engine.backends import Backend, finite, model_device
from mechmem.models.engine.batched_edits import (
    Cell,
    CellLayout,
    CellPass,
    PackedCells,
    StackedCells,
    batch_edits,
    packs_cells,
    touched_positions,
)
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET, Batch, PlannedBatch, rows_that_fit
from mechmem.models.engine.capabilities import has_hooks
from mechmem.models.engine.forward import BatchPreparer, halved_on_oom, inference, plan_passes
from mechmem.models.engine.plan import PassPlan
from mechmem.models.engine.prefixes import shareable_lengths
from mechmem.models.engine.scoring import last_logits
from mechmem.models.engine.shared_forward import (
    SharedForward,
    can_resume,
    resumed,
    run_shared,
    start_of,
)
from mechmem.models.positions import Positions
from mechmem.models.tokenizing import TokenizedPrompt

Taker = Callable[[int, Sequence[int], Tensor], None]
"""Called with a cell, the prompts by their place, and their logits ``[prompt, vocab]``."""

MOST_KEPT = 1 << 30
"""Bytes of stored states and keys that are kept from one call to the next."""

WORTH = 0.8
"""Share of the tokens that edits must leave alone at the most, or all tokens run."""

MAX_PACKED_TOKENS = 256
"""Most tokens abreast in a row: each is compared with all others, if only to be masked."""


@dataclass(frozen=True)
class _Route:
    """How a cell runs.

    Attributes:
        start: First block that runs.
        whole: Whether all tokens run; otherwise those from the first edited one on.
        where: What its edits touch, joined; equal ones have equal limits.
        alone: Whether it runs by itself, as if there were no grid.
    """

    start: int
    whole: bool
    where: Positions | None = None
    alone: bool = False

    @property
    def key(self) -> tuple[bool, bool, int, str]:
        """Cells with the same one run side by side."""
        return self.alone, self.whole, self.start, "" if self.whole else str(self.where)


class Grid:
    """Last-token logits of many edits on the same prompts.

    Args:
        backend: The model.
        prompts: What every cell is asked.
        cells: The interventions of every cell; an empty one is the unedited model.
        reuse: Leave out to run every cell by itself.
    """

    def __init__(
        self,
        backend: Backend,
        prompts: Sequence[TokenizedPrompt],
        cells: Sequence[Cell],
        *,
        pad_id: int = 0,
        token_budget: int = DEFAULT_TOKEN_BUDGET,
        reuse: bool = True,
    ) -> None:
        self.backend, self.prompts, self.cells = backend, list(prompts), list(cells)
        self.pad_id, self.token_budget = pad_id, token_budget
        for cell in self.cells:
            # Now, since a check while blocks are passed over would examine another model.
            require_sites(backend, [item.site for item in cell])
        # Hooks of somebody else may do anything, to any row.
        self._reuses = reuse and not has_hooks(backend.model)
        self._limits: dict[Positions, list[int] | None] = {}
        self._kept: dict[bool, list[SharedForward]] = {}
        self.routes = [self._route(cell) for cell in self.cells]

    def order(self) -> list[int]:
        """All cells, those that share most next to each other."""
        return sorted(range(len(self.cells)), key=lambda cell: (self.routes[cell].key, cell))

    def alone(self, cell: int) -> bool:
        """Whether a cell runs by itself, as if there were no grid: asked for, because somebody else
        has hooked the model, or because its edits change nothing, exactly."""
        return self.routes[cell].alone

    def run(self, take: Taker, which: Sequence[int] | None = None) -> None:
        """Run some of the cells.

        Args:
            take: Called for every cell and batch, in any order.
            which: Default all.
        """
        chosen = list(range(len(self.cells)) if which is None else which)
        for cell in [cell for cell in chosen if self.routes[cell].alone]:
            logits = last_logits(
                self.backend, self.prompts, interventions=self.cells[cell], pad_id=self.pad_id,
                token_budget=self.token_budget,
            )  # fmt: skip
            take(cell, range(len(self.prompts)), logits)
        for whole in (True, False):
            mine = [c for c in chosen if not self.routes[c].alone and self.routes[c].whole == whole]
            for shared in self._shared_forwards(whole) if mine else ():
                for chunk, logits in halved_on_oom(self._passes(mine, shared), self._logits):
                    for cell, values in zip(chunk.cells, logits, strict=True):
                        take(cell, [shared.rows[row] for row in chunk.at], values)
                    del logits

    def _route(self, cell: Cell) -> _Route:
        where = touched_positions(cell)
        if not self._reuses or (cell and where == Positions(())):
            # An edit by nothing equals the unedited model to the bit, so it runs as that does.
            return _Route(0, True, alone=True)
        layers = int(self.backend.model.cfg.n_layers)
        # The unedited cell runs no block again.
        start = min((start_of(item.site) for item in cell), default=layers)
        if not self._resumes:
            start = 0
        if where is None:
            return _Route(start, True)
        if where not in self._limits:
            self._limits[where] = self._worth_it(cell)
        return _Route(start, self._limits[where] is None, where)

    def _worth_it(self, cell: Cell) -> list[int] | None:
        """How many tokens of every prompt come before the edited ones, where that saves work."""
        # One prompt is enough: its beginning serves every cell.
        found = shareable_lengths(self.backend, self.prompts, cell, least=1)
        total = sum(len(prompt.ids) for prompt in self.prompts)
        if found is None or not packs_cells(self.backend):
            return None
        return [max(0, n) for n in found] if total - sum(found) <= WORTH * total else None

    @cached_property
    def _resumes(self) -> bool:
        return can_resume(self.backend)

    def _plan(self, whole: bool) -> PassPlan:
        cells = [
            cell
            for cell, route in zip(self.cells, self.routes, strict=True)
            if route.whole == whole and not route.alone
        ]
        touching = [item for cell in cells for item in cell]
        # Where all tokens run, keys and values of a beginning are of no use.
        return plan_passes(
            self.backend, self.prompts, self.token_budget, interventions=touching, share=not whole
        )

    def _shared_forwards(self, whole: bool) -> Iterator[SharedForward]:
        """What all cells of one kind build on, batch by batch; kept as far as memory allows."""
        if whole in self._kept:
            yield from self._kept[whole]
            return
        mine = [route for route in self.routes if route.whole == whole and not route.alone]
        starts = sorted({route.start for route in mine} - {0})
        passes = BatchPreparer(self.backend, self.prompts, self.pad_id, grows=not whole)
        rows = range(len(self.prompts))
        last = None if whole else max(self._width(rows, self._skip(route, rows)) for route in mine)

        def run(work: PlannedBatch) -> SharedForward:
            return run_shared(self.backend, passes.ready(work), starts, not whole, last)

        made = (shared for _, shared in halved_on_oom(self._plan(whole).works, run))
        kept: list[SharedForward] = []
        size = 0
        for shared in made:
            size += shared.bytes
            if size <= MOST_KEPT:
                kept.append(shared)
            yield shared
        # All batches or none: a later call needs each of them.
        if size <= MOST_KEPT:
            self._kept[whole] = kept

    def _skip(self, route: _Route, rows: Sequence[int]) -> list[int]:
        """How many tokens of some prompts come before those that the edits touch."""
        if route.whole or route.where is None:
            return [0] * len(rows)
        found = self._limits[route.where]
        assert found is not None
        return [found[row] for row in rows]

    def _width(self, rows: Sequence[int], skip: Sequence[int]) -> int:
        """Tokens of the longest of some prompts, without those left out."""
        return max(len(self.prompts[row].ids) - cut for row, cut in zip(rows, skip, strict=True))

    def _passes(self, cells: Sequence[int], shared: SharedForward) -> Iterator[CellPass]:
        """Cells that run side by side on one batch."""
        groups: dict[Any, list[int]] = {}
        for cell in cells:
            groups.setdefault(self.routes[cell].key, []).append(cell)
        for members in groups.values():
            route = self.routes[members[0]]
            skip = self._skip(route, shared.rows)
            width = self._width(shared.rows, skip)
            size = self._side_by_side(shared, width, route.whole)
            for first in range(0, len(members), size):
                yield CellPass(
                    tuple(members[first : first + size]), tuple(range(len(shared.rows))),
                    route.start, tuple(skip), shared, width, route.whole,
                )  # fmt: skip

    def _side_by_side(self, shared: SharedForward, width: int, whole: bool) -> int:
        """How many cells run together."""
        rows = len(shared.rows)
        if whole:
            return max(1, rows_that_fit(self.token_budget, width, shared.width) // rows)
        size = max(1, MAX_PACKED_TOKENS // width)
        while size > 1 and size * rows > rows_that_fit(
            self.token_budget, width, shared.width + size * width
        ):
            size -= 1
        return size

    def _logits(self, chunk: CellPass) -> Float[Tensor, "cell row vocab"]:
        shared, cells = chunk.shared, [self.cells[cell] for cell in chunk.cells]
        rows = [shared.rows[row] for row in chunk.at]
        skip = [chunk.skip[row] for row in chunk.at]
        device = model_device(self.backend.model)
        batch = Batch.collate(self.prompts, rows, self.pad_id, device, skip=skip)
        layout: CellLayout = StackedCells(batch, len(cells))
        if not chunk.whole:
            layout = PackedCells(batch, len(cells), shared.root(chunk.at, skip))
        residual = None
        if chunk.start:
            known = shared.residual(chunk.start, chunk.at, batch.ids.shape[1])
            residual = known.repeat(*layout.times, 1)
        with (
            inference(self.backend),
            resumed(self.backend, chunk.start, residual),
            checked_hooks(self.backend, layout.feed, batch_edits(cells, layout.split)),
        ):
            return finite(layout.logits(self.backend), self.backend.model)


def many_logits(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    cells: Sequence[Cell],
    *,
    pad_id: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> Float[Tensor, "cell example vocab"]:
    """Logits after every prompt in every cell, on the CPU.

    Args:
        prompts: What every cell is asked.
        cells: The interventions of every cell; an empty one is the unedited model.
    """
    grid = Grid(backend, prompts, cells, pad_id=pad_id, token_budget=token_budget)
    out: list[list[Tensor | None]] = [[None] * len(prompts) for _ in cells]

    def take(cell: int, rows: Sequence[int], logits: Tensor) -> None:
        for row, value in zip(rows, logits.cpu().float(), strict=True):
            out[cell][row] = value

    grid.run(take)
    return torch.stack([torch.stack([v for v in row if v is not None]) for row in out])


@dataclass(frozen=True)
class Next:
    """What one cell says after every prompt.

    Attributes:
        tokens: The likeliest next token.
        scores: Logits of the candidates.
        logits: All logits ``[vocab]``, by prompt, where they were asked for.
    """

    tokens: Int[Tensor, " example"]
    scores: Float[Tensor, "example candidate"]
    logits: dict[int, Tensor]


def many_next(
    grid: Grid,
    which: Sequence[int],
    candidates: Int[Tensor, "example candidate"],
    watched: Mapping[int, Sequence[int]] | None = None,
) -> dict[int, Next]:
    """The likeliest next token of every prompt, and the logits of some candidates.

    Args:
        grid: Prompts and cells.
        which: The cells to run.
        candidates: Token ids to score, as many for every prompt; there may be none.
        watched: Prompts whose logits are wanted whole, by cell.
    """
    n, width = candidates.shape
    out = {
        cell: Next(torch.zeros(n, dtype=torch.long), torch.zeros(n, width, dtype=torch.float64), {})
        for cell in which
    }
    wanted = watched or {}

    def take(cell: int, rows: Sequence[int], logits: Tensor) -> None:
        at, mine = list(rows), out[cell]
        ids = candidates[at].to(logits.device)
        mine.tokens[at] = logits.argmax(-1).cpu()
        # Through float32, in which `last_logits` hands logits on: the same number either way.
        mine.scores[at] = logits.float().gather(1, ids).double().cpu()
        places = {row: k for k, row in enumerate(at)}
        for row in set(wanted.get(cell, ())) & set(places):
            mine.logits[row] = logits[places[row]].float().cpu()

    grid.run(take, which)
    return out
