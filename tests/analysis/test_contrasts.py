"""Exchanged classes of a contrast: within groups that show both, between the others as wholes."""

from __future__ import annotations

import numpy as np
from helpers import made_states

from mechmem.analysis.contrasts import StackedStates
from mechmem.models.sites import Site


def test_groups_of_one_class_trade_it_as_wholes_and_the_others_within() -> None:
    names = ["memorized", "generalized", *["memorized"] * 6, *["generalized"] * 4]
    site = Site("resid_post", 0)
    values = {site: np.random.default_rng(0).standard_normal((12, 1, 3))}
    contrast = StackedStates.of(made_states(values, names), "memorized", "generalized", "behavior")
    draws = np.array([contrast.shuffled(0, k) for k in range(400)])
    inner, outer = draws[:, :2], draws[:, 2:].reshape(400, 5, 2)
    assert (inner.sum(1) == 1).all()
    assert (outer[..., 0] == outer[..., 1]).all()
    assert (outer[..., 0].sum(1) == 3).all()
    # each of the 2 ways within and of the 10 ways between is as likely as the others
    ways = {tuple(row) for row in outer[..., 0].tolist()}
    assert len(ways) == 10
    assert 0.4 < inner[:, 0].mean() < 0.6
    assert np.abs(outer[..., 0].mean(0) - 0.6).max() < 0.1
