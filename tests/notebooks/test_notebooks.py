"""Every notebook runs from its text twin, and the committed notebook holds the same code."""

from __future__ import annotations

from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient import NotebookClient

FOLDER = Path(__file__).parents[2] / "notebooks"
TWINS = sorted(FOLDER.glob("[0-9]*.py"))


def _source(notebook) -> list[tuple[str, str]]:
    return [(cell.cell_type, cell.source.strip()) for cell in notebook.cells]


@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_the_notebook_runs_from_top_to_bottom(twin):
    notebook = jupytext.read(twin)
    NotebookClient(notebook, timeout=900, kernel_name="python3").execute(cwd=str(FOLDER))
    assert any(cell.get("outputs") for cell in notebook.cells)


@pytest.mark.parametrize("twin", TWINS, ids=lambda path: path.stem)
def test_the_committed_notebook_has_the_code_of_its_twin_and_its_outputs(twin):
    committed = nbformat.read(twin.with_suffix(".ipynb"), as_version=4)
    assert _source(committed) == _source(jupytext.read(twin))
    outputs = [output for cell in committed.cells for output in cell.get("outputs", [])]
    assert outputs
    assert not [output for output in outputs if output.output_type == "error"]
    pictures = [o for o in outputs if "image/png" in o.get("data", {})]
    assert pictures, "figures need a static fallback: run `make render-notebooks`"
