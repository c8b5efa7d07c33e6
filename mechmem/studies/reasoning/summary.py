"""The table that a reader sees first: accuracy under the edits, or the separation."""

from __future__ import annotations

import pandas as pd

from mechmem.studies.reasoning.answers import accuracy_table
from mechmem.studies.reasoning.edits import Trial
from mechmem.studies.reasoning.reading import HeldOutReading
from mechmem.studies.words import DASH, estimate_of, hundredths


def summary_table(reading: HeldOutReading, trial: Trial | None) -> pd.DataFrame:
    """What the terminal shows: test accuracy of both classes, or the separation without answers."""
    if trial is None:
        frame = reading.table()
        return frame[
            ["stream", "layer", "auroc", "auroc_low", "auroc_high", "input_only", "n"]
        ].round(3)
    rows = []
    for row in accuracy_table(trial).to_dict("records"):
        edited = row["family"] != "unedited"
        rows.append(
            {
                "setting": row["family"],
                "chosen for": row["pick"] if edited else DASH,
                "at": f"{row['stream']} {row['layer']:g}" if edited else DASH,
                "strength": f"{row['strength']:g}" if row["strength"] > 0 else DASH,
                "pushed": row["sign"] if edited else DASH,
                "questions": row["label"],
                "accuracy %": hundredths(estimate_of(row, "accuracy")),
                "beyond random, points": hundredths(estimate_of(row, "beyond_random"), signed=True)
                if edited
                else DASH,
                "draws, spread in points": f"{row['draws']:g}, {100 * row['spread']:.1f}"
                if edited
                else DASH,
                "moved by edit, random": f"{row['size']:.3g}, {row['control_size']:.3g}"
                if edited
                else DASH,
            }
        )
    return pd.DataFrame(rows)
