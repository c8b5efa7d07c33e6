"""Work cut into shards on disk: resumed after a kill, shared between machines, added up at the end.

A folder holds one subfolder per call that brought new prompts. Its ``index.json`` fixes the plan
of all of them; every shard is some whole batches of that plan, written whole or not at all. Whoever
runs a shard writes the same bytes, so it does not matter who was killed, or how often.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechmem.artifacts import versions, write_text
from mechmem.caching.provenance import Provenance, Seen
from mechmem.errors import ArtifactError, ModelError, PositionError, listed
from mechmem.models.engine.passes import pass_cost, plan_passes
from mechmem.models.engine.plan import Plan
from mechmem.models.engine.positions import Positions
from mechmem.models.engine.work import Work
from mechmem.models.hooked import Model, ModelInfo
from mechmem.models.tokens import TokenizedPrompt
from mechmem.tasks.prompts import PromptSet

__all__ = [
    "Part",
    "as_dtype",
    "dealt",
    "described_edits",
    "parts_of",
    "run_shards",
    "share_of_work",
]

FORMAT = 1


def share_of_work(rank: int | None = None, world: int | None = None) -> tuple[int, int]:
    """Which share of the shards is this process's: ``RANK`` and ``WORLD_SIZE``, as set by torchrun.

    Raises:
        ModelError: For numbers that make no sense.
    """
    found = []
    for name, given, default in (("RANK", rank, "0"), ("WORLD_SIZE", world, "1")):
        text = os.environ.get(name, default) if given is None else str(given)
        if not text.isdigit():
            raise ModelError(f"{name} must be a whole number, got {text!r}.")
        found.append(int(text))
    if not found[0] < found[1]:
        raise ModelError(
            f"RANK={found[0]} of WORLD_SIZE={found[1]}: ranks run from 0 to WORLD_SIZE - 1."
        )
    return found[0], found[1]


@dataclass(frozen=True)
class Part:
    """One subfolder: a plan, its prompts, and its shards.

    Attributes:
        folder: Where it lies.
        index: What ``index.json`` holds.
        prompts: In order.
        token_ids: What the model is fed, per prompt.
    """

    folder: Path
    index: Mapping[str, Any]
    prompts: PromptSet
    token_ids: tuple[tuple[int, ...], ...]

    @property
    def settings(self) -> dict[str, Any]:
        """What every part of one folder has in common."""
        return dict(self.index["settings"])

    @property
    def rows(self) -> list[list[int]]:
        """The prompts of every shard, in the order in which they lie in it."""
        return [list(rows) for rows in self.index["rows"]]

    @property
    def provenance(self) -> Provenance:
        """Model, positions and prompts."""
        settings = self.settings
        return Provenance(
            ModelInfo(**settings["model"]),
            Seen.of_ids(self.prompts, self.token_ids),
            settings["positions"],
            settings.get("by", ""),
        )

    def path(self, shard: int) -> Path:
        """The file of a shard."""
        return self.folder / f"shard-{shard:05d}.safetensors"

    def missing(self) -> list[int]:
        """Shards that nobody has written yet."""
        return [shard for shard in range(len(self.index["rows"])) if not self.path(shard).is_file()]

    def read(self, shard: int) -> dict[str, Tensor]:
        """A whole shard.

        Raises:
            ArtifactError: When it is missing or cut off.
        """
        try:
            return load_file(self.path(shard))
        except (OSError, SafetensorError) as error:
            raise ArtifactError(
                f"{self.path(shard)} cannot be read: {error}. Run the extraction again; it makes "
                "what is missing (remove a damaged file first)."
            ) from error

    def write(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard whole or not at all."""
        target = self.path(shard)
        partial = target.with_name(f".{target.name}.{socket.gethostname()}-{os.getpid()}")
        try:
            save_file({name: value.contiguous() for name, value in tensors.items()}, partial)
            with partial.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(partial, target)
            for left in target.parent.glob(f".{target.name}.*"):  # of those who were killed
                left.unlink(missing_ok=True)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            if isinstance(error, FileNotFoundError) and target.is_file():
                return  # another process was first, and took our file for one left behind
            raise ArtifactError(f"Cannot write {target}: {error}.") from error


def parts_of(folder: str | Path) -> list[Part]:
    """Every part of a folder, oldest first.

    Raises:
        ArtifactError: For files that are something else.
    """
    return [_open(path.parent) for path in sorted(Path(folder).glob("part-*/index.json"))]


def run_shards(
    model: Model,
    prompts: PromptSet,
    folder: str | Path,
    settings: Mapping[str, Any],
    make: Callable[[Part, Sequence[TokenizedPrompt], Plan, Sequence[Work], list[int]], Any],
    *,
    shard_rows: int,
    rank: int | None,
    world: int | None,
) -> None:
    """Run this process's share of what is missing, old parts first.

    Args:
        settings: What must not differ between the parts of a folder.
        make: Makes one shard's tensors from its batches and rows.
        shard_rows: Most prompts in a shard; one batch always fits.
        rank, world: Default ``RANK`` and ``WORLD_SIZE``.

    Raises:
        ArtifactError: When the folder was made with other settings, or knows a prompt's id with
            other tokens.
        PositionError: When the positions mean more or fewer tokens than in the prompts before.
    """
    mine, every = share_of_work(rank, world)
    own = json.loads(json.dumps({**settings, "shard_rows": shard_rows}))
    known = parts_of(folder)

    def mine_of(plan: Plan) -> list[int]:
        return dealt(list(_shards(plan, shard_rows)), every, pass_cost(model.backend))[mine]

    for part in known:
        _same_settings(part, own)
    fresh = _unknown(model, prompts, known)
    for part in known:
        if part.missing():
            tokenized = model.tokenize(part.prompts)
            plan = _plan(model, tokenized, own)
            if plan.digest != part.index["plan"]:
                raise ArtifactError(
                    f"{part.folder} was planned differently (plan {part.index['plan']}, now "
                    f"{plan.digest}): other tokens or another version of mechmem. Choose another "
                    "folder, or finish with the version that began it: "
                    f"{part.index['versions'].get('mechmem')}."
                )
            _run(part, tokenized, plan, make, mine_of(plan), shard_rows)
    if len(fresh):
        tokenized = model.tokenize(fresh)
        columns = Positions.parse(own["positions"]).check_stackable(tokenized)
        if known and columns != known[0].index["columns"]:
            raise PositionError(
                f"positions={own['positions']!r} means {listed(columns)} in the new prompts and "
                f"{listed(known[0].index['columns'])} in those of {folder}, so their states cannot "
                "lie in one store; choose another folder, or positions with as many tokens."
            )
        plan = _plan(model, tokenized, own)
        part = _begin(Path(folder) / f"part-{len(known):04d}", fresh, tokenized, plan, own)
        _run(part, tokenized, plan, make, mine_of(plan), shard_rows)


def dealt(shards: Sequence[Sequence[Work]], ranks: int, pass_cost: float) -> list[list[int]]:
    """Which shards each rank makes: the largest first, each to the rank with the least to do.

    Args:
        shards: The batches of every shard.
        ranks: How many.
        pass_cost: What starting a forward pass costs, in tokens.
    """
    costs = [sum(work.fed + pass_cost for work in shard) for shard in shards]
    out: list[list[int]] = [[] for _ in range(ranks)]
    loads = [0.0] * ranks
    for shard in sorted(range(len(shards)), key=lambda k: (-costs[k], k)):
        rank = loads.index(min(loads))
        out[rank].append(shard)
        loads[rank] += costs[shard]
    return [sorted(own) for own in out]


def _run(
    part: Part,
    tokenized: Sequence[TokenizedPrompt],
    plan: Plan,
    make: Callable[..., Any],
    shards: Sequence[int],
    shard_rows: int,
) -> None:
    works, missing = list(_shards(plan, shard_rows)), set(part.missing())
    for shard in shards:
        if shard in missing:
            part.write(shard, make(part, tokenized, plan, works[shard], part.rows[shard]))


def _plan(model: Model, tokenized: Sequence[TokenizedPrompt], own: Mapping[str, Any]) -> Plan:
    return plan_passes(
        model.backend,
        tokenized,
        own["token_budget"],
        interventions=model.interventions,
        share=own["share_prefixes"],
        pack=not Positions.parse(own["positions"]).pooled,
    )


def _shards(plan: Plan, shard_rows: int) -> Iterator[list[Work]]:
    """Whole batches, in order; a shard ends before it would hold more prompts than it may."""
    shard: list[Work] = []
    held = 0
    for work in plan.works:
        if shard and held + len(work.rows) > shard_rows:
            yield shard
            shard, held = [], 0
        shard.append(work)
        held += len(work.rows)
    if shard:
        yield shard


def _begin(
    folder: Path,
    prompts: PromptSet,
    tokenized: Sequence[TokenizedPrompt],
    plan: Plan,
    own: Mapping[str, Any],
) -> Part:
    """Write down what will be done. Ranks that begin at once write the same bytes."""
    rows = [
        [row for work in shard for row in work.rows] for shard in _shards(plan, own["shard_rows"])
    ]
    where = Positions.parse(own["positions"])
    index = {
        "format": FORMAT,
        "kind": "shards",
        "versions": versions(),
        "settings": own,
        "columns": where.check_stackable(tokenized),
        "plan": plan.digest,
        "rows": rows,
    }
    lines = [
        json.dumps({"prompt": record, "token_ids": list(item.ids)}, ensure_ascii=False)
        for record, item in zip(prompts.to_records(), tokenized, strict=True)
    ]
    write_text(folder / "prompts.jsonl", "\n".join(lines) + "\n")
    write_text(folder / "index.json", json.dumps(index, ensure_ascii=False) + "\n")
    return Part(folder, index, prompts, tuple(item.ids for item in tokenized))


def _open(folder: Path) -> Part:
    try:
        index = json.loads((folder / "index.json").read_text(encoding="utf-8"))
        text = (folder / "prompts.jsonl").read_text(encoding="utf-8")
        records = [json.loads(line) for line in text.split("\n") if line]
    except (OSError, ValueError) as error:
        raise ArtifactError(f"{folder} cannot be read as part of a store: {error}") from error
    if index.get("kind") != "shards" or index.get("format") != FORMAT:
        raise ArtifactError(
            f"{folder} holds {index.get('kind')!r} of format {index.get('format')!r}; this mechmem "
            f"reads 'shards' of format {FORMAT}."
        )
    prompts = PromptSet.from_records(record["prompt"] for record in records)
    return Part(folder, index, prompts, tuple(tuple(r["token_ids"]) for r in records))


def _same_settings(part: Part, own: Mapping[str, Any]) -> None:
    there = part.settings
    different = [name for name in {**there, **own} if there.get(name) != own.get(name)]
    if different:
        found = "; ".join(
            f"{name} there {there.get(name)!r:.120}, now {own.get(name)!r:.120}"
            for name in different
        )
        raise ArtifactError(
            f"{part.folder.parent} was begun with other settings ({found}). Use the same ones, or "
            "another folder."
        )


def _unknown(model: Model, prompts: PromptSet, known: Sequence[Part]) -> PromptSet:
    """The prompts that no part has; one that a part has must be the same."""
    ids = {
        name: tokens
        for part in known
        for name, tokens in zip(part.prompts.ids, part.token_ids, strict=True)
    }
    again = [prompt for prompt in prompts if prompt.id in ids]
    if again:
        tokenized = model.tokenize(PromptSet(again))
        other = [item.id for item in tokenized if item.ids != ids[item.id]]
        if other:
            raise ArtifactError(
                f"Prompts {listed(other, 5)} are stored already, with other tokens; give new "
                "prompts ids of their own."
            )
    return PromptSet(prompt for prompt in prompts if prompt.id not in ids)


def described_edits(model: Model) -> list[Any]:
    """The edits in force, as far as they can say what they are."""
    out = []
    for item in model.interventions:
        describe = getattr(getattr(item, "edit", None), "describe", None)
        out.append([str(item.site), describe() if describe else type(item).__name__])
    return json.loads(json.dumps(out, default=str))  # type: ignore[no-any-return]


def as_dtype(name: str) -> torch.dtype:
    """The dtype of a name such as ``"float32"``."""
    found = getattr(torch, name, None)
    if not isinstance(found, torch.dtype):
        raise ArtifactError(f"{name!r} is no dtype.")
    return found
