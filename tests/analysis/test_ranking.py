"""Rankings against scikit-learn, SciPy and NumPy; planted and null neurons."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import close, made_states
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn.metrics import roc_auc_score

import mechmem as mm
from mechmem.analysis.ranking import COLUMNS_AT_ONCE, area_under_curve

SITE = mm.Site("resid_post", 0)
NEURONS, PAIRS = 2048, 200
CLASSES = ["memorized", "generalized"]


def _scored(values: np.ndarray, names: list[str], **options) -> mm.NeuronScores:
    return mm.neuron_mean_difference(made_states({SITE: values[:, None]}, names), **options)


class TestAreas:
    @settings(deadline=None, max_examples=25)
    @given(st.integers(4, 40), st.integers(1, 6), st.integers(0, 99))
    def test_of_every_neuron_with_ties_are_scikit_learns(self, n, width, seed) -> None:
        rng = np.random.default_rng(seed)
        values = rng.integers(-2, 3, (n, width)) / 4 + rng.integers(0, 2, width) * rng.normal(
            size=(n, width)
        )
        names = CLASSES * 2 + [CLASSES[k] for k in rng.integers(0, 2, n - 4)]
        scores = _scored(values, names, auc=True)
        truth = np.array([name == "memorized" for name in names])
        want = [roc_auc_score(truth, values[:, k]) for k in range(width)]
        close(scores.auc[SITE][0], want, 1e-9)
        assert scores.table()["auc"].to_numpy() == pytest.approx(want, rel=1e-9)

    def test_wide_sites_are_taken_in_parts(self) -> None:
        rng = np.random.default_rng(0)
        one, zero = rng.normal(size=(5, COLUMNS_AT_ONCE + 3)), rng.normal(size=(4, 1))
        zero = zero + np.zeros((4, COLUMNS_AT_ONCE + 3))
        got = area_under_curve(torch.tensor(one), torch.tensor(zero))
        close(got, (one[:, None] > zero).mean((0, 1)), 1e-12)

    def test_states_in_half_precision(self) -> None:
        one, zero = torch.randn(9, 1, 4).bfloat16(), torch.randn(7, 1, 4).bfloat16()
        close(area_under_curve(one, zero), area_under_curve(one.double(), zero.double()), 1e-12)

    def test_the_ranking_is_by_the_distance_from_one_half(self) -> None:
        values = np.zeros((8, 3))
        values[:, 0] = [3, 0, 3, 1, 0, 1, 3, 0]  # up
        values[:, 1] = [0, 9, 0, 9, 0, 9, 0, 9]  # down, and perfectly so
        values[:, 2] = [1, 1, 2, 2, 3, 3, 4, 4]  # nothing
        scores = _scored(values, CLASSES * 4, auc=True)
        assert scores.auc[SITE][0].tolist()[1:] == [0.0, 0.5]
        assert scores.top(1, by="auc").index[SITE].tolist() == [1]
        assert scores.top(2, by="auc").index[SITE].tolist() == [0, 1]

    def test_streamed_histograms_give_it_within_their_bins(self) -> None:
        rng = np.random.default_rng(3)
        values = rng.normal(size=(120, 7))
        values[::2] += np.linspace(0, 2, 7)
        acts = made_states({SITE: values[:, None]}, CLASSES * 60)
        moments = mm.Moments.from_activations(acts, "behavior")
        histograms = mm.Histograms.around(moments, {SITE: range(7)}, bins=4000)
        for rows in (range(50), range(50, 120)):
            part = acts.take(rows)
            histograms.update(part.states, part.classes("behavior"))
        streamed = mm.neuron_mean_difference(moments, auc=histograms)
        exact = mm.neuron_mean_difference(acts, auc=True)
        slack = histograms.auc(SITE, *CLASSES)[1]
        assert float(slack.max()) < 0.01
        assert ((streamed.auc[SITE][0] - exact.auc[SITE][0]).abs() <= slack + 1e-12).all()
        assert streamed.top(3, by="auc").index[SITE].tolist() == [4, 5, 6]

    def test_without_areas_the_way_to_them_is_said(self, tmp_path) -> None:
        values = np.random.default_rng(0).normal(size=(12, 4))
        acts = made_states({SITE: values[:, None]}, CLASSES * 6)
        with pytest.raises(mm.MechmemError, match=r"by='auc' needs.*auc=True"):
            mm.neuron_mean_difference(acts).top(1, by="auc")
        moments = mm.Moments.from_activations(acts, "behavior")
        with pytest.raises(mm.MechmemError, match=r"auc=True needs stored activations.*Histograms"):
            mm.neuron_mean_difference(moments, auc=True)
        some = mm.Histograms.around(moments, {SITE: [1]})
        some.update(acts.states, acts.classes("behavior"))
        partly = mm.neuron_mean_difference(moments, auc=some)
        assert partly.auc[SITE][0].isnan().tolist() == [True, False, True, True]
        with pytest.raises(mm.MechmemError, match=r"area of every neuron"):
            partly.top(1, by="auc")
        scores = mm.neuron_mean_difference(acts, auc=True)
        back = mm.NeuronScores.load(scores.save(tmp_path / "scores"))
        assert torch.equal(back.auc[SITE], scores.auc[SITE])


class TestFloat64:
    def test_every_statistic_on_large_offsets(self) -> None:
        """Residual streams have coordinates a thousand times larger than their spread."""
        rng = np.random.default_rng(5)
        values = rng.normal(size=(90, 40)) + 1e3 * rng.normal(size=40)
        values[::3] += 0.3
        names = ["memorized" if k % 3 == 0 else "generalized" for k in range(90)]
        scores = _scored(values, names)
        one = np.array([name == "memorized" for name in names])
        r = [stats.pearsonr(values[:, k], one).statistic for k in range(40)]
        close(scores.correlation[SITE][0], r, 1e-9)
        welch = stats.ttest_ind(values[one], values[~one], equal_var=False)
        close(scores.p[SITE][0], welch.pvalue, 1e-9)
        close(scores.q[SITE][0], stats.false_discovery_control(welch.pvalue), 1e-9)
        pooled = stats.ttest_ind(values[one], values[~one])
        d = pooled.statistic * np.sqrt(1 / one.sum() + 1 / (~one).sum())
        close(scores.effect_size[SITE][0], d, 1e-9)
        # For two classes |r| is |t| / sqrt(t^2 + n - 2), so both rank alike.
        t = pooled.statistic
        close(np.abs(r), np.abs(t) / np.sqrt(t**2 + 88), 1e-9)


def _drawn(seed: int, shift: float, scales: tuple[float, float] | None) -> tuple:
    """``[2 * pairs, neuron]`` in turn memorized and generalized, and which neurons were shifted."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((2 * PAIRS, NEURONS), dtype=np.float32)
    planted = np.zeros(NEURONS, dtype=bool)
    planted[rng.choice(NEURONS, round(0.05 * NEURONS), replace=False)] = True
    values[::2, planted] += np.float32(shift)
    if scales is not None:
        values *= rng.uniform(*scales, NEURONS).astype(np.float32)
    return values, planted


class TestPlanted:
    @pytest.mark.parametrize("seed", range(3))
    @pytest.mark.parametrize("by", ["correlation", "mean_difference", "effect_size", "auc"])
    def test_shifted_neurons_are_found(self, by, seed) -> None:
        values, planted = _drawn(seed, 0.6, None)
        scores = _scored(values, CLASSES * PAIRS, auc=by == "auc")
        assert roc_auc_score(planted, scores.ranking(by)[SITE][0]) >= 0.99

    @pytest.mark.parametrize("seed", range(3))
    def test_unequal_scales_mislead_the_mean_difference_and_no_other_ranking(self, seed) -> None:
        values, planted = _drawn(seed, 0.6, (0.1, 5.0))
        scores = _scored(values, CLASSES * PAIRS, auc=True)
        found = {
            by: roc_auc_score(planted, scores.ranking(by)[SITE][0])
            for by in ("correlation", "effect_size", "auc", "mean_difference")
        }
        assert min(found[by] for by in ("correlation", "effect_size", "auc")) >= 0.99
        assert found["mean_difference"] < 0.97

    def test_null_data_is_reported_about_as_often_as_promised(self) -> None:
        """With q = 0.05 any neuron is reported in 5 % of null draws: 10 of 200, at most 16."""
        acts = made_states({SITE: np.zeros((2 * PAIRS, 1, 1), np.float32)}, CLASSES * PAIRS)
        reported = 0
        for draw in range(200):
            values, _ = _drawn(1000 + draw, 0.0, None)
            scores = mm.neuron_mean_difference(
                replace(acts, states={SITE: torch.from_numpy(values[:, None])})
            )
            reported += bool((scores.q[SITE] <= 0.05).any())
        assert reported <= 16
        planted, _ = _drawn(0, 0.6, None)
        found = mm.neuron_mean_difference(
            replace(acts, states={SITE: torch.from_numpy(planted[:, None])})
        )
        assert (found.q[SITE] <= 0.05).any()  # the same check does report what is there
