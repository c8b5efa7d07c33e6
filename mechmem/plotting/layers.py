"""What the states of each layer tell: size of the difference, separation, and probes."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechmem.analysis.depth_profile import DepthProfile
from mechmem.analysis.geometry import Separation
from mechmem.analysis.probes import Probes
from mechmem.plotting.data import (
    as_array,
    as_table,
    counted,
    each_row,
    ended,
    error_bars,
    interval,
    interval_in,
    percent,
    site_axis,
)
from mechmem.plotting.registry import figure_of
from mechmem.style import GRAY, PALETTE, faded, house_style


@figure_of(DepthProfile)
def depth_profile(profile: DepthProfile | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """How large the mean difference of the classes is at every depth, in units of the spread there.

    The band is what exchanged classes give; a point inside it shows nothing.

    Args:
        profile: From `mechmem.depth_profile`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ("stream", "layer", "raw", "scaled", "shuffled_low", "shuffled_high")
    frame = as_table(profile, columns, "depth_profile")
    fig = go.Figure()
    lines, title = site_axis(frame)
    for k, (stream, (rows, labels)) in enumerate(lines.items()):
        part = frame.iloc[rows]
        _band(fig, labels, part, "shuffled_low", "shuffled_high", "classes exchanged", k == 0)
        fig.add_scatter(
            name="mean difference" if len(lines) == 1 else stream,
            x=labels,
            y=as_array(part["scaled"]),
            mode="lines+markers",
            line={"color": PALETTE[k % len(PALETTE)], "width": 2.5},
            marker={"size": 9},
            hovertext=[
                f"{row.stream} {row.layer}<br>{row.scaled:.3g} of the spread there<br>exchanged "
                f"{row.shuffled_low:.3g} to {row.shuffled_high:.3g}<br>in activations {row.raw:.3g}"
                for row in each_row(part)
            ],
            hoverinfo="text",
        )
    _site_ticks(fig, title)
    fig.update_yaxes(title="root mean square, in spreads", rangemode="tozero")
    return house_style(
        fig, theme, "How large the mean difference is at every depth", counted(frame), 420,
        bottom=40,
    )  # fmt: skip


@figure_of(Separation)
def separation_profile(separation: Separation | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Per site, how well the projection on the direction tells the behaviors apart (AUROC).

    The band is what random directions of the same site reach; a point inside it shows nothing.

    Args:
        separation: From `mechmem.separation`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ("stream", "layer", *ended("auroc"), "random_low", "random_high")
    frame = as_table(separation, columns, "separation_profile")
    fig = go.Figure()
    lines, title = site_axis(frame)
    for k, (stream, (rows, labels)) in enumerate(lines.items()):
        part, color = frame.iloc[rows], PALETTE[k % len(PALETTE)]
        _band(fig, labels, part, "random_low", "random_high", "random directions", k == 0)
        fig.add_scatter(
            name="difference of means" if len(lines) == 1 else stream,
            x=labels,
            y=as_array(part["auroc"]),
            error_y=error_bars(part, "auroc"),
            mode="lines+markers",
            line={"color": color, "width": 2.5},
            marker={"size": 9},
            hovertext=[
                f"{row.stream} {row.layer}<br>AUROC {interval_in(row, 'auroc', False)}<br>"
                f"random directions {row.random_low:.2f} to {row.random_high:.2f}<br>"
                f"{counted(part.iloc[[i]])}"
                for i, row in enumerate(each_row(part))
            ],
            hoverinfo="text",
        )
    _level(fig, 0.5, "chance", "left")
    _site_ticks(fig, title)
    low = min(frame["auroc_low"].min(), frame["random_low"].min(), 0.45)
    fig.update_yaxes(title="AUROC", range=[max(low - 0.05, 0), 1.02])
    about = f"{counted(frame)}, unseen in fitting; lines: 95 % interval"
    return house_style(fig, theme, "How far the behaviors lie apart", about, 420, bottom=40)


@figure_of(Probes)
def probe_accuracy(probes: Probes | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Held-out accuracy of a classifier on the states of each site, beside its baselines.

    Where a classifier on the input tokens alone is as good, the states show nothing of their own.

    Args:
        probes: From `mechmem.fit_probes`, or their saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ["stream", "layer", "majority"]
    for name in ("shuffled", "input_only"):
        columns += [name, f"{name}_low", f"{name}_high"]
    frame = as_table(probes, [*columns, *ended("accuracy")], "probe_accuracy")
    fig = go.Figure()
    lines, title = site_axis(frame)
    for k, (stream, (rows, labels)) in enumerate(lines.items()):
        part, color = frame.iloc[rows], PALETTE[(2 * k) % len(PALETTE)]
        if k == 0:
            _band(
                fig, labels, part, "input_only_low", "input_only_high", "input tokens only", False
            )
            _baseline(fig, labels, part, "input_only", "input tokens only", PALETTE[1], "dash")
        fig.add_scatter(
            name="states" if len(lines) == 1 else stream,
            x=labels,
            y=as_array(part["accuracy"]),
            error_y=error_bars(part, "accuracy"),
            mode="lines+markers",
            line={"color": color, "width": 2.5},
            marker={"size": 9},
            hovertext=[
                f"{row.stream} {row.layer}<br>accuracy {interval_in(row, 'accuracy')}"
                f"<br>{counted(part.iloc[[i]])}"
                for i, row in enumerate(each_row(part))
            ],
            hoverinfo="text",
        )
        if k == 0:
            _baseline(fig, labels, part, "shuffled", "shuffled labels", GRAY, "dot", bars=True)
    _level(fig, float(frame["majority"].iloc[0]), "larger class", "right")
    _site_ticks(fig, title)
    low = min(frame["accuracy_low"].min(), frame["shuffled_low"].min(), 0.45)
    fig.update_yaxes(title="held-out accuracy", tickformat=".0%", range=[max(low - 0.05, 0), 1.02])
    about = f"{counted(frame)}, whole groups held out; lines: 95 % interval"
    return house_style(
        fig, theme, "How well the behavior can be read off the states", about, 420, bottom=40
    )


def _band(
    fig: go.Figure,
    labels: list[str],
    part: pd.DataFrame,
    low: str,
    high: str,
    name: str,
    legend: bool,
) -> None:
    color = PALETTE[1] if low.startswith("input") else GRAY
    fig.add_scatter(
        name=f"{name} (95 % of them)",
        x=[*labels, *labels[::-1]],
        y=np.append(as_array(part[high]), as_array(part[low])[::-1]),
        fill="toself",
        mode="lines",
        fillcolor=faded(color, 0.25),
        line={"width": 0, "color": color},
        hoverinfo="skip",
        showlegend=legend,
    )


def _baseline(
    fig: go.Figure,
    labels: list[str],
    part: pd.DataFrame,
    column: str,
    name: str,
    color: str,
    dash: str,
    bars: bool = False,
) -> None:
    low, high = f"{column}_low", f"{column}_high"
    fig.add_scatter(
        name=name,
        x=labels,
        y=as_array(part[column]),
        error_y=error_bars(part, column, low, high) if bars else None,
        mode="lines+markers" if bars else "lines",
        line={"color": color, "dash": dash, "width": 2},
        marker={"size": 6},
        hovertext=[
            f"{name}<br>accuracy {interval(value, a, b)}"
            for value, a, b in zip(part[column], part[low], part[high], strict=True)
        ],
        hoverinfo="text",
    )


def _level(fig: go.Figure, value: float, name: str, side: str) -> None:
    text = f"{name} {percent(value)}" if name != "chance" else "chance"
    fig.add_hline(
        y=value,
        line={"color": GRAY, "width": 1, "dash": "dot"},
        annotation={"text": text, "font": {"size": 11}, "xanchor": side},
        annotation_position=f"{'bottom' if side == 'left' else 'top'} {side}",
    )


def _site_ticks(fig: go.Figure, title: str) -> None:
    fig.update_xaxes(title=title, type="category")
