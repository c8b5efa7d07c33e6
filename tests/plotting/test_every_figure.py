"""Every figure is redrawn from the table that was saved for it, and shows the same."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import get_type_hints

import pandas as pd
import plotly.graph_objects as go
import pytest
from figure_scenes import CASES
from small_study import small_study

from mechmem import plotting
from mechmem.errors import MechmemError


def from_disk(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    table.to_csv(path, index=False)
    # From version 3 on, pandas reads every number exactly without being asked.
    exact = {} if int(pd.__version__.split(".")[0]) >= 3 else {"float_precision": "round_trip"}
    return pd.read_csv(path, **exact)


def test_every_figure_has_a_case() -> None:
    assert set(CASES) == set(plotting.FIGURES)
    assert len(CASES) > 30


def test_every_figure_of_a_table_or_a_result_is_registered_where_it_is_defined() -> None:
    """Public functions of the room that give a figure are those under the decorator."""
    public = {
        name
        for name in plotting.__all__
        if inspect.isfunction(thing := getattr(plotting, name))
        and get_type_hints(thing).get("return") is go.Figure
    }
    assert public - {"house_style", "figure"} == set(plotting.FIGURES)


def test_a_result_finds_its_figure_and_a_table_says_which() -> None:
    scores = small_study().window_scores
    assert plotting.figure(scores).to_json() == plotting.neuron_map(scores).to_json()
    by_name = plotting.figure(scores.table(), "neuron_map", theme="dark")
    assert by_name.to_json() == plotting.neuron_map(scores.table(), theme="dark").to_json()
    with pytest.raises(MechmemError, match=r"A table does not say which figure"):
        plotting.figure(scores.table())
    with pytest.raises(MechmemError, match=r"Unknown figure 'neuron_mab'.*'neuron_map'"):
        plotting.figure(scores, "neuron_mab")


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_saved_table_draws_the_same_figure(name: str, tmp_path: Path) -> None:
    draw = getattr(plotting, name)
    for case in CASES[name](small_study()):
        fig = draw(case.result, **case.options)
        assert fig.data
        read = {key: from_disk(t, tmp_path / f"{key}.csv") for key, t in case.tables.items()}
        again = draw(read.pop(""), **read, **case.options)
        # The whole of it: traces, titles, axes, frames, hover texts.
        assert json.loads(again.to_json()) == json.loads(fig.to_json())


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_dark_figure_differs_in_its_template_only(name: str) -> None:
    draw = getattr(plotting, name)
    case = CASES[name](small_study())[0]
    light, dark = (
        json.loads(draw(case.result, theme=theme, **case.options).to_json())
        for theme in plotting.THEMES
    )
    assert light["layout"].pop("template") != dark["layout"].pop("template")
    assert light == dark
