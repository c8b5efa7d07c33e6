"""Writes docs/faults.csv from the cases: ``python tests/faults/write_faults.py``."""

# ruff: noqa: E402 (run as a script, it has to find its neighbors first)

from __future__ import annotations

import csv
import io
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
TABLE = HERE.parents[1] / "docs" / "faults.csv"
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent), str(HERE.parents[1])]

import faults_analysis
import faults_artifacts
import faults_edits
import faults_evaluation
import faults_files
import faults_models
import faults_process
import faults_prompts
from fault_scene import Fault

ROOMS = {
    "Prompts": faults_prompts,
    "Models, tokens, sites, positions": faults_models,
    "Reading and artifacts": faults_artifacts,
    "Analysis": faults_analysis,
    "Edits and patching": faults_edits,
    "Evaluation, sweep, study, tasks": faults_evaluation,
    "Figures and command line": faults_files,
    "Interrupted, killed, full": faults_process,
}


def every_fault() -> list[Fault]:
    """All cases, in the order of the table."""
    return [fault for room in ROOMS.values() for fault in room.FAULTS]


def table() -> str:
    """The text of docs/faults.csv."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["room", "you", "error", "it says", "way out"])
    for title, room in ROOMS.items():
        for fault in room.FAULTS:
            cells = [fault.does, fault.shown.strip("`"), fault.says, fault.way_out]
            writer.writerow([title, *(" ".join(cell.split()) for cell in cells)])
    return out.getvalue()


if __name__ == "__main__":
    TABLE.write_text(table(), encoding="utf-8")
