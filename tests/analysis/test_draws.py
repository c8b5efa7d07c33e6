"""An edit against the draws of its control: simulated nulls, and the parts by hand."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import as_users_run_it
from scipy import stats

from mechmem.analysis.draws import beyond_draws, mean_of_draws
from mechmem.analysis.intervals import group_mean
from mechmem.errors import MechmemError


def outcomes(rng, draws: int, groups: int, spread: float) -> np.ndarray:
    """``[draw + 1, example]``: pairs of prompts under edits that differ like random directions."""
    base = np.repeat(rng.normal(0, 1.0, groups), 2) + rng.normal(0, 0.5, 2 * groups)
    own = rng.normal(0, spread, (draws + 1, 1)) + rng.normal(0, 0.5, (draws + 1, 2 * groups))
    return (rng.random((draws + 1, 2 * groups)) < 1 / (1 + np.exp(-base - own))).astype(float)


@pytest.mark.parametrize("draws", [5, 10, 30])
@pytest.mark.parametrize("spread", [0.0, 0.5, 1.5])
def test_an_edit_that_is_one_more_draw_is_seldom_above(draws, spread) -> None:
    """2.5 % are meant; treating the draws as constants gives up to 35 %."""
    rng = np.random.default_rng(draws)
    names = [f"g{k // 2}" for k in range(80)]
    above, constant = [], []
    for _ in range(500):
        values = outcomes(rng, draws, 40, spread)
        above.append(beyond_draws(values[0], values[1:], names).low > 0)
        constant.append(group_mean(values[0] - values[1:].mean(0), names, kind="change").low > 0)
    assert np.mean(above) < 0.055
    if spread:
        assert np.mean(constant) > 0.08, "the simulation would not have found the fault"


def test_the_interval_of_a_controls_mean_holds_it() -> None:
    rng = np.random.default_rng(0)
    names = [f"g{k}" for k in range(60)]
    held = []
    for _ in range(500):
        values = rng.normal(rng.normal(0, 0.3, (8, 1)), 1.0, (8, 60)) + rng.normal(0, 1, 60)
        found = mean_of_draws(values, names, kind="mean")
        held.append(found.low < 0 < found.high)
    assert 0.92 < np.mean(held) < 0.985


def test_parts_are_those_of_numpy() -> None:
    rng = np.random.default_rng(1)
    names = [f"g{k}" for k in range(12)]
    draws = rng.normal(0, 1, (6, 12)) + rng.normal(0, 2, (6, 1))
    edit = rng.normal(1, 1, 12)
    got = beyond_draws(edit, draws, names, kind="mean", sizes=(2.0, 3.0))
    assert got.value == pytest.approx(edit.mean() - draws.mean())
    means = [row.mean() for row in draws]
    assert got.spread == pytest.approx(np.std(means, ddof=1))
    assert got.rank == 1 + sum(mean >= edit.mean() for mean in means)
    assert got.p == got.rank / 7
    plain = group_mean(edit - draws.mean(0), names, kind="mean")
    # One prompt a group: the noise of a draw's mean is the variance of its deviations over n.
    away = draws - draws.mean(0)
    noise = np.mean([row.var(ddof=1) / 12 for row in away]) * 6 / 5
    extra = (np.var(means, ddof=1) - noise) * (1 + 1 / 6) * stats.t.ppf(0.975, 5) ** 2
    assert got.high - got.value == pytest.approx(np.hypot(plain.high - plain.value, extra**0.5))
    assert got.value - got.low == pytest.approx(np.hypot(plain.value - plain.low, extra**0.5))
    row = got.row()
    assert (row["draws"], row["size"], row["control_size"]) == (6, 2.0, 3.0)


def test_one_draw_has_no_spread_and_a_control_that_is_not_drawn_needs_none() -> None:
    names = [f"g{k}" for k in range(10)]
    edit, draw = np.ones(10), np.zeros((1, 10))
    alone = beyond_draws(edit, draw, names)
    assert alone.value == 1
    assert np.isnan([alone.low, alone.high, alone.spread]).all()
    settled = beyond_draws(edit, draw, names, drawn=False)
    assert settled.low == group_mean(edit, names, kind="change").low
    assert settled.rank == 1


def test_ties_count_against_and_the_order_of_draws_does_not_matter() -> None:
    rng = np.random.default_rng(2)
    names = [f"g{k // 2}" for k in range(20)]
    draws = rng.integers(0, 2, (9, 20)).astype(float)
    assert beyond_draws(draws[0], draws, names).rank >= 2
    assert beyond_draws(np.zeros(20), np.zeros((4, 20)), names).rank == 5
    one, other = (beyond_draws(draws[0], part, names) for part in (draws, draws[::-1]))
    assert one.low == pytest.approx(other.low)


@pytest.mark.parametrize("draws", [np.zeros((0, 4)), np.zeros((3, 5)), np.zeros(4)])
def test_what_is_no_sample_of_the_same_prompts_is_refused(draws) -> None:
    with as_users_run_it(), pytest.raises(MechmemError, match="at least one draw on the prompts"):
        beyond_draws(np.zeros(4), draws, ["a", "b", "c", "d"])
