"""Runs every notebook and writes it beside its text twin, figures as pictures too.

    python notebooks/render.py

A code host shows only pictures, so plotly's figures are stored as PNG beside their data. Needs a
Chrome or Chromium for kaleido.
"""

from __future__ import annotations

import os
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

FOLDER = Path(__file__).parent


def main() -> None:
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype+png"
    os.environ["PYTHONWARNINGS"] = "ignore"  # they name paths of the machine
    for twin in sorted(FOLDER.glob("[0-9]*.py")):
        notebook = jupytext.read(twin)
        NotebookClient(notebook, timeout=600, kernel_name="python3").execute(cwd=str(FOLDER))
        for number, cell in enumerate(notebook.cells):
            cell["id"] = f"cell-{number}"
            cell.get("metadata", {}).pop("execution", None)
        nbformat.write(notebook, twin.with_suffix(".ipynb"))
        print(f"wrote {twin.with_suffix('.ipynb').name}")


if __name__ == "__main__":
    main()
