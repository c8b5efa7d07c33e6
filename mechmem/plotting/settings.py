"""Outcomes under changed prompts, graded answers, and sampled answers."""

from __future__ import annotations

import pandas as pd
import plotly.graph_objects as go

from mechmem.evaluation.graded import GradedAnswers
from mechmem.evaluation.prompting import Prompting
from mechmem.evaluation.sampling import Sampling
from mechmem.plotting.data import as_table, counted, each_row, ended, error_bars, plain
from mechmem.plotting.intervals import add_bars, add_line
from mechmem.plotting.registry import figure_of
from mechmem.style import COLORS, GRAY, PALETTE, color_of, house_style


@figure_of(Prompting)
def prompting(settings: Prompting | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Shares of the outcomes under rewritten prompts and under edits, on the same items.

    Args:
        settings: From `mechmem.evaluation.prompting`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ("name", "kind", "outcome", *ended("share"))
    frame = as_table(settings, columns, "prompting")
    fig = go.Figure()
    for k, (outcome, part) in enumerate(frame.groupby("outcome", sort=False)):
        fig.add_bar(
            name=str(outcome),
            y=[f"{plain(row.name)} ({row.kind})" for row in each_row(part)],
            x=part["share"].to_numpy(float),
            error_x=error_bars(part, *ended("share")),
            orientation="h",
            marker_color=color_of(str(outcome), k),
            hovertext=[
                f"<b>{plain(row.name)}</b>: {outcome} {100 * row.share:.1f} % "
                f"[{100 * row.share_low:.1f}, {100 * row.share_high:.1f}]"
                f"<br>{counted(part.iloc[[i]])}"
                for i, row in enumerate(each_row(part))
            ],
            hoverinfo="text",
        )
    fig.update_xaxes(title="share of the items", tickformat=".0%", range=[0, 1.03])
    fig.update_yaxes(autorange="reversed", type="category")
    fig.update_layout(barmode="group", bargap=0.25)
    about = f"{counted(frame, 'items')}, the same for all; lines: 95 % interval"
    rows = len(set(frame["name"]))
    return house_style(
        fig, theme, "Changed prompts beside edits", about, 210 + 58 * rows, bottom=40
    )


@figure_of(GradedAnswers)
def graded_answers(graded: GradedAnswers | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """How much of each answer the completions of every outcome hold, beside chance.

    Args:
        graded: From `mechmem.evaluation.graded_answers`, or its saved `summary`.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ["outcome", "answer", *ended("similarity")]
    columns += [*ended("chance"), "n"]
    table = graded.summary() if isinstance(graded, GradedAnswers) else graded
    frame = as_table(table, columns, "graded_answers")
    frame = frame[frame["n"] > 0]
    fig = go.Figure()
    for answer, part in frame.groupby("answer", sort=False):
        labels = [f"{plain(row.outcome)}<br>n = {row.n:,}" for row in each_row(part)]
        for value, name, hollow in (
            ("similarity", f"to the {answer} answer", False),
            ("chance", f"chance: another's {answer} answer", True),
        ):
            low, high = f"{value}_low", f"{value}_high"
            add_bars(
                fig, part, x=labels, value=value, name=name, ends=(low, high), hollow=hollow,
                color=COLORS.get(str(answer), GRAY),
                hover=[
                    f"<b>{plain(row['outcome'])}</b>, {name}<br>{row[value]:.2f} "
                    f"[{row[low]:.2f}, {row[high]:.2f}], n = {row['n']:,}"
                    for _, row in part.iterrows()
                ],
            )  # fmt: skip
    fig.update_xaxes(title="classified as", type="category")
    fig.update_yaxes(title="similarity of the completion", range=[0, 1.05])
    fig.update_layout(barmode="group")
    about = "1: the answer letter by letter; lines: 95 % interval over groups"
    return house_style(fig, theme, "How much of each answer was written", about, 430, bottom=62)


@figure_of(Sampling)
def sampling(sampled: Sampling | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """How much a prompt's draws agree, against the temperature.

    Args:
        sampled: From `mechmem.evaluation.sampling`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    names = {
        "agreement": "two draws come out alike",
        "as_greedy": "a draw comes out as greedy does",
        "both": "prompts that show both behaviors",
    }
    columns = ["temperature", "draws", *names]
    columns += [f"{name}_{end}" for name in names for end in ("low", "high")]
    frame = as_table(sampled, columns, "sampling").sort_values("temperature")
    fig = go.Figure()
    for k, (value, name) in enumerate(names.items()):
        low, high = f"{value}_low", f"{value}_high"
        add_line(
            fig, frame, x=frame["temperature"].tolist(), value=value, name=name,
            color=PALETTE[k], ends=(low, high),
            hover=[
                f"{name}, temperature {row['temperature']:g}<br>{100 * row[value]:.1f} % "
                f"[{100 * row[low]:.1f}, {100 * row[high]:.1f}]"
                for _, row in frame.iterrows()
            ],
        )  # fmt: skip
    fig.update_xaxes(title="temperature", rangemode="tozero")
    fig.update_yaxes(title="share", tickformat=".0%", range=[0, 1.03])
    about = f"{counted(frame)}, {frame['draws'].iloc[0]} draws each; lines: 95 % interval"
    return house_style(fig, theme, "The same prompt again, sampled", about, 420, bottom=62)
