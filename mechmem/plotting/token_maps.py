"""A number at every layer and token of one prompt; what lies in the band of chance is blank."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechmem.evaluation.token_maps import TokenMap
from mechmem.plotting.data import as_array, as_table, each_row, plain
from mechmem.plotting.registry import figure_of
from mechmem.plotting.tokens import color_scale, turn
from mechmem.style import house_style

COLUMNS = (
    "stream", "layer", "position", "token", "value", "band_low", "band_high", "toward", "away",
    "unit", "control",
)  # fmt: skip


@figure_of(TokenMap)
def token_map(found: TokenMap | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Layers over tokens. Blank is no farther out than random directions are; the memorized side is
    orange, whichever class the direction points to.

    Args:
        found: From `projection_map` or `margin_map`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    frame = as_table(found, COLUMNS, "token_map")
    first = frame.iloc[0]
    sites = list(dict.fromkeys(zip(frame["stream"], frame["layer"], strict=True)))
    tokens = frame.drop_duplicates("position").sort_values("position")
    ids, names = tokens["position"].tolist(), [plain(one) for one in tokens["token"].astype(str)]
    outside = (frame["value"] < frame["band_low"]) | (frame["value"] > frame["band_high"])
    shown = frame.assign(
        z=turn(first.toward, first.away) * as_array(frame["value"]) * outside,
        hover=[
            f"<b>{row.stream} {row.layer}</b>, “{plain(row.token)}” (token {row.position})<br>"
            f"{row.value:+.3g} {first.unit}, {plain(row.toward if row.value > 0 else row.away)} "
            f"side<br>{row.control}s: {row.band_low:+.3g} to {row.band_high:+.3g}"
            f"{'' if beyond else '; no farther than those'}"
            for row, beyond in zip(each_row(frame), outside, strict=True)
        ],
        site=[
            f"{stream} {layer}"
            for stream, layer in zip(frame["stream"], frame["layer"], strict=True)
        ],
    )
    order = [f"{stream} {layer}" for stream, layer in sites]
    z, hover = (
        shown.pivot(index="site", columns="position", values=name).loc[order, ids]
        for name in ("z", "hover")
    )
    fig = go.Figure(
        go.Heatmap(
            z=z.to_numpy(float),
            x=ids,
            y=order,
            customdata=hover.to_numpy(),
            hovertemplate="%{customdata}<extra></extra>",
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
        )
    )
    limit = float(np.nanmax(np.abs(z.to_numpy(float)), initial=0.0)) or 1.0
    color_scale(fig, limit, str(first.toward), str(first.away))
    fig.update_xaxes(tickvals=ids, ticktext=names, tickangle=-60, showgrid=False, title="token")
    fig.update_yaxes(type="category", showgrid=False)
    about = f"in {first.unit}; blank: within the middle 95 % of {first.control}s"
    height = 230 + 22 * len(order)
    return house_style(fig, theme, "Where it shows, layer by token", about, height)
