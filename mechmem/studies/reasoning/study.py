"""`ReasoningStudy`: what `run_reasoning_study` found, in words, tables and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from mechmem.studies.reasoning.results import ReasoningResults
from mechmem.studies.reasoning.tables import figures, tables
from mechmem.studies.reasoning.words import headline, notes, sentence


class ReasoningStudy(ReasoningResults):
    """What a study of reasoning and memory found; its fields are those of `ReasoningResults`."""

    def answer(self) -> str:
        return sentence(self)

    def notes(self) -> list[str]:
        return notes(self)

    def headline(self) -> str:
        return headline(self)

    def tables(self) -> dict[str, pd.DataFrame]:
        return tables(self)

    def figures(self) -> dict[str, Any]:
        return figures(self)

    def details(self) -> dict[str, Any]:
        tested = self.trial.tested if self.trial is not None else ()
        return {
            "splits": {
                name: {"questions": len(part), "groups": sorted(set(part.groups))}
                for name, part in self.splits.items()
            },
            "chosen": [
                {"pick": item.pick, **item.setting.edit(item.setting.signs[0]).describe()}
                for item in tested
            ],
        }

    def write_artifacts(self, folder: Path) -> None:
        self.directions.save(folder / "directions")
        for name, part in self.splits.items():
            part.to_jsonl(folder / f"questions_{name}.jsonl")
