"""A direction read off token by token over one text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from mechmem.errors import MechmemError
from mechmem.plotting.data import as_array, plain
from mechmem.plotting.style import house_style

__all__ = ["token_projection"]


def token_projection(
    tokens: Sequence[str],
    values: Any,
    *,
    rows: Sequence[str] | None = None,
    toward: str = "generalized",
    away: str = "memorized",
    center: float = 0.0,
    theme: str = "light",
) -> go.Figure:
    """Projection on a direction at every token of a text, one row per site.

    Values are drawn as they are; take ``center`` away (the middle of the two class means, say) to
    make the color scale's white mean undecided. The memorized side is orange, whichever class the
    direction points to.

    Args:
        tokens: The tokens as text, in order.
        values: ``[token]`` or ``[row, token]``, in units of the activation.
        rows: Names of the rows, for example sites.
        toward, away: The classes of the direction; positive is ``toward``.
        center: Subtracted before drawing.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        MechmemError: When numbers of tokens, values and rows differ.
    """
    grid = np.atleast_2d(as_array(values)) - center
    names = list(rows) if rows is not None else ["projection"] * (grid.ndim and 1)
    if rows is None and len(grid) > 1:
        names = [str(k) for k in range(len(grid))]
    if grid.ndim != 2 or grid.shape[1] != len(tokens) or len(names) != len(grid):
        raise MechmemError(
            f"token_projection got {len(tokens)} tokens, values of shape {grid.shape} and "
            f"{len(names)} row names; values must be [token] or [row, token]."
        )
    # Colors follow the class, not the sign: orange stays memorized.
    turn = -1.0 if away == "memorized" or toward == "generalized" else 1.0
    shown = [plain(token) for token in tokens]
    fig = go.Figure(
        go.Heatmap(
            z=turn * grid,
            x=np.arange(len(tokens)),
            y=[plain(name) for name in names],
            customdata=[
                [
                    f"“{token}” (token {k})<br>{plain(name)}: {value:+.4g}, "
                    f"{plain(toward if value > 0 else away)} side"
                    for k, (token, value) in enumerate(zip(shown, line, strict=True))
                ]
                for name, line in zip(names, grid, strict=True)
            ],
            hovertemplate="%{customdata}<extra></extra>",
            coloraxis="coloraxis",
            xgap=1,
            ygap=1,
        )
    )
    limit = float(np.nanmax(np.abs(grid), initial=0.0)) or 1.0
    ends = [away, toward] if turn > 0 else [toward, away]
    fig.update_layout(
        coloraxis={
            "cmin": -limit,
            "cmax": limit,
            "cmid": 0,
            "colorbar": {
                "thickness": 14,
                "tickvals": [-limit, 0, limit],
                "ticktext": [
                    f"{plain(ends[0])}<br>{limit:.3g}",
                    "0",
                    f"{plain(ends[1])}<br>{limit:.3g}",
                ],
            },
        }
    )
    fig.update_xaxes(
        tickvals=np.arange(len(tokens)),
        ticktext=shown,
        tickangle=-60,
        showgrid=False,
        title="token",
    )
    fig.update_yaxes(type="category", showgrid=False)
    about = f"from {plain(away)} to {plain(toward)}, {len(tokens)} tokens"
    height = 250 + 26 * len(grid)
    return house_style(fig, theme, "Projection on the direction, token by token", about, height)
