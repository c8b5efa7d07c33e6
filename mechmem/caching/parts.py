"""The folder of an extraction: parts, each with its plan, its prompts and its shards.

A part's ``index.json`` fixes the plan; every shard is written whole or not at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mechmem.artifacts import TensorFile, manifest_text, versions, write_tensors
from mechmem.caching.activations import class_names
from mechmem.caching.provenance import Provenance, Seen
from mechmem.errors import ArtifactError, listed
from mechmem.manifests import (
    Entries,
    checked,
    json_text,
    opened,
    parsed,
    read_json,
    regular,
    sealed,
    shape_of,
)
from mechmem.models.model import Model, ModelInfo
from mechmem.models.positions import Positions
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.tasks.prompts import PromptSet
from mechmem.writing import new_folder, whole_file, write_text

FORMAT = 2
INDEX = {
    "settings": {
        "what": str,
        "model": shape_of(ModelInfo),
        "sites": [str],
        "positions": Any,
        "token_budget": int,
        "share_prefixes": bool,
        "shard_rows": int,
        "by?": str,
        "covariance?": [str],
        "bootstrap?": (None, [int, int]),
    },
    "columns": [str],
    "plan": str,
    "rows": [[int]],
    "prompts": str,
    "versions": {str: str},
}


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

    def opened(self, shard: int) -> TensorFile:
        """A shard's tensors, mapped from disk.

        Raises:
            ArtifactError: When it is missing or cut off, or is not this shard of this part.
        """
        path = self.path(shard)
        if not path.is_file():
            raise ArtifactError(
                f"{path} is missing; {len(self.missing())} shards are missing. Run the extraction "
                "again with the same settings: it makes what is missing."
            )
        with _way_out():
            held = TensorFile(path, "shard")
        said = checked(held.about, {"part": str, "shard": int}, path)
        if (said["part"], said["shard"]) != (self.index["digest"], shard):
            raise ArtifactError(
                f"{path} belongs to other prompts or another plan: it is shard {said['shard']} of "
                f"part {said['part']}, not {shard} of {self.index['digest']}. Remove it and run "
                "the extraction again; it makes what is missing."
            )
        return held

    def read(self, shard: int) -> dict[str, Tensor]:
        """A whole shard, in memory.

        Raises:
            ArtifactError: When it is missing, cut off or changed.
        """
        held = self.opened(shard)
        tensors = {name: held.tensor(name).clone() for name in held.names}
        with _way_out():
            for name, value in tensors.items():
                held.verify(name, value)
        return Entries(tensors, held.path)

    def write(self, shard: int, tensors: Mapping[str, Tensor]) -> None:
        """Write a shard whole or not at all."""
        about = {"part": self.index["digest"], "shard": shard}
        with whole_file(self.path(shard)) as partial:
            write_tensors(partial, tensors, manifest_text("shard", tensors, about))


@contextmanager
def _way_out() -> Iterator[None]:
    """An error about a shard also says how to make it again."""
    try:
        yield
    except ArtifactError as error:
        raise ArtifactError(
            f"{error} Or remove it and run the extraction again with the same settings: it makes "
            "what is missing."
        ) from error


def parts_of(folder: str | Path) -> list[Part]:
    """Every part of a folder, oldest first.

    Raises:
        ArtifactError: For files that are something else.
    """
    return [_open(path.parent) for path in sorted(Path(folder).glob("part-*/index.json"))]


def begin_part(
    folder: Path,
    prompts: PromptSet,
    tokenized: Sequence[TokenizedPrompt],
    columns: Sequence[str],
    plan: str,
    rows: Sequence[Sequence[int]],
    own: Mapping[str, Any],
) -> Part:
    """Write down what will be done, in one step.

    Args:
        columns: Names of the positions that are read.
        plan: Its digest.
        rows: The prompts of every shard.
        own: Settings that all parts of a folder have in common.

    Raises:
        FileExistsError: When another process has taken the folder.
    """
    lines = [
        json_text({"prompt": record, "token_ids": list(item.ids)})
        for record, item in zip(prompts.to_records(), tokenized, strict=True)
    ]
    text = "\n".join(lines) + "\n"
    index = sealed(
        {
            "format": FORMAT,
            "kind": "shards",
            "versions": versions(),
            "settings": own,
            "columns": columns,
            "plan": plan,
            "rows": rows,
            "prompts": _hashed(text.encode()),
        }
    )
    with new_folder(folder) as partial:
        write_text(partial / "prompts.jsonl", text)
        write_text(partial / "index.json", json_text(index) + "\n")
    return Part(folder, index, prompts, tuple(item.ids for item in tokenized))


def _open(folder: Path) -> Part:
    path, listing = folder / "index.json", folder / "prompts.jsonl"
    index = opened(read_json(path, "part of a store"), path, "shards", FORMAT)
    checked(index, INDEX, path)
    try:
        data = regular(listing).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{listing} cannot be read as part of a store: {error.strerror}. Choose another folder."
        ) from error
    if _hashed(data) != index["prompts"]:
        raise ArtifactError(
            f"{listing} was changed after it was written: it does not give the digest in "
            f"{path.name}. Put the file back, or choose another folder."
        )
    records = [parsed(line, listing) for line in data.decode("utf-8").split("\n") if line]
    for number, record in enumerate(records, start=1):
        checked(record, {"prompt": dict, "token_ids": [int]}, listing, f"line {number}")
    if sorted(row for rows in index["rows"] for row in rows) != list(range(len(records))):
        raise ArtifactError(f"{path}: rows must name each of {len(records)} prompts once.")
    prompts = PromptSet.from_records(record["prompt"] for record in records)
    return Part(folder, index, prompts, tuple(tuple(r["token_ids"]) for r in records))


def _hashed(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def check_settings(part: Part, own: Mapping[str, Any]) -> None:
    """Refuse a part that was begun with other settings.

    Raises:
        ArtifactError: Naming them.
    """
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


def unknown_prompts(
    model: Model, prompts: PromptSet, known: Sequence[Part], settings: Mapping[str, Any]
) -> PromptSet:
    """The prompts that no part has; one that a part has must be the same, be read at the same
    tokens, and be of the same class and group where statistics by class are kept."""
    ids = {
        name: tokens
        for part in known
        for name, tokens in zip(part.prompts.ids, part.token_ids, strict=True)
    }
    again = prompts.filter(lambda prompt: prompt.id in ids)
    kept = {prompt.id: prompt for part in known for prompt in part.prompts}
    if again:
        other = [item.id for item in model.encode(again).rows if item.ids != ids[item.id]]
        if other:
            raise ArtifactError(
                f"Prompts {listed(other, 5)} are stored already, with other tokens; give new "
                "prompts ids of their own."
            )
        where = Positions.parse(settings["positions"])
        shifted = again.filter(lambda prompt: prompt.spans != kept[prompt.id].spans)
        old = PromptSet(kept[prompt.id] for prompt in shifted)
        moved = (
            [
                one.id
                for one, other in zip(
                    model.encode(shifted).rows, model.encode(old).rows, strict=True
                )
                if where.columns(one) != where.columns(other)
            ]
            if shifted
            else []
        )
        if moved:
            raise ArtifactError(
                f"Prompts {listed(moved, 5)} are stored already, with other tokens at "
                f"{where}; give new prompts ids of their own, or choose another folder."
            )
        if by := settings.get("by"):
            there, here = (
                {p.id: (name, p.group) for p, name in zip(found, named, strict=True)}
                for found in (kept.values(), again)
                for named in [class_names(PromptSet(found), by)]
            )
            moved = [name for name, about in here.items() if there[name] != about]
            if moved:
                raise ArtifactError(
                    f"Prompts {listed(moved, 5)} are counted already, with another {by} or group; "
                    "choose another folder."
                )
    return prompts.filter(lambda prompt: prompt.id not in ids)
