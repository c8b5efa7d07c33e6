"""Two processes, ranks as torchrun sets them: both do a part, the first prints and writes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

STUDY = """
import sys
import mechmem as mm
from mechmem.cli import main
from mechmem.studies.behavior import run as study

def small(fit):
    r = fit.directions["resid_post", 1]
    return {"direction": [mm.AddDirection(r, alpha=a) for a in (1, 2)]}

study.run_study.__kwdefaults__ |= {"grid": small, "doses": (1.0,), "draws": 2}
study.STEERED.update(validation=40, test=40)
main()
"""
COMMANDS = {
    "study": ["study", "addition-cued", "--pairs", "400", "--shuffles", "2"],
    "sweep": [
        "sweep", "addition-cued", "--pairs", "60", "--edit", "direction", "--layer", "1",
        "--alpha", "1", "--alpha", "2", "--draws", "1",
    ],
}  # fmt: skip


def ranks(kind: str, folder: Path, world: int) -> list[tuple[str, str]]:
    """Stdout and stderr of every rank."""
    script = folder / "run.py"
    script.write_text(STUDY)
    path = f"{Path.cwd()}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    shared = {**os.environ, "WORLD_SIZE": str(world), "OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    children = [
        subprocess.Popen(
            [sys.executable, str(script), *COMMANDS[kind], "--out", "out", "--format", "json"],
            env={**shared, "RANK": str(rank)}, cwd=folder, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        for rank in range(world)
    ]  # fmt: skip
    said = [child.communicate(timeout=300) for child in children]
    assert [child.returncode for child in children] == [0] * world, said
    return said


@pytest.mark.parametrize("kind", [pytest.param("study", marks=pytest.mark.slow), "sweep"])
def test_both_work_and_the_first_prints_and_writes_what_one_alone_would(kind, tmp_path) -> None:
    for name, world in (("one", 1), ("two", 2)):
        (tmp_path / name).mkdir()
        said = ranks(kind, tmp_path / name, world)
        if world == 1:
            alone = json.loads(said[0][0])
            continue
        (first, heard), (second, unheard) = said
        assert json.loads(first) == alone
        assert second == ""
        place = "report: " if kind == "study" else "tables: "
        assert place in heard
        assert place not in unheard
    assert list((tmp_path / "two" / "out" / "cells").glob("cell-*.json"))
    for table in (tmp_path / "one" / "out" / "tables").glob("*.csv"):
        assert (tmp_path / "two" / "out" / "tables" / table.name).read_text() == table.read_text()
