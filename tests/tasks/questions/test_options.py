"""Multiple choices in other people's columns: the right option by hand, or a refusal by name."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import mechmem as mm

READ: list[tuple[dict[str, Any], str, list[str]]] = [
    # MMLU: an index; ARC: labels; MedQA: a dictionary; C-Eval: columns; tables: JSON text.
    ({"choices": ["x", "y", "z"], "answer": 1}, "B", ["x", "y", "z"]),
    ({"choices": np.array(["x", "y"]), "answer": np.int64(0)}, "A", ["x", "y"]),
    ({"choices": ["x", "y"], "answer": 1.0}, "B", ["x", "y"]),
    ({"choices": '["x", "y"]', "answer": "1"}, "B", ["x", "y"]),
    ({"choices": {"text": ["x", "y"], "label": ["A", "B"]}, "answerKey": "B"}, "B", ["x", "y"]),
    ({"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": "2"}, "B", ["x", "y"]),
    ({"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "answerKey": 1}, "A", ["x", "y"]),
    ({"options": {"A": "x", "B": "y"}, "answer": "b"}, "B", ["x", "y"]),
    ({"options": '{"A": "x", "B": "y"}', "answer_idx": "A"}, "A", ["x", "y"]),
    ({"A": "x", "B": "y", "C": "z", "answer": "(C)"}, "C", ["x", "y", "z"]),
    ({"options": ["x", "y"], "answer": "y"}, "B", ["x", "y"]),
    ({"options": ["10", "20"], "answer": "20"}, "B", ["10", "20"]),
    ({"options": ["3", "1", "2"], "answer_index": "1"}, "B", ["3", "1", "2"]),
    # Other names for the same columns.
    *(({name: ["x", "y"], "answer": 1}, "B", ["x", "y"]) for name in (
        "choice", "candidates", "alternatives", "choices_text", "Answer Choices", "Options",
    )),
    *(({name: 1, "options": ["x", "y"]}, "B", ["x", "y"]) for name in (
        "gold", "correct", "correct_option", "correct_choice", "target", "correct_answer_index",
        "Answer", "Correct Answer", "answerIdx",
    )),
    *(({a: "x", b: "y", "answer": "b"}, "B", ["x", "y"]) for a, b in (
        ("Option A", "Option B"), ("option_a", "option_b"), ("A)", "(B)"), ("a", "b"),
    )),
    ({"choices": [{"text": "x", "label": "1"}, {"text": "y", "label": "2"}], "answer": 2}, "B",
     ["x", "y"]),
    ({"options": {"A": "x", "B": "y", "C": None}, "answer": "B"}, "B", ["x", "y"]),
    ({"options": ["x", "y"], "answer": "B", "answer_idx": 1, "answerKey": "b"}, "B", ["x", "y"]),
    ({"options": ["x", "y"], "answer": "B", "correct": True}, "B", ["x", "y"]),
]  # fmt: skip


@pytest.mark.parametrize(("row", "letter", "options"), READ)
def test_the_right_option_is_found(row: dict[str, Any], letter: str, options: list[str]) -> None:
    (prompt,) = mm.get_task("reasoning").read([{"question": "Which?", **row}])
    assert (prompt.answer, prompt.meta["kind"], prompt.meta["options"]) == (
        letter, "choice", options,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"choices": ["1", "2"], "answer": "1"}, "could be 'A', 'B' of '1', '2'"),
        ({"choices": ["x", "x"], "answer": "x"}, "could be 'A', 'B'"),
        ({"choices": ["x", "y"], "answer": 2}, "names none of 'x', 'y'"),
        ({"choices": ["x", "y"], "answer": -1}, "names none of"),
        ({"choices": ["x", "y"], "answer": 0.5}, "names none of"),
        ({"choices": ["x", "y"], "answer": True}, "True is not an option"),
        ({"choices": ["x", "y"], "answer": "z"}, "names none of"),
        (
            {"choices": {"text": ["x", "y"], "label": ["A"]}, "answer": "A"},
            "2 choices have 1 lab",
        ),
        ({"correct_answer": "x", "distractor1": "y"}, "'distractor1' look like options"),
        ({"sol1": "x", "sol2": "y", "label": "memory"}, "'sol1', 'sol2' look like options"),
        ({"opa": "x", "opb": "y", "cop": 1}, "'opa', 'opb' look like options"),
        ({"endings": ["x", "y"]}, "'endings' look like options"),
        ({"answer": {"value": "x"}}, "is not one text or number"),
        ({"answer": ["x"]}, "is not one text or number"),
        ({"stuff": ["x", "y"], "answer": "B"}, "'stuff' look like options"),
        ({"stuff": ["x", "y"], "answer": 1}, "'stuff' look like options"),
        ({"stuff": '["x", "y"]', "answer": "y"}, "'stuff' look like options"),
        ({"answers": ["x", "y"], "label": 1}, "'answers' look like options"),
        ({"options": ["x", "y"], "target_scores": {"x": 1}}, "'target_scores' look like options"),
        ({"Correct Answer": "x", "Incorrect Answer 1": "y"}, "'Incorrect Answer 1' look like"),
        ({"choices": [{"value": "x"}, {"value": "y"}]}, "item 0 must be a text or a number"),
        ({"choices": ["x", None, "z"], "answer": 2}, "item 1 must be a text or a number, got None"),
        ({"A": "x", "B": "", "C": "y", "D": "z", "answer": "C"}, "'B' is empty"),
        ({"A": "x", "B": "", "answer": "A"}, "'B' is empty"),
        ({"options": ["x", "y"], "answer": "A", "answer_index": 1}, "contradict one another"),
        ({"options": ["x", "y"], "answer": "A", "answerKey": "B"}, "contradict one another"),
        ({"answer": "x", "gold": "y"}, "contradict one another"),
        ({"Answer": "x", "answer": "y"}, "two columns are called 'answer'"),
        ({"options": ["x", "y"], "choices": ["x", "z"]}, "hold different options"),
        ({"correct_answer_index": 1}, "counts options, and there are none"),
        ({"options": ["x", "y"], "label": 0}, "label 0 is not one of"),
        ({"answer": float("inf")}, "answer is inf"),
    ],
)
def test_what_could_be_two_things_is_refused_by_name(row: dict[str, Any], message: str) -> None:
    with pytest.raises(mm.PromptError, match=message):
        mm.get_task("reasoning").read([{"question": "Which?", **row}])


@pytest.mark.parametrize(
    ("row", "answer"),
    [
        ({"gold": "Paris"}, "Paris"),
        ({"answer": "Paris", "tags": ["city", "easy"]}, "Paris"),
        ({"answer": 5, "a": 2, "b": 3, "kind": "number"}, "5"),
        ({"answer": "2", "steps": ["1", "2"], "kind": "number"}, "2"),
    ],
)
def test_questions_without_options_stay_so(row: dict[str, Any], answer: str) -> None:
    (prompt,) = mm.get_task("reasoning").read([{"question": "Which?", **row}])
    assert (prompt.answer, prompt.meta.get("options")) == (answer, None)


def test_a_choice_between_numbers_is_read_by_its_letter_or_its_number() -> None:
    task = mm.get_task("reasoning")
    row = {"question": "What is 2+2?", "choices": ["2", "4", "6", "none"], "answer": 1}
    (asked,) = task.evaluation(task.read([row]))
    said = {
        "The final answer is 4.": "correct",
        "The final answer is 1.": "wrong",
        "The answer is (B).": "correct",
        "The answer is (A).": "wrong",
        "The answer is A or B.": "unparsed",
        "I have no idea": "unparsed",
    }
    assert {text: task.classify(asked, text) for text in said} == said
