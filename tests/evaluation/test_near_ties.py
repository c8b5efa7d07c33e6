from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from question_scene import scene

import mechmem as mm
from mechmem.evaluation.rates import Rates

GROUPS = 40
OUTCOMES = ("memorized", "generalized", "other")


def observed(outcomes: list[str], margins: list[float]) -> mm.Observations:
    """Made-up observations of pairs."""
    plain = mm.observe(scene().lab.model, scene().test)
    prompts = mm.PromptSet(
        mm.Prompt(id=f"m{k}", text="w1", group=f"m{k // 2}", memorized="w1", generalized="w2")
        for k in range(len(outcomes))
    )
    return replace(
        plain,
        prompts=prompts,
        outcomes=tuple(outcomes),
        margins=np.array(margins),
        completions=("",) * len(outcomes),
        tokenized=plain.tokenized[:1] * len(outcomes),
        truncated=(False,) * len(outcomes),
    )


@pytest.fixture(scope="module")
def planted():
    """Prompt k has the margin (k + 1) / 10; those below 2 are turned."""
    margins = [(k + 1) / 10 * (-1) ** k for k in range(2 * GROUPS)]
    before = ["memorized" if margin > 0 else "generalized" for margin in margins]
    turn = {"memorized": "generalized", "generalized": "memorized"}
    after = [turn[name] if abs(m) < 2 else name for name, m in zip(before, margins, strict=True)]
    return Rates(observed(after, [0.0] * len(after)), observed(before, margins))


class TestNearTies:
    def test_an_edit_that_turns_only_near_ties(self, planted) -> None:
        got = mm.evaluation.near_ties(planted, bins=4)
        shares = [share.value for share in got.flips["edit"]]
        # 80 margins of 0.1 to 8.0; the 19 below 2 are turned, all in the first bin of 20.
        assert shares == [19 / 20, 0, 0, 0]
        assert [share.n for share in got.flips["edit"]] == [20] * 4
        flipped, everyone = got.decided["edit"]
        assert flipped.value == pytest.approx(9 / 19)  # 1.1 to 1.9 of 0.1 to 1.9
        assert everyone.value == pytest.approx(70 / 80)
        assert got.edges[0] == 0
        assert got.edges[-1] == pytest.approx(8.0)

    def test_tables_say_how_far_edit_and_control_moved_the_states(self, planted) -> None:
        edit, control = (
            replace(planted, after=replace(planted.after, moved=size)) for size in (3.0, 2.5)
        )
        found = mm.evaluation.near_ties(
            {"pairs": planted.before, "edit": edit}, controls={"random": control}
        )
        for table in (found.table(), found.summary()):
            sizes = table.groupby("name")["size"].unique()
            assert sizes["edit"].tolist() == [3.0]
            assert sizes["random"].tolist() == [2.5]
            assert np.isnan(sizes["pairs"]).all()

    def test_a_task_may_have_its_own_names(self, planted) -> None:
        called = {"memorized": "known", "generalized": "context"}
        one, two = (
            replace(
                seen, behaviors=("known", "context"),
                outcomes=tuple(called.get(name, name) for name in seen.outcomes),
            )
            for seen in (planted.after, planted.before)
        )  # fmt: skip
        got = mm.evaluation.near_ties(Rates(one, two), bins=4)
        assert got.flips["edit"] == mm.evaluation.near_ties(planted, bins=4).flips["edit"]

    def test_what_became_other_has_not_turned(self, planted) -> None:
        lost = replace(planted.after, outcomes=("other",) * (2 * GROUPS))
        got = mm.evaluation.near_ties(Rates(lost, planted.before), bins=2)
        assert [share.value for share in got.flips["edit"]] == [0, 0]
        assert np.isnan(got.decided["edit"][0].value)

    def test_rephrasings_turn_when_their_partner_came_out_otherwise(self) -> None:
        outcomes = ["memorized", "generalized", "memorized", "memorized", "other", "memorized"]
        seen = observed(outcomes, [3.0, -2.0, 0.5, 1.5, 0.2, 4.0])
        got = mm.evaluation.near_ties(seen, bins=1)
        # The pair with "other" shows no flip; its memorized member counts as not turned.
        assert got.flips["rephrasings"][0].value == pytest.approx(2 / 5)
        assert got.flips["rephrasings"][0].n == 5
        assert got.decided["rephrasings"][0].value == 1.0

    def test_several_share_their_bins(self, planted) -> None:
        got = mm.evaluation.near_ties(
            {"a": planted, "b": planted.before}, controls={"random neurons": planted}, bins=3
        )
        table = got.table().drop_duplicates("name").set_index("name")
        assert table["kind"].to_dict() == {
            "a": "edit",
            "b": "unedited",
            "random neurons": "control",
        }
        assert table["control"].tolist() == ["", "", "random neurons"]
        table = got.table()
        assert len(table) == 9
        assert table["margin_from"].tolist()[:3] == table["margin_from"].tolist()[3:6]
        assert list(got.summary()["name"]) == ["a", "b", "random neurons"]

    def test_what_is_refused(self, planted) -> None:
        with pytest.raises(mm.PromptError, match=r"unedited model"):
            mm.evaluation.near_ties(Rates(planted.before))
        blind = observed(["memorized", "generalized"], [np.nan, np.nan])
        with pytest.raises(mm.PromptError, match=r"needs the answer margin"):
            mm.evaluation.near_ties(blind)
        with pytest.raises(mm.PromptError, match=r"shows one of the two behaviors"):
            mm.evaluation.near_ties(observed(["other", "other"], [1.0, 2.0]))
        with pytest.raises(mm.MechmemError, match=r"bins must be"):
            mm.evaluation.near_ties(planted, bins=0)
