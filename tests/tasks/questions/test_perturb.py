"""Perturbed questions: what changes, what stays, and what is refused."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

import mechmem as mm
from mechmem.tasks.questions.perturb import (
    NONE_OF_THE_OTHERS,
    none_of_the_others,
    other_numbers,
    shuffled_options,
)

CHOICE = mm.Prompt(
    id="c1",
    text="Q: Which is a metal?\nA: ",
    group="metal",
    answer="B",
    label="memory",
    meta={"source": "mmlu-pro", "kind": "choice", "question": "Which is a metal?",
          "options": ["wood", "iron", "glass"], "category": "chemistry"},
)  # fmt: skip
WORDS = mm.Prompt(
    id="n1",
    text="Q: Ann has 12 apples and buys 3 bags of 4. How many?\nA: ",
    answer="24",
    meta={"question": "Ann has 12 apples and buys 3 bags of 4. How many?"},
)


def total(numbers):
    return numbers[0] + numbers[1] * numbers[2]


def test_none_of_the_others_hides_the_right_option_and_keeps_its_letter():
    got = none_of_the_others(CHOICE)
    assert got.meta["options"] == ["wood", NONE_OF_THE_OTHERS, "glass"]
    assert (got.answer, got.group, got.label) == ("B", "metal", "memory")
    assert got.meta["perturbs"] == "c1"
    assert got.id != "c1"
    assert CHOICE.meta["options"][1] == "iron"  # the original is as it was
    asked = mm.get_task("reasoning").evaluation(mm.PromptSet([got]), shots=0)[0].text
    assert NONE_OF_THE_OTHERS in asked
    assert "iron" not in asked


@pytest.mark.parametrize("seed", range(6))
def test_shuffled_options_move_the_letter_with_the_right_option(seed):
    got = shuffled_options(CHOICE, seed)
    assert sorted(got.meta["options"]) == ["glass", "iron", "wood"]
    assert got.meta["options"] != CHOICE.meta["options"]
    assert got.meta["options"]["ABC".index(got.answer)] == "iron"
    assert shuffled_options(CHOICE, seed) == got


def test_other_numbers_change_one_number_and_the_answer_with_it():
    variants = other_numbers(WORDS, total, n=8)
    assert len({v.text for v in variants}) == 8
    for variant in variants:
        numbers = [int(n) for n in re.findall(r"\d+", variant.meta["question"])]
        moved = [k for k, (a, b) in enumerate(zip(numbers, (12, 3, 4), strict=True)) if a != b]
        assert len(moved) == 1
        assert abs(numbers[moved[0]] - (12, 3, 4)[moved[0]]) <= 3
        assert variant.answer == str(numbers[0] + numbers[1] * numbers[2])
        assert variant.text == f"Q: {variant.meta['question']}\nA: "


def test_decimals_and_names_with_digits_are_no_numbers_to_change():
    prompt = mm.Prompt(id="d", text="Pay 3.50 for B52 and 7 eggs", answer="7")
    assert {v.text for v in other_numbers(prompt, lambda n: n[0], n=4)} <= {
        f"Pay 3.50 for B52 and {k} eggs" for k in range(4, 11)
    }


def test_what_cannot_be_perturbed_is_refused_with_the_way_out():
    with pytest.raises(mm.PromptError, match=r"0 options.*source='mmlu-pro'"):
        none_of_the_others(WORDS)
    for letter in ("AB", "D", None):
        with pytest.raises(mm.PromptError, match="the letter of the right one, got 3 options"):
            shuffled_options(replace(CHOICE, answer=letter))
    with pytest.raises(mm.PromptError, match="no whole number"):
        other_numbers(mm.Prompt(id="x", text="no digits", answer="1"), total)
    with pytest.raises(mm.PromptError, match=r"solve\(\[12, 3, 4\]\) is 144.*'24'"):
        other_numbers(WORDS, lambda n: n[0] * n[1] * n[2])
    with pytest.raises(mm.PromptError, match=r"has \d+ variants within reach=1, 40"):
        other_numbers(WORDS, total, n=40, reach=1)


def test_perturbed_items_of_the_lab_task_are_recomputed():
    task = mm.get_task("recall-reasoning", seed=3)
    items = task.questions(60, seed=1)
    variants = task.perturbations(items)
    by_id = {prompt.id: prompt for prompt in items}
    assert {v.meta["perturbs"] for v in variants} == set(items.ids)
    for variant in variants:
        item = by_id[variant.meta["perturbs"]]
        steps = [a - b for a, b in zip(variant.meta["numbers"], item.meta["numbers"], strict=True)]
        assert sorted(map(abs, steps)) == [0, 0, 1]
        assert variant.generalized == str(sum(variant.meta["numbers"]))
        assert (variant.group, variant.memorized, variant.label) == (
            item.group, item.memorized, item.label,
        )  # fmt: skip
        right = variant.generalized if variant.label == "reasoning" else item.memorized
        assert variant.answer == right
        assert variant.generalized != variant.memorized
        shown = [int(n) for n in re.findall(r"\b\d\b", variant.text)]
        assert shown == variant.meta["numbers"]
    with pytest.raises(mm.TaskError, match="'n1'"):
        task.perturbations(mm.PromptSet([WORDS]))
