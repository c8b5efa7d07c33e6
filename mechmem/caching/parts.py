"""The folder of an extraction: parts, each with its plan, its prompts and its shards.

A part's ``index.json`` fixes the plan; every shard is written whole or not at all.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mechmem.artifacts import versions, write_text
from mechmem.caching.activations import class_names
from mechmem.caching.provenance import Provenance, Seen
from mechmem.errors import ArtifactError, listed
from mechmem.models.hooked import Model, ModelInfo
from mechmem.models.tokens import TokenizedPrompt
from mechmem.tasks.prompts import PromptSet

__all__ = ["Part", "begin_part", "check_settings", "parts_of", "unknown_prompts"]

FORMAT = 1


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


def begin_part(
    folder: Path,
    prompts: PromptSet,
    tokenized: Sequence[TokenizedPrompt],
    columns: Sequence[str],
    plan: str,
    rows: Sequence[Sequence[int]],
    own: Mapping[str, Any],
) -> Part:
    """Write down what will be done. Ranks that begin at once write the same bytes.

    Args:
        columns: Names of the positions that are read.
        plan: Its digest.
        rows: The prompts of every shard.
        own: Settings that all parts of a folder have in common.
    """
    index = {
        "format": FORMAT,
        "kind": "shards",
        "versions": versions(),
        "settings": own,
        "columns": columns,
        "plan": plan,
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
    model: Model, prompts: PromptSet, known: Sequence[Part], by: str | None = None
) -> PromptSet:
    """The prompts that no part has; one that a part has must be the same, and of the same class and
    group where statistics by class are kept."""
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
        if by is not None:
            kept = [prompt for part in known for prompt in part.prompts]
            there, here = (
                {p.id: (name, p.group) for p, name in zip(found, named, strict=True)}
                for found in (kept, again)
                for named in [class_names(PromptSet(found), by)]
            )
            moved = [name for name, about in here.items() if there[name] != about]
            if moved:
                raise ArtifactError(
                    f"Prompts {listed(moved, 5)} are counted already, with another {by} or group; "
                    "choose another folder."
                )
    return PromptSet(prompt for prompt in prompts if prompt.id not in ids)
