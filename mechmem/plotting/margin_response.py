"""A switch or a dial: the answer margin against the strength of an edit."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechmem.evaluation.margin_response import MarginResponse
from mechmem.plotting.data import as_array, as_table, counted, each_row, ended, plain
from mechmem.plotting.intervals import add_band, add_line, interval_text
from mechmem.plotting.registry import figure_of
from mechmem.style import GRAY, color_of, house_style


@figure_of(MarginResponse)
def margin_response(response: MarginResponse | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Change of the answer margin, and share of the label, against the strength.

    The pale region holds the middle 80 % of the prompts; lines through points are intervals.

    Args:
        response: From `mechmem.evaluation.margin_response`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ["toward", "kind", "alpha", *ended("change")]
    columns += ["spread_low", "spread_high", *ended("share")]
    frame = as_table(response, columns, "margin_response")
    towards = list(dict.fromkeys(frame["toward"]))
    fig = make_subplots(
        2, len(towards), shared_xaxes=True, shared_yaxes=True, vertical_spacing=0.09,
        horizontal_spacing=0.04, subplot_titles=[f"toward {plain(name)}" for name in towards],
    )  # fmt: skip
    fig.update_annotations(font_size=13)
    for number, toward in enumerate(towards, 1):
        color = color_of(str(toward))
        for kind, tone, dash in (("control", GRAY, "dash"), ("edit", color, "solid")):
            part = frame[(frame["toward"] == toward) & (frame["kind"] == kind)]
            x = as_array(part["alpha"]).tolist()
            name = f"toward {toward}" if kind == "edit" else "control"
            legend = kind == "edit" or number == 1
            if kind == "edit":
                add_band(
                    fig, x=x, low=part["spread_low"], high=part["spread_high"],
                    name=f"middle 80 % of prompts, {toward}", color=color, legend=False,
                    cell={"row": 1, "col": number},
                )  # fmt: skip
            for row, value, unit in ((1, "change", " nats"), (2, "share", "")):
                texts = interval_text(part, value, unit) if row == 1 else [
                    f"{100 * r.share:.1f} % [{100 * r.share_low:.1f}, {100 * r.share_high:.1f}]"
                    for r in each_row(part)
                ]  # fmt: skip
                add_line(
                    fig, part, x=x, value=value, name=name, color=tone, dash=dash,
                    ends=(f"{value}_low", f"{value}_high"), legend=legend and row == 1,
                    hover=[
                        f"{name}, alpha {alpha:g}<br>{text}<br>{counted(part.iloc[[i]])}"
                        for i, (alpha, text) in enumerate(zip(x, texts, strict=True))
                    ],
                    cell={"row": row, "col": number},
                )  # fmt: skip
        fig.update_xaxes(title="alpha", row=2, col=number)
    fig.update_yaxes(title="margin (nats)", row=1, col=1)
    fig.update_yaxes(title="share", tickformat=".0%", range=[0, 1.03], row=2, col=1)
    fig.update_yaxes(tickformat=".0%", range=[0, 1.03], row=2)
    about = f"{counted(frame)}; lines: 95 % interval; pale: middle 80 % of the prompts"
    house_style(fig, theme, "A switch or a dial?", about, 560, bottom=40)
    return fig.update_layout(margin_t=112)
