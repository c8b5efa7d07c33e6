"""Cells of a sweep: run side by side in units, compared with runs of their own, stored, dealt out.

A unit is a fixed handful of cells, decided from the whole list before anything runs. It runs whole
or not at all, so that the numbers of a cell do not depend on which others were stored already, nor
on how many processes share the work.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechmem.caching.shards import share_of_work
from mechmem.digests import Digests
from mechmem.errors import ArtifactError, EditError, ModelError, shown
from mechmem.evaluation.many_edits import Bench
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.engine.scoring import answer_logprobs, last_logits
from mechmem.models.engine.stopping import Completion
from mechmem.models.model import Model
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.numeric import finite_numbers
from mechmem.patching.apply import Firing, PatchedModel, patched, patched_each, refuse_silent
from mechmem.patching.base import Edit
from mechmem.progress import tracked
from mechmem.seeding import keyed_rng
from mechmem.sweeps.digests import setting_digest
from mechmem.sweeps.store import CellStore, Done
from mechmem.tasks.base import PromptAnswers, Task
from mechmem.tasks.prompts import PromptSet
from mechmem.work_claims import shared_out

CELLS_TOGETHER = 16
"""Cells that run together; the most that a kill can lose."""
CHECKED_CELLS, CHECKED_PROMPTS = 4, 8
TOLERANCE = 1e-4
"""Largest difference from a run of its own, in units of the spread of a prompt's logits."""


@dataclass(frozen=True)
class Setting:
    """One edit to run.

    Attributes:
        edit: The edit, toward one class.
        about: What it is, for tables and stored files.
        margins: Whether both answers are scored.
    """

    edit: Edit
    about: Mapping[str, Any] = field(default_factory=dict)
    margins: bool = False


@dataclass(frozen=True)
class CellRun:
    """How cells are run.

    Attributes:
        model: The unedited model.
        task: Reads the completions.
        seed: Keys which cells are compared with a run of their own.
        folder: Where finished cells are stored; ``None`` for nowhere.
        rank, world: This process's share; default ``RANK`` and ``WORLD_SIZE``, else everything.
        reuse: False runs every cell by itself.
        token_budget: Most tokens in one batch.
    """

    model: Model
    task: Task | None
    seed: int = 0
    folder: Path | None = None
    rank: int | None = None
    world: int | None = None
    reuse: bool = True
    token_budget: int = DEFAULT_TOKEN_BUDGET

    def run(
        self,
        settings: Sequence[Setting],
        prompts: PromptSet,
        progress: Callable[[Setting], None] | None = None,
    ) -> list[Done]:
        """Every setting on the prompts, in order.

        Args:
            progress: Called with every setting that this process has run or found.

        Raises:
            ModelError: When a cell's logits differ from those of a run of its own.
            EditError: When an edit never acted.
            ArtifactError: When a stored cell is damaged, or cannot be written.
        """
        if not settings:
            return []
        if self.folder is not None:
            self.model.check_for_folder(self.folder)
        asked = self.model.encode(prompts)
        check_sharing(self.folder, self.rank, self.world)
        reader = self.task if self.task is not None else PromptAnswers.for_prompts(asked)
        store = None if self.folder is None else CellStore(self.folder)
        keys = [""] * len(settings) if store is None else self._keys(settings, asked)
        out: dict[int, Done] = {}
        with patched_each(self.model, [setting.edit for setting in settings]) as views:
            bench = Bench(
                views, asked, task=reader, margins=[item.margins for item in settings],
                reuse=self.reuse, token_budget=self.token_budget,
            )  # fmt: skip
            known = (reader, self.model.info)
            watched = self._watched(bench)

            def find(unit: Sequence[int]) -> bool:
                """Whether all cells of a unit are stored; then they are read."""
                if store is None or not all(store.has(keys[cell]) for cell in unit):
                    return False
                out.update({cell: store.read(keys[cell], asked, *known) for cell in unit})
                return True

            order = bench.grid.order()
            units = [
                order[first : first + CELLS_TOGETHER]
                for first in range(0, len(order), CELLS_TOGETHER)
            ]
            if store is not None:
                tokens = sum(len(prompt.ids) for prompt in bench.tokenized)
                store.write_plan([[keys[cell] for cell in unit] for unit in units], tokens)
            queue = self._queue(units, keys, store)
            # Closed, so that an error gives back the claim that the queue holds.
            with tracked(len(settings), "trying edits", "edit") as more, closing(queue):
                for unit in queue:
                    # The queue comes again to what it shared out.
                    if all(cell in out for cell in unit):
                        continue
                    if not find(unit):
                        for cell, done in self._run(bench, unit, watched).items():
                            if store is not None:
                                store.write(keys[cell], done, dict(settings[cell].about))
                            out[cell] = done
                    for cell in unit:
                        if progress is not None:
                            progress(settings[cell])
                    more(len(unit))
        return [out[cell] for cell in range(len(settings))]

    def _keys(self, settings: Sequence[Setting], prompts: PromptSet) -> list[str]:
        # What stands side by side moves last bits, and the seed decides what is compared: another
        # of either is another cell.
        about = {"unit": CELLS_TOGETHER, "seed": self.seed, "reuse": self.reuse}
        common, digests = setting_digest(self.model, prompts, self.task, about), Digests()
        return [Digests().of([common, digests.of(item.edit), item.margins]) for item in settings]

    def _queue(
        self, units: Sequence[Sequence[int]], keys: Sequence[str], store: CellStore | None
    ) -> Generator[Sequence[int], None, None]:
        """Units in the order in which this process looks at them.

        Without a rank it takes what nobody else is at, and then reads what others have made. With
        one its own come first, then those of the others from the last one on: whoever is early
        helps, and nobody waits.
        """
        rank, world = share_of_work(self.rank, self.world)
        mine = units[rank::world]
        if world == 1 and store is not None:
            yield from shared_out(
                units,
                lambda unit: store.unit(keys[unit[0]]),
                lambda unit: not all(store.has(keys[cell]) for cell in unit),
            )
        yield from mine
        if store is not None:
            yield from (unit for unit in reversed(units) if unit not in mine)

    def _watched(self, bench: Bench) -> dict[int, list[int]]:
        """Which cells are compared with a run of their own, and on which prompts."""
        cells = [cell for cell in range(len(bench.views)) if not bench.grid.alone(cell)]
        rng = keyed_rng(self.seed, "cells compared")
        chosen = rng.permutation(len(cells))[:CHECKED_CELLS]
        lengths = [len(prompt.ids) for prompt in bench.tokenized]
        by_length = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
        step = max(1, (len(by_length) - 1) // (CHECKED_PROMPTS - 1))
        rows = sorted({*by_length[::step][: CHECKED_PROMPTS - 1], by_length[-1]})
        return {cells[int(k)]: rows for k in chosen}

    def _run(
        self, bench: Bench, unit: Sequence[int], watched: Mapping[int, Sequence[int]]
    ) -> dict[int, Done]:
        mine = {cell: rows for cell, rows in watched.items() if cell in unit}
        seen = bench.run(unit, mine)
        # What the model came with is not on trial.
        outer = {id(item) for item in self.model.interventions}
        for cell in unit:
            refuse_silent(
                [
                    item
                    for item in bench.views[cell].interventions
                    if isinstance(item, Firing) and id(item) not in outer
                ]
            )
        out = {cell: Done(seen[cell], None) for cell in unit}
        for cell, rows in mine.items():
            edits = _edits(bench.views[cell], outer)
            with patched(self.model, edits) as view:
                found = _difference(
                    bench, view, rows, bench.logits[cell], bench.texts.get(cell, ())
                )
            allowed = max(TOLERANCE, 16 * torch.finfo(getattr(torch, self.model.info.dtype)).eps)
            if not found <= allowed:
                raise ModelError(
                    f"{edits[0].describe()} gives other logits side by side with other cells than "
                    f"alone: they differ by {found:.2g} of their spread, where {allowed:.2g} is "
                    "allowed. Use reuse=False, and please report the model."
                )
            out[cell] = Done(seen[cell], found)
        return out


def check_refine(refine: Mapping[str, Sequence[float]] | None) -> None:
    """Refuse multiples of a strength that are no numbers; a family may have none.

    Raises:
        EditError: Naming them.
    """
    if not isinstance(refine or {}, Mapping):
        raise EditError(
            f"refine must be numbers by the name of a family, got {shown(refine, 80)}; for example "
            "{'one direction': (0.6, 1.7)}."
        )
    for family, factors in (refine or {}).items():
        finite_numbers(factors, f"refine[{family!r}]", empty=True, error=EditError)


def check_sharing(folder: Path | None, rank: int | None = None, world: int | None = None) -> None:
    """Refuse to share work without a place to share it in.

    Raises:
        ArtifactError: Saying what to pass.
    """
    _, count = share_of_work(rank, world)
    if count > 1 and folder is None:
        raise ArtifactError(
            f"WORLD_SIZE={count} processes share this work, but there is no folder to meet in; "
            "pass folder= on a file system that all of them see."
        )


def _edits(view: PatchedModel, outer: set[int]) -> list[Edit]:
    """The edits of a view, each once, without those of the model that it was made from."""
    mine = [item for item in view.interventions if isinstance(item, Firing)]
    return list({id(item.edit): item.edit for item in mine if id(item) not in outer}.values())


def _difference(
    bench: Bench,
    view: Model,
    rows: Sequence[int],
    logits: Mapping[int, Tensor],
    texts: Sequence[Completion],
) -> float:
    """Largest difference from a fresh run with hooks on, in units of the logits' spread."""
    prompts = [bench.tokenized[row] for row in rows]
    pad = view.tokens.pad_id
    own = last_logits(
        view.backend, prompts, interventions=view.interventions, pad_id=pad, share=False
    )
    got = torch.stack([logits[row] for row in rows])
    # The same number on all logits changes nothing, so their size would be no measure.
    spread = (own.amax(1) - own.amin(1)).clamp_min(torch.finfo(torch.float32).tiny)
    worst = float(((got - own).abs().amax(1) / spread).max())
    if not bench.writes:
        return worst
    asked = bench.prompts.select(bench.prompts[row].id for row in rows)
    done = view.complete(asked, bench.reader.max_new_tokens, stop=bench.reader.stop)
    for k, row in enumerate(rows):
        gap = _gap(view, prompts[k], done[k].ids, texts[row].ids)
        worst = max(worst, gap / float(spread[k]))
    return worst


def _gap(view: Model, prompt: TokenizedPrompt, one: list[int], other: list[int]) -> float:
    """By how much the two texts' next tokens differ in logits where the texts part; 0 for equal
    ones. Only a tie may be decided differently."""
    if one == other:
        return 0.0
    same = next(
        (k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
        min(len(one), len(other)),
    )
    # A text that stops short of the other chose an end token there.
    ends = view.eos_ids[:1]
    parted = [(*ids[: same + 1], *(ends if len(ids) == same else ())) for ids in (one, other)]
    if any(len(ids) != same + 1 for ids in parted):
        return float("inf")
    scores = answer_logprobs(
        view.backend, [prompt, prompt], parted, interventions=view.interventions,
        pad_id=view.tokens.pad_id, share=False,
    )  # fmt: skip
    # All earlier tokens are equal and cancel: what is left is a difference of two logits.
    return float((scores[0] - scores[1]).abs())
