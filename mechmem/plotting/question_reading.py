"""How well reasoning is told from memory at every layer, set by set."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mechmem.plotting.data import as_array, as_table, counted, each_row, error_bars, interval
from mechmem.style import GRAY, PALETTE, house_style


def question_reading(layers: pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """AUROC against the layer, one line per set of questions; 0.5 is chance.

    Open points are what 97.5 % of random directions stay below: a line under its own shows nothing.

    Args:
        layers: `QuestionReading.layers`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ("set", "stream", "layer", "x", "x_low", "x_high", "random_high")
    frame = as_table(layers, columns, "question_reading")
    frame = frame[frame["stream"] == "resid_post"]
    fig = go.Figure()
    for k, (name, part) in enumerate(frame.groupby("set", sort=False)):
        color = PALETTE[k % len(PALETTE)]
        fig.add_scatter(
            name=str(name), x=as_array(part["layer"]), y=as_array(part["x"]),
            error_y={**error_bars(part, "x", "x_low", "x_high"), "thickness": 0.9},
            mode="lines+markers", line={"color": color, "width": 2.5}, marker={"size": 6},
            hovertext=[
                f"<b>{name}</b>, layer {row.layer}<br>{interval(row.x, row.x_low, row.x_high)}"
                for row in each_row(part)
            ],
            hoverinfo="text",
        )  # fmt: skip
        fig.add_scatter(
            name=f"{name}, random directions", x=as_array(part["layer"]),
            y=as_array(part["random_high"]), mode="markers", showlegend=False,
            marker={"color": color, "symbol": "line-ew-open", "size": 7}, hoverinfo="skip",
        )  # fmt: skip
    fig.add_hline(y=0.5, line={"dash": "dot", "width": 1.2, "color": GRAY})
    fig.update_xaxes(title="layer")
    fig.update_yaxes(title="AUROC")
    return house_style(
        fig, theme, "Reasoning told from memory, on questions not fitted on", counted(frame), 460
    )
