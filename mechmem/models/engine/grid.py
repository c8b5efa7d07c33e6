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

from mechmem.models.engine.backends import Backend, model_device
from mechmem.models.engine.batched_edits import (
    Abreast,
    Cell,
    Stacked,
    Tiling,
    _Chunk,
    choir,
    stands_abreast,
    touched,
)
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET, Batch, Work, rows_that_fit
from mechmem.models.engine.capabilities import has_hooks
from mechmem.models.engine.forward import Passes, plan_passes, retried, running
from mechmem.models.engine.plan import Plan
from mechmem.models.engine.prefixes import limits
from mechmem.models.engine.scoring import last_logits
from mechmem.models.engine.shared_forward import Base, make_base, resumed, resumes_truly, start_of
from mechmem.models.engine.site_check import vouch, wired
from mechmem.models.positions import Positions
from mechmem.models.tokens import TokenizedPrompt

Taker = Callable[[int, Sequence[int], Tensor], None]
"""Called with a cell, the prompts by their place, and their logits ``[prompt, vocab]``."""

MOST_KEPT = 1 << 30
"""Bytes of stored states and keys that are kept from one call to the next."""

WORTH = 0.8
"""Share of the tokens that edits must leave alone at the most, or all tokens run."""

ABREAST = 256
"""Most tokens abreast in a row: each is compared with all others, if only to be masked."""


@dataclass(frozen=True)
class _Way:
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
            vouch(backend, [item.site for item in cell])
        # Hooks of somebody else may do anything, to any row.
        self._reuses = reuse and not has_hooks(backend.model)
        self._limits: dict[Positions, list[int] | None] = {}
        self._kept: dict[bool, list[Base]] = {}
        self.ways = [self._way(cell) for cell in self.cells]

    def order(self) -> list[int]:
        """All cells, those that share most next to each other."""
        return sorted(range(len(self.cells)), key=lambda cell: (self.ways[cell].key, cell))

    def alone(self, cell: int) -> bool:
        """Whether a cell runs by itself, as if there were no grid: asked for, because somebody else
        has hooked the model, or because its edits change nothing, exactly."""
        return self.ways[cell].alone

    def run(self, take: Taker, which: Sequence[int] | None = None) -> None:
        """Run some of the cells.

        Args:
            take: Called for every cell and batch, in any order.
            which: Default all.
        """
        chosen = list(range(len(self.cells)) if which is None else which)
        for cell in [cell for cell in chosen if self.ways[cell].alone]:
            logits = last_logits(
                self.backend, self.prompts, interventions=self.cells[cell], pad_id=self.pad_id,
                token_budget=self.token_budget,
            )  # fmt: skip
            take(cell, range(len(self.prompts)), logits)
        for whole in (True, False):
            mine = [c for c in chosen if not self.ways[c].alone and self.ways[c].whole == whole]
            for base in self._bases(whole) if mine else ():
                for chunk, logits in retried(self._chunks(mine, base), self._logits):
                    for cell, values in zip(chunk.cells, logits, strict=True):
                        take(cell, [base.rows[row] for row in chunk.at], values)
                    del logits

    def _way(self, cell: Cell) -> _Way:
        where = touched(cell)
        if not self._reuses or (cell and where == Positions(())):
            # An edit by nothing equals the unedited model to the bit, so it runs as that does.
            return _Way(0, True, alone=True)
        layers = int(self.backend.model.cfg.n_layers)
        start = min((start_of(item.site) for item in cell), default=layers)
        if not self._resumes:
            start = 0
        if where is None:
            return _Way(start, True)
        if where not in self._limits:
            self._limits[where] = self._worth_it(cell)
        return _Way(start, self._limits[where] is None, where)

    def _worth_it(self, cell: Cell) -> list[int] | None:
        """How many tokens of every prompt come before the edited ones, where that saves work."""
        found = limits(self.backend, self.prompts, cell, least=1)
        total = sum(len(prompt.ids) for prompt in self.prompts)
        if found is None or not stands_abreast(self.backend):
            return None
        return [max(0, n) for n in found] if total - sum(found) <= WORTH * total else None

    @cached_property
    def _resumes(self) -> bool:
        return resumes_truly(self.backend)

    def _plan(self, whole: bool) -> Plan:
        cells = [
            cell
            for cell, way in zip(self.cells, self.ways, strict=True)
            if way.whole == whole and not way.alone
        ]
        touching = [item for cell in cells for item in cell]
        return plan_passes(
            self.backend, self.prompts, self.token_budget, interventions=touching, share=not whole
        )

    def _bases(self, whole: bool) -> Iterator[Base]:
        """What all cells of one kind build on, batch by batch; kept as far as memory allows."""
        if whole in self._kept:
            yield from self._kept[whole]
            return
        mine = [way for way in self.ways if way.whole == whole and not way.alone]
        starts = sorted({way.start for way in mine} - {0})
        passes = Passes(self.backend, self.prompts, self.pad_id, grows=not whole)
        rows = range(len(self.prompts))
        last = None if whole else max(self._width(rows, self._skip(way, rows)) for way in mine)

        def run(work: Work) -> Base:
            return make_base(self.backend, passes.ready(work), starts, not whole, last)

        made = (base for _, base in retried(self._plan(whole).works, run))
        kept: list[Base] = []
        size = 0
        for base in made:
            size += base.bytes
            if size <= MOST_KEPT:
                kept.append(base)
            yield base
        if size <= MOST_KEPT:
            self._kept[whole] = kept

    def _skip(self, way: _Way, rows: Sequence[int]) -> list[int]:
        """How many tokens of some prompts come before those that the edits touch."""
        if way.whole or way.where is None:
            return [0] * len(rows)
        found = self._limits[way.where]
        assert found is not None
        return [found[row] for row in rows]

    def _width(self, rows: Sequence[int], skip: Sequence[int]) -> int:
        """Tokens of the longest of some prompts, without those left out."""
        return max(len(self.prompts[row].ids) - cut for row, cut in zip(rows, skip, strict=True))

    def _chunks(self, cells: Sequence[int], base: Base) -> Iterator[_Chunk]:
        """Cells that run side by side on one batch."""
        groups: dict[Any, list[int]] = {}
        for cell in cells:
            groups.setdefault(self.ways[cell].key, []).append(cell)
        for members in groups.values():
            way = self.ways[members[0]]
            skip = self._skip(way, base.rows)
            width = self._width(base.rows, skip)
            size = self._side_by_side(base, width, way.whole)
            for first in range(0, len(members), size):
                yield _Chunk(
                    tuple(members[first : first + size]), tuple(range(len(base.rows))), way.start,
                    tuple(skip), base, width, way.whole,
                )  # fmt: skip

    def _side_by_side(self, base: Base, width: int, whole: bool) -> int:
        """How many cells run together."""
        rows = len(base.rows)
        if whole:
            return max(1, rows_that_fit(self.token_budget, width, base.width) // rows)
        size = max(1, ABREAST // width)
        while size > 1 and size * rows > rows_that_fit(
            self.token_budget, width, base.width + size * width
        ):
            size -= 1
        return size

    def _logits(self, chunk: _Chunk) -> Float[Tensor, "cell row vocab"]:
        base, cells = chunk.base, [self.cells[cell] for cell in chunk.cells]
        rows = [base.rows[row] for row in chunk.at]
        skip = [chunk.skip[row] for row in chunk.at]
        device = model_device(self.backend.model)
        batch = Batch.collate(self.prompts, rows, self.pad_id, device, skip=skip)
        tiling: Tiling = Stacked(batch, len(cells))
        if not chunk.whole:
            tiling = Abreast(batch, len(cells), base.root(chunk.at, skip))
        residual = None
        if chunk.start:
            known = base.residual(chunk.start, chunk.at, batch.ids.shape[1])
            residual = known.repeat(*tiling.times, 1)
        with (
            running(self.backend),
            resumed(self.backend, chunk.start, residual),
            wired(self.backend, tiling.feed, choir(cells, tiling.split)),
        ):
            return tiling.logits(self.backend)


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
        mine.scores[at] = logits.float().gather(1, ids).double().cpu()
        places = {row: k for k, row in enumerate(at)}
        for row in set(wanted.get(cell, ())) & set(places):
            mine.logits[row] = logits[places[row]].float().cpu()

    grid.run(take, which)
    return out
