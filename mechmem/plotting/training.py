"""How a model came to its behavior: rates over training steps."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechmem.errors import MechmemError, listed
from mechmem.plotting.data import as_array, as_table, error_bars, percent, plain
from mechmem.plotting.registry import figure_of
from mechmem.style import COLORS, PALETTE, color_of, faded, house_style

_SHARES = (*COLORS, "clean_accuracy", "flip_rate")


@figure_of()
def training_curves(
    table: pd.DataFrame, *, kept: float | None = None, theme: str = "light"
) -> go.Figure:
    """Rates (and the loss, if there is one) against the training step.

    Args:
        table: A column ``step``, any of the outcomes, ``clean_accuracy`` and ``flip_rate`` as
            shares, ``loss`` and ``validation_loss``; a share ``x`` may have ``x_low`` and
            ``x_high``.
        kept: The step whose checkpoint was kept, to mark.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        MechmemError: When there is nothing but steps.
    """
    frame = as_table(table, ("step",), "training_curves").sort_values("step")
    shares = [name for name in _SHARES if name in frame.columns]
    if not shares and "loss" not in frame.columns:
        raise MechmemError(
            f"training_curves needs at least one column of {listed((*_SHARES, 'loss'))} beside "
            f"'step'; this table has {listed(frame.columns)}."
        )
    panels = [bool(shares), "loss" in frame.columns]
    fig = make_subplots(
        sum(panels),
        1,
        shared_xaxes=True,
        vertical_spacing=0.08,
        row_heights=[3, 1][: sum(panels)] if all(panels) else None,
    )
    steps = as_array(frame["step"])
    for k, name in enumerate(shares):
        color = color_of(name, k)
        low, high = f"{name}_low", f"{name}_high"
        bars = error_bars(frame, name, low, high) if low in frame and high in frame else None
        fig.add_scatter(
            name=plain(name.replace("_", " ")),
            x=steps,
            y=as_array(frame[name]),
            error_y=bars,
            mode="lines+markers" if len(frame) < 60 else "lines",
            line={"color": color, "width": 2.5, "dash": "solid" if name in COLORS else "dash"},
            hovertext=[
                f"step {step:,.0f}<br>{name.replace('_', ' ')} {percent(value)}"
                for step, value in zip(steps, frame[name], strict=True)
            ],
            hoverinfo="text",
            row=1,
            col=1,
        )
    if shares:
        fig.update_yaxes(title="share", tickformat=".0%", range=[0, 1.02], row=1, col=1)
    if panels[1]:
        fig.add_scatter(
            name="loss",
            x=steps,
            y=as_array(frame["loss"]),
            mode="lines",
            line={"color": PALETTE[3], "width": 2},
            fill="tozeroy",
            fillcolor=faded(PALETTE[3], 0.15),
            showlegend=False,
            hovertemplate="step %{x:,}<br>loss %{y:.4g}<extra></extra>",
            row=sum(panels),
            col=1,
        )
        if "validation_loss" in frame.columns:
            fig.add_scatter(
                name="validation loss",
                x=steps,
                y=as_array(frame["validation_loss"]),
                mode="lines",
                line={"color": PALETTE[4], "width": 2, "dash": "dot"},
                hovertemplate="step %{x:,}<br>validation loss %{y:.4g}<extra></extra>",
                row=sum(panels),
                col=1,
            )
        fig.update_yaxes(title="loss", rangemode="tozero", row=sum(panels), col=1)
    if kept is not None:
        for row in range(1, sum(panels) + 1):
            fig.add_vline(
                x=kept,
                line={"color": PALETTE[5], "width": 1.5, "dash": "dash"},
                annotation_text="kept" if row == 1 else None,
                row=row,
                col=1,
            )
    fig.update_xaxes(title="training step", row=sum(panels), col=1)
    about = f"{len(frame):,} measurements over {int(steps.max()):,} steps"
    if "n" in frame.columns:
        about += f", n = {int(frame['n'].min()):,} prompts each"
    return house_style(fig, theme, "How the behavior came about", about, 430, bottom=36)
