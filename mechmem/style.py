"""The house style: one palette, two themes. Everything a theme changes lives in its template.

Traces carry only colors that read on white and on near-black, so a page can change the theme of a
drawn figure by exchanging the template.
"""

from __future__ import annotations

import plotly.graph_objects as go

from mechmem.errors import MechmemError, did_you_mean, listed

GRAY = "#8A8F98"
COLORS = {
    "memorized": "#DB6B1E",
    "generalized": "#2F83CE",
    "other": GRAY,
    "correct": "#159A78",
    "wrong": "#B85C9E",
    "unparsed": GRAY,
    "undecided": GRAY,
    "known": "#DB6B1E",
    "context": "#2F83CE",
}
"""Fixed color of every outcome, the same in all figures; orange and blue differ for every eye."""

PALETTE = ("#7B62B8", "#159A78", "#B85C9E", "#A8842C", "#4C8C96", "#8A6D5A")
"""For series that are not an outcome."""

_INK = {
    "light": {"paper": "#ffffff", "text": "#1f2328", "soft": "#59636e", "grid": "#e6e8eb"},
    "dark": {"paper": "#14171c", "text": "#e6e8eb", "soft": "#a3abb5", "grid": "#2b3138"},
}
_DIVERGING = {
    "light": ["#15508C", "#7FB2DC", "#F5F5F5", "#EFAB79", "#A9430A"],
    "dark": ["#6DB8F5", "#2F6594", "#20242B", "#96501F", "#FFA05C"],
}
_SCORE = {
    "light": ["#6B2C78", "#C2A5CF", "#F5F5F5", "#8FCB93", "#1B7837"],
    "dark": ["#C58BD3", "#6E4379", "#20242B", "#2F6B3B", "#6CCB7F"],
}
_SEQUENTIAL = {"light": ["#F6F4FA", "#4F2E86"], "dark": ["#20242B", "#BCA3F2"]}
THEMES = tuple(_INK)
"""The names of the two themes, `"light"` and `"dark"`."""
TOOLBAR = {
    "displaylogo": False, "responsive": True,
    "modeBarButtons": [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
}  # fmt: skip
"""Of a drawn figure. Its buttons are named, since Plotly's own row offers to upload the figure."""


def color_of(outcome: str, index: int = 0) -> str:
    """The fixed color of an outcome; others take the palette's by number."""
    return COLORS.get(outcome, PALETTE[index % len(PALETTE)])


def faded(color: str, alpha: float) -> str:
    """``#rrggbb`` as a translucent CSS color."""
    red, green, blue = (int(color[k : k + 2], 16) for k in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def template(theme: str) -> go.layout.Template:
    """The plotly template of a theme; it is set on figures, never registered globally.

    Raises:
        MechmemError: For an unknown theme.
    """
    if theme not in _INK:
        raise MechmemError(
            f"Unknown theme {theme!r}; there are {listed(THEMES)}.{did_you_mean(theme, THEMES)}"
        )
    ink = _INK[theme]
    axis = {
        "gridcolor": ink["grid"],
        "linecolor": ink["soft"],
        "zerolinecolor": ink["grid"],
        "tickcolor": ink["soft"],
        "automargin": True,
        "title": {"standoff": 10},
    }
    bars = {"color": ink["text"]}
    return go.layout.Template(
        data={"bar": [{"error_x": bars, "error_y": bars}]},
        layout={
            "paper_bgcolor": ink["paper"],
            "plot_bgcolor": ink["paper"],
            "font": {"color": ink["text"], "size": 13, "family": "system-ui, sans-serif"},
            "title": {
                "x": 0.01,
                "xanchor": "left",
                "font": {"size": 17},
                "subtitle": {"font": {"size": 12.5, "color": ink["soft"]}},
            },
            "colorway": list(PALETTE),
            "coloraxis": {"colorscale": _scale(_DIVERGING[theme])},
            "coloraxis2": {"colorscale": _scale(_SEQUENTIAL[theme])},
            "coloraxis3": {"colorscale": _scale(_SCORE[theme])},
            "xaxis": axis,
            "yaxis": axis,
            "legend": {"bgcolor": "rgba(0,0,0,0)"},
            "hoverlabel": {
                "bgcolor": ink["paper"],
                "bordercolor": ink["soft"],
                "font": {"color": ink["text"], "size": 12.5},
                "align": "left",
            },
        },
    )


def house_style(
    fig: go.Figure, theme: str, title: str, subtitle: str = "", height: int = 400, bottom: int = 0
) -> go.Figure:
    """Title, theme and margins of every figure; the width is left to the page.

    Args:
        fig: Changed in place and returned.
        theme: ``"light"`` or ``"dark"``.
        title, subtitle: What is shown; how many it was measured on.
        height: Pixels.
        bottom: Room below the axis for the legend, pixels; 0 for a figure without one.
    """
    fig.update_layout(
        template=template(theme),
        title={"text": title, "subtitle": {"text": subtitle}, "y": 1 - 26 / height},
        height=height,
        margin={"l": 60, "r": 24, "t": 88, "b": 52 + bottom},
        showlegend=bool(bottom),
        legend={
            "orientation": "h",
            "x": 0,
            "xanchor": "left",
            "y": 0.01,
            "yref": "container",
            "yanchor": "bottom",
        },
    )
    return fig


def _scale(colors: list[str]) -> list[list[float | str]]:
    return [[k / (len(colors) - 1), color] for k, color in enumerate(colors)]
