"""Figures of several studies: effects with intervals, behavior, and layers by relative depth."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechmem.plotting.data import (
    counted,
    each_row,
    error_bars,
    interval_in,
    percent,
    plain,
)
from mechmem.style import PALETTE, color_of, faded, house_style

ROW = 34
LINES = ("solid", "dash", "dot", "dashdot")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")


def effects_figure(effects: pd.DataFrame, theme: str) -> go.Figure | None:
    """One point with its interval per study and class steered to."""
    if effects.empty:
        return None
    fig = go.Figure()
    studies = list(dict.fromkeys(effects["study"]))
    many = effects["toward"].nunique()
    for k, (toward, rows) in enumerate(effects.groupby("toward", sort=False)):
        name = plain(toward)
        apart = 0.5 * ((k + 0.5) / many - 0.5)  # within the row of a study, so that none is covered
        fig.add_trace(
            go.Scatter(
                x=rows["beyond"],
                y=[studies.index(study) + apart for study in rows["study"]],
                error_x=error_bars(rows, "beyond"),
                mode="markers",
                name=f"toward {name}" if rows["kind"].iloc[0] == "behavior" else name,
                marker={
                    "color": color_of(str(toward), k),
                    "size": 10,
                    "symbol": SYMBOLS[k % len(SYMBOLS)],
                },
                hovertext=[
                    f"{plain(row.study)}, {name}<br>{plain(row.family)}<br>"
                    f"{interval_in(row, 'beyond')}<br>n = {row.n:,} in {row.groups:,} "
                    "groups"
                    for row in each_row(rows)
                ],
                hoverinfo="text",
            )
        )
    fig.add_vline(x=0, line={"dash": "dot", "width": 1.5, "color": "#8A8F98"})
    fig.update_xaxes(title_text="edit minus control, share of the answers", tickformat="+.0%")
    fig.update_yaxes(
        tickvals=list(range(len(studies))),
        ticktext=[plain(study) for study in studies],
        range=[len(studies) - 0.5, -0.5],
        zeroline=False,
    )
    height = 190 + ROW * len(studies) * max(many, 2) // 2
    return house_style(
        fig, theme, "How far the edit goes beyond its controls", counted(effects), height, 40
    )


def mix_figure(mix: pd.DataFrame, theme: str) -> go.Figure | None:
    """Shares of the outcomes per study, with intervals."""
    if mix.empty:
        return None
    fig = go.Figure()
    for k, (outcome, rows) in enumerate(mix.groupby("outcome", sort=False)):
        fig.add_trace(
            go.Bar(
                x=[plain(study) for study in rows["study"]],
                y=rows["share"],
                error_y=error_bars(rows, "share"),
                name=plain(outcome),
                marker={"color": color_of(str(outcome), k)},
                hovertext=[
                    f"{plain(row.study)}, {plain(outcome)}<br>"
                    f"{interval_in(row, 'share')}<br>n = {row.n:,} in {row.groups:,} "
                    "groups"
                    for row in each_row(rows)
                ],
                hoverinfo="text",
            )
        )
    fig.update_yaxes(title_text="share of the answers", tickformat=".0%", range=[0, 1.05])
    title = "What the unedited models do"
    return house_style(fig, theme, title, counted(mix), 400, 40)


def layers_figure(table: pd.DataFrame, column: str, theme: str) -> go.Figure | None:
    """A quantity along the relative depth of the residual stream, a line with a band per study."""
    if table.empty or column not in table or "stream" not in table:
        return None
    fig = go.Figure()
    for k, (study, whole) in enumerate(table.groupby("study", sort=False)):
        rows = whole[whole["stream"].isin(["resid_pre", "resid_post"])]
        if rows.empty:
            continue
        last = int(whole["layer"].max()) + 1
        depth = (rows["layer"] + (rows["stream"] == "resid_post")).to_numpy(float) / last
        order = np.argsort(depth, kind="stable")
        rows, depth = rows.iloc[order], depth[order]
        color = PALETTE[k % len(PALETTE)]
        fig.add_trace(
            go.Scatter(
                x=np.concatenate([depth, depth[::-1]]),
                y=np.concatenate([rows[f"{column}_high"], rows[f"{column}_low"][::-1]]),
                mode="lines",
                fill="toself",
                fillcolor=faded(color, 0.16),
                line={"width": 0},
                hoverinfo="skip",
                showlegend=False,
            )
        )
        fig.add_trace(
            go.Scatter(
                x=depth,
                y=rows[column],
                mode="lines+markers",
                name=plain(study),
                line={"color": color, "dash": LINES[k % len(LINES)]},
                marker={"symbol": SYMBOLS[k % len(SYMBOLS)], "size": 7},
                hovertext=[
                    f"{plain(study)}<br>{row.stream}[{row.layer}]<br>"
                    f"{interval_in(row, column, False)}<br>"
                    f"n = {row.n:,} in {row.groups:,} groups"
                    for row in each_row(rows)
                ],
                hoverinfo="text",
            )
        )
    if not fig.data:
        return None
    what = {"auroc": "Separation along the direction", "accuracy": "Accuracy of probes"}[column]
    fig.add_hline(y=0.5, line={"dash": "dot", "width": 1.5, "color": "#8A8F98"})
    fig.update_xaxes(title_text="relative depth (0: input of the first block)", tickformat=".0%")
    fig.update_yaxes(title_text="AUROC" if column == "auroc" else "accuracy, held out")
    chance = f"dotted: {percent(0.5)}" if column == "accuracy" else "dotted: guessing"
    return house_style(fig, theme, what, f"{counted(table)}; {chance}", 420, 60)
