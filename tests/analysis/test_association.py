from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from mechmem.analysis.association import (
    auroc,
    group_auroc,
    group_correlation,
    pearson,
    spearman,
)  # fmt: skip


def alone(n: int) -> list[str]:
    return [f"g{k}" for k in range(n)]


def states(rng: np.random.Generator, groups: int, shared: float, mean: float = 0.0):
    """Normal scores in groups of 1 to 6 members, and the group of each."""
    index = np.repeat(np.arange(groups), rng.integers(1, 7, groups))
    own = rng.normal(size=len(index))
    values = np.sqrt(shared) * rng.normal(size=groups)[index] + np.sqrt(1 - shared) * own
    return values, index


class TestAreas:
    def test_the_area_counts_pairs(self) -> None:
        rng = np.random.default_rng(0)
        scores, positive = rng.integers(0, 5, 30).astype(float), rng.random(30) < 0.4
        pairs = scores[positive][:, None] - scores[~positive][None, :]
        want = float((pairs > 0).mean() + 0.5 * (pairs == 0).mean())
        assert auroc(scores, positive) == pytest.approx(want)
        assert group_auroc(scores, positive, alone(30)).value == pytest.approx(want)

    def test_many_examples_have_delong_s_interval(self) -> None:
        rng = np.random.default_rng(1)
        positive = np.arange(4000) % 2 == 0
        scores = rng.normal(size=4000) + positive
        found = group_auroc(scores, positive, alone(4000))
        above = (scores[positive][:, None] > scores[~positive][None, :]).astype(float)
        one, zero = above.mean(1), above.mean(0)
        error = np.sqrt(one.var(ddof=1) / len(one) + zero.var(ddof=1) / len(zero))
        assert found.low == pytest.approx(above.mean() - 1.96 * error, abs=0.1 * error)
        assert found.high == pytest.approx(above.mean() + 1.96 * error, abs=0.1 * error)

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_classes_apart_leave_a_width(self, sign) -> None:
        scores, positive = sign * np.arange(20.0), np.arange(20) >= 10
        found = group_auroc(scores, positive, alone(20))
        assert found.value == (sign > 0)
        assert found.high - found.low > 0.1
        missing = group_auroc(scores, positive | True, alone(20))
        assert np.isnan([missing.value, missing.low]).all()

    @pytest.mark.parametrize(("mean", "shared"), [(0.0, 0.0), (0.8, 0.6), (1.8, 0.3)])
    def test_at_least_93_percent_hold_the_area(self, mean, shared) -> None:
        rng = np.random.default_rng([int(10 * mean), int(10 * shared)])
        held, truth = [], stats.norm.cdf(mean / np.sqrt(2))
        for _ in range(300):
            values, index = states(rng, 40, shared)
            positive = index % 2 == 0
            found = group_auroc(values + mean * positive, positive, [f"g{k}" for k in index])
            held.append(found.low <= truth <= found.high)
        assert np.mean(held) > 0.93 - 2 * np.sqrt(0.93 * 0.07 / 300)


class TestCorrelations:
    def test_the_values_are_scipy_s(self) -> None:
        rng = np.random.default_rng(0)
        one, other = rng.integers(0, 6, (2, 40)).astype(float)
        for ranks, ours, theirs in (
            (False, pearson, stats.pearsonr),
            (True, spearman, stats.spearmanr),
        ):
            want = theirs(one, other).statistic
            assert ours(one, other) == pytest.approx(want)
            assert group_correlation(one, other, alone(40), ranks=ranks).value == pytest.approx(
                want
            )

    def test_many_normal_examples_have_fisher_s_interval(self) -> None:
        rng = np.random.default_rng(2)
        one = rng.normal(size=3000)
        other = 0.5 * one + rng.normal(size=3000)
        want = stats.pearsonr(one, other).confidence_interval()
        found = group_correlation(one, other, alone(3000))
        assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=0.005)

    def test_what_ranks_do_to_each_other_is_in_it(self) -> None:
        """The influence of an example on Spearman's rho, by leaving it out."""
        rng = np.random.default_rng(3)
        one = rng.normal(size=400)
        other = one**3 + rng.normal(size=400)
        found = group_correlation(one, other, alone(400), ranks=True)
        keep = ~np.eye(400, dtype=bool)
        without = [stats.spearmanr(one[row], other[row]).statistic for row in keep]
        error = np.sqrt(399 / 400 * ((np.array(without) - np.mean(without)) ** 2).sum())
        assert (found.high - found.low) / 3.92 == pytest.approx(error, rel=0.06)

    @pytest.mark.parametrize("ranks", [False, True])
    def test_few_groups_and_perfect_lines(self, ranks) -> None:
        line = np.arange(4.0)
        few = group_correlation(line, line**2, alone(4), ranks=ranks)
        assert (few.low, few.high) == (-1, 1)
        line = np.arange(10.0)
        for sign in (1, -1):
            perfect = group_correlation(line, sign * line, alone(10), ranks=ranks)
            assert perfect.value == pytest.approx(sign)
            assert 0.02 < perfect.high - perfect.low < 0.2
        flat = group_correlation(line, np.zeros(10), alone(10), ranks=ranks)
        assert np.isnan([flat.value, flat.low, flat.high]).all()

    def test_rephrasings_do_not_narrow_it(self) -> None:
        rng = np.random.default_rng(4)
        one, other = rng.normal(size=(2, 30))
        once = group_correlation(one, other, alone(30))
        names = np.repeat(alone(30), 8).tolist()
        many = group_correlation(np.repeat(one, 8), np.repeat(other, 8), names)
        assert (many.low, many.high) == pytest.approx((once.low, once.high), abs=1e-9)

    @pytest.mark.parametrize("ranks", [False, True])
    @pytest.mark.parametrize(("rho", "shared"), [(0.0, 0.0), (0.7, 0.6)])
    def test_at_least_93_percent_hold_the_correlation(self, rho, shared, ranks) -> None:
        rng = np.random.default_rng([int(10 * rho), int(10 * shared), ranks])
        truth = 6 / np.pi * np.arcsin(rho / 2) if ranks else rho
        held = []
        for _ in range(300):
            one, index = states(rng, 25, shared)
            noise = np.sqrt(shared) * rng.normal(size=25)[index]
            noise += np.sqrt(1 - shared) * rng.normal(size=len(index))
            other = rho * one + np.sqrt(1 - rho**2) * noise
            found = group_correlation(one, other, [f"g{k}" for k in index], ranks=ranks)
            held.append(found.low <= truth <= found.high)
        assert np.mean(held) > 0.93 - 2 * np.sqrt(0.93 * 0.07 / 300)
