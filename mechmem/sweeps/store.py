"""Finished cells of a sweep, one small file each, written whole or not at all."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mechmem.artifacts import versions
from mechmem.errors import ArtifactError, listed
from mechmem.evaluation.behavior import Observations
from mechmem.manifests import checked, json_text, opened, read_json, sealed
from mechmem.models.model import ModelInfo
from mechmem.models.tokenizing import EncodedPrompts
from mechmem.tasks.base import Task
from mechmem.writing import write_text

KIND = "sweep cell"
PLAN = "sweep plan"
FORMAT = 2
_KEY = re.compile(r"[\w-]{1,100}", re.ASCII)
_SHAPE = {
    "key": str,
    "difference": (None, float),
    "moved": (None, float),
    "outcomes": [str],
    "completions": [str],
    "truncated": [bool],
    "margins": [(None, float, str)],
}


@dataclass(frozen=True)
class Done:
    """A finished cell.

    Attributes:
        seen: What the model did.
        difference: Largest difference between its logits and those of a run of its own, in units
            of their spread; ``None`` when it was not compared.
    """

    seen: Observations
    difference: float | None


class CellStore:
    """A folder of cells.

    Args:
        folder: Where to; made when it is missing.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    def path(self, key: str) -> Path:
        """The file of a cell."""
        return self.folder / f"cell-{key}.json"

    def unit(self, key: str) -> Path:
        """What the claim on a unit is named after, by its first cell; nothing is stored there."""
        return self.folder / f"unit-{key}"

    def write_plan(self, units: Sequence[Sequence[str]], tokens: int) -> None:
        """Say which cells there will be, for `mechmem status`.

        Args:
            units: The cells of every unit.
            tokens: Of all prompts: what every cell reads.
        """
        plan = {"format": FORMAT, "kind": PLAN, "units": units, "tokens": tokens}
        # Named by what it says, so that processes that share a sweep write one plan.
        name = hashlib.sha256(json_text(units).encode()).hexdigest()[:32]
        path = self.folder / f"plan-{name}.json"
        if not path.is_file():
            write_text(path, json_text(sealed(plan)) + "\n")

    def plans(self) -> list[tuple[list[list[str]], int]]:
        """Units and tokens of every plan that was begun here."""
        out = []
        for path in sorted(self.folder.glob("plan-*.json")):
            plan = opened(read_json(path, f"a {PLAN}"), path, PLAN, FORMAT)
            checked(plan, {"units": [[str]], "tokens": int}, path)
            keys = [key for unit in plan["units"] for key in unit or [""]]
            # A key becomes a file name, and a plan may be anybody's.
            if not all(map(_KEY.fullmatch, keys)) or not 0 <= plan["tokens"] < 2**53:
                raise ArtifactError(f"{path} names no cells that can be. Begin the sweep again.")
            out.append((plan["units"], plan["tokens"]))
        return out

    def has(self, key: str) -> bool:
        """Whether a cell is finished."""
        return self.path(key).is_file()

    def write(self, key: str, done: Done, about: dict[str, Any]) -> None:
        """Store a finished cell.

        Args:
            about: What it was, for readers.

        Raises:
            ArtifactError: When it cannot be written.
        """
        seen = done.seen
        cell = {
            "format": FORMAT,
            "kind": KIND,
            "key": key,
            "versions": versions(),
            "about": about,
            "model": seen.model.as_dict(),
            "difference": done.difference,
            "moved": None if math.isnan(seen.moved) else seen.moved,
            "outcomes": list(seen.outcomes),
            "completions": list(seen.completions),
            "truncated": list(seen.truncated),
            "margins": [_written(value) for value in seen.margins.tolist()],
        }
        text = json_text(sealed(cell, allow_nan=False, default=str))
        write_text(self.path(key), text + "\n")

    def read(
        self,
        key: str,
        prompts: EncodedPrompts,
        task: Task,
        model: ModelInfo,
    ) -> Done:
        """A finished cell; everything that its key stands for is taken from the caller.

        Raises:
            ArtifactError: When the file is damaged.
        """
        path = self.path(key)
        try:
            cell = opened(read_json(path, f"a {KIND}"), path, KIND, FORMAT)
            checked(cell, _SHAPE, path)
            margins = [math.nan if value is None else float(value) for value in cell["margins"]]
            columns = [cell[name] for name in ("completions", "outcomes", "truncated")]
            if cell["key"] != key or any(len(c) != len(prompts) for c in (*columns, margins)):
                raise ArtifactError(f"{path} holds another cell ({cell['key']}).")
            unknown = sorted(set(cell["outcomes"]) - set(task.outcomes))
            if unknown:
                raise ArtifactError(f"{path} holds outcomes {listed(unknown, 4)}.")
        except (ArtifactError, ValueError) as error:
            raise ArtifactError(
                f"{path} cannot be read as a {KIND}: {error} Remove it and run the sweep again; it "
                "makes what is missing."
            ) from error
        difference = cell["difference"]
        moved = math.nan if cell["moved"] is None else float(cell["moved"])
        completions, outcomes, truncated = (tuple(column) for column in columns)
        seen = Observations(
            prompts, completions, outcomes, np.array(margins), task.outcomes, task.name, model,
            prompts.rows, truncated, task.behaviors, task.choice, moved,
        )  # fmt: skip
        return Done(seen, difference)


def _written(value: float) -> float | str | None:
    """A margin as JSON can hold it."""
    if math.isnan(value):
        return None
    return value if math.isfinite(value) else str(value)
