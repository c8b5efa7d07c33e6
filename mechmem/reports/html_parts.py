"""Small pieces of HTML: escaped text, tables, figures with their captions."""

from __future__ import annotations

import html
from collections.abc import Collection, Mapping

import numpy as np
import pandas as pd

__all__ = ["behavior_chip", "csv_link", "figure", "frame_table", "prompt_text", "say"]

MAX_ROWS = 60
COLORED = ("memorized", "generalized", "correct", "wrong")


def say(text: object) -> str:
    """Escaped text, control characters made visible, line breaks kept."""
    shown = "".join(
        ch if ch.isprintable() or ch == "\n" else f"\\u{{{ord(ch):x}}}" for ch in str(text)
    )
    return html.escape(shown)


def prompt_text(text: str) -> str:
    """A prompt or completion as it is, white space visible where it would not be."""
    shown = say(text).replace("\n", "<span class=soft>↵</span>\n")
    return f'<span class="prompt">{shown or "<span class=soft>(nothing)</span>"}</span>'


def behavior_chip(behavior: str) -> str:
    """The name of an outcome in its color."""
    known = behavior if behavior in COLORED else "other"
    return f'<span class="chip {known}">{say(behavior)}</span>'


def csv_link(name: str) -> str:
    """Where the numbers are saved beside the page."""
    return f'<a href="tables/{name}.csv">tables/{name}.csv</a>'


def figure(name: str, title: str, caption: str, numbers: str = "") -> str:
    """A place for a figure, what it shows, and its numbers as a table that opens."""
    return (
        f'<figure><div class="plot" id="figure-{name}" role="img" aria-label="{say(title)}"></div>'
        f"<figcaption>{caption}</figcaption>{numbers}</figure>"
    )


def frame_table(
    frame: pd.DataFrame,
    caption: str,
    *,
    strong: Collection[str] = (),
    folded: str = "",
    link: str = "",
) -> str:
    """A table; the first column heads its row.

    Args:
        frame: At most `MAX_ROWS` rows are shown.
        caption: What it is.
        strong: First cells of rows to bring out.
        folded: A summary behind which the table opens.
        link: Name of the saved table.
    """
    heads = "".join(
        f'<th scope="col"{_kind(frame[name].iloc[0])}>{say(_heading(name))}</th>'
        for name in frame.columns
    )
    body = []
    for values in frame.head(MAX_ROWS).itertuples(index=False):
        first = str(values[0])
        kind = "strong" if first in strong else "sub" if first.startswith("  ") else ""
        cells = "".join(_cell(value) for value in values[1:])
        mark = f' class="{kind}"' if kind else ""
        body.append(f'<tr{mark}><th scope="row">{say(_text(values[0]).strip())}</th>{cells}</tr>')
    rest = len(frame) - MAX_ROWS
    more = f" The first {MAX_ROWS} of {len(frame):,} rows." if rest > 0 else ""
    where = f" Saved as {csv_link(link)}." if link else ""
    table = (
        f'<div class="wide" tabindex="0" role="region" aria-label="{say(caption)}">'
        f"<table{' class=settings' if strong else ''}>"
        f"<caption>{say(caption)}.{more}{where}</caption>"
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
    )
    return f"<details><summary>{say(folded)}</summary>{table}</details>" if folded else table


def facts(rows: Mapping[str, str]) -> str:
    """Name and value pairs; values are HTML."""
    return "<dl>" + "".join(f"<dt>{say(k)}</dt><dd>{v}</dd>" for k, v in rows.items()) + "</dl>"


def _cell(value: object) -> str:
    return f"<td{_kind(value)}>{say(_text(value))}</td>"


def _kind(value: object) -> str:
    number = isinstance(value, (int, float, np.number)) and not isinstance(value, (bool, np.bool_))
    return ' class="number"' if number else ""


def _text(value: object) -> str:
    if isinstance(value, (bool, np.bool_)):
        return "yes" if value else "no"
    if isinstance(value, (float, np.floating)):
        return "–" if np.isnan(value) else f"{value:.3f}" if value % 1 else f"{value:g}"
    return f"{value:,}" if isinstance(value, (int, np.integer)) else str(value)


def _heading(name: object) -> str:
    return str(name).replace("_", " ")
