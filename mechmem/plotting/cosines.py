"""Cosines by layer: of states with the direction, of directions with each other and main axes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechmem.analysis.cosines import CosineProfile, DirectionCosines, PrincipalCosines
from mechmem.plotting.data import (
    as_array,
    as_table,
    counted,
    each_row,
    ended,
    interval_in,
    plain,
    site_axis,
)
from mechmem.plotting.registry import figure_of
from mechmem.plotting.state_maps import class_color
from mechmem.style import GRAY, PALETTE, faded, house_style


@figure_of(CosineProfile)
def cosine_profile(
    result: CosineProfile | Sequence[CosineProfile] | pd.DataFrame, *, theme: str = "light"
) -> go.Figure:
    """Cosine of both classes' states with the direction, by layer: mean and standard deviation.

    Several profiles (a base and an instruction-tuned model) are drawn side by side on one scale.

    Args:
        result: From `mechmem.cosine_profile`, several of them, or their saved tables, concatenated.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ("stream", "layer", "class", *ended("cosine"), "sd", "model")
    parts = [result] if isinstance(result, (CosineProfile, pd.DataFrame)) else list(result)
    frame = pd.concat([as_table(part, columns, "cosine_profile") for part in parts])
    models = list(dict.fromkeys(frame["model"]))
    fig = make_subplots(
        cols=len(models), shared_yaxes=True, horizontal_spacing=0.04,
        subplot_titles=[plain(name) for name in models] if len(models) > 1 else None,
    )  # fmt: skip
    title = ""
    for k, model in enumerate(models):
        mine = frame[frame["model"] == model]
        for j, name in enumerate(dict.fromkeys(mine["class"])):
            part = mine[mine["class"] == name].reset_index(drop=True)
            lines, title = site_axis(part)
            for i, (stream, (rows, labels)) in enumerate(lines.items()):
                called = plain(name) if len(lines) == 1 else f"{plain(name)}, {stream}"
                color = class_color(str(name), j)
                dash = ("solid", "dash", "dot", "dashdot")[i % 4]
                _with_spread(fig, part.iloc[rows], labels, called, color, dash, k + 1)
        fig.update_xaxes(title=title, type="category", col=k + 1)
    fig.add_hline(y=0, line={"color": GRAY, "width": 1, "dash": "dot"})
    fig.update_yaxes(title="cosine with the direction", col=1)
    about = f"{counted(frame)} per class, unseen in fitting; band: one standard deviation"
    out = house_style(fig, theme, "Where along the direction the states lie", about, 440, bottom=40)
    return out.update_layout(margin_t=110) if len(models) > 1 else out


@figure_of(DirectionCosines)
def direction_cosines(
    result: DirectionCosines | pd.DataFrame, *, theme: str = "light"
) -> go.Figure:
    """Cosine between the directions of every two sources, by layer.

    Inside the gray band two random directions of that width could be as similar (95 % of them).

    Args:
        result: From `mechmem.compare_directions`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ("stream", "layer", "one", "other", "cosine", "random")
    frame = as_table(result, columns, "direction_cosines")
    fig = go.Figure()
    pairs = list(dict.fromkeys(zip(frame["one"], frame["other"], strict=True)))
    title, drawn = "", False
    for k, (one, other) in enumerate(pairs):
        part = frame[(frame["one"] == one) & (frame["other"] == other)].reset_index(drop=True)
        lines, title = site_axis(part)
        for i, (stream, (rows, labels)) in enumerate(lines.items()):
            own = part.iloc[rows]
            if not drawn:
                _random_band(fig, labels, as_array(own["random"]), both=True)
                drawn = True
            called = f"{plain(one)} and {plain(other)}"
            color = PALETTE[k % len(PALETTE)]
            dash = ("solid", "dash", "dot")[(k // len(PALETTE) + i) % 3]
            fig.add_scatter(
                name=called if len(lines) == 1 else f"{called}, {stream}",
                x=labels,
                y=as_array(own["cosine"]),
                mode="lines+markers",
                line={"color": color, "width": 2.5, "dash": dash},
                marker={"size": 7},
                hovertext=[
                    f"{row.stream} {row.layer}<br>{called}: {row.cosine:.3f}"
                    for row in each_row(own)
                ],
                hoverinfo="text",
            )
    fig.update_xaxes(title=title, type="category")
    low = min(-0.25, float(np.nanmin(as_array(frame["cosine"]))) - 0.05)
    fig.update_yaxes(title="cosine", range=[max(low, -1.02), 1.02])
    about = "1: the same direction; band: 95 % of pairs of random directions"
    height = 40 + 22 * ((len(pairs) + 3) // 4)
    return house_style(fig, theme, "How alike the directions are", about, 440, bottom=height)


@figure_of(PrincipalCosines)
def principal_cosines(
    result: PrincipalCosines | pd.DataFrame, *, theme: str = "light"
) -> go.Figure:
    """Size of the direction's cosine with the first principal components, component by layer.

    Args:
        result: From `mechmem.principal_cosines`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ("stream", "layer", "component", "cosine", "explained", "random")
    frame = as_table(result, columns, "principal_cosines")
    sites = list(dict.fromkeys(zip(frame["stream"], frame["layer"], strict=True)))
    one = len({stream for stream, _ in sites}) == 1
    labels = [str(layer) if one else f"{stream} {layer}" for stream, layer in sites]
    numbers = sorted(set(frame["component"]))
    cosine = np.full((len(numbers), len(sites)), np.nan)
    hover = np.full(cosine.shape, "", dtype=object)
    for row in each_row(frame):
        at = (numbers.index(row.component), sites.index((row.stream, row.layer)))
        cosine[at] = row.cosine
        hover[at] = (
            f"{row.stream} {row.layer}, component {row.component}<br>cosine {row.cosine:.3f}"
            f"<br>carries {100 * row.explained:.1f} % of the variance"
            f"<br>95 % of random directions stay below {row.random:.2f}"
        )
    fig = go.Figure()
    fig.add_heatmap(
        x=labels,
        y=[str(number) for number in numbers],
        z=cosine,
        coloraxis="coloraxis2",
        hovertext=hover,
        hoverinfo="text",
        xgap=1,
        ygap=1,
        texttemplate="%{z:.2f}" if cosine.size <= 150 else None,
    )
    fig.update_layout(
        coloraxis2={"cmin": 0, "cmax": 1, "colorbar": {"title": "|cosine|", "thickness": 12}}
    )
    fig.update_xaxes(title=f"layer ({sites[0][0]})" if one else "site", type="category")
    fig.update_yaxes(title="principal component", type="category", autorange="reversed")
    low, high = float(frame["random"].min()), float(frame["random"].max())
    limit = f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f}"
    about = f"{counted(frame, 'states')}; 95 % of random directions stay below {limit}"
    height = 200 + 26 * len(numbers)
    return house_style(fig, theme, "The direction among the main axes", about, height)


def _with_spread(
    fig: go.Figure,
    part: pd.DataFrame,
    labels: list[str],
    name: str,
    color: str,
    dash: str,
    column: int,
) -> None:
    """A line with a band of one standard deviation around it."""
    middle, spread = as_array(part["cosine"]), as_array(part["sd"])
    fig.add_scatter(
        name=f"{name}, one standard deviation",
        x=[*labels, *labels[::-1]],
        y=np.append(middle + spread, (middle - spread)[::-1]),
        fill="toself",
        mode="lines",
        fillcolor=faded(color, 0.18),
        line={"width": 0, "color": color},
        hoverinfo="skip",
        showlegend=False,
        row=1,
        col=column,
    )
    fig.add_scatter(
        name=name,
        x=labels,
        y=middle,
        mode="lines+markers",
        line={"color": color, "width": 2.5, "dash": dash},
        marker={"size": 7},
        showlegend=column == 1,
        legendgroup=name,
        hovertext=[
            f"{row.stream} {row.layer}<br>{name}: {interval_in(row, 'cosine', False)}"
            f"<br>standard deviation {row.sd:.3f}<br>{counted(part.iloc[[i]])}"
            for i, row in enumerate(each_row(part))
        ],
        hoverinfo="text",
        row=1,
        col=column,
    )


def _random_band(fig: go.Figure, labels: list[str], limit: np.ndarray, both: bool) -> None:
    low = -limit if both else np.zeros_like(limit)
    fig.add_scatter(
        name="random directions (95 %)",
        x=[*labels, *labels[::-1]],
        y=np.append(limit, low[::-1]),
        fill="toself",
        mode="lines",
        fillcolor=faded(GRAY, 0.25),
        line={"width": 0, "color": GRAY},
        hoverinfo="skip",
    )
