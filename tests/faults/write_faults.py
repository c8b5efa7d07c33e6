"""Writes docs/faults.md from the cases: ``python tests/faults/write_faults.py``."""

# ruff: noqa: E402 (run as a script, it has to find its neighbors first)

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent
PAGE = HERE.parents[1] / "docs" / "faults.md"
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

HEAD = """\
# Bad input and faults

Each row is done for real by `tests/faults`, which checks the class, the words (`…` stands for what
depends on your input), and that nothing is lost or left behind: no hook, no partial file, your
model, prompts, tokenizer, random state and grad mode as before. This page is written from those
tests: `python tests/faults/write_faults.py`.

Every error that mechmem raises on purpose is a `MechmemError`, which is a `ValueError`.
"""


def every_fault() -> list[Fault]:
    """All cases, in the order of the page."""
    return [fault for room in ROOMS.values() for fault in room.FAULTS]


def page(faults: Sequence[Fault]) -> str:
    """The text of docs/faults.md."""
    number = {fault.does: index for index, fault in enumerate(faults, start=1)}
    lines = [HEAD]
    for title, room in ROOMS.items():
        lines.append(f"\n## {title}\n")
        lines.append("| | you | error | it says | way out |")
        lines.append("| ---: | --- | --- | --- | --- |")
        for fault in room.FAULTS:
            cells = [str(number[fault.does]), fault.does, fault.shown, fault.says, fault.way_out]
            lines.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
    return "\n".join(lines).replace("\n\n\n", "\n\n") + "\n"


def _cell(text: str) -> str:
    """One line that no Markdown or HTML reader takes for anything but text."""
    for plain, safe in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("*", "\\*")):
        text = text.replace(plain, safe)
    return " ".join(text.split())


if __name__ == "__main__":
    PAGE.write_text(page(every_fault()), encoding="utf-8")
