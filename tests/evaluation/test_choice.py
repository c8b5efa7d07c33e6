from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from first_word import PAIRS, TASK
from helpers import as_users_run_it, bench, close

import mechmem as mm
from mechmem.tasks.base import with_reading
from mechmem.tasks.choice import Choice


@pytest.fixture(scope="module")
def lab():
    return bench("llama")


def logprob(lab, text: str, answer: str) -> list[float]:
    """Log-probabilities of the answer's tokens after the text, from a plain forward pass."""
    ids, more = lab.ids(text), lab.tokenizer(answer, add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        every = lab.hf(torch.tensor([ids + more])).logits[0].double().log_softmax(-1)
    return [float(every[len(ids) - 1 + k, token]) for k, token in enumerate(more)]


TWO = mm.PromptSet(
    mm.Prompt(
        id=f"q{k}",
        text=" ".join(f"w{(3 * k + j) % 40}" for j in range(2 + k % 5)),
        memorized=" ".join(f"w{(k + j) % 40}" for j in range(1 + k % 3)),
        generalized=" ".join(f"w{(2 * k + 7 + j) % 40}" for j in range(1 + (k + 1) % 2)),
        group=f"g{k // 2}",
    )
    for k in range(24)
)


class TestReadingByChoice:
    @pytest.mark.parametrize("length", ["sum", "mean"])
    def test_the_likelier_answer_counts_by_plain_log_probabilities(self, lab, length) -> None:
        seen = mm.observe(lab.model, TWO, reading=Choice(within=0.5, length=length))
        want = []
        for prompt in TWO:
            one, two = (
                logprob(lab, prompt.text, a) for a in (prompt.memorized, prompt.generalized)
            )
            shared = min(len(one), len(two))
            begins = prompt.memorized.split()[:shared] == prompt.generalized.split()[:shared]
            if length == "mean":
                want.append(np.mean(one) - np.mean(two))
            else:
                want.append(math.nan if begins else sum(one) - sum(two))
        close(seen.margins, want)
        assert seen.outcomes == tuple(
            "memorized" if m > 0.5 else "generalized" if m < -0.5 else "undecided" for m in want
        )
        assert set(seen.outcomes) == {"memorized", "generalized", "undecided"}
        assert seen.allowed == ("memorized", "generalized", "undecided")
        assert set(seen.completions) == {""}
        assert not any(seen.truncated)

    def test_nothing_is_written(self, lab, monkeypatch) -> None:
        def write(*args, **options):
            raise AssertionError("generated")

        monkeypatch.setattr(type(lab.model), "complete", write)
        assert len(mm.observe(lab.model, TWO, reading="choice")) == 24

    def test_an_answer_that_begins_the_other_is_undecided_by_sum_only(self, lab) -> None:
        begins = mm.PromptSet(
            [mm.Prompt(id="a", text="w1 w2", memorized="w5", generalized="w5 w6")]
        )
        by_sum = mm.observe(lab.model, begins, reading="choice")
        assert by_sum.outcomes == ("undecided",)
        assert math.isnan(by_sum.margins[0])
        by_mean = mm.observe(lab.model, begins, reading=Choice(length="mean"))
        assert math.isfinite(by_mean.margins[0])

    def test_a_question_compares_the_right_answer_with_the_best_wrong_one(self, lab) -> None:
        asked = mm.PromptSet(
            [
                mm.Prompt(id="a", text="w1", answer="w3", meta={"wrong": ["w4 w5", "w6"]}),
                mm.Prompt(id="b", text="w2", answer="w3 w9", meta={"wrong": "w7"}),
            ]
        )
        seen = mm.observe(lab.model, asked, reading="choice")
        want = []
        for prompt, wrong in zip(asked, [["w4 w5", "w6"], ["w7"]], strict=True):
            best = max(sum(logprob(lab, prompt.text, answer)) for answer in wrong)
            want.append(sum(logprob(lab, prompt.text, prompt.answer)) - best)
        close(seen.margins, want)
        assert seen.allowed == ("correct", "wrong", "undecided")
        assert seen.outcomes == tuple(
            "correct" if m > 0.1 else "wrong" if m < -0.1 else "undecided" for m in want
        )

    def test_letters_of_a_multiple_choice_are_its_choices(self) -> None:
        reader = with_reading(mm.get_task("reasoning"), "choice")
        prompt = mm.Prompt(id="m", text="?", answer="B", meta={"options": ["x", "y", "z"]})
        assert reader.choices(prompt) == ("B", "A", "C")

    @pytest.mark.parametrize("wrong", [["Rome", 4], '["Rome", 4]'])
    def test_wrong_answers_may_be_a_list_in_a_cell_or_a_number(self, wrong) -> None:
        reader = with_reading(mm.get_task("reasoning"), "choice")
        prompt = mm.Prompt(id="m", text="?", answer="Paris", meta={"wrong": wrong})
        assert reader.choices(prompt) == ("Paris", "Rome", "4")
        assert reader.choices(mm.Prompt(id="n", text="?", answer="10", meta={"wrong": 4})) == (
            "10", "4",
        )  # fmt: skip

    def test_a_task_is_read_by_choice_when_asked_and_stays_as_it_was(self, lab) -> None:
        seen = mm.observe(lab.model, PAIRS, task=TASK, reading="choice")
        written = mm.observe(lab.model, PAIRS, task=TASK)
        close(seen.margins, written.margins)
        assert TASK.reading == "text"
        assert seen.reading == "choice"
        assert "undecided" not in written.allowed
        back = with_reading(with_reading(TASK, "choice"), "text")
        assert back.outcomes == TASK.outcomes
        assert set(seen.table()["reading"]) == {"choice"}

    def test_rates_and_edits_side_by_side_read_like_one_alone(self, lab) -> None:
        rng = np.random.default_rng(0)
        acts = mm.cache_activations(
            lab.model,
            mm.observe(lab.model, PAIRS, reading=Choice(within=0), task=TASK).flips(),
            sites="resid_post",
        )
        r = mm.difference_of_means(acts, toward="generalized")
        edits = [mm.AddDirection(r["resid_post", 1], alpha=a) for a in (1.0, 4.0)]
        unseen = mm.PromptSet(
            mm.Prompt(
                id=f"u{k}", text=" ".join(f"w{int(w)}" for w in rng.integers(0, 40, 5)),
                memorized=f"w{k} w{k + 1}", generalized=f"w{k + 20}", group=f"u{k}",
            )
            for k in range(12)
        )  # fmt: skip
        one = [mm.evaluate(lab.model, unseen, edit=edit, reading="choice") for edit in edits]
        many = mm.evaluate_each(lab.model, unseen, edits, reading="choice", margins=False)
        for a, b in zip(one, many, strict=True):
            close(a.after.margins, b.after.margins)
            assert a.after.outcomes == b.after.outcomes
            assert a.before.reading == b.before.reading == "choice"
        assert not np.allclose(one[0].after.margins, one[1].after.margins)
        with mm.patched(lab.model, edits[1]) as view:
            close(mm.observe(view, unseen, reading="choice").margins, one[1].after.margins)

    def test_before_must_be_read_the_same_way(self, lab) -> None:
        before = mm.observe(lab.model, PAIRS, task=TASK)
        edit = mm.AblateNeurons({("resid_post", 1): [0]}, mode="zero")
        with pytest.raises(mm.PromptError, match=r"read by text.*reads by choice.*leave `before`"):
            mm.evaluate(lab.model, PAIRS, task=TASK, edit=edit, before=before, reading="choice")
        before = mm.observe(lab.model, PAIRS, task=TASK, reading=Choice(within=0.5))
        with pytest.raises(
            mm.PromptError, match=r"read by Choice\(within=0.5.*by Choice\(within=0.1"
        ):
            mm.evaluate(lab.model, PAIRS, task=TASK, edit=edit, before=before, reading="choice")
        found = mm.evaluate(
            lab.model, PAIRS, task=TASK, edit=edit, before=before, reading=before.choice
        )
        assert found.after.choice == before.choice


class TestRefusals:
    @pytest.mark.parametrize("within", [-1, math.inf, math.nan, True, "0.1"])
    def test_an_impossible_distance(self, within) -> None:
        with as_users_run_it(), pytest.raises(mm.TaskError, match=r"within=.*a number from 0"):
            Choice(within=within)

    def test_an_unknown_rule_for_length(self) -> None:
        with pytest.raises(mm.TaskError, match=r"length='words'.*'sum'.*'mean'"):
            Choice(length="words")

    def test_an_unknown_reading(self, lab) -> None:
        with pytest.raises(mm.TaskError, match=r"reading='logits' is not a reading.*'choice'"):
            mm.observe(lab.model, TWO, reading="logits")

    def test_a_question_without_a_wrong_answer(self, lab) -> None:
        asked = mm.PromptSet([mm.Prompt(id="q", text="w1", answer="w3")])
        with pytest.raises(mm.TaskError, match=r"'q' lacks.*a column `wrong`.*reading='text'"):
            mm.observe(lab.model, asked, reading="choice")

    def test_a_task_whose_outcomes_are_not_a_choice_of_two(self) -> None:
        class Odd(type(TASK)):
            outcomes = ("turned", "kept", "other")

        with pytest.raises(mm.TaskError, match=r"outcomes 'turned'.*name the two in `behaviors`"):
            with_reading(Odd(), "choice")
