"""`BehaviorStudy`: what `run_study` found, in words, tables and files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from mechmem.studies.behavior.results import BehaviorResults
from mechmem.studies.behavior.tables import figures, tables
from mechmem.studies.behavior.words import headline, notes, sentence


class BehaviorStudy(BehaviorResults):
    """What a study of one behavior found; its fields are those of `BehaviorResults`."""

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
        return {
            "splits": {
                name: {"prompts": len(part), "groups": sorted(set(part.groups))}
                for name, part in self.splits.items()
            },
            "chosen": [tested.edit.describe() for tested in self.sweep.tested],
        }

    def write_artifacts(self, folder: Path) -> None:
        self.scores.save(folder / "neurons")
        self.mlp_scores.save(folder / "mlp_neurons")
        if self.window_scores is not self.scores:
            self.window_scores.save(folder / "window_neurons")
        self.directions.save(folder / "directions")
        self.flips.to_jsonl(folder / "flips.jsonl")
        for name, part in self.observed.items():
            part.behaving.to_jsonl(folder / f"prompts_{name}.jsonl")
