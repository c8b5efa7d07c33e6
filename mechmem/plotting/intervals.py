"""Points and bars with their intervals, and lines with bands: what several figures are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechmem.plotting.data import as_array, error_bars
from mechmem.style import GRAY, faded


def interval_text(
    frame: pd.DataFrame, value: str, unit: str = "", percent: bool = False
) -> list[str]:
    """``0.52 [0.48, 0.56]`` for every row."""
    low, high = columns_of(value)
    scale, end = (100.0, " %") if percent else (1.0, unit)
    return [
        f"{scale * v:.3g}{end} [{scale * a:.3g}, {scale * b:.3g}]"
        for v, a, b in zip(frame[value], frame[low], frame[high], strict=True)
    ]


def columns_of(value: str) -> tuple[str, str]:
    """Names of the interval's ends of a column."""
    return f"{value}_low", f"{value}_high"


def add_bars(
    fig: go.Figure,
    frame: pd.DataFrame,
    *,
    x: Sequence[Any],
    value: str,
    name: str,
    color: str,
    hover: Sequence[str],
    ends: tuple[str, str] | None = None,
    legend: bool = True,
    hollow: bool = False,
    cell: dict[str, int] | None = None,
) -> None:
    """Bars with 95 % intervals."""
    low, high = ends or columns_of(value)
    fig.add_bar(
        name=name,
        x=list(x),
        y=as_array(frame[value]),
        error_y=error_bars(frame, value, low, high),
        marker={
            "color": faded(color, 0.25) if hollow else color,
            "line": {"color": color, "width": 1.5},
        },
        hovertext=list(hover),
        hoverinfo="text",
        legendgroup=name,
        showlegend=legend,
        **(cell or {}),
    )


def add_line(
    fig: go.Figure,
    frame: pd.DataFrame,
    *,
    x: Sequence[Any],
    value: str,
    name: str,
    color: str,
    hover: Sequence[str],
    ends: tuple[str, str] | None = None,
    dash: str = "solid",
    legend: bool = True,
    cell: dict[str, int] | None = None,
) -> None:
    """Points with 95 % intervals, joined."""
    low, high = ends or columns_of(value)
    fig.add_scatter(
        name=name,
        x=list(x),
        y=as_array(frame[value]),
        error_y={**error_bars(frame, value, low, high), "color": color},
        mode="lines+markers",
        line={"color": color, "dash": dash, "width": 2.4 if dash == "solid" else 1.5},
        marker={"size": 8, "symbol": "circle" if dash == "solid" else "circle-open"},
        hovertext=list(hover),
        hoverinfo="text",
        legendgroup=name,
        showlegend=legend,
        **(cell or {}),
    )


def add_band(
    fig: go.Figure,
    *,
    x: Sequence[Any],
    low: Any,
    high: Any,
    name: str,
    color: str = GRAY,
    legend: bool = True,
    cell: dict[str, int] | None = None,
) -> None:
    """A filled region between two lines."""
    fig.add_scatter(
        name=name,
        x=[*x, *list(x)[::-1]],
        y=np.append(as_array(high), as_array(low)[::-1]),
        fill="toself",
        mode="lines",
        fillcolor=faded(color, 0.2),
        line={"width": 0, "color": color},
        hoverinfo="skip",
        legendgroup=name,
        showlegend=legend,
        **(cell or {}),
    )
