"""The size of the mean difference by depth, recounted with NumPy; planted and null depths."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import close, made_states

import mechmem as mm

EARLY, MIDDLE, LATE = (mm.Site("resid_post", layer) for layer in range(3))
PAIRS, WIDTH = 50, 30


def states(seed: int = 0) -> mm.Activations:
    """Nothing early, a shift of one spread in the middle, only a larger scale late."""
    rng = np.random.default_rng(seed)
    made = {site: rng.standard_normal((2 * PAIRS, 1, WIDTH)) for site in (EARLY, MIDDLE, LATE)}
    made[MIDDLE][::2] += 1.0
    made[LATE] *= 50.0
    return made_states(made, ["memorized", "generalized"] * PAIRS)


def test_both_sizes_are_those_of_numpy() -> None:
    acts = states(3)
    found = mm.depth_profile(acts, draws=8)
    for site in (EARLY, MIDDLE, LATE):
        x = acts[site][:, 0].double().numpy()
        one, zero = x[::2], x[1::2]
        difference = one.mean(0) - zero.mean(0)
        spread = np.sqrt(((one.var(0, ddof=1) + zero.var(0, ddof=1)) / 2).mean())
        close(np.array(found.raw[site]), np.sqrt((difference**2).mean()), 1e-9)
        close(np.array(found.scaled[site]), np.sqrt((difference**2).mean()) / spread, 1e-9)
    assert (found.n, found.groups) == (2 * PAIRS, PAIRS)


def test_only_the_planted_depth_is_above_exchanged_classes() -> None:
    found = mm.depth_profile(states(), draws=200)
    for site, above in ((EARLY, False), (MIDDLE, True), (LATE, False)):
        _, low, high = found.shuffled[site]
        assert 0 < low < high
        assert (found.scaled[site] > high) == above
    # Alone, the raw size would name the late site.
    assert found.raw[LATE] > 3 * found.raw[MIDDLE]


def test_the_band_is_what_exchanged_pairs_give() -> None:
    """About the root of 2 / pairs, what the mean of independent noise has."""
    mean, _, _ = mm.depth_profile(states(), draws=200).shuffled[EARLY]
    assert mean == pytest.approx(np.sqrt(2 / PAIRS), rel=0.1)


def test_a_site_that_never_varies_has_size_0_and_the_seed_keys_the_draws() -> None:
    same = made_states({EARLY: np.ones((8, 1, 4))}, ["memorized", "generalized"] * 4)
    assert mm.depth_profile(same, draws=4).scaled[EARLY] == 0.0
    one, again, other = (mm.depth_profile(states(), draws=40, seed=k) for k in (0, 0, 1))
    assert one.table().equals(again.table())
    assert one.shuffled != other.shuffled
    assert one.scaled == other.scaled


def test_two_classes_are_needed() -> None:
    with pytest.raises(mm.PromptError, match=r"needs 2 classes"):
        mm.depth_profile(made_states({EARLY: np.ones((4, 1, 2))}, ["memorized"] * 4))
