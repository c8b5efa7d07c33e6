"""Finished cells of a sweep, one small file each, written whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mechmem.artifacts import FORMAT, json_text, versions, write_text
from mechmem.errors import ArtifactError
from mechmem.evaluation.behavior import Observations
from mechmem.models.hooked import ModelInfo
from mechmem.models.tokens import TokenizedPrompt
from mechmem.tasks.base import Task
from mechmem.tasks.prompts import PromptSet

__all__ = ["CellStore", "Done"]

KIND = "sweep cell"


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
            "versions": versions(),
            "about": about,
            "model": seen.model.as_dict(),
            "difference": done.difference,
            "outcomes": list(seen.outcomes),
            "completions": list(seen.completions),
            "truncated": list(seen.truncated),
            "margins": [None if math.isnan(value) else value for value in seen.margins.tolist()],
        }
        write_text(self.path(key), json_text(cell, allow_nan=True, default=str) + "\n")

    def read(
        self,
        key: str,
        prompts: PromptSet,
        tokenized: Sequence[TokenizedPrompt],
        task: Task,
        model: ModelInfo,
    ) -> Done:
        """A finished cell; everything that its key stands for is taken from the caller.

        Raises:
            ArtifactError: When the file is damaged.
        """
        path = self.path(key)
        try:
            cell = json.loads(path.read_text(encoding="utf-8"))
            if cell["kind"] != KIND or cell["format"] != FORMAT:
                raise KeyError("kind")
            margins = [math.nan if value is None else float(value) for value in cell["margins"]]
            columns = [cell[name] for name in ("completions", "outcomes", "truncated")]
            difference = cell["difference"]
            if any(len(column) != len(prompts) for column in (*columns, margins)):
                raise KeyError("outcomes")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{path} cannot be read as a {KIND}: {error!r}. Remove it and run the sweep again; "
                "it makes what is missing."
            ) from error
        completions, outcomes, truncated = (tuple(column) for column in columns)
        seen = Observations(
            prompts, completions, outcomes, np.array(margins), task.outcomes, task.name, model,
            tuple(tokenized), truncated, task.behaviors, task.reading,
        )  # fmt: skip
        return Done(seen, difference)
