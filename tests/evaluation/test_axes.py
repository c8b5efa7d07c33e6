"""`compare_axes` against NumPy, on planted and on empty labels, and its pushes against hooks."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import as_users_run_it, bench, made_states
from question_scene import hand_margins, scene, two_sets
from scipy.stats import mannwhitneyu

import mechmem as mm
from mechmem.evaluation.axes import _adjusted, _axes, _halves

SITE = ("resid_post", 0)
compare_axes = mm.evaluation.compare_axes


def states(name: str, seed: int, axis: int | None, n: int = 100) -> mm.Activations:
    """One prompt per group; the classes differ along one coordinate, or not at all."""
    rng = np.random.default_rng(seed)
    classes = np.array(["known", "context"] * (n // 2))
    values = rng.standard_normal((n, 1, 48))
    if axis is not None:
        values[classes == "known", 0, axis] += 3.0
    return made_states(
        {SITE: values}, list(classes), groups=[f"{name}{k}" for k in range(n)],
        token_ids=[(seed, k) for k in range(n)],
    )  # fmt: skip


def compared(sets, **options) -> mm.evaluation.AxisComparison:
    toward = dict.fromkeys(sets, "known")
    with as_users_run_it():  # some thousand fits
        return compare_axes(bench().model, sets, toward, site=SITE, **options)


@pytest.fixture(scope="module")
def found():
    sets = {"a": states("a", 1, 0), "b": states("b", 2, 0), "c": states("c", 3, 5)}
    return compared(sets), sets


def cell(rows, fitted: str, tested: str):
    return rows.set_index(["fitted_on", "tested_on"]).loc[(fitted, tested)]


def test_sets_with_one_axis_are_one_thing_and_the_third_is_not(found) -> None:
    rows = found[0].table()
    for fitted, tested in ("ab", "ba"):
        one = cell(rows, fitted, tested)
        assert one["cosine"] > 0.4
        assert one["auroc"] > 0.9
        assert max(one["cosine_p"], one["auroc_p"]) <= 0.05
    for fitted, tested in ("ac", "bc", "ca", "cb"):
        assert cell(rows, fitted, tested)["auroc_p"] > 0.05
        assert cell(rows, fitted, tested)["cosine_p"] > 0.05
    assert np.isnan(cell(rows, "a", "a")["cosine"])
    assert cell(rows, "a", "a")["auroc_p"] <= 0.02


def test_cosines_and_areas_are_numpys(found) -> None:
    """On halves that the axes did not see, found by what a leak guard lets through."""
    got, sets = found
    axes, rest = {}, {}
    for name, acts in sets.items():
        first, held = _halves(acts, "behavior", 0)
        assert not set(first.prompts.groups) & set(held.prompts.groups)
        assert len(first) == len(held) == 50
        x, yes = first[SITE][:, 0].numpy(), [p.behavior == "known" for p in first.prompts]
        axes[name] = x[yes].mean(0) - x[~np.array(yes)].mean(0)
        rest[name] = held
    for fitted, vector in axes.items():
        for tested, other in axes.items():
            row = cell(got.table(), fitted, tested)
            if fitted != tested:
                size = np.linalg.norm(vector) * np.linalg.norm(other)
                assert row["cosine"] == pytest.approx(vector @ other / size)
            yes = np.array([p.behavior == "known" for p in rest[tested].prompts])
            scores = rest[tested][SITE][:, 0].numpy() @ vector
            area = mannwhitneyu(scores[yes], scores[~yes]).statistic / (yes.sum() * (~yes).sum())
            assert row["auroc"] == pytest.approx(area)


def test_on_nothing_a_pair_is_hardly_ever_found() -> None:
    """30 comparisons of empty labels at 5 %: six or more happen in 0.3 % of the cases."""
    hits = {"cosine_p": 0, "auroc_p": 0}
    for seed in range(30):
        sets = {name: states(name, 2 * seed + k, None, 24) for k, name in enumerate("ab")}
        rows = compared(sets, shuffles=19, seed=seed).rows
        for name in hits:
            hits[name] += bool((rows[name] <= 0.05).any())
    assert max(hits.values()) < 6
    assert sum(hits.values()) > 0


def test_a_change_is_half_of_forth_minus_back_by_hand() -> None:
    here, sets, site = scene(), two_sets(), ("resid_post", 1)
    toward = dict.fromkeys(sets, "memorized")
    model = here.lab.model
    got = compare_axes(
        model, sets, toward, items={"more": here.test}, site=site, alpha=2.0, shuffles=3
    )
    for name, acts in sets.items():
        axis = mm.difference_of_means(_halves(acts, "behavior", 0)[0], toward="memorized")[site]
        forth, back = (hand_margins(here, here.test, {site: k * axis.vector}) for k in (2.0, -2.0))
        row = cell(got.rows, name, "more")
        assert row["change"] == pytest.approx(((forth - back) / 2).mean(), abs=1e-5)
        assert row["items"] == len(here.test)
        assert row["change_low"] < row["change"] < row["change_high"]
        assert row["change_p"] >= 1 / 4
        assert np.isnan(cell(got.rows, name, "fit")["change"])


def test_what_is_refused() -> None:
    one, other = states("a", 1, 0), states("b", 2, 0)
    with pytest.raises(mm.PromptError, match=r"two sets or more"):
        compared({"a": one})
    with pytest.raises(mm.PromptError, match=r"'b' does not show 'knwon'"):
        compare_axes(bench().model, {"a": one, "b": other}, {"a": "known", "b": "knwon"}, site=SITE)
    with pytest.raises(mm.ModelError, match=r"'a' was made on model"):
        compare_axes(scene().lab.model, {"a": one, "b": other}, {"a": "known", "b": "known"})
    with pytest.raises(mm.MechmemError, match=r"shuffles"):
        compared({"a": one, "b": other}, shuffles=-1)
    with pytest.raises(mm.LeakageError, match=r"on it on"):
        compared({"a": one, "b": states("a", 2, 0, 140)})
    with pytest.raises(mm.PromptError, match=r"'b' cannot be compared: only"):
        compared({"a": one, "b": other.take(range(8))})
    fitted = _halves(one, "behavior", 0)[0].prompts
    with pytest.raises(mm.PromptError, match=r"50 items of 'a' leave none"):
        compared({"a": one, "b": other}, shuffles=2, items={"a": fitted})
    with pytest.raises(mm.PromptError, match=r"memorized"):
        compared(
            {"a": one, "b": other}, shuffles=2,
            items={"a": mm.PromptSet([mm.Prompt(id="x", text="w1", group="x")])},
        )  # fmt: skip


def test_p_is_the_rank_among_the_largest_of_every_refit_counted_one_by_one() -> None:
    rng = np.random.default_rng(4)
    values = (
        rng.standard_normal((2, 3, 20)) * np.array([[1.0, 5.0, 0.1], [2.0, 1.0, 30.0]])[..., None]
    )
    values[0, 1, 0], values[1, 0] = 40.0, np.nan
    got = _adjusted(values)
    spread = {c: np.sqrt(np.mean(values[c] ** 2)) for c in np.ndindex(2, 3) if c != (1, 0)}
    for cell, size in spread.items():
        at_least = sum(
            max(abs(values[(*c, k)]) / s for c, s in spread.items())
            >= abs(values[(*cell, 0)]) / size
            for k in range(1, 20)
        )
        assert got[cell] == (1 + at_least) / 20
    assert got[0, 1] == 0.05
    assert np.isnan(got[1, 0])


def test_axes_of_refits_are_as_long_as_the_fitted_one_and_no_set_is_exchanged_as_another() -> None:
    one = states("a", 1, 0)
    axes, other = (_axes(one, mm.Site(*SITE), "known", "behavior", 5, 0, name) for name in "ab")
    assert [axis.norm for axis in axes] == pytest.approx([axes[0].norm] * 6)
    assert axes[0].vector.tolist() == other[0].vector.tolist()
    for mine, theirs in zip(axes[1:], other[1:], strict=True):
        assert abs(float(mine.unit @ theirs.unit)) < 0.9


def test_the_figure_shows_the_numbers_of_the_table(found) -> None:
    got, sets = found
    fig = mm.plotting.axis_matrices(got)
    for name, trace in zip(("cosine", "auroc", "change"), fig.data, strict=True):
        middle = 0.5 if name == "auroc" else 0.0
        for i, fitted in enumerate(sets):
            for j, tested in enumerate(sets):
                row = cell(got.rows, fitted, tested)
                if np.isnan(row[name]):
                    assert (trace.text[i][j], trace.customdata[i][j]) == ("", "")
                    continue
                assert trace.text[i][j] == f"{row[name]:.2f}<br>p = {row[f'{name}_p']:.2g}"
                assert f"refits {row[f'{name}_null_low']:.3f} to " in trace.customdata[i][j]
                assert np.sign(trace.z[i][j]) == np.sign(row[name] - middle)


def test_halves_are_halves_where_groups_show_both_classes() -> None:
    rng = np.random.default_rng(0)
    for groups in ([f"g{k // 2}" for k in range(80)], [f"g{k}" for k in range(80)]):
        classes = ["known", "context"] * 40
        acts = made_states(
            {SITE: rng.standard_normal((80, 1, 4))}, classes, groups=groups,
            token_ids=[(k,) for k in range(80)],
        )  # fmt: skip
        for half in _halves(acts, "behavior", 0):
            assert len({p.group for p in half.prompts}) == len(set(groups)) // 2
