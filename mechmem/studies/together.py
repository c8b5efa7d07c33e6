"""`Together`: several studies of one model on one page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from mechmem.studies.base import Study


@dataclass(frozen=True)
class Together(Study):
    """Studies of one model, each with its own claims; nothing is claimed of them together.

    Attributes:
        parts: The studies by name; tables and figures begin with it.
    """

    kind: ClassVar[str] = "together"

    parts: Mapping[str, Study]

    def headline(self) -> str:
        return "; ".join(f"{name}: {part.headline()}" for name, part in self.parts.items())

    def answer(self) -> str:
        return self._named({name: part.answer() for name, part in self.parts.items()})

    def notes(self) -> list[str]:
        return self._said({name: part.notes() for name, part in self.parts.items()})

    def limits(self) -> list[str]:
        return self._said({name: part.limits() for name, part in self.parts.items()})

    def summary_name(self) -> str:
        name, part = next(iter(self.parts.items()))
        return f"{name}_{part.summary_name()}"

    def tables(self) -> dict[str, pd.DataFrame]:
        return {
            f"{name}_{key}": table
            for name, part in self.parts.items()
            for key, table in part.tables().items()
        }

    def figures(self) -> dict[str, Any]:
        return {
            f"{name}_{key}": figure
            for name, part in self.parts.items()
            for key, figure in part.figures().items()
        }

    def verdict_line(self) -> str:
        return self._named({name: part.verdict_line() for name, part in self.parts.items()})

    def details(self) -> dict[str, Any]:
        return {
            "parts": {
                name: {
                    "kind": part.kind,
                    "task": part.task,
                    "verdict": part.verdict_line(),
                    "answer": part.answer(),
                    "notes": part.notes(),
                    "limits": part.limits(),
                    "summary": f"{name}_{part.summary_name()}",
                    "details": part.details(),
                }
                for name, part in self.parts.items()
            }
        }

    def write_artifacts(self, folder: Path) -> None:
        for name, part in self.parts.items():
            part.write_artifacts(folder / name)

    @staticmethod
    def _named(texts: Mapping[str, str]) -> str:
        return " ".join(f"{name.capitalize()}. {text}" for name, text in texts.items())

    @staticmethod
    def _said(lines: Mapping[str, list[str]]) -> list[str]:
        return [f"{name}: {line}" for name, several in lines.items() for line in several]
