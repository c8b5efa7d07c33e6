"""The report as one HTML page: everything inside it, nothing fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from mechmem import plotting
from mechmem.experiments.html_parts import say
from mechmem.experiments.sections import header, sections
from mechmem.experiments.wording import StudyLike

__all__ = ["assemble", "render"]


def render(
    study: StudyLike,
    tables: Mapping[str, pd.DataFrame],
    figures: Mapping[str, go.Figure],
    manifest: Mapping[str, Any],
) -> str:
    """The page. All text from prompts, completions, names and cards is escaped.

    Args:
        study: What is reported.
        tables, figures: By name, from `mechmem.experiments.report`.
        manifest: JSON-ready; shown at the end.
    """
    title = f"{study.model.name}, {study.task}: remembering or computing?"
    return assemble(title, header(study), sections(study, tables, figures, manifest), figures)


def assemble(title: str, head: str, body: str, figures: Mapping[str, go.Figure]) -> str:
    """A page from its parts.

    Args:
        title: Plain text.
        head, body: HTML; everything from outside must be escaped in it.
        figures: Drawn where the body has their places.
    """
    parts = {
        "title": say(title),
        "css": _file("page.css"),
        "header": head,
        "body": body,
        "figures": _figures(figures),
        "plotly": get_plotlyjs(),
    }
    page = _file("page.html")
    # Placeholders are looked up in the template only, never in what was put in.
    out = []
    for k, piece in enumerate(page.split("{{")):
        name, closed, rest = piece.partition("}}")
        out.append(parts[name] + rest if k and closed else piece)
    return "".join(out)


def _figures(figures: Mapping[str, go.Figure]) -> str:
    """Data and layouts as JSON, templates once; nothing in it can end the script element."""
    drawn = {}
    for name, fig in figures.items():
        spec = json.loads(str(fig.to_json()))
        spec["layout"].pop("template", None)
        drawn[name] = {"data": spec["data"], "layout": spec["layout"]}
    templates = {
        theme: plotting.house_style(go.Figure(), theme, "").layout.template.to_plotly_json()
        for theme in plotting.THEMES
    }
    text = json.dumps({"figures": drawn, "templates": templates}, ensure_ascii=True)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _file(name: str) -> str:
    return files("mechmem.experiments").joinpath(name).read_text(encoding="utf-8")
