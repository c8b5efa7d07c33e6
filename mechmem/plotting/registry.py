"""Which figure belongs to which result: said once, by a decorator at the figure's definition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pandas as pd
import plotly.graph_objects as go

from mechmem.errors import MechmemError, did_you_mean, listed

Draw = TypeVar("Draw", bound=Callable[..., go.Figure])

FIGURES: dict[str, Callable[..., go.Figure]] = {}
"""Every figure by its function's name."""

_OF: dict[type, Callable[..., go.Figure]] = {}


def figure_of(*results: type) -> Callable[[Draw], Draw]:
    """Make a function a figure, and the one that `figure` draws of these classes of results.

    Args:
        results: None for a figure of tables only, or for a second one of a result.
    """

    def add(draw: Draw) -> Draw:
        FIGURES[draw.__name__] = draw
        _OF.update(dict.fromkeys(results, draw))
        return draw

    return add


def figure(result: Any, name: str | None = None, **options: Any) -> go.Figure:
    """The figure of a result, by its class; of a saved table, or another one, by name.

    Args:
        result: A result, or a table that was saved of one.
        name: A key of `mechmem.plotting.FIGURES`.
        options: What the figure takes, for example ``theme``.

    Raises:
        MechmemError: For a name or a result without a figure.
    """
    if name is None:
        draws = [_OF[kind] for kind in type(result).__mro__ if kind in _OF]
        if draws:
            return draws[0](result, **options)
        known = listed(sorted(kind.__name__ for kind in _OF), 40)
        what = "A table does not say" if isinstance(result, pd.DataFrame) else "Nothing says"
        raise MechmemError(
            f"{what} which figure {type(result).__name__} has; name one, "
            f"mm.plotting.figure(table, 'near_ties'), or give one of {known}."
        )
    if name not in FIGURES:
        raise MechmemError(
            f"Unknown figure {name!r}; there are {listed(sorted(FIGURES), 40)}."
            f"{did_you_mean(name, FIGURES)}"
        )
    return FIGURES[name](result, **options)
