"""One small study of the shipped model, shared by every test of this folder."""

from __future__ import annotations

import pytest

import mechmem as mm
from mechmem.studies.behavior.plan import default_grid


@pytest.fixture(scope="session")
def lab_model() -> mm.Model:
    return mm.load_model("lab/addition-cued")


@pytest.fixture(scope="session")
def lab_task() -> mm.Task:
    return mm.get_task("addition-cued")


@pytest.fixture(scope="session")
def lab_study(lab_model, lab_task) -> mm.Study:
    def grid(fit):
        return {name: edits[:3] for name, edits in default_grid(fit).items()}

    return mm.run_study(
        lab_model, task=lab_task, n=200, seed=0, grid=grid, refine={}, shuffles=3, draws=3
    )
