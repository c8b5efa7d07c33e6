"""Texts of a report with every token in the color of its projection, behind a summary."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechmem.plotting.data import each_row
from mechmem.reports.html_parts import csv_link, say

__all__ = ["tokens_folded"]

MOST = 240
"""Most tokens of one text on the page; the table has all."""
STRONGEST = 55
"""Share of the class color in the background at the end of the scale, %: text stays readable."""
QUANTILE = 0.95
SIDES = {
    "memorized": "memorized",
    "memory": "memorized",
    "generalized": "generalized",
    "reasoning": "generalized",
}


@dataclass(frozen=True)
class _Scale:
    """From a value to a color: white at 0, the class colors from ``limit`` on."""

    limit: float
    toward: str
    away: str

    def side(self, value: float) -> str:
        return self.toward if value > 0 else self.away

    def style(self, value: float) -> str:
        kind = SIDES.get(self.side(value), "generalized" if value > 0 else "memorized")
        share = STRONGEST * min(1.0, abs(value) / self.limit)
        return f"--c:var(--{kind});--s:{share:.0f}%"


def tokens_folded(table: pd.DataFrame, heads: Mapping[str, str], what: str) -> str:
    """Every text token by token, closed until asked for; nothing but HTML and styles.

    Args:
        table: Of `mechmem.analysis.TokenProjections`.
        heads: Id of every prompt to its heading (HTML), in the order shown.
        what: Where the direction comes from, in words.
    """
    first = table.iloc[0]
    known = bool(table["from_middle"].notna().all())
    shown = table.assign(value=table["from_middle" if known else "projection"])
    size = float(np.quantile(np.abs(shown["value"]), QUANTILE))
    scale = _Scale(size or 1.0, str(first["toward"]), str(first["away"]))
    texts = "".join(
        f"<h4>{head}</h4>{_tokens(shown[shown['id'] == name], scale)}"
        for name, head in heads.items()
    )
    wrote = bool((shown["part"] == "completion").any())
    zero = "the middle of the two class means" if known else "no projection at all"
    return (
        '<details class="tokens"><summary>Projection on the direction, token by token</summary>'
        f"<p>Below every token: how far its state at {say(first['stream'])} {say(first['layer'])} "
        f"lies along the direction from {say(scale.away)} to {say(scale.toward)}, in units of the "
        f"activation; 0 is {zero}. {say(what)} It was fitted at the last token of prompts only "
        "(framed). At other tokens the number says where their state lies on the same line, not "
        f"that anything is decided there. All: {csv_link('tokens')}.</p>"
        f"{_legend(scale, wrote)}{texts}</details>"
    )


def _tokens(rows: pd.DataFrame, scale: _Scale) -> str:
    last = int((rows["part"] == "prompt").sum()) - 1
    spans = [
        _token(row.token, row.value, row.position, row.part, row.position == last, scale)
        for row in each_row(rows)
    ]
    if len(spans) > MOST:
        half = MOST // 2
        gap = f'<span class="soft">… {len(spans) - MOST:,} tokens …</span>'
        spans = [*spans[:half], gap, *spans[-half:]]
    return f'<p class="tokens">{"".join(spans)}</p>'


def _token(token: str, value: float, position: int, part: str, framed: bool, scale: _Scale) -> str:
    kinds = " ".join(["tok", *(["read"] if framed else []), *(["wrote"] * (part == "completion"))])
    title = f"token {position}, {part}: {value:+.3g}, {scale.side(value)} side"
    seen = say(token).replace("\n", "↵") or " "
    return (
        f'<span class="{kinds}" style="{scale.style(value)}" title="{say(title)}">'
        f"<b>{seen}</b><i>{value:+.2g}</i></span>"
    )


def _legend(scale: _Scale, wrote: bool) -> str:
    steps = "".join(
        f'<span class="tok" style="{scale.style(k * scale.limit)}"><b>{say(name) or "&nbsp;"}</b>'
        f"<i>{f'{k * scale.limit:+.2g}' if k else 0}</i></span>"
        for k, name in ((-1, scale.away), (-0.5, ""), (0, "between"), (0.5, ""), (1, scale.toward))
    )
    return (
        f'<p class="tokens">{steps} <span class="soft">colors are full from ±{scale.limit:.2g} on'
        f"{'; right of the bar: what the model wrote' * wrote}</span></p>"
    )
