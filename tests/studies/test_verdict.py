"""The verdict, against p values counted by hand and against nulls that have nothing in them."""

from __future__ import annotations

import numpy as np
import pytest

from mechmem.studies.verdict import Verdict

M, G = "memorized", "generalized"
BEYOND = {M: (1 / 31, 30), G: (1 / 31, 30)}


def effects(m: float, g: float, **others: tuple[float, float]) -> dict[str, dict[str, float]]:
    own = {"chosen": {M: m, G: g}}
    return own | {name: {M: a, G: b} for name, (a, b) in others.items()}


def flat(m: float, g: float, n: int = 19) -> list[dict[str, dict[str, float]]]:
    return [effects(m, g)] * n


def test_both_ways_when_the_smaller_beats_every_smaller() -> None:
    found = Verdict(effects(0.3, 0.2), flat(0.1, 0.0), 19, draws=BEYOND)
    assert found.p == {"any": 0.05, "both": 0.05, M: 0.05, G: 0.05}
    assert found.turned == [M, G]
    assert found.both
    assert "none of 19 did as much, p = 0.05" in found.sentence


def test_ties_count_against_the_effect() -> None:
    refits = flat(0.1, 0.0, 18) + flat(0.3, 0.0, 1)
    found = Verdict(effects(0.3, 0.2), refits, 19, draws=BEYOND)
    assert found.p["any"] == 2 / 20
    assert found.turned == []
    assert found.sentence.startswith("Not turned: +30.0 points toward memorized")
    assert "1 of 19 did as much" in found.sentence


def test_the_gate_stands_before_both() -> None:
    # The smaller change beats every smaller one, but the larger does not pass the gate.
    found = Verdict(effects(0.25, 0.2), flat(0.3, -0.1), 19, draws=BEYOND)
    assert found.p["both"] == 0.05
    assert found.turned == []


def test_one_class_is_judged_against_the_larger_change_of_every_refit() -> None:
    found = Verdict(effects(0.3, 0.05), flat(0.06, 0.1), 19, draws=BEYOND)
    assert found.p[G] == 1.0  # 0.05 is less than the 0.1 that refits reach toward either class
    assert found.turned == [M]
    assert "not shown toward generalized" in found.sentence


@pytest.mark.parametrize("draws", [{}, {M: (0.03, 30)}, {M: (0.03, 30), G: (0.2, 30)}])
def test_both_ways_needs_each_direction_beyond_draws_of_the_same_covariance(draws) -> None:
    found = Verdict(effects(0.3, 0.05), flat(0.1, 0.0), 19, draws=draws)
    assert found.p["both"] == 0.05
    assert found.turned == [M]


@pytest.mark.parametrize(
    ("draws", "turned"),
    [({}, [M]), ({M: (0.5, 30), G: (0.03, 30)}, [G]), ({M: (0.5, 30), G: (0.5, 30)}, [M])],
)
def test_two_classes_that_pass_alone_are_not_both_ways_without_their_draws(draws, turned) -> None:
    found = Verdict(effects(0.3, 0.2), flat(0.1, 0.0), 19, draws=draws)
    assert found.p[M] == found.p[G] == found.p["both"] == 0.05
    assert found.turned == turned
    assert not found.both
    assert "both ways" not in found.sentence


def test_a_family_is_judged_against_the_maximum_over_families() -> None:
    found = Verdict(
        effects(0.3, 0.2, other=(0.15, 0.1)),
        [effects(0.05, 0.0, other=(0.2, 0.0))] * 19,
        19,
        draws=BEYOND,
    )
    assert found.family_p == {"chosen": 0.05, "other": 1.0}


def test_a_refit_without_an_edit_counts_as_nothing_and_a_fit_without_one_has_p_1() -> None:
    assert Verdict(effects(0.01, -0.1), [{}] * 19, 19).p["any"] == 0.05
    found = Verdict({}, flat(0.0, 0.0), 19)
    assert found.p["any"] == 1.0
    assert found.turned == []
    assert "no edit was found" in found.sentence


def test_without_refits_nothing_is_said_to_be_tested() -> None:
    assert "Nothing was tested" in Verdict(effects(0.9, 0.9), [], 0).sentence
    found = Verdict(effects(0.9, 0.9), [], 19, reason="only 3 groups can change")
    assert found.sentence == "Not testable: only 3 groups can change."
    assert found.turned == []
    assert found.p == {}


def test_so_few_refits_that_nothing_could_be_claimed_are_said() -> None:
    found = Verdict(effects(0.9, 0.9), flat(0.0, 0.0, 18), 18, draws=BEYOND)
    assert found.turned == []
    assert found.sentence.startswith("Too few refits to claim anything: +90.0 points")
    assert "with 18 of them p cannot fall below 0.053, and 19 are needed" in found.sentence
    assert found.headline == "Too few refits to claim anything"


def test_the_table_gives_every_refit_and_the_p_again() -> None:
    rng = np.random.default_rng(0)
    refits = [effects(*rng.normal(0, 0.1, 2)) for _ in range(19)]
    found = Verdict(effects(0.12, 0.02), refits, 19, draws=BEYOND)
    table = found.table()
    for claim, rows in table.groupby("claim"):
        real = rows[rows["kind"] == "edit"]
        null = rows[rows["kind"] == "refit"]["effect"]
        assert len(null) == 19
        counted = (1 + (null >= real["effect"].item()).sum()) / 20
        assert counted == real["p"].item() == found.p[claim]


def test_a_claim_on_nothing_is_made_in_one_study_of_twenty() -> None:
    """Real fits and refits from one distribution, correlated between the directions."""
    rng = np.random.default_rng(1)
    claims = both = 0
    for _ in range(4000):
        draws = rng.multivariate_normal([0, 0], [[0.01, -0.006], [-0.006, 0.01]], 20)
        real, *null = (effects(*draw) for draw in draws)
        found = Verdict(real, null, 19, draws=BEYOND)
        claims += bool(found.turned)
        both += found.both
    # A binomial of 4,000 at 0.05 has a standard deviation of 0.0034.
    assert abs(claims / 4000 - 0.05) < 4 * 0.0035
    assert both <= claims


@pytest.mark.parametrize(
    ("own", "refit", "turned"),
    [
        ((-0.01, -0.02), (-0.05, -0.06), []),
        ((0.0, 0.0), (-0.01, -0.02), []),
        ((0.3, -0.02), (-0.1, -0.3), [M]),
        ((float("nan"), float("nan")), (0.0, 0.0), []),
    ],
)
def test_less_harm_than_refits_do_is_no_turn(own, refit, turned) -> None:
    found = Verdict(effects(*own), flat(*refit), 19, draws=BEYOND)
    assert found.turned == turned
    if not turned and own[0] <= 0:
        assert found.sentence == (
            f"Not turned: {100 * own[0]:+.1f} points toward memorized and {100 * own[1]:+.1f} "
            "points toward generalized."
        )


def test_a_single_class_is_told_with_its_own_p() -> None:
    refits = flat(0.1, 0.0, 95) + flat(0.31, 0.0, 4)
    own = {"chosen": {M: 0.5, G: 0.2}}
    found = Verdict(own, flat(0.1, 0.0, 99), 99, draws={G: (0.01, 99)})
    assert found.turned == [G]
    assert "none of 99 did as much, p = 0.01" in found.sentence
    mixed = Verdict({"chosen": {M: 0.5, G: 0.3}}, refits, 99, draws={G: (0.01, 99)})
    assert mixed.p[G] == 5 / 100
    assert mixed.turned == [G]
    assert "4 of 99 did as much, p = 0.05" in mixed.sentence


@pytest.mark.parametrize("refit", [(float("nan"), 0.1), (0.1, float("nan"))])
def test_a_refit_that_gave_no_number_counts_against_the_effect_in_either_place(refit) -> None:
    found = Verdict(effects(0.3, 0.2), flat(*refit), 19, draws=BEYOND)
    assert set(found.p.values()) == {1.0}
    assert found.family_p == {"chosen": 1.0}
    assert found.turned == []
    assert "19 of 19 did as much, p = 1" in found.sentence


@pytest.mark.parametrize("own", [(float("nan"), 0.3), (0.3, float("nan"))])
def test_an_effect_that_is_no_number_passes_no_gate_in_either_place(own) -> None:
    found = Verdict(effects(*own), flat(0.1, 0.0), 19, draws=BEYOND)
    assert found.p["any"] == found.p["both"] == found.family_p["chosen"] == 1.0
    assert found.turned == []


@pytest.mark.parametrize(
    ("draws", "why"),
    [
        ({M: (0.25, 3), G: (0.25, 3)}, "with 3 random draws of the states' covariance beside it"),
        ({M: (0.03, 30)}, "with 0 random draws"),
        ({M: (0.03, 30), G: (0.2, 30)}, "toward generalized random draws with the states'"),
        ({M: (0.03, 30), G: (0.03, 30)}, ""),
    ],
)
def test_what_only_the_draws_forbid_is_said_to_be_forbidden_by_them(draws, why) -> None:
    sentence = Verdict(effects(0.3, 0.2), flat(0.1, 0.0), 19, draws=draws).sentence
    assert why in sentence
    assert ("oth ways" in sentence.split("p = 0.05).")[1]) == bool(why)
    one = Verdict(effects(0.3, -0.1), flat(0.1, -0.3), 19, draws=draws)
    assert one.sentence.endswith("(none of 19 did as much, p = 0.05).")
