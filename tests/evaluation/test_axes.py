"""`compare_axes` against NumPy, on planted and on empty labels, and its pushes against hooks."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import as_users_run_it, made_states
from question_scene import hand_margins, scene, two_sets
from scipy.stats import mannwhitneyu

import mechmem as mm
from mechmem.evaluation.axes import _halves

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
        return compare_axes(scene().lab.model, sets, toward, site=SITE, **options)


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
        assert max(one["cosine_p"], one["auroc_p"]) <= 0.02
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
        compare_axes(
            scene().lab.model, {"a": one, "b": other}, {"a": "known", "b": "knwon"}, site=SITE
        )
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
