"""`Study`: a list of results with words, that can be saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from mechmem.artifacts import versions
from mechmem.models.hooked import ModelInfo
from mechmem.studies.saving import write_manifest, write_whole
from mechmem.studies.table_files import write_tables


@dataclass(frozen=True)
class Study(ABC):
    """What every study has; a report is a template over it.

    Attributes:
        model: The model asked.
        card: The manifest of a shipped model, else empty.
        task: Name of the task.
        seed: Keys splits, controls and resampling.
    """

    kind: ClassVar[str]
    """What the manifest calls this sort of study."""

    model: ModelInfo
    card: Mapping[str, Any]
    task: str
    seed: int

    @abstractmethod
    def answer(self) -> str:
        """The result in one honest sentence, made from the numbers."""

    @abstractmethod
    def notes(self) -> list[str]:
        """What has to be said beside it."""

    @abstractmethod
    def headline(self) -> str:
        """The result in a few words."""

    @abstractmethod
    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by name."""

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """Every figure by name, as plotly figures, in the order of the report."""

    @abstractmethod
    def details(self) -> dict[str, Any]:
        """What `manifest` says of this kind of study alone, JSON-ready."""

    @abstractmethod
    def write_artifacts(self, folder: Path) -> None:
        """Write what was fitted and asked."""

    def manifest(self) -> dict[str, Any]:
        """What is needed to do it again, and what came out, JSON-ready."""
        return {
            "study": self.kind,
            "task": self.task,
            "seed": self.seed,
            "model": self.model.as_dict(),
            "card": dict(self.card),
            "versions": versions(),
            **self.details(),
            "verdict": self.headline(),
            "answer": self.answer(),
        }

    def save(self, folder: str | Path) -> Path:
        """Write the tables as CSV, what was fitted, and ``manifest.json``, whole or not at all.

        `mechmem.write_report` writes the page as well.

        Returns:
            The folder.

        Raises:
            ArtifactError: When the folder cannot be written; what was there stays as it was.
        """

        def parts(draft: Path) -> None:
            self.write_parts(draft, self.tables())
            write_manifest(self.manifest(), draft)

        return write_whole(parts, folder)

    def write_parts(self, draft: Path, tables: Mapping[str, pd.DataFrame]) -> None:
        """Write ``tables/`` and ``artifacts/``."""
        write_tables(tables, draft / "tables")
        self.write_artifacts(draft / "artifacts")
