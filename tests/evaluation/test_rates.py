from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from first_word import PAIRS, TASK
from helpers import bench, contrast_set, fresh_bench

import mechmem as mm
from mechmem.analysis.intervals import group_mean
from mechmem.evaluation.rates import Rates

FIT = contrast_set(seed=3)


@pytest.fixture(scope="module")
def lab():
    return bench("llama")


@pytest.fixture(scope="module")
def direction(lab):
    acts = mm.cache_activations(lab.model, FIT)
    return mm.difference_of_means(acts, toward="generalized")["resid_post", 0]


@pytest.fixture(scope="module")
def rates(lab, direction):
    return mm.evaluate(lab.model, PAIRS, task=TASK, edit=mm.AddDirection(direction, alpha=8.0))


def _like(estimate, values, groups, kind: str = "share") -> None:
    assert estimate.value == pytest.approx(np.mean(values))
    assert estimate == group_mean(values, groups, kind=kind)
    assert (estimate.n, estimate.groups) == (len(values), len(set(groups)))


class TestRates:
    def test_shares_changes_and_their_intervals(self, lab, rates) -> None:
        before = mm.observe(lab.model, PAIRS, task=TASK).outcomes
        assert rates.before.outcomes == before
        after = rates.after.outcomes
        assert before != after  # the edit does something
        for outcome in ("memorized", "generalized", "other"):
            was = np.array([name == outcome for name in before], dtype=float)
            now = np.array([name == outcome for name in after], dtype=float)
            _like(rates.share(outcome), now, PAIRS.groups)
            _like(rates.change(outcome), now - was, PAIRS.groups, "change")

    def test_transitions_count_every_prompt_once(self, rates) -> None:
        table = rates.transitions
        assert table.to_numpy().sum() == len(PAIRS)
        for start in table.index:
            for end in table.columns:
                want = sum(
                    (b, a) == (start, end)
                    for b, a in zip(rates.before.outcomes, rates.after.outcomes, strict=True)
                )
                assert table.loc[start, end] == want

    def test_given_is_the_share_among_those_that_were(self, rates) -> None:
        rows = [k for k, name in enumerate(rates.before.outcomes) if name == "memorized"]
        now = [float(rates.after.outcomes[k] == "generalized") for k in rows]
        _like(rates.given("memorized", "generalized"), now, [PAIRS[k].group for k in rows])

    def test_comparing_two_edits_is_paired(self, lab, rates, direction) -> None:
        other = mm.evaluate(
            lab.model, PAIRS, task=TASK, edit=mm.ProjectOut(direction), before=rates.before
        )
        difference = [
            float(a == "memorized") - float(b == "memorized")
            for a, b in zip(rates.after.outcomes, other.after.outcomes, strict=True)
        ]
        _like(rates.compared_with(other, "memorized"), difference, PAIRS.groups, "change")
        same = rates.compared_with(rates, "memorized")
        assert (same.low, same.value, same.high) == (0, 0, 0)

    def test_the_table_repeats_the_numbers(self, rates) -> None:
        row = rates.table().set_index("outcome").loc["memorized"]
        share, change = rates.share("memorized"), rates.change("memorized")
        assert (row["share"], row.share_low, row.share_high) == (share.value, share.low, share.high)
        assert (row.change, row.change_low) == (change.value, change.low)

    def test_after_is_what_the_patched_model_does(self, lab, rates, direction) -> None:
        with mm.patched(lab.model, mm.AddDirection(direction, alpha=8.0)) as view:
            assert rates.after.completions == tuple(view.generate(PAIRS, TASK.max_new_tokens))

    def test_alpha_zero_changes_nothing_at_all(self, lab, direction) -> None:
        rates = mm.evaluate(lab.model, PAIRS, task=TASK, edit=mm.AddDirection(direction, alpha=0.0))
        assert rates.after.completions == rates.before.completions
        assert np.array_equal(rates.after.margins, rates.before.margins)
        change = rates.change("memorized")
        assert change.low < change.value == 0 < change.high  # these prompts; others are not known

    def test_the_model_is_left_unedited(self, lab, rates) -> None:
        assert mm.observe(lab.model, PAIRS, task=TASK).outcomes == rates.before.outcomes


class TestRefusals:
    def test_what_rates_do_not_have(self, lab, rates) -> None:
        plain = mm.evaluate(lab.model, PAIRS, task=TASK)
        for ask in (lambda: plain.change("other"), lambda: plain.given("other", "other")):
            with pytest.raises(mm.PromptError, match=r"no 'before'.*edit="):
                ask()
        with pytest.raises(mm.TaskError, match=r"Unknown outcome 'correct'.*'memorized'"):
            rates.share("correct")
        with pytest.raises(mm.TaskError, match=r"Unknown outcome 'correct'"):
            rates.given("memorized", "correct")
        none = Rates(rates.after, replace(rates.before, outcomes=("other",) * len(PAIRS)))
        with pytest.raises(mm.PromptError, match=r"No prompt was 'memorized' before"):
            none.given("memorized", "generalized")

    def test_other_prompts_are_not_compared_even_under_the_same_ids(
        self, lab, rates, direction
    ) -> None:
        edit = mm.AddDirection(direction)
        for others in (PAIRS[:10], mm.PromptSet(replace(p, text=f"w1 {p.text}") for p in PAIRS)):
            elsewhere = mm.evaluate(lab.model, others, task=TASK, edit=edit)
            with pytest.raises(mm.PromptError, match=r"different prompts.*Evaluate both"):
                rates.compared_with(elsewhere, "memorized")
            with pytest.raises(mm.PromptError, match=r"`before` was observed on other prompts"):
                mm.evaluate(lab.model, PAIRS, task=TASK, edit=edit, before=elsewhere.before)

    def test_a_before_of_another_model(self, rates, direction) -> None:
        other = fresh_bench("llama", seed=5)
        with pytest.raises(mm.MechmemError, match=r"`before`.*another model"):
            mm.evaluate(
                other.model,
                PAIRS,
                task=TASK,
                edit=mm.AddDirection(direction, force=True),
                before=rates.before,
            )

    def test_an_edit_that_never_met_its_positions(self, lab, direction) -> None:
        edit = mm.AddDirection(direction, positions="cue")
        with pytest.raises(mm.PositionError, match=r"Unknown position 'cue'"):
            mm.evaluate(lab.model, PAIRS, task=TASK, edit=edit)

    def test_no_prompts(self, lab) -> None:
        with pytest.raises(mm.PromptError, match=r"No prompts to evaluate"):
            mm.evaluate(lab.model, [], task=TASK)


class TestLeakage:
    def test_a_fitted_group_is_refused_even_rephrased(self, lab, direction) -> None:
        rephrased = mm.PromptSet([mm.Prompt(id="new", text="w5 w6 w7", group=FIT[0].group)])
        with pytest.raises(mm.LeakageError, match=r"1 by group, 0 by the same text.*'new'.*Split"):
            mm.evaluate(lab.model, rephrased, task=TASK, edit=mm.AddDirection(direction))

    def test_the_same_tokens_under_another_name_are_refused(self, lab, direction) -> None:
        copied = mm.PromptSet([mm.Prompt(id="copy", text=f"{FIT[3].text}  ", group="elsewhere")])
        with pytest.raises(mm.LeakageError, match=r"0 by group, 1 by the same text.*'copy'"):
            mm.evaluate(lab.model, copied, task=TASK, edit=mm.AddDirection(direction))

    def test_any_of_several_edits_counts(self, lab, direction) -> None:
        acts = mm.cache_activations(lab.model, contrast_set(6, seed=8))
        other = mm.difference_of_means(acts, toward="memorized")["resid_post", 1]
        acts_seen = acts.prompts[0]
        prompts = mm.PromptSet([mm.Prompt(id="x", text="w9", group=acts_seen.group)])
        for edits in (
            [mm.AddDirection(direction), mm.AddDirection(other)],
            mm.ShiftNeurons(mm.neuron_mean_difference(acts)),
            mm.AblateNeurons(mm.neuron_mean_difference(acts).top(2)),
        ):
            with pytest.raises(mm.LeakageError, match=r"'x'"):
                mm.evaluate(lab.model, prompts, task=TASK, edit=edits)

    def test_it_can_be_allowed(self, lab, direction) -> None:
        rates = mm.evaluate(
            lab.model, FIT, task=TASK, edit=mm.AddDirection(direction), allow_seen=True
        )
        assert rates.share("memorized").n == len(FIT)

    def test_nothing_fitted_nothing_refused(self, lab) -> None:
        assert mm.evaluate(lab.model, FIT, task=TASK).share("other").n == len(FIT)
