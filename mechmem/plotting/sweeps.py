"""Every setting a sweep tried, with the ones it chose."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechmem.plotting.data import as_array, as_table, percent, plain
from mechmem.plotting.registry import figure_of
from mechmem.style import COLORS, house_style

CELL, GAP, BORDER = 34, 76, 162
"""Pixels: a cell's height, between panels, above and below all of them."""

_NO_SETTING = {"family", "edit", "toward", "score", "alpha"}


@figure_of()
def sweep_cells(sweep: Any, *, theme: str = "light") -> go.Figure:
    """Validation score of every setting: one panel per family, alpha against what else varies.

    The chosen setting of a family is framed. Scores are those of the validation prompts, on which
    the choice was made; they say nothing about unseen prompts.

    Args:
        sweep: A sweep, or its saved validation table.
        theme: ``"light"`` or ``"dark"``.
    """
    frame = as_table(sweep, ("family", "alpha", "toward", "score"), "sweep_cells")
    frame = frame.fillna({"family": ""})
    towards = list(dict.fromkeys(frame["toward"]))
    outcomes = _outcomes(frame)
    panels = {}
    for family, part in frame.groupby("family", sort=False):
        names = _varying(part, outcomes)
        part = part.assign(_row=[_label(row, names) for row in part.to_dict("records")])
        panels[str(family)] = (part, names)
    heights = [len(set(part["_row"])) for part, _ in panels.values()]
    height = BORDER + CELL * sum(heights) + GAP * (len(panels) - 1)
    fig = make_subplots(
        len(panels),
        1,
        row_heights=heights,
        vertical_spacing=GAP / (height - BORDER) if len(panels) > 1 else 0.0,
        subplot_titles=[plain(name) for name in panels],
    )
    for number, (part, names) in enumerate(panels.values(), 1):
        labels = list(dict.fromkeys(part["_row"]))
        alphas = sorted(set(as_array(part["alpha"]).tolist()))
        grid = np.full((len(labels), len(alphas)), np.nan)
        hover = [["" for _ in alphas] for _ in labels]
        for _, cell in part.groupby(["_row", "alpha"], sort=False):
            label, alpha = str(cell["_row"].iloc[0]), float(cell["alpha"].iloc[0])
            i, j = labels.index(label), alphas.index(alpha)
            grid[i, j] = float(cell["score"].iloc[0])
            hover[i][j] = _text(cell, outcomes, label)
        fig.add_heatmap(
            z=grid,
            x=[f"{alpha:g}" for alpha in alphas],
            y=labels,
            texttemplate="%{z:+.2f}",
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            coloraxis="coloraxis3",
            xgap=2,
            ygap=2,
            row=number,
            col=1,
        )
        # The first of equal scores wins, as in the sweep itself.
        best = part.iloc[int(np.nanargmax(as_array(part["score"])))]
        i, j = labels.index(best["_row"]), alphas.index(float(best["alpha"]))
        fig.add_shape(
            type="rect",
            x0=j - 0.5,
            x1=j + 0.5,
            y0=i - 0.5,
            y1=i + 0.5,
            line={"width": 3, "color": "#D49A00"},
            row=number,
            col=1,
        )
        fig.update_yaxes(type="category", showgrid=False, title=", ".join(names), row=number, col=1)
        fig.update_xaxes(type="category", showgrid=False, row=number, col=1)
    fig.update_xaxes(title="alpha", row=len(panels), col=1)
    limit = float(np.nanmax(np.abs(as_array(frame["score"])))) or 1.0
    fig.update_layout(
        coloraxis3={
            "cmin": -limit,
            "cmax": limit,
            "cmid": 0,
            "colorbar": {"title": "score", "thickness": 14},
        }
    )
    subtitle = (
        f"validation score of {len(frame) // len(towards)} settings, each steered toward "
        f"{' and '.join(map(plain, towards))}; framed: chosen"
    )
    return house_style(fig, theme, "What the sweep tried", subtitle, height).update_layout(
        margin_t=110
    )


def _outcomes(frame: pd.DataFrame) -> list[str]:
    """The columns before the score that add up to 1 hold the shares, whatever they are called."""
    names = list(frame.columns[: list(frame.columns).index("score")])
    for first in range(len(names) - 1, -1, -1):
        if not pd.api.types.is_numeric_dtype(frame[names[first]]):
            break
        if np.allclose(frame[names[first:]].sum(axis=1), 1):
            return names[first:]
    return [name for name in names if name in COLORS]


def _varying(part: pd.DataFrame, outcomes: list[str]) -> list[str]:
    names = [name for name in part.columns if name not in _NO_SETTING and name not in outcomes]
    many = [name for name in names if part[name].nunique() > 1]
    # `direction` and `at` say the same for an edit at the direction's own site.
    if "direction" in many and "at" in many and (part["direction"] == part["at"]).all():
        many.remove("direction")
    return many


def _label(row: Mapping[Any, Any], names: list[str]) -> str:
    values = (row[name] for name in names)
    return (
        ", ".join(f"{value:g}" if isinstance(value, float) else plain(value) for value in values)
        or "all"
    )


def _text(cell: pd.DataFrame, outcomes: list[str], label: str) -> str:
    lines = [f"{label}, alpha {cell['alpha'].iloc[0]:g}: score {cell['score'].iloc[0]:+.3f}"]
    for row in cell.to_dict("records"):
        shares = ", ".join(f"{name} {percent(float(row[name]))}" for name in outcomes)
        lines.append(f"toward {plain(row['toward'])}: {shares}")
    return "<br>".join(lines)
