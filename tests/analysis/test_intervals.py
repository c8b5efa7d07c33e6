from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import brentq

import mechmem as mm
from mechmem.analysis.intervals import Estimate, group_counts, group_mean, group_ratio

KINDS = ("share", "change", "mean")


def alone(n: int) -> list[str]:
    """Every example a group of its own."""
    return [f"g{k}" for k in range(n)]


def sample(rng: np.random.Generator, kind: str, groups: int, shared: float):
    """Values of groups of 1 to 6 members, of which some do as their group does; the true mean."""
    sizes = rng.integers(1, 7, groups)
    index = np.repeat(np.arange(groups), sizes)

    def draw(size: int) -> np.ndarray:
        if kind == "share":
            return (rng.random(size) < 0.05).astype(float)
        if kind == "change":
            return rng.choice([1.0, 0.0, -1.0], size, p=[0.1, 0.85, 0.05])
        return rng.normal(size=size)

    together = rng.random(len(index)) < shared
    return np.where(together, draw(groups)[index], draw(len(index))), [f"g{k}" for k in index]


class TestOnePromptPerGroup:
    @pytest.mark.parametrize(("yes", "n"), [(0, 20), (1, 20), (7, 20), (20, 20), (3, 200)])
    def test_a_share_has_the_exact_interval(self, yes, n) -> None:
        found = group_mean([1.0] * yes + [0.0] * (n - yes), alone(n))
        want = stats.binomtest(yes, n).proportion_ci(method="exact")
        assert (found.low, found.high) == pytest.approx((want.low, want.high), abs=1e-9)

    @pytest.mark.parametrize(("up", "down", "n"), [(0, 0, 10), (3, 1, 30), (9, 0, 12)])
    def test_a_change_has_bonett_and_price_s(self, up, down, n) -> None:
        values = [1.0] * up + [-1.0] * down + [0.0] * (n - up - down)
        found = group_mean(values, alone(n), kind="change")
        one, other = (up + 1) / (n + 2), (down + 1) / (n + 2)
        half = 1.959964 * np.sqrt((one + other - (one - other) ** 2) / (n + 2))
        ends = max(-1, one - other - half), min(1, one - other + half)
        assert found.value == pytest.approx((up - down) / n)
        assert (found.low, found.high) == pytest.approx(ends, abs=1e-6)

    def test_a_mean_has_student_s(self) -> None:
        values = np.random.default_rng(0).normal(size=12)
        want = stats.ttest_1samp(values, 0).confidence_interval()
        found = group_mean(values, alone(12))
        assert (found.low, found.high) == pytest.approx((want.low, want.high))

    def test_a_ratio_is_every_ratio_that_a_t_test_leaves(self) -> None:
        rng = np.random.default_rng(1)
        below = rng.uniform(1, 3, 15)
        above = 2 * below + rng.normal(size=15)

        def t(ratio: float) -> float:
            return abs(stats.ttest_1samp(above - ratio * below, 0).statistic) - 2.144787

        found = group_ratio(above, below, alone(15))
        assert found.value == pytest.approx(above.sum() / below.sum())
        assert found.low == pytest.approx(brentq(t, 0, found.value), abs=1e-5)
        assert found.high == pytest.approx(brentq(t, found.value, 5), abs=1e-5)


class TestGroups:
    @pytest.mark.parametrize("kind", KINDS)
    def test_rephrasings_do_not_narrow_it(self, kind) -> None:
        values, _ = sample(np.random.default_rng(0), kind, 40, 0.0)
        values = values[:40]
        once = group_mean(values, alone(40), kind=kind)
        ten = group_mean(np.repeat(values, 10), np.repeat(alone(40), 10).tolist(), kind=kind)
        naive = group_mean(np.repeat(values, 10), alone(400), kind=kind)
        assert (ten.low, ten.high) == pytest.approx((once.low, once.high))
        assert naive.high - naive.low < 0.5 * (once.high - once.low)
        assert (ten.n, ten.groups) == (400, 40)

    def test_members_that_balance_each_other_narrow_it(self) -> None:
        pairs = np.repeat(alone(30), 2).tolist()
        assert_narrow = group_mean([1.0, 0.0] * 30, pairs)
        apart = group_mean([1.0, 0.0] * 30, alone(60))
        assert 0 < assert_narrow.high - assert_narrow.low < 0.5 * (apart.high - apart.low)

    @settings(deadline=None, max_examples=60)
    @given(
        st.lists(st.tuples(st.integers(0, 5), st.floats(0, 1)), min_size=1, max_size=20),
        st.sampled_from(KINDS),
        st.randoms(),
    )
    def test_neither_order_nor_names_matter_and_the_value_is_inside(self, rows, kind, rng) -> None:
        mixed = rng.sample(rows, len(rows))
        found, again = (
            group_mean([v for _, v in some], [f"{name}{g}" for g, _ in some], kind=kind)
            for some, name in ((rows, "g"), (mixed, "g"))
        )
        assert repr(found) == repr(again)
        renamed = group_mean([v for _, v in rows], [f"x{9 - g}" for g, _ in rows], kind=kind)
        assert (renamed.low, renamed.high) == pytest.approx((found.low, found.high), nan_ok=True)
        assert not found.low > found.value + 1e-12
        assert not found.high < found.value - 1e-12
        assert (found.n, found.groups) == (len(rows), len({g for g, _ in rows}))

    @pytest.mark.parametrize("groups", [1, 2, 10, 200])
    @pytest.mark.parametrize("value", [0.0, 1.0])
    @pytest.mark.parametrize("members", [1, 3])
    def test_no_interval_is_without_width_because_all_agreed(self, groups, value, members) -> None:
        names = np.repeat(alone(groups), members).tolist()
        for kind in ("share", "change"):
            found = group_mean([value] * len(names), names, kind=kind)
            once = group_mean([value] * groups, alone(groups), kind=kind)
            assert found.high - found.low > 0.9 / groups
            assert (found.low, found.high) == pytest.approx((once.low, once.high))

    def test_one_group_says_nothing_about_a_mean(self) -> None:
        found = group_mean([0.2, 1.3], ["a", "a"])
        assert found.value == 0.75
        assert np.isnan(found.low)
        assert np.isnan(found.high)
        share = group_mean([0.0, 1.0, 1.0], ["a", "a", "a"])
        assert share.high - share.low > 0.9

    def test_a_sum_that_may_be_zero_has_no_ratio(self) -> None:
        found = group_ratio([1.0, 2.0, 3.0], [5.0, -4.0, 0.5], alone(3))
        assert found.value == 4.0
        assert np.isnan(found.low)
        assert np.isnan(group_ratio([1.0, 2.0], [1.0, 2.0], ["a", "a"]).high)

    def test_nothing_to_average(self) -> None:
        with pytest.raises(mm.PromptError, match=r"No values to average"):
            group_mean([], [])


class TestCoverage:
    """A small version of `docs/coverage.md`."""

    @pytest.mark.parametrize("shared", [0.0, 0.7])
    @pytest.mark.parametrize(
        ("kind", "truth", "groups"),
        [("share", 0.05, 20), ("share", 0.05, 60), ("change", 0.05, 10), ("mean", 0.0, 20)],
    )
    def test_at_least_93_percent_hold_the_truth(self, kind, truth, groups, shared) -> None:
        rng = np.random.default_rng([groups, int(10 * shared), KINDS.index(kind)])
        found = [group_mean(*sample(rng, kind, groups, shared), kind=kind) for _ in range(500)]
        held = np.mean([one.low <= truth <= one.high for one in found])
        assert held > 0.93 - 2 * np.sqrt(0.93 * 0.07 / 500)

    def test_it_is_not_bought_with_width(self) -> None:
        rng = np.random.default_rng(0)
        for share in (0.05, 0.5):
            yes = rng.binomial(20, share, 300)
            found = [group_mean([1.0] * k + [0.0] * (20 - k), alone(20)) for k in yes]
            wilson = [stats.binomtest(k, 20).proportion_ci(method="wilson") for k in yes]
            width = np.mean([one.high - one.low for one in found])
            assert width < 1.25 * np.mean([one.high - one.low for one in wilson])


class TestRows:
    def test_an_estimate_writes_its_row(self) -> None:
        one = Estimate(0.5, 0.25, 0.75, 40, 20)
        ends = {"share": 0.5, "share_low": 0.25, "share_high": 0.75}
        assert one.row("share", counted=False) == ends
        assert one.row("share") == {**ends, "n": 40, "groups": 20}
        assert Estimate.exact(0.0, ["a", "a", "b"]).row("x") == {
            "x": 0.0, "x_low": 0.0, "x_high": 0.0, "n": 3, "groups": 2
        }  # fmt: skip

    def test_what_a_sample_holds_decides_what_it_is(self) -> None:
        names = alone(4)
        for values, kind in (
            ([0, 1, 1, 0], "share"),
            ([0, 1, -1, 0], "change"),
            ([0, 1, 0.5, 0], "mean"),
        ):
            assert group_mean(values, names) == group_mean(values, names, kind=kind)

    def test_group_counts_are_keyed(self) -> None:
        one = group_counts(7, 50, 3, "key", 7)
        assert one.shape == (50, 7)
        assert (one.sum(1) == 7).all()
        assert (one == group_counts(7, 50, 3, "key", 7)).all()
        assert (one != group_counts(7, 50, 3, "other", 7)).any()
