"""A score against the projection on the direction, with how closely the two go together."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechmem.analysis.correlation import ScoreCorrelation
from mechmem.errors import MechmemError, listed
from mechmem.models.sites import Site
from mechmem.plotting.data import (
    as_array,
    as_table,
    counted,
    each_row,
    ended,
    error_bars,
    interval,
    plain,
)
from mechmem.plotting.registry import figure_of
from mechmem.plotting.state_maps import class_color
from mechmem.style import GRAY, PALETTE, faded, house_style


@figure_of(ScoreCorrelation)
def score_correlation(
    result: ScoreCorrelation | pd.DataFrame,
    site: tuple[str, int] | None = None,
    *,
    theme: str = "light",
) -> go.Figure:
    """One site's scores against projections, and the correlation at every site beside it.

    Name the site before you look: the best of many layers is better than it should be.

    Args:
        result: From `mechmem.score_correlation`, or its saved table.
        site: Which site's points to draw; may be left out when there is one.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        MechmemError: For a site that is not there, or none named among several.
    """
    names = (*ended("spearman"), *ended("pearson"))
    columns = ("stream", "layer", "id", "class", "score", "projection", "random_low", "random_high")
    frame = as_table(result, (*columns, *names), "score_correlation").copy()
    frame["class"] = frame["class"].fillna("")
    sites = [
        Site(*pair) for pair in dict.fromkeys(zip(frame["stream"], frame["layer"], strict=True))
    ]
    if (site is None and len(sites) > 1) or (site is not None and site not in sites):
        raise MechmemError(
            f"score_correlation draws the points of one site; pass site= as one of "
            f"{listed([tuple(one) for one in sites])}."
        )
    one = sites[0] if site is None else Site(*site)
    mine = frame[(frame["stream"] == one.stream) & (frame["layer"] == one.layer)]
    several = len(sites) > 1
    fig = (
        make_subplots(cols=2 if several else 1, horizontal_spacing=0.12) if several else go.Figure()
    )
    called = plain(mine["score_name"].iloc[0]) if "score_name" in mine.columns else "score"
    for k, label in enumerate(dict.fromkeys(mine["class"])):
        part = mine[mine["class"] == label]
        fig.add_scatter(
            name=plain(label) or "items",
            x=as_array(part["projection"]),
            y=as_array(part["score"]),
            mode="markers",
            marker={"size": 7, "opacity": 0.7, "color": class_color(str(label), k)},
            hovertext=[
                f"{plain(row.id)}<br>{called} {row.score:.3g}<br>projection {row.projection:.3g}"
                for row in each_row(part)
            ],
            hoverinfo="text",
        )
    fig.update_xaxes(title=f"projection at {one.stream} {one.layer}")
    fig.update_yaxes(title=called)
    if several:
        _by_site(fig, frame, sites)
    row = mine.iloc[0]
    about = (
        f"Spearman {_estimate(row, 'spearman')}, Pearson {_estimate(row, 'pearson')}; "
        f"{counted(mine, 'items')}, unseen in fitting"
    )
    title = f"{called[:1].upper()}{called[1:]} against the projection"
    return house_style(fig, theme, title, about, 440, bottom=46)


def _estimate(row: pd.Series, name: str) -> str:
    return interval(row[name], row[f"{name}_low"], row[f"{name}_high"], as_percent=False)


def _by_site(fig: go.Figure, frame: pd.DataFrame, sites: list[Site]) -> None:
    """Both correlations at every site, with the band of random directions."""
    rows = frame.drop_duplicates(["stream", "layer"])
    one = len({site.stream for site in sites}) == 1
    labels = [str(site.layer) if one else str(site) for site in sites]
    fig.add_scatter(
        name="random directions (95 %, Spearman)",
        x=[*labels, *labels[::-1]],
        y=np.append(as_array(rows["random_high"]), as_array(rows["random_low"])[::-1]),
        fill="toself",
        mode="lines",
        fillcolor=faded(GRAY, 0.25),
        line={"width": 0, "color": GRAY},
        hoverinfo="skip",
        row=1,
        col=2,
    )
    for k, name in enumerate(("spearman", "pearson")):
        fig.add_scatter(
            name=name.capitalize(),
            x=labels,
            y=as_array(rows[name]),
            error_y=error_bars(rows, name, f"{name}_low", f"{name}_high"),
            mode="lines+markers",
            line={"color": PALETTE[k], "width": 2.2, "dash": ("solid", "dot")[k]},
            marker={"size": 7},
            row=1,
            col=2,
        )
    title = f"layer ({sites[0].stream})" if one else "site"
    fig.update_xaxes(title=title, type="category", row=1, col=2)
    fig.update_yaxes(title="correlation", row=1, col=2)
