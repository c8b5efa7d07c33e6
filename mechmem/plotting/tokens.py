"""A direction read off token by token over one text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechmem.analysis.token_projections import TokenProjections
from mechmem.errors import MechmemError, listed
from mechmem.plotting.data import as_array, as_table, plain
from mechmem.plotting.registry import figure_of
from mechmem.style import house_style

COLUMNS = ("id", "part", "token", "from_middle", "projection", "stream", "layer", "toward", "away")
AS_MEMORIZED = ("memorized", "memory", "known")


@figure_of(TokenProjections)
def token_projection(
    tokens: TokenProjections | pd.DataFrame | Sequence[str],
    values: Any = None,
    *,
    prompt: str | None = None,
    rows: Sequence[str] | None = None,
    toward: str = "generalized",
    away: str = "memorized",
    center: float = 0.0,
    theme: str = "light",
) -> go.Figure:
    """Projection on a direction at every token of a text, one row per site.

    A result is drawn counted from the middle of its class means, where those are known. Values of
    your own are drawn as they are; take ``center`` away (the middle of the two class means, say) to
    make the color scale's white mean undecided. The memorized side is orange, whichever class the
    direction points to.

    Args:
        tokens: From `mechmem.project_tokens`, or its saved table; or the tokens as text, in order.
        values: With tokens as text: ``[token]`` or ``[row, token]``, in units of the activation.
        prompt: Of a result, the id of the prompt to draw; the first one by default.
        rows: Names of the rows, for example sites.
        toward, away: The classes of the direction; positive is ``toward``. A result knows its own.
        center: Subtracted before drawing.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        MechmemError: When numbers of tokens, values and rows differ, or the prompt is not there.
    """
    bounds: list[int] = []
    about = ""
    if isinstance(tokens, (TokenProjections, pd.DataFrame)):
        mine = _of_prompt(as_table(tokens, COLUMNS, "token_projection"), prompt)
        first = mine.iloc[0]
        known = bool(mine["from_middle"].notna().all())
        values = mine["from_middle" if known else "projection"]
        tokens, toward, away = (
            mine["token"].fillna("").astype(str).tolist(),
            first.toward,
            first.away,
        )
        rows = [f"{first.stream} {first.layer}"]
        bounds = (np.flatnonzero(mine["part"] == "completion")[:1]).tolist()
        about = f"prompt {plain(first.id)}; 0: {'middle of the class means' if known else 'none'}; "
    grid = np.atleast_2d(as_array(values)) - center
    names = list(rows) if rows is not None else ["projection"] * (grid.ndim and 1)
    if rows is None and len(grid) > 1:
        names = [str(k) for k in range(len(grid))]
    if grid.ndim != 2 or grid.shape[1] != len(tokens) or len(names) != len(grid):
        raise MechmemError(
            f"token_projection got {len(tokens)} tokens, values of shape {grid.shape} and "
            f"{len(names)} row names; values must be [token] or [row, token]."
        )
    shown = [plain(token) for token in tokens]
    fig = go.Figure(
        go.Heatmap(
            z=turn(toward, away) * grid,
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
    color_scale(fig, float(np.nanmax(np.abs(grid), initial=0.0)) or 1.0, toward, away)
    for start in bounds:
        fig.add_vline(x=start - 0.5, line={"color": "#8A8F98", "width": 2, "dash": "dot"})
        about += f"completion from token {start}; "
    fig.update_xaxes(
        tickvals=np.arange(len(tokens)),
        ticktext=shown,
        tickangle=-60,
        showgrid=False,
        title="token",
    )
    fig.update_yaxes(type="category", showgrid=False)
    about += f"{len(tokens)} tokens"
    height = 260 + 26 * len(grid)
    return house_style(fig, theme, "Projection on the direction, token by token", about, height)


def _of_prompt(table: pd.DataFrame, prompt: str | None) -> pd.DataFrame:
    wanted = table["id"].iloc[0] if prompt is None else prompt
    mine = table[table["id"].astype(str) == str(wanted)]
    if mine.empty:
        raise MechmemError(
            f"token_projection has no prompt {prompt!r}; there are "
            f"{listed(table['id'].unique().tolist(), 5)}."
        )
    return mine.reset_index(drop=True)


def turn(toward: str, away: str) -> float:
    """Colors follow the class, not the sign: orange stays memorized."""
    return -1.0 if away in AS_MEMORIZED or toward in ("generalized", "context") else 1.0


def color_scale(fig: go.Figure, limit: float, toward: str, away: str) -> None:
    """White at 0, orange the memorized side."""
    ends = [away, toward] if turn(toward, away) > 0 else [toward, away]
    fig.update_layout(
        coloraxis={
            "cmin": -limit,
            "cmax": limit,
            "cmid": 0,
            "colorbar": {
                "thickness": 14,
                "tickvals": [-limit, 0, limit],
                "ticktext": [
                    f"{limit:.3g}, {plain(ends[0])}",
                    "0",
                    f"{limit:.3g}, {plain(ends[1])}",
                ],
            },
        }
    )
