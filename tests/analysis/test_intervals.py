from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mechmem as mm
from mechmem.analysis.intervals import group_mean, group_mean_draws


def _brute_force(values, groups, draws: int = 4000, seed: int = 7):
    """Whole groups drawn with replacement, one draw at a time."""
    rng = np.random.default_rng(seed)
    names = sorted(set(groups))
    members = {
        name: [v for v, g in zip(values, groups, strict=True) if g == name] for name in names
    }
    means = []
    for _ in range(draws):
        drawn = rng.integers(0, len(names), len(names))
        sample = [value for index in drawn for value in members[names[index]]]
        means.append(np.mean(sample))
    return np.quantile(means, [0.025, 0.975])


class TestGroupBootstrap:
    @pytest.mark.parametrize("seed", [0, 1, 2])
    def test_the_interval_is_that_of_a_brute_force_bootstrap(self, seed) -> None:
        rng = np.random.default_rng(seed)
        groups = [f"g{k}" for k in rng.integers(0, 30, 90)]
        offset = {f"g{k}": rng.normal() for k in range(30)}
        values = [offset[group] + 0.3 * rng.normal() for group in groups]
        found = group_mean(values, groups)
        low, high = _brute_force(values, groups)
        assert found.value == pytest.approx(np.mean(values))
        width = high - low
        assert abs(found.low - low) < 0.08 * width
        assert abs(found.high - high) < 0.08 * width

    def test_rephrasings_do_not_narrow_it(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.integers(0, 2, 40).astype(float)
        once = group_mean(values, [f"g{k}" for k in range(40)])
        ten_times = group_mean(np.repeat(values, 10), [f"g{k // 10}" for k in range(400)])
        assert (ten_times.low, ten_times.high) == pytest.approx((once.low, once.high))
        naive = group_mean(np.repeat(values, 10), [f"g{k}" for k in range(400)])
        assert naive.high - naive.low < 0.5 * (once.high - once.low)

    @settings(deadline=None, max_examples=30)
    @given(st.lists(st.tuples(st.integers(0, 5), st.floats(-3, 3)), min_size=1, max_size=20))
    def test_order_does_not_matter_and_the_value_is_inside(self, rows) -> None:
        groups, values = [f"g{g}" for g, _ in rows], [v for _, v in rows]
        found = group_mean(values, groups)
        back = group_mean(values[::-1], groups[::-1])
        assert (found.low, found.high) == pytest.approx((back.low, back.high))
        assert found.n == len(rows)
        assert found.groups == len(set(groups))

    def test_one_group_has_no_width(self) -> None:
        found = group_mean([0.0, 1.0, 1.0], ["a", "a", "a"])
        assert found.low == found.value == found.high == pytest.approx(2 / 3)

    def test_draws_of_two_quantities_share_their_resamples(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.normal(size=(20, 2))
        groups = [f"g{k // 2}" for k in range(20)]
        both = group_mean_draws(values, groups, seed=3)
        alone = group_mean_draws(values[:, 1:], groups, seed=3)
        assert np.allclose(both[:, 1:], alone)

    def test_the_seed_decides(self) -> None:
        values, groups = np.arange(10.0), [str(k) for k in range(10)]
        assert group_mean(values, groups, seed=1) == group_mean(values, groups, seed=1)
        assert group_mean(values, groups, seed=1) != group_mean(values, groups, seed=2)

    def test_nothing_to_average(self) -> None:
        with pytest.raises(mm.PromptError, match=r"No values to average"):
            group_mean([], [])
