"""Where the neurons are that differ between the behaviors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechmem.analysis.neurons import NeuronScores, NeuronSet
from mechmem.errors import MechmemError, listed
from mechmem.plotting.data import as_array, as_table, each_row, percent, plain
from mechmem.plotting.registry import figure_of
from mechmem.style import GRAY, PALETTE, house_style

STATISTICS = {
    "mean_difference": "mean difference",
    "correlation": "correlation r",
    "effect_size": "effect size d",
}
MAX_COLUMNS = 256
CLIP_QUANTILE = 0.998

_Row = tuple[str, int, str, np.ndarray]


@figure_of(NeuronScores)
def neuron_map(
    scores: NeuronScores | pd.DataFrame, *, statistic: str = "mean_difference", theme: str = "light"
) -> go.Figure:
    """Layer by neuron, colored by how a neuron differs between the two classes.

    Orange neurons are higher when the first class (memorized) happens, blue ones when the second
    does. Where there are more neurons than fit, a cell is the strongest of several neighbors and
    says which.

    Args:
        scores: Neuron scores, or their saved table.
        statistic: ``"mean_difference"``, ``"correlation"`` or ``"effect_size"``.
        theme: ``"light"`` or ``"dark"``.

    Raises:
        MechmemError: For an unknown statistic.
    """
    if statistic not in STATISTICS:
        raise MechmemError(f"Unknown statistic {statistic!r}; allowed are {listed(STATISTICS)}.")
    rows = _rows(scores, statistic)
    streams = list(dict.fromkeys(stream for stream, *_ in rows))
    positions = list(dict.fromkeys(position for _, _, position, _ in rows))
    labels = [
        " ".join(
            ([stream] if len(streams) > 1 else [])
            + [str(layer)]
            + ([position] if len(positions) > 1 else [])
        )
        for stream, layer, position, _ in rows
    ]
    width = max(len(values) for *_, values in rows)
    step = -(-width // MAX_COLUMNS)
    cells, hover = [], []
    for stream, layer, position, values in rows:
        strongest = [
            start + int(np.argmax(np.abs(values[start : start + step])))
            for start in range(0, len(values), step)
        ]
        gap = -(-width // step) - len(strongest)
        cells.append(np.append(values[strongest], np.full(gap, np.nan)))
        hover.append(
            [f"{stream} {layer}, {position}<br>neuron {k}: {values[k]:+.4g}" for k in strongest]
            + [""] * gap
        )
    grid = np.stack(cells)
    known = np.abs(grid[np.isfinite(grid)])
    top = float(known.max(initial=0.0)) or 1.0
    limit = float(np.quantile(known, CLIP_QUANTILE)) if known.size else top
    # One huge coordinate, which large models have, must not turn the rest of the map blank.
    limit = limit if 0 < limit < top / 2 else top
    fig = go.Figure(
        go.Heatmap(
            z=grid,
            x=np.arange(grid.shape[1]) * step,
            y=labels,
            customdata=hover,
            hovertemplate="%{customdata}<extra></extra>",
            hoverongaps=False,
            coloraxis="coloraxis",
        )
    )
    clipped = f"<br>(clipped, largest {top:.3g})" if limit < top else ""
    fig.update_layout(
        coloraxis={
            "cmin": -limit,
            "cmax": limit,
            "cmid": 0,
            "colorbar": {"title": f"{STATISTICS[statistic]}{clipped}", "thickness": 14},
        }
    )
    fig.update_xaxes(title="neuron" if step == 1 else f"neuron (strongest of {step} per cell)")
    fig.update_yaxes(
        title=f"layer ({streams[0]})" if len(streams) == 1 else "site",
        type="category",
        showgrid=False,
    )
    counts = _counts(scores)
    subtitle = f"{' minus '.join(map(plain, counts))}; {sum(len(v) for *_, v in rows):,} neurons"
    if any(counts.values()):
        told = ", ".join(f"{n:,} {plain(name)}" for name, n in counts.items())
        subtitle += f", from {told}"
    height = 230 + min(max(22 * len(rows), 120), 640)
    return house_style(fig, theme, "Which neurons differ between the behaviors", subtitle, height)


def distribution_table(
    chosen: NeuronSet | NeuronScores, *, top: float = 0.05, by: str = "correlation"
) -> pd.DataFrame:
    """How many of the chosen neurons lie at each site, beside the share of all neurons there.

    Args:
        chosen: A chosen set, or scores of which the highest are chosen.
        top, by: As in `NeuronScores.top`; used for scores only.
    """
    neurons = chosen.top(top, by=by) if isinstance(chosen, NeuronScores) else chosen
    scores = neurons.scores
    rows = []
    for site, count in neurons.per_site().items():
        here = scores.mean_difference[site].numel()
        rows.append(
            {
                "stream": site.stream,
                "layer": site.layer,
                "chosen": count,
                "neurons": here,
                "share": count / len(neurons),
                "expected": here / scores.total,
            }
        )
    return pd.DataFrame(rows)


@figure_of(NeuronSet)
def layer_distribution(
    chosen: NeuronSet | NeuronScores | pd.DataFrame,
    *,
    top: float = 0.05,
    by: str = "correlation",
    theme: str = "light",
) -> go.Figure:
    """In which layers the chosen neurons lie, against an even spread.

    Args:
        chosen: A chosen set, scores of which the highest are chosen, or a saved
            `distribution_table`.
        top, by: As in `NeuronScores.top`; used for scores only.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ("stream", "layer", "chosen", "neurons", "share", "expected")
    table = (
        distribution_table(chosen, top=top, by=by)
        if isinstance(chosen, (NeuronSet, NeuronScores))
        else chosen
    )
    frame = as_table(table, columns, "layer_distribution")
    streams = list(dict.fromkeys(frame["stream"]))
    labels = [
        str(row.layer) if len(streams) == 1 else f"{row.stream} {row.layer}"
        for row in each_row(frame)
    ]
    hover = [
        f"{row.stream} {row.layer}<br>{row.chosen:,} of the {frame['chosen'].sum():,} chosen "
        f"({percent(row.share)})<br>spread evenly: {percent(row.expected)}"
        for row in each_row(frame)
    ]
    fig = go.Figure()
    fig.add_bar(
        name="chosen neurons",
        x=labels,
        y=as_array(frame["share"]),
        width=0.55,
        marker_color=PALETTE[0],
        text=[f"{count:,}" for count in frame["chosen"]],
        textposition="outside",
        cliponaxis=False,
        hovertext=hover,
        hoverinfo="text",
    )
    fig.add_scatter(
        name="spread evenly over all neurons",
        x=labels,
        y=as_array(frame["expected"]),
        mode="markers",
        marker={
            "symbol": "line-ew",
            "size": max(14, 420 // len(frame)),
            "line": {"width": 2.5, "color": GRAY},
        },
        hovertext=hover,
        hoverinfo="text",
    )
    highest = max(frame["share"].max(), frame["expected"].max())
    fig.update_yaxes(title="share of the chosen", tickformat=".0%", range=[0, highest * 1.15])
    fig.update_xaxes(
        title=f"layer ({streams[0]})" if len(streams) == 1 else "site", type="category"
    )
    total = int(frame["neurons"].sum())
    subtitle = f"{frame['chosen'].sum():,} chosen of {total:,} scored; a count, no estimate"
    return house_style(fig, theme, "Where the chosen neurons lie", subtitle, 380, bottom=36)


def _rows(scores: NeuronScores | pd.DataFrame, statistic: str) -> list[_Row]:
    if isinstance(scores, NeuronScores):
        return [
            (site.stream, site.layer, position, as_array(values[k]))
            for site, values in getattr(scores, statistic).items()
            for k, position in enumerate(scores.columns)
        ]
    keys = ["stream", "layer", "position"]
    frame = as_table(scores, [*keys, "neuron", statistic], "neuron_map")
    return [
        (str(name[0]), int(name[1]), str(name[2]), as_array(part[statistic]))
        for name, part in _grouped(frame, keys)
    ]


def _grouped(
    frame: pd.DataFrame, keys: Sequence[str]
) -> list[tuple[tuple[str, int, str], pd.DataFrame]]:
    return list(frame.sort_values("neuron", kind="stable").groupby(list(keys), sort=False))  # type: ignore[arg-type]


def _counts(scores: NeuronScores | pd.DataFrame) -> dict[str, int]:
    """The two classes and how many examples each had; 0 where that is not known."""
    if isinstance(scores, NeuronScores):
        known = dict(scores.provenance.counts)
        return {name: known.get(name, 0) for name in (scores.first, scores.second)}
    if not {"first", "second", "n_first", "n_second"} <= set(scores.columns):
        return {"memorized": 0, "generalized": 0}
    row = scores.iloc[0]
    return {row["first"]: int(row["n_first"]), row["second"]: int(row["n_second"])}
