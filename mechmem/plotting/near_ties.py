"""Whether only the undecided answers turn."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mechmem.evaluation.near_ties import NearTies
from mechmem.plotting.data import as_table, counted, each_row, ended, interval_in, plain
from mechmem.plotting.intervals import add_line
from mechmem.plotting.registry import figure_of
from mechmem.style import COLORS, GRAY, PALETTE, house_style


@figure_of(NearTies)
def near_ties(ties: NearTies | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Share of the answers that turned, against how decided they were.

    Args:
        ties: From `mechmem.evaluation.near_ties`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ("name", "kind", "margin_from", "margin_to", *ended("share"))
    frame = as_table(ties, columns, "near_ties")
    fig = go.Figure()
    for k, (name, part) in enumerate(frame.groupby("name", sort=False)):
        part = part[part["share"].notna()]
        control = (part["kind"] == "control").all()
        color = COLORS.get(str(name).removeprefix("toward "), PALETTE[k % len(PALETTE)])
        add_line(
            fig, part, x=((part["margin_from"] + part["margin_to"]) / 2).tolist(), value="share",
            name=plain(name), color=GRAY if control else color,
            dash="dash" if control else "solid",
            hover=[
                f"{plain(name)}<br>|margin| {row.margin_from:.2f} to {row.margin_to:.2f} nats<br>"
                f"turned: {interval_in(row, 'share')}<br>"
                f"{counted(part.iloc[[i]])}"
                for i, row in enumerate(each_row(part))
            ],
        )  # fmt: skip
    fig.update_xaxes(title="|answer margin| before (nats; middle of a bin)", rangemode="tozero")
    fig.update_yaxes(title="share that turned", tickformat=".0%", range=[0, 1.03])
    about = f"{counted(frame)} per bin; lines: 95 % interval"
    return house_style(fig, theme, "Do only near-ties turn?", about, 430, bottom=62)
