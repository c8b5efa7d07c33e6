"""Where the chosen neurons lie beside what chance and scale choose, and whether they hold."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechmem.analysis.consistency import SplitHalves
from mechmem.analysis.layer_distribution import LayerDistribution
from mechmem.plotting.data import as_array, as_table, counted, each_row, ended, percent
from mechmem.plotting.intervals import add_bars, interval_text
from mechmem.plotting.registry import figure_of
from mechmem.style import GRAY, PALETTE, house_style

TITLES = {
    "mean_difference": "mean difference",
    "scaled": "in units of the layer's spread",
    "correlation": "correlation (own spread)",
}
STATISTICS = {
    "overlap": "shared by both halves",
    "sign_agreement": "same direction in both",
    "rank_correlation": "rank correlation, all neurons",
}


@figure_of(LayerDistribution)
def layer_shares(shares: LayerDistribution | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Share of the chosen neurons per layer under each ranking, beside exchanged classes.

    Where a bar stays within the gray range, the ranking chooses there whatever the classes are.

    Args:
        shares: From `mechmem.layer_distribution`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ["ranking", "stream", "layer", *ended("share"), "even", "chosen"]
    columns += [*ended("shuffled")]
    frame = as_table(shares, columns, "layer_shares")
    rankings = list(dict.fromkeys(frame["ranking"]))
    fig = make_subplots(
        1,
        len(rankings),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=[TITLES.get(name, str(name)) for name in rankings],
    )
    fig.update_annotations(font_size=13)
    streams = list(dict.fromkeys(frame["stream"]))
    for number, ranking in enumerate(rankings, 1):
        part = frame[frame["ranking"] == ranking]
        labels = [
            str(row.layer) if len(streams) == 1 else f"{row.stream} {row.layer}"
            for row in each_row(part)
        ]
        cell = {"row": 1, "col": number}
        hover = [
            f"{row.stream} {row.layer}<br>{text}<br>classes exchanged: {percent(row.shuffled)} "
            f"[{100 * row.shuffled_low:.0f}, {100 * row.shuffled_high:.0f}]<br>"
            f"{counted(part.iloc[[i]], 'examples')}"
            for i, (row, text) in enumerate(
                zip(each_row(part), interval_text(part, "share", percent=True), strict=True)
            )
        ]
        add_bars(
            fig, part, x=labels, value="share", name="chosen neurons", color=PALETTE[0],
            hover=hover, legend=number == 1, cell=cell,
        )  # fmt: skip
        add_bars(
            fig, part, x=labels, value="shuffled", name="classes exchanged (95 % of draws)",
            color=GRAY, hover=hover, legend=number == 1, hollow=True, cell=cell,
        )  # fmt: skip
        fig.add_scatter(
            name="spread evenly",
            x=labels,
            y=as_array(part["even"]),
            mode="markers",
            marker={"symbol": "line-ew", "size": 30, "line": {"width": 2, "color": GRAY}},
            hoverinfo="skip",
            legendgroup="even",
            showlegend=number == 1,
            row=1,
            col=number,
        )
        title = f"layer ({streams[0]})" if len(streams) == 1 else "site"
        fig.update_xaxes(title=title, type="category", row=1, col=number)
    fig.update_yaxes(tickformat=".0%", range=[0, 1.03])
    fig.update_yaxes(title="share of the chosen", row=1, col=1)
    fig.update_layout(barmode="group", bargap=0.3)
    about = f"{frame['chosen'].iloc[0]:,} chosen by each ranking; {counted(frame, 'examples')}"
    house_style(fig, theme, "Where the chosen neurons lie, and how much of it is scale", about,
                420, bottom=40)  # fmt: skip
    return fig.update_layout(margin_t=112)


@figure_of(SplitHalves)
def split_halves(
    halves: SplitHalves | pd.DataFrame | dict[str, Any], *, theme: str = "light"
) -> go.Figure:
    """Overlap, agreement of direction and of ranks between two halves, beside exchanged classes.

    Args:
        halves: From `mechmem.split_halves`, its saved table, or several by name.
        theme: ``"light"`` or ``"dark"``.
    """
    named = halves if isinstance(halves, dict) else {"": halves}
    columns = ["statistic", *ended("mean"), "chance"]
    columns += [*ended("shuffled")]
    fig = make_subplots(
        1, 3, subplot_titles=[STATISTICS[name] for name in STATISTICS], horizontal_spacing=0.08
    )
    fig.update_annotations(font_size=13)
    about = ""
    for number, statistic in enumerate(STATISTICS, 1):
        rows = []
        for name, item in named.items():
            frame = as_table(item, columns, "split_halves")
            rows.append(frame[frame["statistic"] == statistic].assign(name=name or "neurons"))
            about = counted(frame, "examples")
        part = pd.concat(rows)
        for kind, column, color in (
            ("halves", "mean", PALETTE[0]),
            ("exchanged", "shuffled", GRAY),
        ):
            ends = (f"{column}_low", f"{column}_high")
            add_bars(
                fig, part, x=list(part["name"]), value=column,
                name="observed" if kind == "halves" else "classes exchanged", color=color,
                ends=ends, legend=number == 1, hollow=kind != "halves",
                hover=[
                    f"{row['name']}<br>{row[column]:.2f}, middle 95 % of splits "
                    f"{row[ends[0]]:.2f} to {row[ends[1]]:.2f}"
                    for _, row in part.iterrows()
                ],
                cell={"row": 1, "col": number},
            )  # fmt: skip
        fig.add_hline(
            y=float(part["chance"].iloc[0]),
            line={"color": GRAY, "width": 1, "dash": "dot"},
            row=1,
            col=number,
        )
        fig.update_xaxes(tickangle=0, row=1, col=number)
        low = -0.3 if statistic == "rank_correlation" else 0.0
        fig.update_yaxes(range=[low, 1.05], row=1, col=number)
    fig.update_layout(barmode="group")
    about = f"{about}, halved at random; lines: middle 95 % of the splits; dotted: chance"
    house_style(fig, theme, "Do both halves choose the same neurons?", about, 420, bottom=40)
    return fig.update_layout(margin_t=112)
