"""The words and numbers of all studies, against texts written by hand."""

from __future__ import annotations

import pytest

from mechmem.analysis.intervals import Estimate
from mechmem.plotting.data import p_value
from mechmem.studies import words


def test_shares_and_differences_have_one_form():
    found = Estimate(0.5234, 0.4101, 0.6351, 40, 20)
    gap = Estimate(-0.004, -0.0312, 0.1, 40, 20)
    assert words.whole_percent(0.5234) == "52 %"
    assert words.share(found) == "52 % [41, 64]"
    assert words.hundredths(found) == "52.3 [41.0, 63.5]"
    assert words.points(gap) == "-0.4 [-3.1, +10.0] points"
    assert words.ratio(found) == "0.52 [0.41, 0.64]"


@pytest.mark.parametrize(
    ("p", "told"),
    [(0.0004, "p < 0.001"), (0.001, "p = 0.001"), (0.0052, "p = 0.0052"), (0.05, "p = 0.05"),
     (1 / 3, "p = 0.33"), (1.0, "p = 1")],
)  # fmt: skip
def test_a_p_value_is_never_said_to_be_zero(p, told):
    assert p_value(p) == told


def test_lists_read_as_people_write_them():
    assert [words.joined(list("abc")[:n]) for n in range(4)] == ["", "a", "a and b", "a, b and c"]
    assert words.sentence("x Y z") == "X Y z."


def test_a_row_gives_its_number_with_the_ends_that_it_has():
    row = {"share": 0.5, "share_low": 0.4, "share_high": 0.6, "gap": 0.1,
           "gap_low": 0.0, "gap_high": 0.2, "n": 9, "groups": 3}  # fmt: skip
    assert words.estimate_of(row, "share") == Estimate(0.5, 0.4, 0.6, 9, 3)
    assert words.estimate_of(row, "gap") == Estimate(0.1, 0.0, 0.2, 9, 3)


def test_few_groups_are_said_to_be_few():
    assert words.few_groups(10, "test groups") == []
    assert words.few_groups(9, "test groups") == [
        "With 9 test groups only a large effect could be seen."
    ]
