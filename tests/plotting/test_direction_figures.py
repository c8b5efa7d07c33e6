"""The direction figures: what is drawn is what was measured."""

from __future__ import annotations

import io
import json

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from figure_scenes import RESULTS, SITES, directions, grid, states

import mechmem as mm
from mechmem import plotting


def saved(table: pd.DataFrame) -> pd.DataFrame:
    """A table as it comes back from disk."""
    exact = {} if int(pd.__version__.split(".")[0]) >= 3 else {"float_precision": "round_trip"}
    return pd.read_csv(io.StringIO(table.to_csv(index=False)), **exact)


def drawn(fig: go.Figure) -> object:
    """Traces and arrows, titles included."""
    whole = json.loads(fig.to_json())
    return whole["data"], whole["layout"].get("annotations"), whole["layout"]["title"]


def trace(fig: go.Figure, name: str) -> go.Figure:
    (found,) = [item for item in fig.data if item.name == name]
    return found


OPTIONS = {"score_correlation": {"site": SITES[1]}}


def figure(name: str, result, **more) -> go.Figure:
    return getattr(plotting, name)(result, **OPTIONS.get(name, {}), **more)


@pytest.mark.parametrize("name", RESULTS)
def test_a_theme_changes_the_template_and_nothing_else(name) -> None:
    result = RESULTS[name]()
    light, dark = (figure(name, result, theme=theme) for theme in ("light", "dark"))
    assert drawn(light) == drawn(dark)
    assert light.layout.template != dark.layout.template


@pytest.mark.parametrize("name", RESULTS)
def test_a_table_without_its_columns_is_refused_by_name(name) -> None:
    with pytest.raises(mm.MechmemError, match=rf"{name} needs the columns"):
        figure(name, pd.DataFrame({"stream": ["resid_post"], "layer": [0]}))


def test_the_map_draws_every_state_the_boundary_and_the_arrow() -> None:
    result = RESULTS["state_map"]()
    fig = figure("state_map", result)
    points = result.points
    for name in ("memorized", "generalized"):
        own = points[(points["set"] == "fitted") & (points["class"] == name)]
        assert np.array_equal(trace(fig, f"fitted: {name}").x, own["x"])
        assert trace(fig, f"fitted: {name}").marker.color == plotting.COLORS[name]
    assert len(trace(fig, "held &lt;out&gt;: memorized").x) == 12
    assert np.array_equal(trace(fig, "boundary in the plane").x, _ends(result, "boundary")["x"])
    (arrow,) = [item for item in fig.layout.annotations if item.showarrow]
    ends = _ends(result, "direction")[["x", "y"]].to_numpy()
    found = np.array([arrow.x - arrow.ax, arrow.y - arrow.ay])
    along = ends[1] - ends[0]
    assert found @ along == pytest.approx(np.linalg.norm(found) * np.linalg.norm(along))


def _ends(result: mm.analysis.StateMap, kind: str) -> pd.DataFrame:
    table = result.table()
    return table[table["kind"] == kind]


def test_a_short_arrow_is_lengthened_and_says_how_much() -> None:
    result = RESULTS["state_map"]()
    table = result.table()
    at = table["kind"] == "direction"
    middle = table.loc[at, ["x", "y"]].mean()
    table.loc[at, ["x", "y"]] = middle + (table.loc[at, ["x", "y"]] - middle) / 100
    (line,) = [item for item in figure("state_map", table).data if "times as long" in item.name]
    times = int(line.name.split(", ")[1].split(" ")[0])
    length = np.hypot(np.diff(line.x), np.diff(line.y))[0]
    own = np.hypot(*np.diff(table.loc[at, ["x", "y"]].to_numpy(), axis=0)[0])
    assert times > 10
    assert length == pytest.approx(times * own)


def test_two_models_stand_side_by_side() -> None:
    one = mm.cosine_profile(directions(), states("held"), model="base")
    two = mm.cosine_profile(directions(), states("held"), model="instruct")
    fig = plotting.cosine_profile([one, two])
    assert [item.text for item in fig.layout.annotations[:2]] == ["base", "instruct"]
    lines = [item for item in fig.data if item.name == "memorized"]
    assert [line.xaxis for line in lines] == ["x", "x2"]
    table = one.table()
    want = table[table["class"] == "memorized"]
    assert np.allclose(lines[0].y, want["cosine"])
    both = pd.concat([one.table(), two.table()])
    assert drawn(fig) == drawn(plotting.cosine_profile(saved(both)))
    (band,) = [
        item
        for item in plotting.cosine_profile(one).data
        if item.name == "memorized, one standard deviation"
    ]
    upper = np.asarray(band.y[: len(want)], dtype=float)
    assert np.allclose(upper - want["cosine"], want["sd"])


def test_the_scatter_says_its_correlations_and_needs_a_site() -> None:
    result = RESULTS["score_correlation"]()
    fig = figure("score_correlation", result)
    rank = result.spearman[mm.Site(*SITES[1])]
    assert f"Spearman {rank.value:.3f} [{rank.low:.3f}, {rank.high:.3f}]" in (
        fig.layout.title.subtitle.text
    )
    assert fig.layout.title.text == "The score against the projection"
    assert np.allclose(trace(fig, "Pearson").y, [e.value for e in result.pearson.values()])
    with pytest.raises(mm.MechmemError, match=r"pass site= as one of \('resid_post', 0\)"):
        plotting.score_correlation(result)


def test_the_grid_marks_cells_beyond_the_random_directions() -> None:
    fig = figure("steering_grid", grid())
    cells = trace(fig, "memory, edit")
    assert cells.z[1][2] == pytest.approx(0.8)
    assert cells.text[0].tolist() == ["•", "", "•"]
    assert trace(fig, "reasoning, edit").text[0].tolist() == ["", "", ""]
    assert trace(fig, "memory, random direction").z[0].tolist() == [0.5, 0.5, 0.5]
