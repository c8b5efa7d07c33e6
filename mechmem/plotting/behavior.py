"""What the model did: shares of the outcomes, and how sure it was."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechmem.analysis.intervals import group_mean
from mechmem.errors import MechmemError
from mechmem.evaluation.behavior import Observations
from mechmem.plotting.data import (
    as_array,
    as_table,
    counted,
    each_row,
    ended,
    error_bars,
    interval_in,
    percent,
    plain,
)
from mechmem.plotting.registry import figure_of
from mechmem.style import COLORS, color_of, house_style

_ROW = ("behavior", "group")
BINS = 40


def mix_table(
    observed: Observations | Mapping[str, Observations] | pd.DataFrame,
) -> pd.DataFrame:
    """Share of every outcome per set of prompts, with 95 % intervals over groups.

    Args:
        observed: Observations, several by name, or a saved `Observations.table` (in which an
            outcome that never occurred is not known).
    """
    parts: dict[str, Observations | pd.DataFrame] = (
        dict(observed) if isinstance(observed, Mapping) else {"prompts": observed}
    )
    rows = []
    for name, part in parts.items():
        frame = as_table(part, _ROW, "behavior_mix")
        allowed = part.allowed if isinstance(part, Observations) else _order(frame["behavior"])
        for outcome in allowed:
            share = group_mean(
                (frame["behavior"] == outcome).to_numpy(float),
                frame["group"].astype(str).tolist(),
                kind="share",
            )
            rows.append(
                {
                    "set": name,
                    "outcome": outcome,
                    **share.row("share"),
                }
            )
    return pd.DataFrame(rows)


@figure_of()
def behavior_mix(
    observed: Observations | Mapping[str, Observations] | pd.DataFrame, *, theme: str = "light"
) -> go.Figure:
    """How often each outcome happened, per set of prompts.

    Args:
        observed: Observations, several by name, or a saved table of `mix_table` or of
            `Observations.table`.
        theme: ``"light"`` or ``"dark"``.
    """
    if isinstance(observed, pd.DataFrame) and "share" in observed.columns:
        columns = ("set", "outcome", *ended("share"))
        frame = as_table(observed, columns, "behavior_mix")
    else:
        frame = mix_table(observed)
    fig = go.Figure()
    for k, (outcome, part) in enumerate(frame.groupby("outcome", sort=False)):
        fig.add_bar(
            name=str(outcome),
            x=[plain(name) for name in part["set"]],
            y=as_array(part["share"]),
            error_y=error_bars(part, "share"),
            marker_color=color_of(str(outcome), k),
            text=[percent(value) for value in part["share"]],
            textposition=["inside" if value > 0.06 else "outside" for value in part["share"]],
            insidetextanchor="start",
            insidetextfont={"color": "white"},
            textangle=0,
            hovertext=[
                f"<b>{plain(row.set)}</b>: {outcome}<br>{interval_in(row, 'share')}"
                f"<br>{counted(part.iloc[[i]])}"
                for i, row in enumerate(each_row(part))
            ],
            hoverinfo="text",
        )
    fig.update_yaxes(
        title="share of the prompts",
        tickformat=".0%",
        range=[0, min(float(frame["share_high"].max()) + 0.08, 1.02)],
    )
    about = f"{counted(frame)}; lines: 95 % interval over groups"
    return house_style(fig, theme, "What the model does, unedited", about, 400, bottom=36)


@figure_of(Observations)
def margins(observed: Observations | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """How sure the model is of the answer it gives, by behavior; flips below.

    The margin is the log-probability of the memorized answer minus that of the generalized one.

    Args:
        observed: Observations with margins, or their saved table.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        MechmemError: When no prompt has a margin.
    """
    frame = as_table(observed, (*_ROW, "margin"), "margins")
    values = as_array(frame["margin"])
    if not np.isfinite(values).any():
        raise MechmemError(
            "No prompt has an answer margin: prompts need `memorized` and `generalized`, and "
            "observe(..., margins=True)."
        )
    first, second = _answers(observed, frame)
    edges = np.histogram_bin_edges(values[np.isfinite(values)], BINS)
    flips = _flip_rows(frame, (first, second))
    panels = {"all prompts": np.arange(len(frame)), "flips only": flips}
    panels = {name: rows for name, rows in panels.items() if len(rows)}
    titles = [f"{name}, n = {len(rows):,}" for name, rows in panels.items()]
    fig = make_subplots(
        len(panels), 1, shared_xaxes=True, vertical_spacing=0.16, subplot_titles=titles
    )
    fig.update_annotations(font_size=13)
    for number, rows in enumerate(panels.values(), 1):
        for k, outcome in enumerate(_order(frame["behavior"])):
            mine = values[rows][(frame["behavior"].to_numpy()[rows] == outcome)]
            counts, _ = np.histogram(mine[np.isfinite(mine)], edges)
            fig.add_bar(
                name=outcome,
                x=(edges[:-1] + edges[1:]) / 2,
                y=counts,
                width=np.diff(edges),
                marker={"color": color_of(outcome, k), "line": {"width": 0}},
                opacity=0.75,
                legendgroup=outcome,
                showlegend=number == 1,
                hovertext=[
                    f"{outcome}: {count} of {len(mine)}<br>margin {a:.2f} to {b:.2f} nats"
                    for count, a, b in zip(counts, edges[:-1], edges[1:], strict=True)
                ],
                hoverinfo="text",
                row=number,
                col=1,
            )
        fig.update_yaxes(title="prompts", row=number, col=1)
    fig.add_vline(x=0, line={"dash": "dot", "width": 1.5, "color": COLORS["other"]})
    fig.update_xaxes(
        title=f"← {second} likelier      answer margin (nats)      {first} likelier →",
        row=len(panels),
        col=1,
    )
    fig.update_layout(barmode="overlay", bargap=0)
    subtitle = f"log p({first} answer) − log p({second} answer), n = {len(frame):,} prompts"
    height = 210 + 150 * len(panels)
    house_style(fig, theme, "How close the two answers are", subtitle, height, bottom=36)
    return fig.update_layout(margin_t=106)


def _order(behaviors: pd.Series) -> list[str]:
    """Outcomes as the library orders them, unknown ones after."""
    found = set(behaviors.astype(str))
    return [name for name in COLORS if name in found] + sorted(found - set(COLORS))


FLIPPED = (("memorized", "generalized"), ("known", "context"), ("correct", "wrong"))


def _answers(observed: Observations | pd.DataFrame, frame: pd.DataFrame) -> tuple[str, str]:
    """The two answers whose margin it is; of a saved table, the pair that the library knows."""
    if isinstance(observed, Observations):
        first, second = observed.behaviors if observed.reading == "text" else observed.allowed[:2]
        return first, second
    by_choice = "reading" in frame and bool((frame["reading"] == "choice").any())
    shown, known = set(frame["behavior"]), FLIPPED if by_choice else FLIPPED[:2]
    return next((pair for pair in known if shown & set(pair)), FLIPPED[0])


def _flip_rows(frame: pd.DataFrame, answers: tuple[str, str]) -> np.ndarray:
    """Rows of pairs (first with second of a group, third with fourth, ...) that came out both
    ways."""
    rows: list[int] = []
    behaviors = frame["behavior"].to_numpy()
    for members in frame.groupby("group", sort=False).indices.values():
        for one, other in zip(members[::2], members[1::2], strict=False):
            if {behaviors[one], behaviors[other]} == set(answers):
                rows += [int(one), int(other)]
    return np.array(rows, dtype=int)
