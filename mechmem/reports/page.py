"""A page from a template: all text is escaped, everything is inside, nothing is fetched."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pandas as pd
import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from mechmem import plotting
from mechmem.plotting.save import page_policy
from mechmem.reports.tokens import token_texts
from mechmem.studies.words import DASH, whole_percent

MAX_ROWS = 60
COLORED = {name: name for name in ("memorized", "generalized", "correct", "wrong")}
COLORED |= {"known": "memorized", "context": "generalized"}
"""The style of an outcome; others are gray."""


def render_page(template: str | Path, figures: Mapping[str, Any], **said: Any) -> str:
    """A page, all text of it escaped.

    Args:
        template: A name in ``templates``, or the path of a file that extends one of those.
        figures: Plotly's ``data`` and ``layout`` by name; drawn where the template has their
            places.
        said: What the template names besides.

    Raises:
        jinja2.TemplateError: When the template names what is not there.
    """
    made = _environment()
    page = (
        made.from_string(template.read_text(encoding="utf-8"))
        if isinstance(template, Path)
        else made.get_template(template)
    )
    return page.render(
        policy=Markup(page_policy([get_plotlyjs(), _own_script()])),
        figures=figures,
        drawn=_script(figures),
        plotly=Markup(get_plotlyjs()),
        css=Markup(_templates().joinpath("page.css").read_text(encoding="utf-8")),
        **said,
    )


def _own_script() -> str:
    """The script of every page, which has nothing of a study in it."""
    source: str = _templates().joinpath("page.html").read_text(encoding="utf-8")
    return source.rpartition("<script>")[2].partition("</script>")[0]


def drawn(figure: go.Figure) -> dict[str, Any]:
    """What a page keeps of a figure: the page has its own themes."""
    spec = json.loads(str(figure.to_json()))
    spec["layout"].pop("template", None)
    return {"data": spec["data"], "layout": spec["layout"]}


def _environment() -> jinja2.Environment:
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(str(_templates())),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "cell": _cell,
        "is_number": _is_number,
        "shortened": _shortened,
        "pretty": lambda value: json.dumps(value, indent=1, ensure_ascii=False, default=str),
        "kind": lambda name: COLORED.get(name, "other"),
        "or_missing": lambda value, other: value if isinstance(value, str) else other,
        "percent": whole_percent,
        "picked": _picked,
        "title_of": lambda figure: ((figure["layout"].get("title") or {}).get("text")) or "figure",
        "token_texts": token_texts,
    }
    made.globals |= {"MAX_ROWS": MAX_ROWS}
    return made


def _templates() -> Any:
    return files("mechmem.reports").joinpath("templates")


def _visible(value: object) -> object:
    """Control characters made visible; everything else as it is."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "".join(ch if ch.isprintable() or ch == "\n" else f"\\u{{{ord(ch):x}}}" for ch in value)


def _script(figures: Mapping[str, Any]) -> Markup:
    """Data and layouts as JSON, templates once; nothing in it can end the script element."""
    themes = {
        theme: plotting.house_style(go.Figure(), theme, "").layout.template.to_plotly_json()
        for theme in plotting.THEMES
    }
    text = json.dumps({"figures": dict(figures), "templates": themes}, ensure_ascii=True)
    return Markup(text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026"))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.bool_))


def _cell(value: object) -> str:
    """A value of a table as it is shown."""
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return DASH if np.isnan(value) else f"{value:.3f}" if value % 1 else f"{value:g}"
    return f"{value:,}" if isinstance(value, (int, np.integer)) else str(value)


def _shortened(text: str, longest: int) -> str:
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]} … {text[-half:]}"


def _picked(
    frame: pd.DataFrame,
    *,
    first: Sequence[str] = (),
    last: Sequence[str] = (),
    without: Sequence[str] = (),
    upto: str | None = None,
) -> pd.DataFrame:
    """A table with some of its columns, in another order."""
    shown = frame if upto is None else frame.loc[:, :upto]
    rest = [name for name in shown.columns if name not in {*first, *last, *without}]
    return shown[[*first, *rest, *last]]
