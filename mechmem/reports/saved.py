"""A saved study, read from its folder: tables, figures, manifest, answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go

from mechmem.errors import ArtifactError, did_you_mean, listed
from mechmem.manifests import checked, file_digest, is_whole, read_json, regular
from mechmem.studies.table_files import COLUMNS_FILE, read_table

_SHAPE = {
    "model": {"name": str},
    "task": str,
    "seed": int,
    "verdict": str,
    "answer": str,
    "files": [str],
    "digests": {str: str},
}


@dataclass(frozen=True)
class SavedStudy:
    """What `Study.save` or `write_report` wrote, without the model and without the states.

    Attributes:
        folder: Where it lies.
        manifest: Model, task, seed, splits, versions, verdict, answer.
    """

    folder: Path
    manifest: Mapping[str, Any]

    def __repr__(self) -> str:
        return f"SavedStudy({self.model}, {self.task}, seed {self.seed}: {self.verdict})"

    @property
    def model(self) -> str:
        """Name of the model."""
        return str(self.manifest["model"]["name"])

    @property
    def task(self) -> str:
        """Name of the task."""
        return str(self.manifest["task"])

    @property
    def seed(self) -> int:
        """What keyed splits, controls and resampling."""
        return int(self.manifest["seed"])

    @property
    def kind(self) -> str:
        """``"behavior"`` for `run_study`, ``"reasoning"`` for `run_reasoning_study`."""
        return str(self.manifest.get("study", "behavior"))

    @property
    def verdict(self) -> str:
        """What the study may claim, or the result in a few words."""
        return str(self.manifest["verdict"])

    @property
    def headline(self) -> str:
        """The result in a few words."""
        return str(self.manifest.get("headline", self.verdict))

    def answer(self) -> str:
        """The result in one sentence."""
        return str(self.manifest["answer"])

    def notes(self) -> list[str]:
        """What has to be said beside it."""
        return [str(note) for note in self.manifest.get("notes", ())]

    @cached_property
    def names(self) -> list[str]:
        """Names of its tables."""
        return self._saved("tables", ".csv")

    def table(self, name: str) -> pd.DataFrame:
        """A table by name, as it was saved: text stays text, whatever it looks like.

        Raises:
            ArtifactError: When there is none of that name, or it cannot be read.
        """
        file = self.folder / "tables" / f"{name}.csv"
        if name not in self.names:
            raise ArtifactError(
                f"{self.folder} has no table {name!r}; it has {listed(self.names, 30)}."
                f"{did_you_mean(name, self.names)}"
            )
        for one in (file, file.parent / COLUMNS_FILE):
            self._check(one)
        try:
            return read_table(file)
        except (OSError, ValueError) as error:
            raise ArtifactError(f"{file} cannot be read: {error}. Save the study again.") from error

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by name."""
        return {name: self.table(name) for name in self.names}

    def summary(self) -> pd.DataFrame:
        """The table that the terminal shows; empty where none is known."""
        name = str(self.manifest.get("summary", "summary"))
        return self.table(name) if name in self.names else pd.DataFrame()

    def figures(self) -> dict[str, go.Figure]:
        """Every figure by name.

        Raises:
            ArtifactError: When one cannot be read.
        """
        found = {}
        for name in self._saved("figures", ".json"):
            file = self.folder / "figures" / f"{name}.json"
            self._check(file)
            try:
                spec = json.loads(file.read_text(encoding="utf-8"))
                found[file.stem] = go.Figure({"data": spec["data"], "layout": spec["layout"]})
            except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
                raise ArtifactError(
                    f"{file} is not a plotly figure, or was cut off ({type(error).__name__}). Save "
                    "the study again."
                ) from error
        return found

    @cached_property
    def artifacts(self) -> list[str]:
        """Names of the files with what was fitted and what was asked, for `artifact`."""
        found = [Path(name) for name in self.manifest["digests"]]
        return sorted(str(f.relative_to("artifacts")) for f in found if f.parts[0] == "artifacts")

    def artifact(self, name: str) -> Path:
        """Where a file of ``artifacts/`` lies, once it was seen to be what was saved.

        Raises:
            ArtifactError: When there is none of that name, or it was changed.
        """
        if name not in self.artifacts:
            raise ArtifactError(
                f"{self.folder} has no artifact {name!r}; it has {listed(self.artifacts, 30)}."
                f"{did_you_mean(name, self.artifacts)}"
            )
        file = self.folder / "artifacts" / name
        self._check(file)
        return file

    def _saved(self, folder: str, suffix: str) -> list[str]:
        """Names of the files that were saved there; what else lies there is not the study's."""
        files = [Path(name) for name in self.manifest["digests"]]
        return sorted(f.stem for f in files if f.parent == Path(folder) and f.suffix == suffix)

    def _check(self, file: Path) -> None:
        """Raise unless a file is there and holds what was saved."""
        name = file.relative_to(self.folder).as_posix()
        if file_digest(file) != self.manifest["digests"].get(name):
            raise ArtifactError(
                f"{file} was changed after it was saved: it does not give its digest in "
                "manifest.json. Save the study again."
            )

    @property
    def about(self) -> dict[str, Any]:
        """The part of the manifest that a report shows at its end."""
        told = (
            "splits", "answer", "notes", "limits", "files", "digests", "digest", "families",
            "controls", "negative", "headline",
        )  # fmt: skip
        return {name: value for name, value in self.manifest.items() if name not in told}


def load_study(folder: str | Path) -> SavedStudy:
    """Read a saved study. Nothing is ever unpickled, and no model is loaded.

    Raises:
        ArtifactError: When the folder holds no study.
    """
    place = Path(folder)
    note = place / "manifest.json"
    try:
        regular(note)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{place} holds no study: {note.name} is missing. Give a folder that study.save() or "
            "`mechmem study` wrote."
        ) from error
    except OSError as error:
        raise ArtifactError(f"{note} cannot be read: {error}.") from error
    manifest = checked(read_json(note, "the manifest of a study"), _SHAPE, note)
    if not is_whole(manifest):
        raise ArtifactError(
            f"{note} was changed after it was written, or is of an earlier mechmem: its entries do "
            "not give its digest. Save the study again."
        )
    return SavedStudy(place, manifest)
