"""The real effect among refits of the whole recipe on exchanged labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechmem.errors import MechmemError
from mechmem.plotting.data import as_array, as_table, p_value, percent, plain
from mechmem.plotting.registry import figure_of
from mechmem.style import COLORS, GRAY, PALETTE, house_style

CLAIMS = {"any": "either way", "both": "both ways"}
"""How claims read that are not a class steered to."""

HEIGHT, GAP = 84, 0.34
"""Pixels of a panel, and the part of it that its title takes."""


@figure_of()
def refits(verdict: Any, *, theme: str = "light") -> go.Figure:
    """One panel per claim: the refits' statistics as dots, the real fit's as a line, its p.

    Dots at or beyond the line are refits that did as much without the classes. Their share, the
    real fit counted among them, is p; with few refits it cannot be small.

    Args:
        verdict: Of a study, or its saved table: ``claim``, ``kind`` (``edit``, ``refit``),
            ``draw``, ``effect`` (change of a share; of a margin, in nats, where a column ``of``
            says so), ``p`` (of the edit).
        theme: ``"light"`` or ``"dark"``.

    Raises:
        MechmemError: When nothing was tested, or for a table without these columns.
    """
    if getattr(verdict, "shuffles", None) == 0:
        raise MechmemError(
            "Nothing was tested, so there are no refits to draw; run the study with shuffles of 19 "
            "or more."
        )
    frame = as_table(verdict, ("claim", "kind", "draw", "effect", "p"), "refits")
    claims = list(dict.fromkeys(frame["claim"].astype(str)))
    nats = _nats(frame)
    fig = make_subplots(
        len(claims),
        1,
        shared_xaxes=True,
        vertical_spacing=GAP / len(claims) if len(claims) > 1 else 0.0,
        subplot_titles=[_title(frame, claim) for claim in claims],
    )
    fig.update_annotations(font_size=13, x=0, xanchor="left")
    for number, claim in enumerate(claims, 1):
        mine = frame[frame["claim"] == claim]
        null = as_array(mine.loc[mine["kind"] == "refit", "effect"])
        real, _ = _real(mine)
        fig.add_scatter(
            name="refits on exchanged labels",
            legendgroup="refits",
            showlegend=number == 1,
            x=null,
            y=_apart(null),
            mode="markers",
            marker={"size": 8, "color": GRAY, "opacity": 0.7},
            hovertext=[f"refit: {_points(value, nats)}" for value in null],
            hoverinfo="text",
            row=number,
            col=1,
        )
        fig.add_scatter(
            name="the real fit",
            legendgroup="real",
            showlegend=number == 1,
            x=[real, real],
            y=[0.0, 1.0],
            mode="lines",
            line={"width": 3, "color": COLORS.get(claim, PALETTE[0])},
            hovertext=[f"{_title(frame, claim)}<br>{len(null):,} refits"] * 2,
            hoverinfo="text",
            row=number,
            col=1,
        )
    fig.update_yaxes(visible=False, range=[-0.1, 1.1])
    fig.update_xaxes(tickformat="+.2~f" if nats else "+.0%", zeroline=True)
    what = "change of the margin in nats" if nats else "change of the share"
    fig.update_xaxes(title=f"{what}, test prompts", row=len(claims), col=1)
    count = int((frame["kind"] == "refit").sum()) // len(claims)
    about = f"{count:,} refits of fit, choice and test on exchanged labels; p counts the real fit"
    title = "The real effect among its refits"
    fig = house_style(fig, theme, title, about, 190 + HEIGHT * len(claims), bottom=40)
    return fig.update_layout(margin_t=112)


def _real(mine: pd.DataFrame) -> tuple[float, float]:
    row = mine[mine["kind"] == "edit"].iloc[0]
    return float(row["effect"]), float(row["p"])


def _title(frame: pd.DataFrame, claim: str) -> str:
    value, p = _real(frame[frame["claim"] == claim])
    return f"{_name(claim)}: {_points(value, _nats(frame))}, {p_value(p)}"


def _nats(frame: pd.DataFrame) -> bool:
    return "of" in frame and set(frame["of"]) == {"margin"}


def _name(claim: str) -> str:
    return CLAIMS.get(claim) or f"toward {plain(claim)}"


def _points(value: float, nats: bool) -> str:
    if nats:
        return f"{value:+.3f} nats"
    return ("+" if value > 0 else "") + percent(value).replace(" %", " points")


def _apart(values: np.ndarray) -> np.ndarray:
    """Heights at which dots of like value do not hide one another, the same for the same values."""
    places = np.empty(len(values))
    places[np.argsort(values, kind="stable")] = np.arange(len(values)) * 0.618034 % 1
    return 0.1 + 0.8 * places
