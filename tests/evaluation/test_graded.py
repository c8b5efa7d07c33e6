from __future__ import annotations

import difflib
from dataclasses import replace

import numpy as np
import pytest
from question_scene import scene

import mechmem as mm
from mechmem.evaluation.graded import similarity


def written(completions: list[str], outcomes: list[str]) -> mm.Observations:
    plain = mm.observe(scene().lab.model, scene().test)
    answers = [("12345678", "blue cat"), ("87654321", "red dog"), ("24682468", "green owl")]
    n = len(completions)
    prompts = mm.PromptSet(
        mm.Prompt(
            id=f"m{k}",
            text="w1",
            group=f"g{k}",
            memorized=answers[k % 3][0],
            generalized=answers[k % 3][1],
        )
        for k in range(n)
    )
    return replace(
        plain,
        prompts=prompts,
        completions=tuple(completions),
        outcomes=tuple(outcomes),
        margins=np.linspace(-2, 2, n),
        tokenized=plain.tokenized[:1] * n,
        truncated=(False,) * n,
    )


def brute_distance(one: str, other: str) -> int:
    """Edit distance by plain recursion."""
    if not one or not other:
        return len(one) + len(other)
    return min(
        brute_distance(one[1:], other) + 1,
        brute_distance(one, other[1:]) + 1,
        brute_distance(one[1:], other[1:]) + (one[0] != other[0]),
    )


class TestSimilarity:
    @pytest.mark.parametrize(
        ("completion", "answer", "want"),
        [
            ("12345678", "12345678", 1.0),
            (" 12345678 and more", "12345678", 1.0),
            ("12349999", "12345678", 0.5),
            ("Blue  CAT", "blue cat", 1.0),
            ("", "abcd", 0.0),
            ("zzzz", "abcd", 0.0),
            ("x12345678", "12345678", 7 / 8),
            ("anything", "", 1.0),
        ],
    )
    def test_by_hand(self, completion: str, answer: str, want: float) -> None:
        assert similarity(completion, answer) == pytest.approx(want)

    def test_it_is_the_best_beginning_of_the_text(self) -> None:
        rng = np.random.default_rng(0)
        for _ in range(25):
            text = "".join(rng.choice(list("abc"), rng.integers(0, 7)))
            answer = "".join(rng.choice(list("abc"), rng.integers(1, 5)))
            best = min(brute_distance(text[:k], answer) for k in range(len(text) + 1))
            assert similarity(text, answer) == pytest.approx(max(0, 1 - best / len(answer)))


@pytest.fixture(scope="module")
def seen():
    return written(
        ["12345678", "87659999", "green owl", "blue cat", "red fox", "999"],
        ["memorized", "other", "generalized", "generalized", "other", "other"],
    )


class TestGradedAnswers:
    def test_both_answers_are_graded(self, seen) -> None:
        got = mm.evaluation.graded_answers(seen)
        table = got.table()
        assert table["memorized_similarity"].tolist()[:3] == [1.0, 0.5, 0.0]
        assert table["generalized_similarity"].tolist()[2:4] == [1.0, 1.0]
        assert table["generalized_words"].tolist()[4] == 0.5  # red, not dog
        close = difflib.SequenceMatcher(None, "red fox", "red dog").ratio()
        assert table["generalized_similarity"][4] > close / 2
        np.testing.assert_allclose(got.preference, 1 / (1 + np.exp(-seen.margins)))

    def test_chance_is_the_answer_of_another_group(self, seen) -> None:
        got = mm.evaluation.graded_answers(seen)
        assert got.chance["memorized"][0] < 1.0  # its own answer would be 1
        assert mm.evaluation.graded_answers(seen).chance["memorized"].tolist() == (
            got.chance["memorized"].tolist()
        )

    def test_chance_does_not_depend_on_the_order_of_the_prompts(self) -> None:
        rng = np.random.default_rng(0)
        texts = ["".join(rng.choice(list("12345678"), 8)) for _ in range(12)]
        seen = written(texts, ["other"] * 12)
        order = rng.permutation(12).tolist()
        mixed = replace(
            seen,
            prompts=mm.PromptSet(seen.prompts[k] for k in order),
            completions=tuple(seen.completions[k] for k in order),
            margins=seen.margins[order],
        )
        one, other = (mm.evaluation.graded_answers(each) for each in (seen, mixed))
        for name in one.chance:
            assert one.chance[name][order].tolist() == other.chance[name].tolist()
        assert len(set(one.chance["memorized"].tolist())) > 2

    def test_partly_counts_what_is_closer_than_chance(self) -> None:
        seen = written(["12345999", "87654999", "24682999", "zz", "zz", "zz"], ["other"] * 6)
        got = mm.evaluation.graded_answers(seen)
        assert got.partly().value == pytest.approx(0.5)
        done = replace(seen, outcomes=("memorized",) * 6)
        assert mm.evaluation.graded_answers(done).partly().n == 0

    def test_the_summary_averages_within_outcomes(self, seen) -> None:
        summary = mm.evaluation.graded_answers(seen).summary().set_index(["outcome", "answer"])
        assert summary.loc[("generalized", "generalized"), "similarity"] == 1.0
        assert summary.loc[("other", "memorized"), "n"] == 3

    def test_what_is_refused(self, seen) -> None:
        bare = mm.PromptSet(replace(p, memorized=None) for p in seen.prompts)
        with pytest.raises(mm.PromptError, match=r"missing on 'm0'"):
            mm.evaluation.graded_answers(replace(seen, prompts=bare))
        same = mm.PromptSet(replace(p, memorized="one") for p in seen.prompts)
        with pytest.raises(mm.PromptError, match=r"another answer than 'one'"):
            mm.evaluation.graded_answers(replace(seen, prompts=same))


def test_a_task_may_have_its_own_names_and_a_choice_wrote_nothing(seen) -> None:
    called = {"memorized": "known", "generalized": "context"}
    own = replace(
        seen, behaviors=("known", "context"),
        outcomes=tuple(called.get(name, name) for name in seen.outcomes),
    )  # fmt: skip
    for name in called:
        usual = mm.evaluation.graded_answers(seen).partly(name)
        assert mm.evaluation.graded_answers(own).partly(name) == usual
    with pytest.raises(mm.PromptError, match=r"read by choice, so nothing was written"):
        mm.evaluation.graded_answers(replace(seen, choice=mm.Choice()))
