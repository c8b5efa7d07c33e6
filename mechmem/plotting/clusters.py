"""Which neurons vary together, and whether shifts of them add up."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechmem.analysis.clusters import NeuronClusters
from mechmem.evaluation.interaction import Interaction
from mechmem.plotting.data import as_array, as_table, counted, each_row, ended, plain
from mechmem.plotting.intervals import add_bars, interval_text
from mechmem.plotting.registry import figure_of
from mechmem.style import COLORS, GRAY, house_style

SUMS = ("joint", "sum of parts", "interaction")
MAX_PARTS = 12
NEURON = ("cluster", "stream", "layer", "neuron")
CORRELATIONS = (
    *NEURON, *(f"other_{name}" for name in NEURON),
    "r", "within", "between", "within_shuffled", "n", "groups",
)  # fmt: skip


@figure_of(NeuronClusters)
def neuron_clusters(clusters: NeuronClusters | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Correlation of the chosen neurons within the classes, on examples that made no cluster.

    Args:
        clusters: From `mechmem.neuron_clusters`, or its saved `NeuronClusters.correlations`.
        theme: ``"light"`` or ``"dark"``.
    """
    table = clusters.correlations() if isinstance(clusters, NeuronClusters) else clusters
    frame = as_table(table, CORRELATIONS, "neuron_clusters")
    # The first row of neurons has every pair: itself with each of the others, in their order.
    first = frame.iloc[0]
    members = frame[(frame[list(NEURON)] == first[list(NEURON)]).all(axis=1)]
    labels = members["other_cluster"].to_numpy()
    names = [
        f"{row.other_layer}:{row.other_neuron}"
        if row.other_stream == "resid_post"
        else f"{row.other_stream}[{row.other_layer}]:{row.other_neuron}"
        for row in each_row(members)
    ]
    grid = np.empty((len(names), len(names)))
    above = np.triu_indices(len(names))
    grid[above] = grid[above[::-1]] = as_array(frame["r"])
    hover = [
        [
            f"{a} (cluster {i}) with {b} (cluster {j})<br>r = {value:+.2f}"
            for b, j, value in zip(names, labels, row, strict=True)
        ]
        for a, i, row in zip(names, labels, grid, strict=True)
    ]
    at = list(range(len(names)))
    fig = go.Figure(
        go.Heatmap(
            z=grid,
            x=at,
            y=at,
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
            coloraxis="coloraxis",
        )
    )
    start = 0
    sizes = [int(size) for size in np.bincount(labels)]
    for size in sizes:
        if size > 1:
            fig.add_shape(
                type="rect", x0=start - 0.5, x1=start + size - 0.5, y0=start - 0.5,
                y1=start + size - 0.5, line={"color": "#D49A00", "width": 2.5},
            )  # fmt: skip
        start += size
    fig.update_layout(
        coloraxis={
            "cmin": -1, "cmax": 1, "cmid": 0,
            "colorbar": {"title": "r within<br>the classes", "thickness": 14},
        }
    )  # fmt: skip
    ticks = {"tickvals": at, "ticktext": names, "showgrid": False}
    show = ticks if len(names) <= 40 else {"showticklabels": False, "showgrid": False}
    fig.update_xaxes(title="neuron (layer:coordinate)", **show)
    fig.update_yaxes(autorange="reversed", **show)
    several = sum(size > 1 for size in sizes)
    text = (
        f"{several} clusters of the other half; mean |r| within {first['within']:.2f}, "
        f"across {first['between']:.2f}, exchanged {first['within_shuffled']:.2f}; "
        f"n = {first['n']} / {first['groups']} groups"
    )
    return house_style(fig, theme, "Which chosen neurons vary together", text, 560)


@figure_of(Interaction)
def interaction(effects: Interaction | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """What the parts of a shift do singly, and what they do at once.

    Args:
        effects: From `mechmem.evaluation.interaction`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ("toward", "kind", "part", "neurons", *ended("effect"))
    frame = as_table(effects, columns, "interaction")
    towards = list(dict.fromkeys(frame["toward"]))
    parts = [name for name in dict.fromkeys(frame["part"]) if name not in SUMS]
    edit = frame[frame["kind"] == "edit"].groupby("part")["effect"].apply(lambda v: v.abs().max())
    shown = sorted(parts, key=lambda name: -float(edit[name]))[:MAX_PARTS]
    order = [*shown, *SUMS]
    fig = make_subplots(
        1, len(towards), shared_yaxes=True, horizontal_spacing=0.04,
        subplot_titles=[f"toward {plain(name)}" for name in towards],
    )  # fmt: skip
    fig.update_annotations(font_size=13)
    for number, toward in enumerate(towards, 1):
        for kind, color in (("edit", COLORS.get(str(toward), GRAY)), ("control", GRAY)):
            mine = frame[(frame["toward"] == toward) & (frame["kind"] == kind)]
            rows = mine.set_index("part").loc[[k for k in order if k in set(mine["part"])]]
            rows = rows.reset_index()
            name = f"toward {toward}" if kind == "edit" else "values exchanged"
            add_bars(
                fig, rows, x=[plain(part) for part in rows["part"]], value="effect", name=name,
                color=color, legend=kind == "edit" or number == 1, hollow=kind != "edit",
                hover=[
                    f"<b>{plain(part)}</b>, {count} neurons, {name}<br>{text} nats"
                    for part, count, text in zip(
                        rows["part"], rows["neurons"], interval_text(rows, "effect"), strict=True
                    )
                ],
                cell={"row": 1, "col": number},
            )  # fmt: skip
        fig.add_vline(
            x=len(shown) - 0.5, line={"color": GRAY, "width": 1, "dash": "dot"}, row=1, col=number
        )
        fig.update_xaxes(type="category", tickangle=-40, row=1, col=number)
    fig.update_yaxes(title="change of the margin (nats)", row=1, col=1)
    left = f"; the {len(shown)} strongest of {len(parts)} parts" if len(shown) < len(parts) else ""
    about = f"{counted(frame)}; interaction = joint minus sum{left}; lines: 95 % interval"
    house_style(fig, theme, "Do the parts of a shift act alone or together?", about, 470, bottom=40)
    return fig.update_layout(margin_t=112, barmode="group")
