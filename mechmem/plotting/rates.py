"""What an edit does to the rates: beside its controls, and what turned into what."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechmem.errors import MechmemError, listed
from mechmem.evaluation.rates import Rates
from mechmem.plotting.data import (
    as_array,
    as_table,
    counted,
    each_row,
    ended,
    error_bars,
    interval,
    interval_in,
    percent,
    plain,
)
from mechmem.plotting.registry import figure_of
from mechmem.style import GRAY, color_of, faded, house_style


@figure_of(Rates)
def rates_bars(
    result: Rates | object, *, family: str | None = None, theme: str = "light"
) -> go.Figure:
    """Rates with their intervals: unedited, edited, and under every control.

    Args:
        result: `Rates`, a sweep, or the saved table of one (`Rates.table`, `Sweep.test_table`).
        family: Which family of edits of a sweep; default the first, the best on validation.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        MechmemError: For a family that the sweep does not have.
    """
    tested = getattr(result, "test_table", None)
    frame = tested() if callable(tested) else as_table(result, (), "rates_bars")
    if "family" in frame.columns:
        return _sweep_bars(frame, family, theme)
    frame = as_table(frame, ("outcome", *ended("share")), "rates_bars")
    fig = go.Figure(
        go.Bar(
            x=frame["outcome"].astype(str),
            y=as_array(frame["share"]),
            error_y=error_bars(frame, "share"),
            marker_color=[color_of(str(name), k) for k, name in enumerate(frame["outcome"])],
            hovertext=[
                f"{row.outcome}: {interval_in(row, 'share')}<br>{counted(frame.iloc[[k]])}"
                for k, row in enumerate(each_row(frame))
            ],
            hoverinfo="text",
        )
    )
    edited = "change" in frame.columns
    if edited:
        fig.add_scatter(
            x=frame["outcome"].astype(str),
            y=as_array(frame["share"]) - as_array(frame["change"]),
            mode="markers",
            name="without the edit",
            marker={"symbol": "diamond-open", "size": 13, "line": {"width": 2.5}, "color": GRAY},
            hovertext=[
                f"{row.outcome}, without the edit: {percent(row.share - row.change)}<br>change "
                f"{interval_in(row, 'change')}, paired"
                for row in each_row(frame)
            ],
            hoverinfo="text",
        )
        fig.update_traces(name="with the edit", selector={"type": "bar"})
    fig.update_yaxes(title="share of the prompts", tickformat=".0%", range=[0, 1.02])
    about = f"{counted(frame)}; lines: 95 % interval over groups"
    title = "Rates under the edit" if edited else "Rates"
    return house_style(fig, theme, title, about, 400, bottom=36 if edited else 0)


def _sweep_bars(frame: pd.DataFrame, family: str | None, theme: str) -> go.Figure:
    frame = as_table(frame, ("family", "kind", "control", "toward", "n", "groups"), "rates_bars")
    frame = frame.fillna({"family": "", "toward": "", "control": ""})
    frame = frame.assign(label=frame["control"].where(frame["kind"] == "control", frame["kind"]))
    outcomes = [
        name for name in frame.columns if f"{name}_low" in frame.columns and name[:4] != "edit"
    ]
    outcomes = [name for name in outcomes if name != "change"]
    edited = frame[frame["kind"] != "unedited"]
    families = list(dict.fromkeys(edited["family"]))
    wanted = families[0] if family is None else family
    if wanted not in families:
        raise MechmemError(f"No family {wanted!r} in this sweep; there are {listed(families)}.")
    mine = edited[edited["family"] == wanted]
    classes = list(dict.fromkeys(mine["toward"]))
    fig = make_subplots(
        1,
        len(classes),
        shared_yaxes=True,
        horizontal_spacing=0.07,
        subplot_titles=[f"steered toward {name}" for name in classes],
    )
    for number, toward in enumerate(classes, 1):
        rows = pd.concat([frame[frame["kind"] == "unedited"], mine[mine["toward"] == toward]])
        order = [plain(name) for name in rows["label"]]
        # The legend takes the color of the first bar, which is to be the edit's.
        rows = pd.concat([rows[rows["kind"] == "edit"], rows[rows["kind"] != "edit"]])
        last = outcomes[-1]
        for outcome in (last, toward):
            strong = rows["kind"].isin(["edit"]).to_numpy()
            color = GRAY if outcome == last else color_of(outcome)
            fig.add_bar(
                orientation="h",
                name=outcome,
                legendgroup=outcome,
                showlegend=outcome != last or number == 1,
                y=[plain(name) for name in rows["label"]],
                x=as_array(rows[outcome]),
                error_x=error_bars(rows, outcome, f"{outcome}_low", f"{outcome}_high"),
                marker={
                    "color": [
                        color if bold or outcome == last else faded(color, 0.45) for bold in strong
                    ]
                },
                hovertext=[_bar_text(row, outcomes, rows) for row in rows.to_dict("records")],
                hoverinfo="text",
                row=1,
                col=number,
            )
        before = frame.loc[frame["kind"] == "unedited", toward]
        if len(before):
            fig.add_vline(
                x=float(before.iloc[0]),
                line={"dash": "dot", "width": 1.5, "color": GRAY},
                row=1,
                col=number,
            )
    # plotly draws the first category at the bottom.
    fig.update_yaxes(categoryorder="array", categoryarray=order[::-1])
    reach = max(float(frame[f"{name}_high"].max()) for name in (*classes, outcomes[-1]))
    fig.update_xaxes(
        tickformat=".0%",
        range=[0, min(reach + 0.04, 1.02)],
        title="share of the prompts",
        dtick=0.2,
    )
    fig.update_layout(bargap=0.3, bargroupgap=0.08)
    settings = 1 + int(mine.groupby("toward").size().max())
    about = f"{plain(wanted)}<br>" if wanted else ""
    about += f"{counted(mine)}; dotted: unedited; lines: 95 % interval"
    house_style(fig, theme, "The edit beside its controls", about, 220 + 44 * settings, bottom=40)
    return fig.update_layout(margin_t=118)


def _bar_text(row: dict[str, object], outcomes: list[str], frame: pd.DataFrame) -> str:
    lines = [f"<b>{plain(row['label'])}</b>"]
    for name in outcomes:
        low, high = row[f"{name}_low"], row[f"{name}_high"]
        lines.append(f"{name}: {interval(float(row[name]), float(low), float(high))}")  # type: ignore[arg-type]
    gap = row.get("edit_minus_control")
    if isinstance(gap, float) and np.isfinite(gap):
        ends = float(row["edit_minus_control_low"]), float(row["edit_minus_control_high"])  # type: ignore[arg-type]
        lines.append(f"edit minus this: {interval(gap, *ends)}, paired")
    return "<br>".join([*lines, counted(frame)])


@figure_of()
def transitions(rates: Rates | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """What the edit turned into what: counts of prompts, outcome before by outcome after.

    Args:
        rates: Rates under an edit, or the saved table of `Rates.transitions`.
        theme: ``"light"`` or ``"dark"``.
    """
    frame = rates.transitions if isinstance(rates, Rates) else rates
    frame = as_table(frame, (), "transitions")
    if "before" in frame.columns:
        frame = frame.set_index("before")
    counts = as_array(frame.to_numpy())
    total = counts.sum(axis=1, keepdims=True)
    share = np.divide(counts, total, out=np.zeros_like(counts), where=total > 0)
    after, before = [str(name) for name in frame.columns], [str(name) for name in frame.index]
    fig = go.Figure(
        go.Heatmap(
            z=share[::-1],
            x=after,
            y=before[::-1],
            text=[
                [f"{int(n)}<br>{percent(p)}" for n, p in zip(*row, strict=True)]
                for row in zip(counts[::-1], share[::-1], strict=True)
            ],
            texttemplate="%{text}",
            customdata=counts[::-1],
            hovertemplate="%{y} before, %{x} after<br>%{customdata:,} prompts, %{z:.1%} of the row"
            "<extra></extra>",
            coloraxis="coloraxis2",
            xgap=2,
            ygap=2,
        )
    )
    fig.update_layout(coloraxis2={"cmin": 0, "cmax": 1, "showscale": False})
    fig.update_xaxes(title="with the edit", showgrid=False)
    fig.update_yaxes(title="without the edit", showgrid=False)
    about = f"n = {int(counts.sum()):,} prompts; percentages add up along each row"
    return house_style(fig, theme, "What the edit turned into what", about, 200 + 70 * len(before))
