"""A small part of `make attack`: no attempt ends raw, and none changes a result unseen."""

from __future__ import annotations

import pytest

from attacks.attacks import ATTACKS, KEPT, REFUSED, run

TRIALS = {"one bit of a file flipped": 60, "one entry of a manifest changed": 60,
          "the same, with a digest that fits": 60, "a file that is none": 30}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ATTACKS)
def test_every_attempt_is_refused_or_changes_nothing(name: str) -> None:
    outcomes = run(name, TRIALS.get(name, 4), seed=1)
    assert set(outcomes) <= {KEPT, REFUSED}
    if name == "one bit of a file flipped":
        assert outcomes.count(REFUSED) >= 0.8 * len(outcomes)
