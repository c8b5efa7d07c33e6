"""The figures of the reviewers' questions: what is drawn is what was measured."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from figure_scenes import results
from question_scene import scene

import mechmem as mm
from mechmem import plotting
from mechmem.errors import MechmemError
from mechmem.style import GRAY

DRAWN: dict[str, Callable[..., go.Figure]] = {
    "layers": plotting.layer_shares,
    "halves": plotting.split_halves,
    "interaction": plotting.interaction,
    "response": plotting.margin_response,
    "ties": plotting.near_ties,
    "probes": plotting.transfer_matrix,
    "edits": plotting.transfer_matrix,
    "costs": plotting.side_effects,
    "prompting": plotting.prompting,
    "sampling": plotting.sampling,
    "models": plotting.model_accuracy,
}


@pytest.mark.parametrize("name", [*DRAWN, "clusters"])
def test_a_theme_changes_the_template_and_nothing_else(name: str) -> None:
    draw = DRAWN.get(name, plotting.neuron_clusters)
    one, other = (
        json.loads(draw(results()[name], theme=theme).to_json()) for theme in plotting.THEMES
    )
    assert one["layout"].pop("template") != other["layout"].pop("template")
    assert one == other


@pytest.mark.parametrize("name", DRAWN)
def test_a_table_without_its_columns_is_refused_by_name(name: str) -> None:
    with pytest.raises(MechmemError, match=r"needs the columns"):
        DRAWN[name](pd.DataFrame({"other": [1.0]}))


def ends(bars: Any, middle: Any) -> tuple[np.ndarray, np.ndarray]:
    at = np.asarray(middle, dtype=float)
    return at - np.asarray(bars.arrayminus), at + np.asarray(bars.array)


class TestWhatIsDrawn:
    def test_layers_with_their_intervals_and_the_exchanged_classes(self) -> None:
        found = results()["layers"]
        fig, table = plotting.layer_shares(found), found.table()
        bars = [t for t in fig.data if t.name == "chosen neurons"]
        for bar, (_, part) in zip(bars, table.groupby("ranking", sort=False), strict=True):
            np.testing.assert_array_equal(bar.y, part["share"])
            np.testing.assert_allclose(
                ends(bar.error_y, bar.y), [part["share_low"], part["share_high"]]
            )
        null = [t for t in fig.data if t.name.startswith("classes exchanged")]
        np.testing.assert_array_equal(np.concatenate([t.y for t in null]), table["shuffled"])

    def test_clusters_stand_together_in_frames(self) -> None:
        found = results()["clusters"]
        fig = plotting.neuron_clusters(found)
        order = np.argsort(found.labels, kind="stable")
        np.testing.assert_allclose(fig.data[0].z, found.held_out[np.ix_(order, order)], rtol=1e-9)
        assert len(fig.layout.shapes) == sum(size > 1 for size in found.sizes)

    def test_the_sums_stand_right_of_the_parts(self) -> None:
        found = results()["interaction"]
        fig = plotting.interaction(found)
        bars = next(t for t in fig.data if t.name == "toward memorized")
        assert list(bars.x)[-3:] == ["joint", "sum of parts", "interaction"]
        effects = found.effects["memorized"]["edit"]
        assert list(bars.y) == [effects[name].value for name in bars.x]

    def test_the_response_has_a_band_of_prompts_and_a_control(self) -> None:
        found = results()["response"]
        fig = plotting.margin_response(found)
        line = next(t for t in fig.data if t.name == "toward generalized")
        assert list(line.y) == [e.value for e in found.change["generalized"]["edit"]]
        band = next(t for t in fig.data if t.name == "middle 80 % of prompts, generalized")
        spread = found.spread["generalized"]["edit"]
        assert list(band.y) == [*(s[1] for s in spread), *(s[0] for s in spread[::-1])]
        assert any(t.name == "control" for t in fig.data)

    def test_a_matrix_has_its_rows_fitted_and_its_columns_tested(self) -> None:
        probes = results()["probes"]
        grid = plotting.transfer_matrix(probes).data[0]
        for i, fitted in enumerate(grid.y):
            for j, tested in enumerate(grid.x):
                assert grid.z[i][j] == probes.accuracy[fitted][tested].value
        edits = results()["edits"]
        fig = plotting.transfer_matrix(edits)
        for panel, toward in zip(fig.data, ("memorized", "generalized"), strict=True):
            assert panel.z[1][0] == edits.beyond("two", "a", toward).value

    def test_costs_and_shares_are_the_tables(self) -> None:
        table = results()["costs"].table()
        fig = plotting.side_effects(results()["costs"])
        kl = table[table["measure"] == "kl"]
        np.testing.assert_array_equal(fig.data[0].x, kl["value"])
        assert list(fig.data[0].y) == list(results()["costs"].values)
        grays = [color == GRAY for color in fig.data[0].marker.color]
        assert grays == list(kl["kind"] == "control")
        shares = results()["prompting"].table()
        bars = next(t for t in plotting.prompting(results()["prompting"]).data if t.name == "other")
        np.testing.assert_array_equal(bars.x, shares.loc[shares["outcome"] == "other", "share"])

    def test_near_ties_lie_at_the_middle_of_their_bins(self) -> None:
        found = results()["ties"]
        line = plotting.near_ties(found).data[0]
        np.testing.assert_allclose(line.x, (np.array(found.edges[1:]) + found.edges[:-1]) / 2)
        assert list(line.y) == [share.value for share in found.flips["rephrasings"]]

    def test_graded_answers_beside_chance(self) -> None:
        here = scene()
        seen = mm.observe(here.lab.model, here.test)
        prompts = mm.PromptSet(
            replace(p, memorized=f"w{k}", generalized=f"v{k}") for k, p in enumerate(here.test)
        )
        found = mm.evaluation.graded_answers(replace(seen, prompts=prompts))
        fig, summary = plotting.graded_answers(found), found.summary()
        bars = next(t for t in fig.data if t.name == "to the memorized answer")
        rows = summary[(summary["answer"] == "memorized") & (summary["n"] > 0)]
        np.testing.assert_array_equal(bars.y, rows["similarity"])

    def test_effects_by_size(self) -> None:
        row = {"toward": "memorized", "change": 0.3, "change_low": 0.2, "change_high": 0.4}
        row |= {"control": 0.0, "control_low": -0.1, "control_high": 0.1, "n": 8, "groups": 4}
        table = pd.DataFrame([{"model": f"m{k}", "parameters": 1000 * 2**k, **row} for k in (1, 0)])
        fig = plotting.effect_by_model(table)
        marks = next(t for t in fig.data if t.name == "toward memorized")
        np.testing.assert_allclose(marks.x, [980, 1960])
        assert list(fig.layout.xaxis.ticktext) == ["1,000", "2,000"]
        low, high = ends(marks.error_y, marks.y)
        np.testing.assert_allclose([low[0], high[0]], [0.2, 0.4])
