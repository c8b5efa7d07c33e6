"""What is on the screen, as files to go on with."""

from __future__ import annotations

import io
import json
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mechmem.app import show
from mechmem.app.layout import VECTOR_SUFFIXES
from mechmem.app.page import Page
from mechmem.app.view import View
from mechmem.app.worker import Job
from mechmem.errors import MechmemError
from mechmem.writing import csv_text


def tables(page: Page, view: View) -> bytes:
    """Every finished table of this view, as CSV files in one zip."""
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as files:
        files.writestr("view.json", json.dumps(view.as_dict(), ensure_ascii=False, indent=1))
        for name, table in _tables(page, view).items():
            files.writestr(f"{name}.csv", csv_text(table))
        turned = page.done("turn", view)
        if turned is not None:
            files.writestr("this.py", turned.lines + "\n")
    return packed.getvalue()


def _tables(page: Page, view: View) -> dict[str, Any]:
    found: dict[str, Any] = {}
    asked, turned = page.done("ask", view), page.done("turn", view)
    if asked is not None:
        found["wordings"], found["shares"] = asked[0].table(), asked[2]
        if asked[1] is not None:
            found["input_words"] = asked[1]
    mapped = page.done("map", view)
    if mapped is not None:
        found["map"] = mapped.table()
    if turned is not None:
        for name, one in (("edited", turned.edit), ("control", turned.control)):
            found[name] = one.table()
        for name, report in zip(("edit_fired", "control_fired"), turned.reports, strict=True):
            found[name] = report.table()
    for name in ("cost", "beyond", "everywhere", "dose"):
        table = page.done(name, view)
        if table is not None:
            found[name] = table
    if not found:
        raise MechmemError("Nothing has been computed yet: ask the model first.")
    return found


def report(page: Page, view: View) -> str:
    """What is on the screen, as a page that stands by itself."""
    from mechmem import plotting
    from mechmem.reports.page import drawn, render_page

    tables, turned = _tables(page, view), page.done("turn", view)
    found = [*page.map_found(view), page.turn_found(view)]
    figures = {}
    if "map" in tables:
        figures["map"] = drawn(plotting.token_map(tables["map"]))
    if "dose" in tables:
        figures["dose"] = drawn(
            show.dose(tables["dose"], view.strength, page.source.classes, view.toward, "light")
        )
    return render_page(
        "view.html", figures, source=page.source, view=view, tables=tables,
        found=[one for one in found if one],
        lines=turned.lines if turned is not None else "", link=view.link(),
    )  # fmt: skip


def vector(page: Page, view: View, suffix: str, window: str) -> Job:
    """The direction at this strength as another tool reads it, who adds it at every position."""

    def work(check: Callable[[], None]) -> bytes:
        from mechmem.models import Site
        from mechmem.patching import export_vectors

        r = page.live().fitted("A vector")[Site.from_key(view.site)]
        with tempfile.TemporaryDirectory() as scratch:
            path = export_vectors(
                r, Path(scratch) / f"vector{suffix}", alpha=view.strength,
                toward=view.toward or r.toward, model_hint=None,
            )  # fmt: skip
            return path.read_bytes()

    key = ("vector", suffix, view.site, view.toward, view.strength)
    return page.worker.ask(key, window, "vector", "writing the vector", work, wait=60.0)


def saved(page: Page, button: str, view: View, window: str) -> tuple[str, bytes]:
    """A file for one of the buttons, with its name.

    Raises:
        MechmemError: When there is nothing to keep yet, or the file cannot hold it.
    """
    if button == "save-report":
        return "mechmem-view.html", report(page, view).encode("utf-8", "backslashreplace")
    if button == "save-csv":
        return "mechmem-view.zip", tables(page, view)
    suffix = VECTOR_SUFFIXES[int(button.removeprefix("save-vector"))]
    job = vector(page, view, suffix, window)
    if job.error or job.value is None:
        raise MechmemError(job.error or "The model is still being loaded; try again.")
    return f"{view.site}{suffix}", job.value
