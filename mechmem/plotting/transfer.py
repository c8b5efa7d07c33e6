"""Transfer matrices: fitted on one set, tested on another."""

from __future__ import annotations

import numpy as np
import pandas as pd
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from mechmem.evaluation.axes import MEASURES, AxisComparison
from mechmem.evaluation.transfer import EditTransfer, ProbeTransfer
from mechmem.plotting.data import as_table, counted, each_row, p_value, plain
from mechmem.plotting.registry import figure_of
from mechmem.style import house_style


@figure_of(ProbeTransfer, EditTransfer)
def transfer_matrix(
    transfer: ProbeTransfer | EditTransfer | pd.DataFrame, *, theme: str = "light"
) -> go.Figure:
    """Rows: fitted on; columns: tested on. The diagonal is held out too.

    Probes show the accuracy beyond that of exchanged classes in the box under the pointer; edits
    show the change of the share beyond the control's.

    Args:
        transfer: From `mechmem.evaluation.probe_transfer` or `edit_transfer`, or the saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    edits = isinstance(transfer, EditTransfer) or (
        isinstance(transfer, pd.DataFrame) and "beyond" in transfer.columns
    )
    value = "beyond" if edits else "accuracy"
    columns = ["fitted_on", "tested_on", value]
    frame = as_table(transfer, columns, "transfer_matrix")
    panels = list(dict.fromkeys(frame["toward"])) if edits else [""]
    fig = make_subplots(
        1, len(panels), horizontal_spacing=0.06, shared_yaxes=True,
        subplot_titles=[f"toward {plain(name)}" for name in panels] if edits else None,
    )  # fmt: skip
    for number, panel in enumerate(panels, 1):
        part = frame[frame["toward"] == panel] if edits else frame
        rows = list(dict.fromkeys(part["fitted_on"]))
        names = list(dict.fromkeys(part["tested_on"]))
        grid = np.full((len(rows), len(names)), np.nan)
        text = [["" for _ in names] for _ in rows]
        hover = [["" for _ in names] for _ in rows]
        for k, row in enumerate(each_row(part)):
            i, j = rows.index(row.fitted_on), names.index(row.tested_on)
            grid[i, j] = getattr(row, value)
            where = f"fitted on {plain(row.fitted_on)}<br>tested on {plain(row.tested_on)}<br>"
            if edits:
                text[i][j] = (
                    f"{100 * row.beyond:+.0f}<br>[{100 * row.beyond_low:+.0f}, "
                    f"{100 * row.beyond_high:+.0f}]"
                )
                hover[i][j] = (
                    f"{where}share {100 * row.share:.1f} %, change {100 * row.change:+.1f} points"
                    f"<br>beyond the control {100 * row.beyond:+.1f} "
                    f"[{100 * row.beyond_low:+.1f}, {100 * row.beyond_high:+.1f}]"
                    f"<br>{counted(part.iloc[[k]])}"
                )
            else:
                text[i][j] = (
                    f"{100 * row.accuracy:.0f} %<br>[{100 * row.accuracy_low:.0f}, "
                    f"{100 * row.accuracy_high:.0f}]"
                )
                hover[i][j] = (
                    f"{where}accuracy {100 * row.accuracy:.1f} %<br>classes exchanged "
                    f"{100 * row.shuffled:.1f} %<br>{counted(part.iloc[[k]])}"
                )
        fig.add_heatmap(
            z=grid, x=[plain(name) for name in names], y=[plain(name) for name in rows],
            text=text, texttemplate="%{text}", customdata=hover,
            hovertemplate="%{customdata}<extra></extra>", coloraxis="coloraxis3",
            xgap=3, ygap=3, row=1, col=number,
        )  # fmt: skip
        fig.update_xaxes(title="tested on", showgrid=False, row=1, col=number)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    fig.update_yaxes(title="fitted on", row=1, col=1)
    limit = float(np.nanmax(np.abs(frame["beyond"]))) or 1.0 if edits else 1.0
    title = "points beyond<br>the control" if edits else "accuracy"
    fig.update_layout(
        coloraxis3={
            "cmin": -limit if edits else 0.0,
            "cmax": limit,
            "cmid": 0.0 if edits else 0.5,
            "colorbar": {"title": title, "thickness": 14, "tickformat": ".0%"},
        }
    )
    what = "Does an edit carry over?" if edits else "Does a probe carry over?"
    about = f"{counted(frame)}; 95 % intervals in brackets; the diagonal is held out by group"
    sets = frame["fitted_on"].nunique()
    house_style(fig, theme, what, about, 230 + 80 * sets)
    return fig.update_layout(margin_t=112)


@figure_of(AxisComparison)
def axis_matrices(comparison: AxisComparison | pd.DataFrame, *, theme: str = "light") -> go.Figure:
    """Cosine, area and change of every two sets, beside what refits reach.

    Args:
        comparison: From `mechmem.evaluation.compare_axes`, or the saved table.
        theme: ``"light"`` or ``"dark"``.
    """
    columns = ["fitted_on", "tested_on", *(f"{name}_p" for name in MEASURES), *MEASURES]
    frame = as_table(comparison, columns, "axis_matrices")
    names = list(dict.fromkeys(frame["fitted_on"]))
    titles = {
        "cosine": "cosine", "auroc": "AUROC on held-out groups", "change": "change of margin, nats"
    }  # fmt: skip
    fig = make_subplots(
        1, len(MEASURES), shared_yaxes=True, horizontal_spacing=0.04,
        subplot_titles=[titles[name] for name in MEASURES],
    )  # fmt: skip
    for number, name in enumerate(MEASURES, 1):
        middle = 0.5 if name == "auroc" else 0.0
        most = {"cosine": 1.0, "auroc": 0.5}.get(name) or float(
            np.nanmax(np.abs([*frame[name], 0]))
        )
        grid = np.full((len(names), len(names)), np.nan)
        text = [["" for _ in names] for _ in names]
        hover = [["" for _ in names] for _ in names]
        for row in each_row(frame):
            value = getattr(row, name)
            if np.isnan(value):
                continue
            i, j = names.index(row.fitted_on), names.index(row.tested_on)
            low, high, p = (getattr(row, f"{name}_{end}") for end in ("null_low", "null_high", "p"))
            grid[i, j] = (value - middle) / (most or 1.0)
            text[i][j] = f"{value:.2f}<br>{p_value(p)}"
            n = f"{row.items} items" if name == "change" else f"n = {row.n} in {row.groups} groups"
            hover[i][j] = (
                f"fitted on {plain(row.fitted_on)}<br>tested on {plain(row.tested_on)}<br>{name} "
                f"{value:.3f}<br>refits {low:.3f} to {high:.3f}<br>{p_value(p)}<br>{n}"
            )
        shown = [plain(one) for one in names]
        fig.add_heatmap(
            z=grid, x=shown, y=shown, text=text, texttemplate="%{text}", customdata=hover,
            hovertemplate="%{customdata}<extra></extra>", coloraxis="coloraxis", xgap=3, ygap=3,
            hoverongaps=False, row=1, col=number,
        )  # fmt: skip
        fig.update_xaxes(title="tested on", showgrid=False, row=1, col=number)
    fig.update_yaxes(autorange="reversed", showgrid=False)
    fig.update_yaxes(title="fitted on", row=1, col=1)
    fig.update_layout(coloraxis={"cmin": -1, "cmax": 1, "showscale": False})
    about = (
        f"{counted(frame)}; p: the largest pair of each of {int(frame['shuffles'].iloc[0])} refits"
    )
    house_style(fig, theme, "Are the axes one thing?", about, 230 + 80 * len(names))
    return fig.update_layout(margin_t=112)
