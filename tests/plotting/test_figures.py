"""Figures: what is drawn is what was measured, and nothing else is touched."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import plotly.io
import pytest
import torch
from figure_scenes import refitted
from small_study import small_study

from mechmem import plotting
from mechmem.errors import MechmemError
from mechmem.studies.reasoning.margins import UNIT
from mechmem.studies.verdict import Verdict


def saved(table: pd.DataFrame) -> pd.DataFrame:
    """A table as it comes back from disk."""
    # From version 3 on, pandas reads every number exactly without being asked.
    exact = {} if int(pd.__version__.split(".")[0]) >= 3 else {"float_precision": "round_trip"}
    return pd.read_csv(io.StringIO(table.to_csv(index=False)), **exact)


def drawn(fig: go.Figure) -> object:
    return json.loads(fig.to_json())["data"]


def trace(fig: go.Figure, name: str) -> go.Figure:
    (found,) = [item for item in fig.data if item.name == name]
    return found


def ends(bars: go.Figure, middle: object) -> tuple[np.ndarray, np.ndarray]:
    at = np.asarray(middle, dtype=float)
    return at - np.asarray(bars.arrayminus), at + np.asarray(bars.array)


def test_nothing_is_set_for_other_figures() -> None:
    before = plotly.io.templates.default, list(plotly.io.templates)
    plotting.behavior_mix(small_study().observed, theme="dark")
    assert (plotly.io.templates.default, list(plotly.io.templates)) == before


def test_a_theme_changes_the_template_and_nothing_else() -> None:
    light, dark = (plotting.dose_response(small_study().dose, theme=t) for t in plotting.THEMES)
    one, other = json.loads(light.to_json()), json.loads(dark.to_json())
    assert one["layout"].pop("template") != other["layout"].pop("template")
    assert one == other


def test_an_unknown_theme_is_refused_by_name() -> None:
    with pytest.raises(MechmemError, match=r"'drak'.*Did you mean 'dark'"):
        plotting.dose_response(small_study().dose, theme="drak")


def test_a_table_without_its_columns_is_refused_by_name() -> None:
    with pytest.raises(MechmemError, match="missing are 'auroc'"):
        plotting.separation_profile(small_study().separation.table().drop(columns="auroc"))
    with pytest.raises(MechmemError, match="the table is empty"):
        plotting.dose_response(small_study().dose.iloc[:0])
    with pytest.raises(MechmemError, match="got list"):
        plotting.sweep_cells([1, 2])


def test_the_mix_counts_what_was_observed() -> None:
    study = small_study()
    fig = plotting.behavior_mix(study.observed)
    for outcome in ("memorized", "generalized", "other"):
        bars = trace(fig, outcome)
        assert bars.marker.color == plotting.COLORS[outcome]
        for name, share in zip(bars.x, bars.y, strict=True):
            outcomes = study.observed[name].outcomes
            assert share == pytest.approx(outcomes.count(outcome) / len(outcomes))
    low, high = ends(trace(fig, "memorized").error_y, trace(fig, "memorized").y)
    assert (low < trace(fig, "memorized").y).all()
    assert (high > trace(fig, "memorized").y).all()
    assert "n = 80 prompts in 40 groups" in trace(fig, "memorized").hovertext[2]


def test_margins_count_every_prompt_once() -> None:
    seen = small_study().observed["test"]
    fig = plotting.margins(seen)
    for outcome in ("memorized", "generalized"):
        everyone, flips = [item for item in fig.data if item.name == outcome]
        assert sum(everyone.y) == seen.outcomes.count(outcome)
        assert sum(flips.y) == len(seen.flips()) // 2


def test_margins_of_a_task_with_its_own_names() -> None:
    seen = small_study().observed["test"]
    called = {"memorized": "safe", "generalized": "unsafe", "other": "other"}
    outcomes = tuple(called[name] for name in seen.outcomes)
    own = replace(seen, behaviors=("safe", "unsafe"), allowed=(*called.values(),)[:3],
                  outcomes=outcomes)  # fmt: skip
    fig = plotting.margins(own)
    assert "safe likelier" in fig.layout.xaxis2.title.text
    assert len([item for item in fig.data if item.name == "safe"]) == 2  # its flips as well


def test_the_sweep_of_a_task_with_its_own_names_has_the_same_cells() -> None:
    table = small_study().sweep.table()
    own = table.rename(columns={"memorized": "safe", "generalized": "unsafe"})
    for one, other in zip(
        plotting.sweep_cells(table).data, plotting.sweep_cells(own).data, strict=True
    ):
        assert list(one.y) == list(other.y)
        np.testing.assert_array_equal(np.asarray(one.z), np.asarray(other.z))


def test_margins_that_were_not_measured_are_refused() -> None:
    seen = small_study().observed["test"]
    with pytest.raises(MechmemError, match=r"observe\(\.\.\., margins=True\)"):
        plotting.margins(replace(seen, margins=np.full(len(seen), np.nan)))


@pytest.mark.parametrize("statistic", ["mean_difference", "correlation", "effect_size"])
def test_the_map_holds_every_neuron_on_a_scale_centered_at_zero(statistic: str) -> None:
    scores = small_study().scores
    fig = plotting.neuron_map(scores, statistic=statistic)
    expected = np.stack([values[0].numpy() for values in getattr(scores, statistic).values()])
    np.testing.assert_array_equal(fig.data[0].z, expected)
    axis = fig.layout.coloraxis
    assert axis.cmid == 0
    assert axis.cmin == -axis.cmax == pytest.approx(-np.abs(expected).max())


def test_half_precision_and_gradients_are_drawn() -> None:
    scores = small_study().scores
    rough = {
        site: values.bfloat16().requires_grad_() for site, values in scores.mean_difference.items()
    }
    fig = plotting.neuron_map(replace(scores, mean_difference=rough))
    exact = plotting.neuron_map(scores).data[0].z
    np.testing.assert_allclose(fig.data[0].z, exact, rtol=2**-7)
    values = torch.tensor([0.5, -1.0], dtype=torch.bfloat16, requires_grad=True)
    assert plotting.token_projection(["a", "b"], values).data[0].z.tolist() == [[-0.5, 1.0]]


def test_many_neurons_become_cells_that_show_the_strongest() -> None:
    rng = np.random.default_rng(0)
    values = rng.standard_normal((3, 5000))
    values[1, 4321] = -500.0
    table = pd.DataFrame(
        {
            "stream": "mlp_post",
            "layer": np.repeat([0, 1, 2], 5000),
            "position": "last",
            "neuron": np.tile(np.arange(5000), 3),
            "mean_difference": values.ravel(),
        }
    )
    fig = plotting.neuron_map(table)
    cells = np.asarray(fig.data[0].z)
    assert cells.shape[1] <= 256
    step = -(-5000 // cells.shape[1])
    for row, line in zip(values, cells, strict=True):
        blocks = [row[k : k + step] for k in range(0, 5000, step)]
        np.testing.assert_array_equal(line, [block[np.abs(block).argmax()] for block in blocks])
    # One huge neuron leaves the rest visible, and the scale says that it is cut off.
    assert fig.layout.coloraxis.cmax < 10
    assert "500" in fig.layout.coloraxis.colorbar.title.text
    assert "neuron 4321: -500" in fig.data[0].customdata[1][4321 // step]


def test_an_unknown_statistic_is_refused_by_name() -> None:
    with pytest.raises(MechmemError, match=r"'nmd'.*'mean_difference'"):
        plotting.neuron_map(small_study().scores, statistic="nmd")


def test_chosen_neurons_are_counted_per_layer() -> None:
    scores = small_study().scores
    strength = np.concatenate([np.abs(v.numpy().ravel()) for v in scores.correlation.values()])
    layer = np.repeat([site.layer for site in scores.sites], strength.size // len(scores.sites))
    top = layer[np.argsort(-strength, kind="stable")[:20]]
    fig = plotting.layer_distribution(scores, top=20)
    bars = trace(fig, "chosen neurons")
    assert dict(zip(bars.x, bars.y, strict=True)) == {
        str(k): np.mean(top == k) for k in sorted(set(layer.tolist()))
    }
    even = trace(fig, "spread evenly over all neurons")
    assert sum(even.y) == pytest.approx(1)
    again = plotting.layer_distribution(scores.top(20))
    assert drawn(again) == drawn(fig)


def test_profiles_show_values_intervals_and_baselines() -> None:
    study = small_study()
    fig, table = plotting.separation_profile(study.separation), study.separation.table()
    line = trace(fig, "difference of means")
    np.testing.assert_array_equal(line.y, table["auroc"])
    np.testing.assert_allclose(
        ends(line.error_y, line.y), [table["auroc_low"], table["auroc_high"]]
    )
    band = trace(fig, "random directions (95 % of them)")
    expected = [*table["random_high"], *table["random_low"][::-1]]
    np.testing.assert_array_equal(band.y, expected)
    assert list(line.x) == ["input", "0", "1", "2", "3"]

    fig, table = plotting.probe_accuracy(study.probes), study.probes.table()
    for name, column in {
        "states": "accuracy",
        "input tokens only": "input_only",
        "shuffled labels": "shuffled",
    }.items():
        np.testing.assert_array_equal(trace(fig, name).y, table[column])
    assert fig.layout.shapes[0].y0 == study.probes.majority


def test_streams_that_are_no_single_path_get_a_line_each() -> None:
    table = small_study().separation.table()
    both = pd.concat([table.assign(stream="attn_out"), table.assign(stream="mlp_out")])
    fig = plotting.separation_profile(both)
    assert {item.name for item in fig.data} >= {"attn_out", "mlp_out"}


def test_bars_are_the_shares_of_the_edit_and_of_each_control() -> None:
    study = small_study()
    best = study.sweep.best
    fig = plotting.rates_bars(study.sweep)
    for toward, rates in best.rates.items():
        bars = trace(fig, toward)
        shown = dict(zip(bars.y, bars.x, strict=True))
        assert shown["edit"] == pytest.approx(np.mean([o == toward for o in rates.after.outcomes]))
        for name, draws in best.controls[toward].items():
            mean = np.mean([[o == toward for o in draw.after.outcomes] for draw in draws])
            assert shown[name] == pytest.approx(mean)
        assert set(shown) == {"unedited", "edit", *best.controls[toward]}
    with pytest.raises(MechmemError, match=r"'nothing'.*'P1 as published'"):
        plotting.rates_bars(study.sweep, family="nothing")


def test_dose_runs_to_the_left_for_memorized_and_to_the_right_for_generalized() -> None:
    dose = small_study().dose
    before = dose.copy()
    fig = plotting.dose_response(dose)
    pd.testing.assert_frame_equal(dose, before)
    line = trace(fig, "generalized")
    for alpha, share in zip(line.x, line.y, strict=True):
        toward = "memorized" if alpha < 0 else "generalized"
        row = dose[(dose["toward"] == toward) & (dose["alpha"] == abs(alpha))]
        row = row[(row["kind"] == "edit") & (row["outcome"] == "generalized")]
        assert share == row["share"].item()
    assert line.x[0] < 0 < line.x[-1]
    assert len(set(line.x)) == len(line.x)
    assert trace(fig, "generalized, control").line.dash == "dash"


def test_the_sweep_frames_the_highest_score_of_every_family() -> None:
    sweep = small_study().sweep
    fig = plotting.sweep_cells(sweep)
    families = list(dict.fromkeys(cell.family for cell in sweep.cells))
    for panel, frame, family in zip(fig.data, fig.layout.shapes, families, strict=True):
        scores = sorted(cell.score for cell in sweep.cells if cell.family == family)
        grid = np.asarray(panel.z)
        assert sorted(grid[np.isfinite(grid)]) == scores
        row, column = round(frame.y0 + 0.5), round(frame.x0 + 0.5)
        assert grid[row, column] == scores[-1]
        chosen = next(tested.edit for tested in sweep.tested if tested.family == family)
        assert f"{chosen.alpha:g}" == panel.x[column]


def test_transitions_count_prompts() -> None:
    rates = small_study().sweep.best.rates["generalized"]
    fig = plotting.transitions(rates)
    cells = fig.data[0]
    pairs = list(zip(rates.before.outcomes, rates.after.outcomes, strict=True))
    for before, row in zip(cells.y, cells.customdata, strict=True):
        for after, count in zip(cells.x, row, strict=True):
            assert count == pairs.count((before, after))


def test_training_curves_draw_shares_and_loss() -> None:
    table = pd.DataFrame({"step": [200, 100], "memorized": [0.6, 0.9], "loss": [0.5, 2.0], "n": 40})
    fig = plotting.training_curves(table)
    assert trace(fig, "memorized").x.tolist() == [100, 200]
    assert trace(fig, "memorized").y.tolist() == [0.9, 0.6]
    assert trace(fig, "loss").y.tolist() == [2.0, 0.5]
    with pytest.raises(MechmemError, match="at least one column"):
        plotting.training_curves(table[["step", "n"]])


def test_a_projection_is_orange_on_the_memorized_side_whatever_the_sign() -> None:
    tokens, values = ["<b>", "two\n"], np.array([2.0, -1.0])
    fig = plotting.token_projection(tokens, values, toward="generalized", away="memorized")
    assert fig.data[0].z.tolist() == [[-2.0, 1.0]]
    fig = plotting.token_projection(tokens, values, toward="memorized", away="generalized")
    assert fig.data[0].z.tolist() == [[2.0, -1.0]]
    assert list(fig.layout.xaxis.ticktext) == ["&lt;b&gt;", "two↵"]
    fig = plotting.token_projection(tokens, values, center=1.0, rows=["resid_post 1"])
    assert fig.data[0].z.tolist() == [[-1.0, 2.0]]
    with pytest.raises(MechmemError, match=r"2 tokens.*1, 3"):
        plotting.token_projection(tokens, [1.0, 2.0, 3.0])


def test_names_are_shown_as_text_and_never_as_markup() -> None:
    best = small_study().sweep.best.family
    table = small_study().sweep.test_table().replace({"family": {best: "<script>"}})
    assert "&lt;script&gt;" in plotting.rates_bars(table).layout.title.subtitle.text


def test_refits_are_dots_and_the_real_fit_is_a_line_with_its_p() -> None:
    table = refitted()
    fig = plotting.refits(table)
    titles = [note.text for note in fig.layout.annotations]
    assert titles == [
        "either way: +30.0 points, p = 0.05",
        "both ways: +10.0 points, p = 0.2",
        "toward memorized: +30.0 points, p = 0.05",
    ]
    dots = [item for item in fig.data if item.name == "refits on exchanged labels"]
    lines = [item for item in fig.data if item.name == "the real fit"]
    for claim, null, line in zip(("any", "both", "memorized"), dots, lines, strict=True):
        mine = table[table["claim"] == claim]
        np.testing.assert_array_equal(null.x, mine[mine["kind"] == "refit"]["effect"])
        assert list(line.x) == [mine["effect"].iloc[0]] * 2
        assert "19 refits" in line.hovertext[0]
    assert lines[2].line.color == plotting.COLORS["memorized"]
    assert "19 refits of fit" in fig.layout.title.subtitle.text


def test_refits_of_a_margin_are_shown_in_nats() -> None:
    own = {"last token": {"reasoning": 0.024, "memory": -0.002}}
    found = Verdict(own, [own] * 19, 19, unit=UNIT)
    for given in (found, found.table()):
        fig = plotting.refits(given)
        assert fig.layout.annotations[0].text == "either way: +0.024 nats, p = 1"
        titles = [fig.layout[f"xaxis{k}"].title.text for k in ("", 2, 3, 4)]
        assert titles[-1] == "change of the margin in nats, test prompts"
        assert "%" not in fig.layout.xaxis.tickformat
        assert "share" not in str(fig.to_dict())


def test_refits_that_were_not_run_are_not_drawn() -> None:
    with pytest.raises(MechmemError, match="shuffles of 19"):
        plotting.refits(SimpleNamespace(shuffles=0, table=pd.DataFrame))
