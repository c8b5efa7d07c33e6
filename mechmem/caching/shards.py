"""Work cut into shards on disk: resumed after a kill, shared between machines, added up at the end.

A folder holds one subfolder per call that brought new prompts. Its ``index.json`` fixes the plan
of all of them; every shard is some whole batches of that plan, written whole or not at all. Whoever
runs a shard writes the same bytes, so it does not matter who was killed, or how often.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mechmem.caching.parts import (
    Part,
    begin_part,
    check_settings,
    parts_of,
    unknown_prompts,
)
from mechmem.digests import Digests
from mechmem.errors import ArtifactError, ModelError, PositionError, listed
from mechmem.models.engine.batching import MOST_TOKENS, PlannedBatch, check_budget
from mechmem.models.engine.forward import plan_passes
from mechmem.models.engine.plan import PassPlan, pass_cost
from mechmem.models.model import Model
from mechmem.models.positions import Positions
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.numeric import natural, whole_number
from mechmem.tasks.prompts import PromptSet
from mechmem.work_claims import shared_out


def share_of_work(rank: int | None = None, world: int | None = None) -> tuple[int, int]:
    """Which share of the shards is this process's: ``RANK`` and ``WORLD_SIZE``, as set by torchrun.

    Raises:
        ModelError: For numbers that make no sense.
    """
    found = []
    for name, given, default in (("RANK", rank, "0"), ("WORLD_SIZE", world, "1")):
        text = os.environ.get(name, default) if given is None else str(given)
        number = natural(text)
        if number is None:
            raise ModelError(f"{name} must be a whole number, got {text!r:.80}.")
        found.append(number)
    if not found[0] < found[1]:
        raise ModelError(
            f"RANK={found[0]} of WORLD_SIZE={found[1]}: ranks run from 0 to WORLD_SIZE - 1."
        )
    return found[0], found[1]


def run_shards(
    model: Model,
    prompts: PromptSet,
    folder: str | Path,
    settings: Mapping[str, Any],
    make: Callable[
        [Part, Sequence[TokenizedPrompt], PassPlan, Sequence[PlannedBatch], list[int]], Any
    ],
    *,
    shard_rows: int,
    rank: int | None,
    world: int | None,
    engine: Engine | None = None,
) -> None:
    """Run this process's share of what is missing, old parts first.

    Args:
        settings: What must not differ between the parts of a folder.
        make: Makes one shard's tensors from its batches and rows.
        shard_rows: Most prompts in a shard; one batch always fits.
        rank, world: Default ``RANK`` and ``WORLD_SIZE``.
        engine: Has the shards made elsewhere.

    Raises:
        ArtifactError: When the folder was made with other settings, or knows a prompt's id with
            other tokens.
        PositionError: When the positions mean more or fewer tokens than in the prompts before.
    """
    mine, every = share_of_work(rank, world)
    whole_number(shard_rows, "shard_rows", most=MOST_TOKENS, error=ArtifactError)
    check_budget(settings["token_budget"])
    jobs: list[Job] = []
    own = json.loads(json.dumps({**settings, "shard_rows": shard_rows}))
    known = parts_of(folder)

    def begin(part: Part, tokenized: Sequence[TokenizedPrompt], plan: PassPlan) -> None:
        works = list(_shards(plan, shard_rows))
        shards = dealt(works, every, pass_cost(model.backend))[mine]
        jobs.extend(Job(part, tokenized, plan, works[shard], shard, make) for shard in shards)

    for part in known:
        check_settings(part, own)
    fresh = unknown_prompts(model, prompts, known, own)
    for part in known:
        if part.missing():
            tokenized = model.encode(part.prompts).rows
            plan = _plan(model, tokenized, own)
            if plan.digest != part.index["plan"]:
                raise ArtifactError(
                    f"{part.folder} was planned differently (plan {part.index['plan']}, now "
                    f"{plan.digest}): other tokens or another version of mechmem. Choose another "
                    "folder, or finish with the version that began it: "
                    f"{part.index['versions'].get('mechmem')}."
                )
            begin(part, tokenized, plan)
    while len(fresh):
        tokenized = model.encode(fresh).rows
        columns = Positions.parse(own["positions"]).check_stackable(tokenized)
        if known and columns != known[0].index["columns"]:
            raise PositionError(
                f"positions={own['positions']!r} means {listed(columns)} in the new prompts and "
                f"{listed(known[0].index['columns'])} in those of {folder}, so their states cannot "
                "lie in one store; choose another folder, or positions with as many tokens."
            )
        plan = _plan(model, tokenized, own)
        rows = [[row for work in shard for row in work.rows] for shard in _shards(plan, shard_rows)]
        place = _after(known, Path(folder))
        try:
            part = begin_part(place, fresh, tokenized, columns, plan.digest, rows, own)
        except FileExistsError:
            # Another process took this place meanwhile: with the same prompts, as the ranks of one
            # job do, or with others. What it has not taken is left for a part of our own.
            known = parts_of(folder)
            if place == _after(known, Path(folder)):
                raise ArtifactError(
                    f"{place} is in the way: it is not a part of a store. Move it, or choose "
                    "another folder."
                ) from None
            for other in known:
                check_settings(other, own)
            same = [p for p in known if p.prompts == fresh and p.index["plan"] == plan.digest]
            if not same:
                fresh = unknown_prompts(model, fresh, known, own)
                continue
            part = same[0]
        begin(part, tokenized, plan)
        break
    (engine or partial(make_here, alone=every > 1))(jobs)


@dataclass(frozen=True)
class Job:
    """One shard that is to be made."""

    part: Part
    tokenized: Sequence[TokenizedPrompt]
    plan: PassPlan
    works: Sequence[PlannedBatch]
    shard: int
    make: Callable[..., Any]

    def path(self) -> Path:
        return self.part.path(self.shard)

    def missing(self) -> bool:
        return not self.path().is_file()


Engine = Callable[[Sequence[Job]], object]
"""Sees to it that shards are made."""


def make_here(jobs: Sequence[Job], alone: bool = False) -> None:
    """Make what is missing. Ranks have their own shards; whoever is not ``alone`` with these takes
    what nobody else is at."""
    free = shared_out(jobs, Job.path, Job.missing)
    with closing(free):
        for job in jobs if alone else free:
            if job.missing():
                part, shard = job.part, job.shard
                made = job.make(part, job.tokenized, job.plan, job.works, part.rows[shard])
                part.write(shard, made)


def _after(known: Sequence[Part], folder: Path) -> Path:
    """A folder for the part that follows those that were looked at when its prompts were chosen:
    one that came since then must be in the way, since it may hold some of them."""
    taken = [natural(part.folder.name.removeprefix("part-")) for part in known]
    number = 1 + max((n for n in taken if n is not None), default=-1)
    return folder / f"part-{number:04d}"


def dealt(
    shards: Sequence[Sequence[PlannedBatch]], ranks: int, pass_cost: float
) -> list[list[int]]:
    """Which shards each rank makes: the largest first, each to the rank with the least to do.

    Args:
        shards: The batches of every shard.
        ranks: How many.
        pass_cost: What starting a forward pass costs, in tokens.
    """
    costs = [sum(work.computed + pass_cost for work in shard) for shard in shards]
    out: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for shard in sorted(range(len(shards)), key=lambda k: (-costs[k], k)):
        rank = loads.index(min(loads))
        out[rank].append(shard)
        loads[rank] += costs[shard]
    return [sorted(own) for own in out]


def _plan(model: Model, tokenized: Sequence[TokenizedPrompt], own: Mapping[str, Any]) -> PassPlan:
    return plan_passes(
        model.backend,
        tokenized,
        own["token_budget"],
        interventions=model.interventions,
        share=own["share_prefixes"],
        pack=not Positions.parse(own["positions"]).pooled,
    )


def _shards(plan: PassPlan, shard_rows: int) -> Iterator[list[PlannedBatch]]:
    """Whole batches, in order; a shard ends before it would hold more prompts than it may."""
    shard: list[PlannedBatch] = []
    held = 0
    for work in plan.works:
        if shard and held + len(work.rows) > shard_rows:
            yield shard
            shard, held = [], 0
        shard.append(work)
        held += len(work.rows)
    if shard:
        yield shard


def described_edits(model: Model) -> list[Any]:
    """The edits in force, in words and by a hash of what they hold: two that are described alike,
    such as an edit and its control, may differ in their vectors."""
    out, digests = [], Digests()
    for item in model.interventions:
        edit = getattr(item, "edit", None)
        said = edit.describe() if edit is not None else type(item).__name__
        out.append([str(item.site), said, digests.of(item if edit is None else edit)])
    return json.loads(json.dumps(out, default=str))  # type: ignore[no-any-return]
