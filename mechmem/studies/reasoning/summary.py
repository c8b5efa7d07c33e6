"""The two tables that a reader sees first: accuracy under the edits, and errors repaired."""

from __future__ import annotations

from typing import Any

import pandas as pd

from mechmem.studies.reasoning.answers import accuracy_table, repair_table
from mechmem.studies.reasoning.results import ReasoningResults

__all__ = ["repairs", "summary"]

DASH = "–"


def summary(study: ReasoningResults) -> pd.DataFrame:
    """What the terminal shows: test accuracy of both classes, or the separation without answers."""
    if study.trial is None:
        frame = study.reading.table()
        return frame[["stream", "layer", "auroc", "low", "high", "input_only", "n"]].round(3)
    found = accuracy_table(study.trial, study.seed)
    rows = []
    for row in found.to_dict("records"):
        edited = row["family"] != "unedited"
        beyond = [100 * row[f"beyond_random{end}"] for end in ("", "_low", "_high")]
        rows.append(
            {
                "setting": row["family"],
                "chosen for": row["pick"] if edited else DASH,
                "at": f"{row['stream']} {row['layer']:g}" if edited else DASH,
                "strength": f"{row['strength']:g}" if row["strength"] > 0 else DASH,
                "pushed": row["sign"] if edited else DASH,
                "questions": row["label"],
                "accuracy %": _cell([100 * row[end] for end in ("accuracy", "low", "high")]),
                "beyond random, points": _cell(beyond, "+") if edited else DASH,
            }
        )
    return pd.DataFrame(rows)


def _cell(values: list[float], sign: str = "") -> str:
    value, low, high = (f"{number:{sign}.1f}" for number in values)
    return f"{value} [{low}, {high}]"


def repairs(study: ReasoningResults) -> pd.DataFrame:
    """Errors repaired and made, each with the mean and the most of the random directions."""
    if study.trial is None:
        return pd.DataFrame()
    return pd.DataFrame(
        [
            {
                "setting": row["family"],
                "chosen for": row["pick"],
                "pushed": row["sign"],
                "questions": row["label"],
                "errors": row["errors"],
                "repaired (random mean, most)": _counted(row, "repaired"),
                "wrong-mode errors": row["wrong_mode_errors"],
                "of them repaired (random)": _counted(row, "wrong_mode_repaired"),
                "right answers broken (random)": _counted(row, "broken"),
            }
            for row in repair_table(study.trial).to_dict("records")
        ]
    )


def _counted(row: dict[Any, Any], name: str) -> str:
    return f"{row[name]} ({row[f'{name}_random_mean']:.1f}, {row[f'{name}_random_most']})"
