"""The plane of two main axes: states of several sets, the class boundary, the direction."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechmem.analysis.state_map import StateMap
from mechmem.plotting.data import as_array, as_table, counted, each_row, percent, plain
from mechmem.plotting.registry import figure_of
from mechmem.style import GRAY, PALETTE, color_of, house_style

_LIKE = {"memory": "memorized", "reasoning": "generalized"}
_SYMBOLS = ("diamond-open", "square-open", "triangle-up-open", "cross-open", "star-open")
LINE = PALETTE[0]


def class_color(name: str, index: int = 0) -> str:
    """The color of a class: labels look like the behavior they ask for."""
    return color_of(_LIKE.get(name, name), index)


@figure_of(StateMap)
def state_map(result: StateMap | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """States of one site in the plane of the first set's two main axes (P2, figure 1).

    The first set is filled, sets projected into its plane are open; the dashed line is the boundary
    a classifier draws between the first set's classes in the plane, the arrow is the direction.

    Args:
        result: From `mechmem.state_map`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ("kind", "set", "class", "x", "y", "explained_x", "explained_y", "stream", "layer")
    frame = as_table(result, columns, "state_map").copy()
    frame["class"] = frame["class"].fillna("")
    states = frame[frame["kind"] == "state"]
    sets = list(dict.fromkeys(states["set"]))
    fig = go.Figure()
    for k, name in enumerate(sets):
        part = states[states["set"] == name]
        for j, label in enumerate(dict.fromkeys(part["class"])):
            _states(fig, part[part["class"] == label], str(name), str(label), k, j)
    _boundary(fig, frame[frame["kind"] == "boundary"])
    share = _direction(fig, frame, states)
    first = frame.iloc[0]
    fig.update_xaxes(title=f"first axis ({percent(first['explained_x'])} of the variance)")
    fig.update_yaxes(title=f"second axis ({percent(first['explained_y'])})")
    own = states[states["set"] == sets[0]]
    size = pd.DataFrame({"n": [len(own)], "groups": [own["group"].nunique()]})
    about = f"axes of “{plain(sets[0])}”, {counted(size)}"
    if len(sets) > 1:
        about += ", others projected"
    if share:
        about += f"; {percent(share)} of the direction in this plane"
    title = f"States at {first['stream']} {int(first['layer'])}"
    return house_style(fig, theme, title, about, 480, bottom=62)


def _states(
    fig: go.Figure, part: pd.DataFrame, name: str, label: str, number: int, index: int
) -> None:
    """One class of one set."""
    own: dict[str, Any] = {"size": 7, "opacity": 0.75}
    if number:
        symbol = _SYMBOLS[(number - 1) % len(_SYMBOLS)]
        own = {"size": 7, "opacity": 0.9, "symbol": symbol, "line": {"width": 1.4}}
    color = class_color(label, index) if label else PALETTE[number % len(PALETTE)]
    fig.add_scatter(
        name=f"{plain(name)}: {plain(label)}" if label else plain(name),
        x=as_array(part["x"]),
        y=as_array(part["y"]),
        mode="markers",
        marker={"color": color, **own},
        hovertext=[f"{plain(row.set)}<br>{plain(row.id)}" for row in each_row(part)],
        hoverinfo="text",
    )


def _boundary(fig: go.Figure, ends: pd.DataFrame) -> None:
    if len(ends) < 2:
        return
    fig.add_scatter(
        name="boundary in the plane",
        x=as_array(ends["x"]),
        y=as_array(ends["y"]),
        mode="lines",
        line={"color": GRAY, "dash": "dash", "width": 1.6},
        hoverinfo="skip",
    )


def _direction(fig: go.Figure, frame: pd.DataFrame, states: pd.DataFrame) -> float:
    """The arrow, lengthened where it would be too short to see and saying so; returns how much of
    the direction lies in the plane."""
    ends = frame[frame["kind"] == "direction"]
    if len(ends) < 2:
        return 0.0
    x, y = as_array(ends["x"]), as_array(ends["y"])
    toward = plain(ends["class"].iloc[0])
    spread = np.array([np.ptp(as_array(states["x"])), np.ptp(as_array(states["y"]))])
    shown = np.abs([np.diff(x)[0], np.diff(y)[0]]) / np.where(spread > 0, spread, 1.0)
    times = int(np.ceil(0.25 / shown.max())) if 0 < shown.max() < 0.25 else 1
    x, y = (v.mean() + times * (v - v.mean()) for v in (x, y))
    fig.add_scatter(
        name=f"direction toward {toward}" + (f", {times} times as long" if times > 1 else ""),
        x=x,
        y=y,
        mode="lines",
        line={"color": LINE, "width": 3},
        hoverinfo="skip",
    )
    if np.hypot(x[1] - x[0], y[1] - y[0]) > 0:
        fig.add_annotation(
            x=x[1], y=y[1], ax=x[0], ay=y[0], xref="x", yref="y", axref="x", ayref="y",
            text="", showarrow=True, arrowhead=2, arrowsize=1.2, arrowwidth=2.5, arrowcolor=LINE,
        )  # fmt: skip
    return float(ends["in_plane"].iloc[0]) if "in_plane" in ends.columns else 0.0
