"""From result objects to what plotly can draw: arrays, tables, error bars, hover texts."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechmem.errors import MechmemError, listed


def as_array(values: Any) -> np.ndarray:
    """Float64 NumPy of a tensor of any precision and device, gradients aside, or of a sequence."""
    if isinstance(values, torch.Tensor):
        return values.detach().to("cpu", torch.float64).numpy()
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise MechmemError(f"values must be numbers, got {values!r:.80}; give an array.") from error


def as_table(result: Any, columns: Iterable[str], figure: str) -> pd.DataFrame:
    """The table of a result, or the saved table itself.

    Raises:
        MechmemError: For something else, an empty table, or one without the columns.
    """
    frame = result if isinstance(result, pd.DataFrame) else None
    if frame is None and callable(getattr(result, "table", None)):
        frame = result.table()
    wanted = list(columns)
    if not isinstance(frame, pd.DataFrame):
        raise MechmemError(
            f"{figure} draws a result object or its saved table with the columns "
            f"{listed(wanted)}, got {type(result).__name__}."
        )
    missing = [name for name in wanted if name not in frame.columns]
    if missing:
        raise MechmemError(
            f"{figure} needs the columns {listed(wanted)}; missing are {listed(missing)} in a "
            f"table with {listed(frame.columns)}."
        )
    if frame.empty:
        raise MechmemError(
            f"{figure} has nothing to draw: the table is empty; give it one with rows."
        )
    return frame


def each_row(frame: pd.DataFrame) -> list[Any]:
    """Rows as named tuples."""
    return list(frame.itertuples())


def error_bars(frame: pd.DataFrame, value: str, low: str = "", high: str = "") -> dict[str, Any]:
    """Plotly's asymmetric error bars from interval ends, by default those of the column."""
    low, high = low or f"{value}_low", high or f"{value}_high"
    return {
        "type": "data",
        "symmetric": False,
        "array": _reach(as_array(frame[high]) - as_array(frame[value])),
        "arrayminus": _reach(as_array(frame[value]) - as_array(frame[low])),
        "thickness": 1.4,
        "width": 4,
    }


def percent(share: float) -> str:
    """``0.523`` as ``52.3 %``."""
    return f"{100 * share:.1f} %"


def p_value(p: float) -> str:
    """``p = 0.03``; what is smaller than 0.001 is said to be."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.2g}"


def interval(value: float, low: float, high: float, as_percent: bool = True) -> str:
    """A number with its interval in words of a hover box."""
    if as_percent:
        return f"{percent(value)} [{100 * low:.1f}, {100 * high:.1f}]"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def interval_in(row: Any, name: str, as_percent: bool = True) -> str:
    """The same of one number of a row, ``name`` with ``name_low`` and ``name_high``."""
    value, low, high = (float(getattr(row, column)) for column in ended(name))
    return interval(value, low, high, as_percent)


def ended(*names: str) -> tuple[str, ...]:
    """Columns of numbers with their intervals: ``x, x_low, x_high`` for every name."""
    return tuple(f"{name}{end}" for name in names for end in ("", "_low", "_high"))


def counted(frame: pd.DataFrame, noun: str = "prompts") -> str:
    """``n = 640 prompts in 40 groups`` for a table that says so; the range where rows differ."""
    if "n" not in frame.columns:
        return ""
    text = f"n = {_range(frame['n'])} {noun}"
    if "groups" in frame.columns:
        text += f" in {_range(frame['groups'])} groups"
    return text


def plain(text: object) -> str:
    """Text that plotly shows as it is: no markup, no control characters."""
    visible = "".join(
        ch if ch.isprintable() else {"\n": "↵", "\t": "→"}.get(ch, "�") for ch in str(text)
    )
    return html.escape(visible, quote=False)


def site_axis(frame: pd.DataFrame) -> tuple[dict[str, tuple[np.ndarray, list[str]]], str]:
    """How sites lie along an axis: row numbers and tick labels per line, and the axis title.

    The input of block 0 followed by one stream, which are the states of a residual stream in
    order, make one line; otherwise every stream is a line of its own over the layers.
    """
    streams = list(dict.fromkeys(frame["stream"]))
    layers = frame["layer"].to_numpy()
    if (
        len(streams) == 2
        and list(frame["stream"]).count("resid_pre") == 1
        and frame["stream"].iloc[0] == "resid_pre"
        and layers[0] == 0
    ):
        labels = ["input", *(str(layer) for layer in layers[1:])]
        title = f"layer ({streams[1]}; “input” is the state that enters layer 0)"
        return {streams[1]: (np.arange(len(frame)), labels)}, title
    lines = {}
    for stream in streams:
        rows = np.flatnonzero((frame["stream"] == stream).to_numpy())
        lines[str(stream)] = (rows, [str(layer) for layer in layers[rows]])
    return lines, f"layer ({streams[0]})" if len(streams) == 1 else "layer"


def _range(values: pd.Series[Any]) -> str:
    low, high = int(min(values)), int(max(values))
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _reach(values: np.ndarray) -> np.ndarray:
    """Not below 0; where there is no interval, one NaN like another, whatever its sign bit."""
    return np.where(np.isnan(values), np.nan, np.maximum(values, 0))
