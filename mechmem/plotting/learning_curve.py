"""How a classifier's held-out accuracy grows with the number of pairs it was fitted on."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mechmem.analysis.learning_curve import LearningCurve
from mechmem.plotting.data import (
    as_array,
    as_table,
    counted,
    each_row,
    error_bars,
    interval,
    interval_in,
)
from mechmem.plotting.registry import figure_of
from mechmem.style import GRAY, PALETTE, faded, house_style

BASELINES = {
    "input_only": ("input tokens only", PALETTE[1], "dash"),
    "length_only": ("prompt length only", PALETTE[3], "dashdot"),
    "shuffled": ("shuffled labels", GRAY, "dot"),
}


@figure_of(LearningCurve)
def learning_curve(curve: LearningCurve | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Held-out accuracy by number of training pairs, one line per site, beside the baselines.

    Args:
        curve: From `mechmem.learning_curve`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = [
        "stream",
        "layer",
        "classifier",
        "pairs",
        "accuracy",
        "accuracy_low",
        "accuracy_high",
        "majority",
    ]
    for name in BASELINES:
        columns += [name, f"{name}_low", f"{name}_high"]
    frame = as_table(curve, columns, "learning_curve")
    fig = go.Figure()
    first = None
    for k, ((stream, layer), part) in enumerate(frame.groupby(["stream", "layer"], sort=False)):
        first = part if first is None else first
        fig.add_scatter(
            name=f"{stream} {layer}",
            x=as_array(part["pairs"]),
            y=as_array(part["accuracy"]),
            error_y=error_bars(part, "accuracy"),
            mode="lines+markers",
            line={"color": PALETTE[(2 * k) % len(PALETTE)], "width": 2.5},
            marker={"size": 8},
            hovertext=[
                f"{stream} {layer}, {row.pairs:,} pairs<br>accuracy "
                f"{interval_in(row, 'accuracy')}<br>{counted(part.iloc[[i]])}"
                for i, row in enumerate(each_row(part))
            ],
            hoverinfo="text",
        )
    assert first is not None  # as_table refuses an empty one
    for name, (label, color, dash) in BASELINES.items():
        pairs = as_array(first["pairs"])
        low, high = as_array(first[f"{name}_low"]), as_array(first[f"{name}_high"])
        fig.add_scatter(
            x=[*pairs, *pairs[::-1]],
            y=[*high, *low[::-1]],
            fill="toself",
            mode="lines",
            fillcolor=faded(color, 0.15),
            line={"width": 0, "color": color},
            hoverinfo="skip",
            showlegend=False,
        )
        fig.add_scatter(
            name=label
            if name != "shuffled"
            else f"{label} ({first['stream'].iloc[0]} {first['layer'].iloc[0]})",
            x=pairs,
            y=as_array(first[name]),
            mode="lines",
            line={"color": color, "dash": dash, "width": 2},
            hovertext=[
                f"{label}<br>accuracy {interval(value, a, b)}"
                for value, a, b in zip(first[name], low, high, strict=True)
            ],
            hoverinfo="text",
        )
    fig.add_hline(y=float(frame["majority"].iloc[0]), line={"color": GRAY, "width": 1})
    sizes = sorted(set(frame["pairs"]))
    fig.update_xaxes(
        title="pairs fitted on (whole groups)",
        type="log",
        tickvals=sizes,
        ticktext=[f"{size:,}" for size in sizes],
    )
    lowest = min(frame["accuracy_low"].min(), *(frame[f"{name}_low"].min() for name in BASELINES))
    fig.update_yaxes(
        title="held-out accuracy", tickformat=".0%", range=[max(lowest - 0.05, 0), 1.02]
    )
    kind = str(frame["classifier"].iloc[0]).replace("_", " ")
    about = (
        f"{kind} classifier; {counted(frame)}, whole groups held out<br>lines and bands: 95 % "
        "interval; thin line: larger class"
    )
    title = "How many pairs it takes to read the behavior"
    return house_style(fig, theme, title, about, 460, bottom=62).update_layout(margin_t=100)
