from __future__ import annotations

import numpy as np
import pytest
from helpers import as_users_run_it, made_states
from scipy import stats

import mechmem as mm
from mechmem.analysis.contrasts import StackedStates

EARLY, LATE = ("resid_post", 0), ("resid_post", 1)
PAIRS, WIDTH, PLANTED = 60, 40, 6


def planted(seed: int = 0, scale: float = 20.0, shift: float = 3.0) -> mm.Activations:
    """Six shifted neurons early; late neurons only have a larger scale."""
    rng = np.random.default_rng(seed)
    classes = ["memorized", "generalized"] * PAIRS
    early = rng.standard_normal((2 * PAIRS, 1, WIDTH))
    early[::2, 0, :PLANTED] += shift
    late = scale * rng.standard_normal((2 * PAIRS, 1, WIDTH))
    return made_states({EARLY: early, LATE: late}, classes)


@pytest.fixture(scope="module")
def found():
    return mm.layer_distribution(planted(), top=PLANTED, draws=50)


class TestTheStatistics:
    def test_they_are_those_of_scipy_and_numpy_under_repeated_examples(self) -> None:
        acts = planted(3)
        contrast = StackedStates.of(acts, "memorized", "generalized", "behavior")
        times = np.random.default_rng(0).integers(0, 4, PAIRS).repeat(2)
        got = contrast.statistics(times[None].astype(float))
        stacked = np.concatenate([acts[site][:, 0].numpy() for site in (EARLY, LATE)], axis=1)
        rows = np.repeat(np.arange(2 * PAIRS), times)
        first = rows % 2 == 0
        x = stacked[rows]
        difference = x[first].mean(0) - x[~first].mean(0)
        np.testing.assert_allclose(got["mean_difference"][0], difference, rtol=1e-9)
        r = [stats.pearsonr(column, first.astype(float)).statistic for column in x.T]
        np.testing.assert_allclose(got["correlation"][0], r, rtol=1e-9)
        pooled = (first.sum() - 1) * (x[first].var(0, ddof=1) + x[~first].var(0, ddof=1))
        sd = np.sqrt(pooled / (len(rows) - 2))
        for part in (slice(0, WIDTH), slice(WIDTH, None)):
            want = difference[part] / np.sqrt((sd[part] ** 2).mean())
            np.testing.assert_allclose(got["scaled"][0, part], want, rtol=1e-9)

    def test_classes_are_exchanged_inside_groups_only(self) -> None:
        contrast = StackedStates.of(planted(), "memorized", "generalized", "behavior")
        drawn = np.stack([contrast.shuffled(0, k) for k in range(40)])
        pairs = drawn.reshape(40, PAIRS, 2)
        assert (pairs.sum(2) == 1).all()
        assert 0.4 < pairs[..., 0].mean() < 0.6
        assert (contrast.shuffled(0, 7) == drawn[7]).all()


class TestLayerDistribution:
    def test_a_ranking_that_knows_no_scale_finds_the_planted_layer(self, found) -> None:
        for ranking in ("correlation", "scaled"):
            assert found.share[ranking][mm.Site(*EARLY)].value == 1.0
            assert found.share[ranking][mm.Site(*LATE)].value == 0.0

    def test_the_raw_difference_finds_the_large_layer_and_so_does_its_control(self, found) -> None:
        late = mm.Site(*LATE)
        assert found.share["mean_difference"][late].value >= 0.5
        assert found.shuffled["mean_difference"][late][0] > 0.95
        assert 0.3 < found.shuffled["correlation"][late][0] < 0.7
        assert found.even[late] == 0.5

    def test_shares_are_those_of_the_ranking_of_neuron_scores(self) -> None:
        acts = planted(1, shift=0.4)
        got = mm.layer_distribution(acts, top=0.2, draws=20)
        scores = mm.neuron_mean_difference(acts)
        for ranking in ("correlation", "mean_difference"):
            chosen = scores.top(0.2, by=ranking).per_site()
            for site, count in chosen.items():
                assert got.share[ranking][site].value == pytest.approx(count / got.chosen)

    def test_the_interval_follows_resampled_groups(self) -> None:
        acts = planted(2, shift=0.4, scale=1.0)
        got = mm.layer_distribution(acts, top=10, rankings=["correlation"], draws=400)
        rng = np.random.default_rng(5)
        x = np.concatenate([acts[site][:, 0].numpy() for site in (EARLY, LATE)], axis=1)
        shares = []
        for _ in range(400):
            pairs = rng.integers(0, PAIRS, PAIRS)
            rows = np.stack([2 * pairs, 2 * pairs + 1], axis=1).ravel()
            label = np.tile([1.0, 0.0], PAIRS)
            data = x[rows] - x[rows].mean(0)
            r = np.abs((label - 0.5) @ data) / np.sqrt((data**2).sum(0))
            shares.append((np.argsort(-r)[:10] < WIDTH).mean())
        low, high = np.quantile(shares, [0.025, 0.975])
        share = got.share["correlation"][mm.Site(*EARLY)]
        assert abs(share.low - low) <= 0.1
        assert abs(share.high - high) <= 0.1
        assert (share.n, share.groups) == (2 * PAIRS, PAIRS)

    def test_the_table_has_a_row_per_ranking_and_site(self, found) -> None:
        table = found.table()
        assert len(table) == 3 * 2
        np.testing.assert_allclose(table.groupby("ranking")["share"].sum(), 1.0)
        np.testing.assert_allclose(table.groupby("ranking")["shuffled"].sum(), 1.0)


class TestRefusals:
    def test_impossible_choices(self) -> None:
        acts = planted()
        with pytest.raises(mm.MechmemError, match=r"Unknown ranking 'nmd'.*'correlation'"):
            mm.layer_distribution(acts, rankings=["nmd"])
        for top in (0, 81, 0.0, 1.5, True):
            with as_users_run_it(), pytest.raises(mm.MechmemError, match=r"top must be"):
                mm.layer_distribution(acts, top=top)

    def test_a_class_that_is_not_there(self) -> None:
        values = {EARLY: np.random.default_rng(0).standard_normal((8, 1, 4))}
        classes = ["memorized", "memorized", "generalized", "generalized"] * 2
        with pytest.raises(mm.PromptError, match=r"needs both; these prompts show"):
            mm.layer_distribution(made_states(values, classes), first="correct")

    def test_states_that_are_not_finite(self) -> None:
        values = np.zeros((4, 1, 3))
        values[0, 0, 0] = np.nan
        acts = made_states({EARLY: values}, ["memorized", "generalized"] * 2)
        with pytest.raises(mm.PromptError, match=r"not finite"):
            mm.layer_distribution(acts)
