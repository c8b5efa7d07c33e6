"""What an edit costs, what training costs, and effects over models."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechmem.evaluation.models_compared import EffectByModel, ModelComparison
from mechmem.evaluation.side_effects import SideEffects
from mechmem.plotting.data import as_array, as_table, counted, each_row, ended, error_bars, plain
from mechmem.plotting.intervals import add_line
from mechmem.plotting.registry import figure_of
from mechmem.style import COLORS, GRAY, PALETTE, house_style

MEASURES = {
    "kl": "KL from unedited<br>(nats)",
    "accuracy": "accuracy,<br>clean items",
    "answer_perplexity": "perplexity,<br>right answer",
    "text_perplexity": "perplexity,<br>neutral text",
}
SHARE_AXIS = {"tickformat": ".0%", "range": [-0.06, 1.06]}


@figure_of(SideEffects)
def side_effects(costs: SideEffects | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Every measure in a panel: unedited, the edit in both directions, and its controls.

    Args:
        costs: From `mechmem.side_effects`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ("kind", "toward", "control", "measure", *ended("value"))
    frame = as_table(costs, columns, "side_effects").fillna({"toward": "", "control": ""})
    frame = frame.assign(label=[_label(row) for row in each_row(frame)])
    found = [name for name in MEASURES if name in set(frame["measure"])]
    fig = make_subplots(1, len(found), shared_yaxes=True, horizontal_spacing=0.08)
    for number, measure in enumerate(found, 1):
        part = frame[frame["measure"] == measure]
        colors = [
            GRAY if row.kind == "control" else COLORS.get(row.toward, PALETTE[0])
            for row in each_row(part)
        ]
        _points(fig, part, part["label"], "value", number, colors)
        title = {"text": MEASURES[measure], "font": {"size": 12.5}}
        fig.update_xaxes(title=title, nticks=4, tickangle=0, row=1, col=number)
        if measure == "accuracy":
            fig.update_xaxes(SHARE_AXIS, tickvals=[0, 0.5, 1], row=1, col=number)
        if (
            part["value_low"].notna().any()
            and measure.endswith("perplexity")
            and part["value_high"].max() > 50
        ):
            fig.update_xaxes(type="log", tickvals=_few(part), row=1, col=number)
    fig.update_yaxes(autorange="reversed")
    about = f"{counted(frame)}; lines: 95 % interval over groups"
    rows = len(set(frame["label"]))
    house_style(fig, theme, "What the edit costs elsewhere", about, 210 + 40 * rows)
    return fig.update_layout(margin_l=20)


@figure_of(ModelComparison)
def model_accuracy(models: ModelComparison | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Accuracy of several models on the same items, and the surprise at the right answer.

    Args:
        models: From `mechmem.evaluation.compare_models`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ["model", *ended("accuracy")]
    columns += [*ended("surprise")]
    frame = as_table(models, columns, "model_accuracy")
    fig = make_subplots(1, 2, shared_yaxes=True, horizontal_spacing=0.06)
    for number, value in enumerate(("accuracy", "surprise"), 1):
        _points(fig, frame, frame["model"], value, number, [PALETTE[0]] * len(frame))
    fig.update_xaxes(SHARE_AXIS, title="accuracy", nticks=5, row=1, col=1)
    fig.update_xaxes(title="−log p of the right answer (nats)", nticks=5, row=1, col=2)
    fig.update_yaxes(autorange="reversed")
    about = f"{counted(frame)}, the same for all; lines: 95 % interval over items"
    house_style(fig, theme, "What the models know of the clean items", about, 200 + 42 * len(frame))
    return fig.update_layout(margin_l=20)


@figure_of(EffectByModel)
def effect_by_model(effects: EffectByModel | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Change of the share steered to, against the number of weights, beside the control's.

    Args:
        effects: From `mechmem.evaluation.effect_by_model`, or its saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ["model", "parameters", "toward", *ended("change")]
    columns += [*ended("control")]
    frame = as_table(effects, columns, "effect_by_model").sort_values("parameters")
    fig = go.Figure()
    for k, (toward, part) in enumerate(frame.groupby("toward", sort=False)):
        first = k == 0
        for value, color, dash in (
            ("control", GRAY, "dash"),
            ("change", COLORS.get(str(toward), PALETTE[0]), "solid"),
        ):
            name = f"toward {toward}" if value == "change" else f"control, {toward}"
            low, high = f"{value}_low", f"{value}_high"
            add_line(
                fig, part, x=(part["parameters"] * (0.98 if first else 1.02)).tolist(),
                value=value, name="control" if value == "control" else plain(name),
                color=color, dash=dash, ends=(low, high), legend=value == "change" or first,
                hover=[
                    f"<b>{plain(row['model'])}</b>, {row['parameters']:,} weights<br>{plain(name)}"
                    f": {100 * row[value]:+.1f} [{100 * row[low]:+.1f}, {100 * row[high]:+.1f}] "
                    f"points<br>{counted(part.iloc[[i]])}"
                    for i, (_, row) in enumerate(part.iterrows())
                ],
            )  # fmt: skip
            fig.data[-1].update(mode="markers")
    fig.add_hline(y=0, line={"color": GRAY, "width": 1, "dash": "dot"})
    sizes = sorted(set(frame["parameters"]))
    fig.update_xaxes(
        title="weights", type="log", tickvals=sizes, ticktext=[f"{size:,}" for size in sizes]
    )
    fig.update_yaxes(title="change of the share", tickformat="+.0%")
    about = f"{len(set(frame['model']))} models; {counted(frame)}; lines: 95 % interval"
    return house_style(fig, theme, "Does the effect change with size?", about, 440, bottom=62)


def _few(part: pd.DataFrame) -> list[float]:
    """At most three round numbers on a logarithmic axis."""
    low, high = np.log10(
        [part[["value_low", "value"]].min().min(), part[["value_high", "value"]].max().max()]
    )
    lowest, highest = 10**low, 10**high
    steps: tuple[tuple[int, ...], ...] = ((1, 2, 5), (1, 3), (1,))
    for within in steps:
        marks = [
            m * 10.0**k for k in range(int(np.floor(low)), int(np.ceil(high)) + 1) for m in within
        ]
        shown = [mark for mark in marks if 0.9 * lowest <= mark <= 1.1 * highest]
        if len(shown) <= 3:
            return shown
    return shown[:: -(-len(shown) // 3)]


def _label(row: Any) -> str:
    """A row's words on the axis."""
    if row.kind == "unedited":
        return "unedited"
    edit = f"toward {row.toward}" if row.toward else "edit"
    if row.kind == "edit":
        return edit
    return f"{row.control}, {edit}" if row.toward else str(row.control)


def _points(
    fig: go.Figure,
    frame: pd.DataFrame,
    names: pd.Series[str],
    value: str,
    number: int,
    colors: Sequence[str],
) -> None:
    low, high = f"{value}_low", f"{value}_high"
    fig.add_scatter(
        x=as_array(frame[value]),
        y=[plain(name) for name in names],
        error_x=error_bars(frame, value, low, high),
        mode="markers",
        marker={"size": 10, "color": list(colors)},
        hovertext=[
            f"<b>{plain(name)}</b><br>{v:.4g} [{a:.4g}, {b:.4g}]<br>{counted(frame.iloc[[i]])}"
            for i, (name, v, a, b) in enumerate(
                zip(names, frame[value], frame[low], frame[high], strict=True)
            )
        ],
        hoverinfo="text",
        showlegend=False,
        row=1,
        col=number,
    )
