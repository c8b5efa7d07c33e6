"""Three workers at one sweep, of which one is killed: its units are taken over, nothing shows."""

from __future__ import annotations

import os
import signal
import time
import warnings
from pathlib import Path

import pytest
from test_sweep import same, swept

from mechmem.cli.status import _table
from mechmem.sweeps import cells as cells_module


def test_what_a_killed_worker_had_claimed_is_taken_over(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(cells_module, "CELLS_TOGETHER", 4)
    own = cells_module.CellRun._run

    def slow(self, *args):
        time.sleep(0.1)
        return own(self, *args)

    def dying(self, *args):
        os.kill(os.getpid(), signal.SIGKILL)

    children = []
    for run in (dying, slow, slow):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            cells_module.CellRun._run = run
            status = 7
            try:
                swept(folder=tmp_path / "three")
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    ends = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    assert ends == [-signal.SIGKILL, 0, 0]
    one = swept(folder=tmp_path / "one")

    def stored(name: str) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in Path(tmp_path / name).iterdir()}

    assert stored("three") == stored("one")
    table = _table(tmp_path / "three")
    assert (table["done"] == table["units"]).all()
    assert table["units"].sum() > 4
    monkeypatch.setattr(cells_module.CellRun, "_run", lambda *args: pytest.fail("ran again"))
    same(swept(folder=tmp_path / "three"), one)
