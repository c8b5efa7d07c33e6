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
]


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
    ],
)
def test_what_could_be_two_things_is_refused_by_name(row: dict[str, Any], message: str) -> None:
    with pytest.raises(mm.PromptError, match=message):
        mm.get_task("reasoning").read([{"question": "Which?", **row}])


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
