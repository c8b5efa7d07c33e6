"""How the rates follow the strength of an edit, in both directions, beside its control."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechmem.errors import MechmemError, listed
from mechmem.plotting.data import (
    as_array,
    as_table,
    counted,
    each_row,
    ended,
    error_bars,
    interval_in,
)
from mechmem.plotting.registry import figure_of
from mechmem.style import COLORS, GRAY, color_of, house_style


@figure_of()
def dose_response(
    dose: pd.DataFrame, *, negative: str | None = None, theme: str = "light"
) -> go.Figure:
    """Share of every outcome against alpha; left of zero the model is steered toward
    ``negative``.

    Filled points are the edit, open points on dashed lines random directions of the same norm.

    Args:
        dose: `BehaviorStudy.dose`: toward, alpha, kind (edit or control), outcome, share and ends.
        negative: The class steered to on the left side; default the first of the table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ("toward", "alpha", "kind", "outcome", *ended("share"))
    frame = as_table(dose, columns, "dose_response").copy()
    if negative is None:
        negative = str(frame["toward"].iloc[0]) if len(frame) else next(iter(COLORS))
    if len(frame) and negative not in set(frame["toward"]):
        raise MechmemError(
            f"Nothing was steered toward {negative!r}; there are {listed(set(frame['toward']))}."
        )
    frame["signed"] = np.where(frame["toward"] == negative, -1.0, 1.0) * as_array(frame["alpha"])
    # At alpha 0 both directions are the unedited model: one point is enough.
    frame = frame.drop_duplicates(["signed", "kind", "outcome"])
    fig = go.Figure()
    found = list(dict.fromkeys(frame["outcome"]))
    for kind, dash, symbol in (("control", "dash", "circle-open"), ("edit", "solid", "circle")):
        for k, outcome in enumerate(found):
            part = frame[(frame["kind"] == kind) & (frame["outcome"] == outcome)]
            part = part.sort_values("signed")
            if part.empty:
                continue
            color = color_of(str(outcome), k)
            strong = kind == "edit"
            fig.add_scatter(
                name=str(outcome) if strong else f"{outcome}, control",
                x=as_array(part["signed"]),
                y=as_array(part["share"]),
                error_y={**error_bars(part, "share"), "thickness": 1.6 if strong else 0.8},
                mode="lines+markers",
                line={"color": color, "dash": dash, "width": 2.5 if strong else 1.3},
                marker={"symbol": symbol, "size": 8 if strong else 6},
                opacity=1.0 if strong else 0.8,
                hovertext=[
                    f"<b>{kind}</b>, toward {row.toward}, alpha {row.alpha:g}<br>{outcome}: "
                    f"{interval_in(row, 'share')}<br>{counted(part.iloc[[i]])}"
                    for i, row in enumerate(each_row(part))
                ],
                hoverinfo="text",
            )
    others = [name for name in dict.fromkeys(frame["toward"]) if name != negative]
    fig.add_vline(x=0, line={"color": GRAY, "width": 1, "dash": "dot"})
    right = others[0] if others else next(name for name in COLORS if name != negative)
    fig.update_xaxes(
        title=f"← toward {negative}            alpha            toward {right} →", zeroline=False
    )
    fig.update_yaxes(title="share of the prompts", tickformat=".0%", range=[0, 1.02])
    draws = (
        f"{frame['draws'].max():.0f} random directions" if "draws" in frame else "random direction"
    )
    about = f"{counted(frame)}; lines: 95 % interval. Control: {draws}, same norm"
    return house_style(fig, theme, "How the rates follow the strength", about, 460, bottom=62)
