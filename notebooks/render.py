"""Runs every notebook and writes it beside its text twin, figures as pictures too.

    python notebooks/render.py [3_p1_step_by_step ...]

A code host shows only pictures, so plotly's figures are stored as PNG beside their data. Needs a
Chrome or Chromium for kaleido.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

FOLDER = Path(__file__).parent


def _of_the_browser(output: NotebookNode) -> bool:
    """What the drawing of pictures logs, now and then, about its browser; no part of the result."""
    return output.get("name") == "stderr" and "choreographer" in output.text


def main() -> None:
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype+png"
    os.environ["PYTHONWARNINGS"] = "ignore"  # they name paths of the machine
    for twin in sorted(FOLDER.glob("[0-9]*.py")):
        if len(sys.argv) > 1 and twin.stem not in sys.argv[1:]:
            continue
        notebook = jupytext.read(twin)
        NotebookClient(notebook, timeout=1800, kernel_name="python3").execute(cwd=str(FOLDER))
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number}"
            cell.get("metadata", {}).pop("execution", None)
            if cell.cell_type == "code":
                cell["outputs"] = [one for one in cell.outputs if not _of_the_browser(one)]
        nbformat.write(notebook, twin.with_suffix(".ipynb"))
        print(f"wrote {twin.with_suffix('.ipynb').name}")


if __name__ == "__main__":
    main()
