"""`Study`: a list of results with words, that can be saved; a report is a template over it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from mechmem.artifacts import versions, write_text
from mechmem.models.model import ModelInfo
from mechmem.studies.saving import write_manifest, write_whole
from mechmem.studies.table_files import write_tables
from mechmem.studies.words import sentence

STUDIES: dict[str, type[Study]] = {}
"""Every class of studies by its `kind`; a class enters itself when it is defined."""


@dataclass(frozen=True)
class Study(ABC):
    """What every study has. A new sort of study is one class with a `kind`, and one template.

    Attributes:
        model: The model asked.
        card: The manifest of a shipped model, else empty.
        task: Name of the task.
        seed: Keys splits, controls and resampling.
    """

    kind: ClassVar[str]
    """What the manifest calls this sort of study, by which a saved one finds its template."""

    template: ClassVar[Path | None] = None
    """The template of the report; by default the file in ``mechmem/reports/templates`` that has
    the name of the `kind`. It extends ``study.html`` there."""

    model: ModelInfo
    card: Mapping[str, Any]
    task: str
    seed: int

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        if "kind" in vars(cls):
            STUDIES[cls.kind] = cls

    @abstractmethod
    def headline(self) -> str:
        """The result in a few words."""

    @abstractmethod
    def answer(self) -> str:
        """The result in one honest sentence, made from the numbers."""

    @abstractmethod
    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by name."""

    def figures(self) -> dict[str, Any]:
        """Every figure by name, as plotly figures, in the order of the report."""
        return {}

    def notes(self) -> list[str]:
        """What has to be said beside the answer."""
        return []

    def limits(self) -> list[str]:
        """What the study does not show."""
        return []

    def details(self) -> dict[str, Any]:
        """What `manifest` says of this kind of study alone, JSON-ready: facts for the report."""
        return {}

    def write_artifacts(self, folder: Path) -> None:  # noqa: B027 (there need not be any)
        """Write what was fitted and asked."""

    def summary_name(self) -> str:
        """Which table the terminal shows: the one called ``summary``, else the first."""
        found = list(self.tables())
        return "summary" if "summary" in found else found[0]

    def summary(self) -> pd.DataFrame:
        """That table."""
        return self.tables()[self.summary_name()]

    def verdict_line(self) -> str:
        """What a reader sees first: the verdict where refits were run, else the `headline`."""
        verdict = getattr(self, "verdict", None)
        return str(verdict.sentence) if verdict is not None else sentence(self.headline())

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
            "verdict": self.verdict_line(),
            "headline": self.headline(),
            "answer": self.answer(),
            "notes": self.notes(),
            "limits": self.limits(),
            "summary": self.summary_name(),
        }

    def save(self, folder: str | Path) -> Path:
        """Write tables as CSV, figures as plotly's JSON, what was fitted, and ``manifest.json``,
        whole or not at all.

        `mechmem.write_report` writes the page as well, at once or later from this folder.

        Returns:
            The folder.

        Raises:
            ArtifactError: When the folder cannot be written; what was there stays as it was.
        """

        def parts(draft: Path) -> None:
            self.write_parts(draft)
            write_manifest(self.manifest(), draft)

        return write_whole(parts, folder)

    def write_parts(self, draft: Path) -> None:
        """Write ``tables/``, ``figures/`` and ``artifacts/``."""
        write_tables(self.tables(), draft / "tables")
        for name, figure in self.figures().items():
            write_text(draft / "figures" / f"{name}.json", str(figure.to_json()) + "\n")
        self.write_artifacts(draft / "artifacts")
