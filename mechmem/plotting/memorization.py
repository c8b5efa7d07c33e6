"""Two scores of memorization against the direction, and what moving along it does to them."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechmem.plotting.data import (
    as_array,
    as_table,
    each_row,
    ended,
    error_bars,
    interval_in,
    plain,
)
from mechmem.plotting.registry import figure_of
from mechmem.style import GRAY, PALETTE, house_style

SCORES = ("perturbational", "counterfactual")


@figure_of()
def memorization(
    result: Any, changes: pd.DataFrame | None = None, *, theme: str = "light"
) -> go.Figure:
    """Per item both scores against its projection, and the mean change of both under edits.

    Args:
        result: A `MemorizationStudy`, or its saved table of items.
        changes: Its saved table of changes, when ``result`` is a table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ("group", "kind", "projection", "counterfactual_low", "counterfactual_high", *SCORES)
    items = as_table(result, columns, "memorization")
    if changes is None and not isinstance(result, pd.DataFrame):
        changes = result.changes()
    fig = make_subplots(
        cols=3 if changes is not None else 2, horizontal_spacing=0.09,
        subplot_titles=["perturbational", "counterfactual", "mean change under edits"],
    )  # fmt: skip
    fig.update_annotations(font_size=13)
    for column, score in enumerate(SCORES, start=1):
        for k, kind in enumerate(dict.fromkeys(items["kind"])):
            part = items[items["kind"] == kind]
            fig.add_scatter(
                name=plain(kind),
                legendgroup=str(kind),
                showlegend=column == 1,
                x=as_array(part["projection"]),
                y=as_array(part[score]),
                # Only the counterfactual score of an item is an estimate with an interval.
                error_y=None if column == 1 else {**error_bars(part, score), "thickness": 0.8},
                mode="markers",
                marker={"size": 8, "opacity": 0.75, "color": PALETTE[k % len(PALETTE)]},
                hovertext=[
                    f"{plain(row.group)}, {plain(row.kind)}<br>{score} {getattr(row, score):.2f}"
                    f"{_ends(row) * (column - 1)}"
                    f"<br>projection {row.projection:.2f}"
                    for row in each_row(part)
                ],
                hoverinfo="text",
                row=1,
                col=column,
            )
        fig.update_xaxes(title="projection", row=1, col=column)
    fig.update_yaxes(title="score of the item", row=1, col=1)
    if changes is not None:
        _changes(fig, changes)
    about = f"{len(items)} items that the direction was not fitted on; bars: 95 % intervals"
    title = "Two kinds of memorization and the direction"
    return house_style(fig, theme, title, about, 440, bottom=46).update_layout(margin_t=110)


def _ends(row: Any) -> str:
    return f" [{row.counterfactual_low:.2f}, {row.counterfactual_high:.2f}]"


def _changes(fig: go.Figure, changes: pd.DataFrame) -> None:
    frame = as_table(
        changes,
        ("score", "edit", "kind", *ended("change"), "n"),
        "memorization",
    )
    overall = frame[frame["kind"] == "all"]
    for k, score in enumerate(SCORES):
        part = overall[overall["score"] == score]
        fig.add_bar(
            name=f"change of {score}",
            x=[plain(name).replace(" ", "<br>") for name in part["edit"]],
            y=as_array(part["change"]),
            error_y=error_bars(part, "change"),
            marker={"color": (GRAY, PALETTE[4])[k]},
            hovertext=[
                f"{score}, {plain(row.edit)}<br>{interval_in(row, 'change', False)}, n {row.n:.0f}"
                for row in each_row(part)
            ],
            hoverinfo="text",
            row=1,
            col=3,
        )
