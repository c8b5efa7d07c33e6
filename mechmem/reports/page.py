"""The report as one HTML page: everything inside it, nothing fetched.

The parts that only this study can say (words, tables, figures) are saved as ``artifacts/page.json``
beside the page, so that it can be put together again, in the clothes of a later mechmem.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mechmem import plotting
from mechmem.artifacts import write_text
from mechmem.reports.html_parts import say
from mechmem.reports.sections import header, sections
from mechmem.studies.behavior.results import BehaviorResults

__all__ = ["PARTS", "assemble", "page_from", "page_parts", "render", "study_parts", "write_page"]

PARTS = "artifacts/page.json"


def render(
    study: BehaviorResults,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, go.Figure],
    manifest: Mapping[str, Any],
) -> str:
    """The page. All text from prompts, completions, names and cards is escaped.

    Args:
        study: What is reported.
        tables, figures: By name, from the study.
        manifest: JSON-ready; shown at the end.
    """
    return page_from(study_parts(study, tables, figures, manifest))


def study_parts(
    study: BehaviorResults,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, go.Figure],
    manifest: Mapping[str, Any],
) -> dict[str, Any]:
    """What `render` puts on the page."""
    title = f"{study.model.name}, {study.task}: remembering or computing?"
    return page_parts(title, header(study), sections(study, tables, figures, manifest), figures)


def assemble(title: str, head: str, body: str, figures: Mapping[str, go.Figure]) -> str:
    """A page from its parts.

    Args:
        title: Plain text.
        head, body: HTML; everything from outside must be escaped in it.
        figures: Drawn where the body has their places.
    """
    return page_from(page_parts(title, head, body, figures))


def page_parts(
    title: str, head: str, body: str, figures: Mapping[str, go.Figure]
) -> dict[str, Any]:
    """What a page says, JSON-ready, without the clothes: template, styles, plotly.js."""
    drawn = {}
    for name, fig in figures.items():
        spec = json.loads(str(fig.to_json()))
        spec["layout"].pop("template", None)
        drawn[name] = {"data": spec["data"], "layout": spec["layout"]}
    return {"format": 1, "title": title, "head": head, "body": body, "figures": drawn}


def write_page(parts: Mapping[str, Any], folder: Path) -> Path:
    """Write ``report.html`` and the parts that it is made of."""
    write_text(folder / PARTS, json.dumps(parts, ensure_ascii=True) + "\n")
    return write_text(folder / "report.html", page_from(parts))


def page_from(said: Mapping[str, Any]) -> str:
    """The page of what `page_parts` gave."""
    parts = {
        "title": say(said["title"]),
        "css": _file("page.css"),
        "header": said["head"],
        "body": said["body"],
        "figures": _figures(said["figures"]),
        "plotly": get_plotlyjs(),
    }
    page = _file("page.html")
    # Placeholders are looked up in the template only, never in what was put in.
    out = []
    for k, piece in enumerate(page.split("{{")):
        name, closed, rest = piece.partition("}}")
        out.append(parts[name] + rest if k and closed else piece)
    return "".join(out)


def _figures(drawn: Mapping[str, Any]) -> str:
    """Data and layouts as JSON, templates once; nothing in it can end the script element."""
    templates = {
        theme: plotting.house_style(go.Figure(), theme, "").layout.template.to_plotly_json()
        for theme in plotting.THEMES
    }
    text = json.dumps({"figures": drawn, "templates": templates}, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _file(name: str) -> str:
    return files("mechmem.reports").joinpath("templates", name).read_text(encoding="utf-8")
