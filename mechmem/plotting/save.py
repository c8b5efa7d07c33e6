"""Figures on disk: pages that work offline, data, and pictures."""

from __future__ import annotations

import base64
import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go

from mechmem.errors import ArtifactError, listed
from mechmem.style import TOOLBAR
from mechmem.writing import csv_text, draft_in, write_text

PICTURES = ("png", "svg", "pdf")
FORMATS = ("html", "json", "csv", *PICTURES)
PLOTLY_JS = ("inline", "shared")


def figure_data(fig: go.Figure) -> pd.DataFrame:
    """What a figure draws as one long table: trace, x, y, and value or interval if it has one."""
    frames = []
    for number, trace in enumerate(fig.data):
        name = trace.name or f"trace {number}"
        if trace.type == "heatmap":
            z = np.asarray(trace.z, dtype=float)
            x = np.asarray(trace.x if trace.x is not None else np.arange(z.shape[1]))
            y = np.asarray(trace.y if trace.y is not None else np.arange(z.shape[0]))
            columns = {"x": np.tile(x, len(y)), "y": np.repeat(y, len(x)), "value": z.ravel()}
        else:
            columns = {"x": np.asarray(trace.x), "y": np.asarray(trace.y)}
            for axis in ("x", "y"):
                bars = getattr(trace, f"error_{axis}", None)
                if bars is not None and bars.array is not None:
                    middle = np.asarray(columns[axis], dtype=float)
                    columns["low"] = middle - np.asarray(bars.arrayminus, dtype=float)
                    columns["high"] = middle + np.asarray(bars.array, dtype=float)
        frames.append(pd.DataFrame({"trace": name, **columns}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def save_figure(
    fig: go.Figure,
    path: str | Path,
    *,
    plotlyjs: str = "inline",
    width: int = 900,
    scale: float = 2.0,
) -> Path:
    """Write a figure; the suffix says as what.

    Args:
        fig: Any plotly figure.
        path: ``.html`` (opens offline), ``.json`` (plotly's own), ``.csv`` (the numbers drawn), or
            ``.png``, ``.svg``, ``.pdf`` (need kaleido and a browser).
        plotlyjs: For HTML: ``"inline"`` (one file, about 5 MB) or ``"shared"`` (a small file beside
            one ``plotly.min.js`` per folder).
        width: Pixels of a picture, where the figure has no width of its own.
        scale: Pixel density of a PNG.

    Returns:
        The path.

    Raises:
        ArtifactError: For an unknown suffix, a folder that cannot be written, or a picture without
            kaleido or a browser.
    """
    target = Path(path)
    kind = target.suffix.lower().removeprefix(".")
    if kind in PICTURES:
        _pictures([fig], [target], width, scale)
        return target
    if kind == "html":
        return _html(fig, target, plotlyjs)
    if kind == "json":
        return write_text(target, str(fig.to_json()) + "\n")
    if kind == "csv":
        return write_text(target, csv_text(figure_data(fig)))
    raise ArtifactError(
        f"A figure cannot be written as {target.name!r}; end the name in one of "
        f"{listed('.' + name for name in FORMATS)}."
    )


def save_figures(
    figures: Mapping[str, go.Figure],
    folder: str | Path,
    suffix: str = "png",
    *,
    width: int = 900,
    scale: float = 2.0,
) -> list[Path]:
    """Write several figures by name; pictures in one batch, which starts the browser only once.

    Raises:
        ArtifactError: As `save_figure`.
    """
    kind = suffix.lower().removeprefix(".")
    paths = [Path(folder) / f"{name}.{kind}" for name in figures]
    if kind in PICTURES:
        _pictures(list(figures.values()), paths, width, scale)
        return paths
    options: dict[str, Any] = {"plotlyjs": "shared"} if kind == "html" else {}
    for fig, path in zip(figures.values(), paths, strict=True):
        save_figure(fig, path, **options)
    return paths


def _html(fig: go.Figure, target: Path, plotlyjs: str) -> Path:
    if plotlyjs not in PLOTLY_JS:
        raise ArtifactError(
            f"plotlyjs must be one of {listed(PLOTLY_JS)} (both open offline), got {plotlyjs!r}."
        )
    if plotlyjs == "shared":
        from plotly.offline import get_plotlyjs

        write_text(target.with_name("plotly.min.js"), get_plotlyjs())
    own = hashlib.sha256(str(fig.to_json()).encode()).hexdigest()[:16]
    page = fig.to_html(
        include_plotlyjs=True if plotlyjs == "inline" else "directory",
        config=dict(TOOLBAR),
        div_id=f"figure-{own}",  # plotly's is random: the same figure must be the same file
    )
    # Plotly writes every `<` of the data as an escape, so these scripts are its own.
    scripts = re.findall(r"<script[^>]*>(.*?)</script>", page, flags=re.DOTALL)
    beside = "'self' file:" if plotlyjs == "shared" else ""
    return write_text(target, page.replace("<head>", f"<head>{page_policy(scripts, beside)}", 1))


def page_policy(scripts: Iterable[str], beside: str = "") -> str:
    """A tag for the head of a page: these scripts run, no other does, and nothing is fetched.

    Styles may be anywhere, since plotly makes its own; a style neither runs nor fetches here.

    Args:
        scripts: Their text, exactly as it stands between the tags.
        beside: What else may run, in the words of a content security policy.
    """
    hashes = [
        f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
        for text in dict.fromkeys(scripts)
        if text
    ]
    allowed = " ".join([*hashes, *beside.split()]) or "'none'"
    return (
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; '
        f"script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:; "
        "base-uri 'none'; form-action 'none'\">"
    )


def _pictures(figures: list[go.Figure], paths: list[Path], width: int, scale: float) -> None:
    import plotly.io

    sizes = [(fig.layout.width or width, fig.layout.height or 450) for fig in figures]
    widths, heights = map(list, zip(*sizes, strict=True))
    # Drawn beside the target and moved there, so that a failure leaves what was there.
    with draft_in(paths[0].parent, "figures") as draft:
        drafts = [draft / path.name for path in paths]
        try:
            plotly.io.write_images(figures, drafts, width=widths, height=heights, scale=scale)
        except OSError:
            raise
        except Exception as error:
            raise ArtifactError(
                f"Pictures are drawn by kaleido with a Chrome or Chromium: {_reason(error)}. "
                "Install them with `pip install 'mechmem[figures]'` and `plotly_get_chrome` (or "
                "your system's chromium package), or write .html, .json or .csv, which need "
                "nothing."
            ) from error
        for made, path in zip(drafts, paths, strict=True):
            os.replace(made, path)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
