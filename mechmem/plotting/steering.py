"""An outcome by layer and strength, beside random directions of the same length."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechmem.evaluation.steering import SteeringGrid
from mechmem.plotting.data import as_table, counted, each_row, interval, interval_in, percent, plain
from mechmem.plotting.registry import figure_of
from mechmem.style import house_style


@figure_of(SteeringGrid)
def steering_grid(result: SteeringGrid | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Share of the outcome per layer (rows) and strength (columns), a panel per class and kind.

    Upper panels are the edit, lower ones random directions of the same length. A dot marks cells
    whose 95 % interval of edit minus random lies beside 0.

    Args:
        result: From `mechmem.steering_grid`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = (
        "stream",
        "layer",
        "alpha",
        "kind",
        "control",
        "class",
        "share",
        "share_low",
        "share_high",
        "change",
    )
    frame = as_table(result, columns, "steering_grid")
    frame = frame.fillna({"control": ""})
    classes = list(dict.fromkeys(frame["class"]))
    kinds = list(dict.fromkeys(zip(frame["kind"], frame["control"], strict=True)))
    sites = list(dict.fromkeys(zip(frame["stream"], frame["layer"], strict=True)))
    alphas = sorted(set(frame["alpha"]))
    one = len({stream for stream, _ in sites}) == 1
    labels = [str(layer) if one else f"{stream} {layer}" for stream, layer in sites]
    fig = make_subplots(
        rows=len(kinds), cols=len(classes), shared_xaxes=True, shared_yaxes=True,
        horizontal_spacing=0.04, vertical_spacing=0.12,
        subplot_titles=[
            f"{plain(name)}: {control or kind}" for kind, control in kinds for name in classes
        ],
    )  # fmt: skip
    for i, (kind, control) in enumerate(kinds):
        for j, name in enumerate(classes):
            part = frame[(frame["kind"] == kind) & (frame["class"] == name)]
            share, text, hover = _cells(part, sites, alphas)
            fig.add_heatmap(
                name=f"{name}, {control or kind}",
                x=[f"{alpha:g}" for alpha in alphas],
                y=labels,
                z=share,
                text=text,
                texttemplate="%{text}",
                hovertext=hover,
                hoverinfo="text",
                coloraxis="coloraxis2",
                xgap=1,
                ygap=1,
                row=i + 1,
                col=j + 1,
            )
    outcome = plain(frame["outcome"].iloc[0]) if "outcome" in frame.columns else "share"
    fig.update_layout(
        coloraxis2={
            "cmin": 0,
            "cmax": 1,
            "colorbar": {"title": outcome, "tickformat": ".0%", "thickness": 12},
        }
    )
    fig.update_xaxes(type="category")
    fig.update_yaxes(type="category")
    toward = plain(frame["toward"].iloc[0]) if "toward" in frame.columns else "the class"
    fig.update_xaxes(title=f"strength, + toward {toward}", row=len(kinds))
    fig.update_yaxes(title=f"layer ({sites[0][0]})" if one else "site", col=1)
    about = f"{counted(frame)} per class; • edit and random direction differ (95 % interval)"
    height = 190 + len(kinds) * max(60 + 26 * len(sites), 140)
    out = house_style(fig, theme, f"“{outcome}” by layer and strength", about, height)
    return out.update_layout(margin_t=112)


def _cells(
    part: pd.DataFrame, sites: list[tuple[str, int]], alphas: list[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shares, what stands in the cells and what opens under the pointer, ``[site, alpha]``."""
    share = np.full((len(sites), len(alphas)), np.nan)
    text = np.full(share.shape, "", dtype=object)
    hover = np.full(share.shape, "", dtype=object)
    for i, row in enumerate(each_row(part)):
        at = (sites.index((row.stream, row.layer)), alphas.index(row.alpha))
        share[at] = row.share
        words = (
            f"{row.stream} {row.layer}, strength {row.alpha:g}<br>"
            f"{interval_in(row, 'share')}<br>change {percent(row.change)}"
        )
        beyond = getattr(row, "beyond", float("nan"))
        if np.isfinite(beyond):
            words += f"<br>minus random {interval(beyond, row.beyond_low, row.beyond_high)}"
            text[at] = "•" if row.beyond_low > 0 or row.beyond_high < 0 else ""
        hover[at] = f"{words}<br>{counted(part.iloc[[i]])}"
    return share, text, hover
