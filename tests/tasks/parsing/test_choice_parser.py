"""Letters: every expectation below was written by hand from the completion, not from the parser."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechmem.errors import TaskError
from mechmem.tasks.parsing import read_choice, read_choice_paper
from mechmem.tasks.questions.kinds import judge_completion

COT = "Let's think step by step. "
TABLE: list[tuple[str, str | None]] = [
    # Plain statements, as the few-shot examples teach them.
    ("The answer is (C).", "C"),
    (COT + "The force is 3 N, so option (D) fits. The answer is (D).", "D"),
    ("the answer is (J).", "J"),
    ("The answer is C.", "C"),
    ("The answer is C", "C"),
    ("The answer is: B", "B"),
    ("The answer is: (B)\n", "B"),
    ("Answer: B", "B"),
    ("Answer: (B) Paris", "B"),
    ("ANSWER: E", "E"),
    ("Ans: F", "F"),
    ("The correct answer is H.", "H"),
    ("The correct option is: D", "D"),
    ("The best choice would be (G).", "G"),
    ("So the answer must be (A), because the rest contradict it.", "A"),
    ("Therefore, the answer is option E.", "E"),
    ("The answer is therefore (F).", "F"),
    ("The answer is most likely (B).", "B"),
    ('The answer is "C".', "C"),
    ("The answer is B, I think.", "B"),
    ("The answer is A because the others are too large.", "A"),
    ("The answer is (c).", "C"),
    ("the answer is [B]", "B"),
    ("The answer is C) mitochondria", "C"),
    ("The final answer is:\n\nC", "C"),
    # Markdown, LaTeX, tags, other scripts.
    ("**Answer:** C", "C"),
    ("The answer is **(C)**.", "C"),
    (r"\boxed{C}", "C"),
    (r"The answer is $\boxed{\text{D}}$.", "D"),
    ("<answer>B</answer>", "B"),
    ("答案是C。", "C"),
    ("答案:（Ｃ）", "C"),  # noqa: RUF001
    ("综上所述，故选D。", "D"),  # noqa: RUF001
    ("因此选B", "B"),
    # Other ways of saying it.
    ("Option C is correct.", "C"),
    ("(B) is the correct answer.", "B"),
    ("C is the best answer here.", "C"),
    # Only the letter, as after a zero-shot prompt.
    ("C", "C"),
    (" (C)", "C"),
    ("C.", "C"),
    ("C)\nBecause it is the capital.", "C"),
    # A later statement replaces an earlier one.
    ("The answer is (B). Wait, I misread it. The answer is (C).", "C"),
    ("The answer is (C). The answer is not (B).", "C"),
    ("If the answer is (A), mass is lost. So the answer is (B).", "B"),
    ("The answer is (B). The answer is (B). The answer is (", "B"),
    ("The answer is (E), not (B).", "E"),
    ("The answer is (A).\n\nQ: What is next?\nA: The answer is (D).", "A"),
    ("Option (A) is too small and option (B) too large. The answer is (C).", "C"),
    ("I don't think the answer is (C). The answer is (D).", "D"),
    # Nothing, denied, hypothetical, asked.
    ("", None),
    ("   \n", None),
    ("I am not sure.", None),
    ("The answer is not (B).", None),
    ("The answer isn't given, though (B) is close.", None),
    ("I don't think the answer is (C).", None),
    ("If the answer is (A), then the mass is 3 kg.", None),
    ("Is the answer (C)?", None),
    ("The answer is (C)?", None),
    ("Saying the answer is (C) is wrong.", None),
    ("不选C", None),
    # Two at once, or none of those offered.
    ("The answer is (A) or (B).", None),
    ("The answer is either A or B.", None),
    ("The answer is both (A) and (C).", None),
    ("The answer is A, B.", None),
    ("The answer is B/C", None),
    ("The answer is AC.", None),
    ("The answer is (B) - (D).", None),
    ("The answer is (A), (B), and (C).", None),
    ("The answer is (A, C).", None),
    ("The answer is I and III only.", None),
    ("The answer is (B). On reflection the answer is (B) or (D).", None),
    ("The answer is (K).", None),
    ("The answer is (Z).", None),
    ("A\nB\nC", None),
    ("A and B is the correct answer.", None),
    # Letters that are no option.
    ("The answer is A matter of taste.", None),
    ("The answer is a function of x.", None),
    ("The answer is C6H12O6.", None),
    ("The answer is C. elegans.", None),
    ("The answer is C-14 dating.", None),
    ("The answer is C++.", None),
    ("The answer is E = mc^2.", None),
    ("The answer is D-glucose.", None),
    ("The answer is B cells.", None),
    ("The answer is 25 C.", None),
    ("A good question. Let me see.", None),
    ("I would compare (A) with (B).", None),
    ("(A) is too small. (B) is too large.", None),
    ("Answer: Let's think step by step. A car drives", None),
    ("The answer is", None),
    ("The answer is (", None),
    ("The answer is 42.", None),
    ("Vitamin C", None),
    ("C Paris", None),
]


@pytest.mark.parametrize(("completion", "expected"), TABLE)
def test_a_completion_reads_as_the_letter_it_states(completion: str, expected: str | None) -> None:
    assert read_choice(completion).value == expected


def test_the_table_is_long_enough_and_has_no_row_twice() -> None:
    assert len(TABLE) >= 60
    assert len({row[0] for row in TABLE}) == len(TABLE)


CITIES = ["London", "Paris", "B. Traven", "Rome"]


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("B. Paris", "B"),
        ("(B) paris.", "B"),
        ("B) Rome", None),  # the letter says one thing, the text another
        ("The answer is B Paris", "B"),
        ("The answer is (B) Paris.", "B"),
        ("The answer is (B) Rome.", None),
        ("The answer is B. Traven", None),  # the text of option C begins with a letter
        ("The answer is (E).", None),  # only four options
        ("Paris", None),  # the letter is asked for
    ],
)
def test_option_texts_confirm_a_letter_or_contradict_it(
    completion: str, expected: str | None
) -> None:
    assert read_choice(completion, CITIES).value == expected


def test_the_reading_says_what_prevented_an_answer() -> None:
    assert read_choice("The answer is (G).", 4).why == (
        "the last statement names G, but there are 4 options"
    )
    assert read_choice("Hm.").why == "no statement of an answer"
    assert "ambiguous" in read_choice("The answer is (A) or (B).").why


@pytest.mark.parametrize("count", [0, 27])
def test_a_question_without_options_is_refused(count: int) -> None:
    with pytest.raises(TaskError, match=f"1 to 26 options, got {count}"):
        read_choice("C", count)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("The answer is (C).", "C"),
        ("The answer is A matter of taste.", "A"),
        ("The answer is C6H12O6.", "C"),
        ("The answer is (B). Wait, the answer is (C).", "B"),
        ("Answer: C", None),
    ],
)
def test_the_papers_expression_takes_its_first_match(completion: str, expected: str | None) -> None:
    assert read_choice_paper(completion).value == expected


LETTERS = st.sampled_from(string.ascii_uppercase[:10])
STATED = st.sampled_from(
    ["The answer is ({}).", "Answer: {}", "The correct answer is {}.", r"\boxed{{{}}}", "答案是{}"]
)
# Words that name no answer and no letter of an option.
PROSE = st.lists(
    st.sampled_from("the mass grows while time passes, so energy stays equal. Hence 3 > 2.".split())
)


@given(LETTERS, STATED, PROSE)
def test_prose_before_a_statement_changes_nothing(letter: str, form: str, words: list[str]) -> None:
    assert read_choice(" ".join(words) + "\n" + form.format(letter)).value == letter


@given(LETTERS, LETTERS, STATED, STATED)
def test_the_last_of_two_statements_wins(one: str, two: str, first: str, second: str) -> None:
    assert read_choice(f"{first.format(one)}\n{second.format(two)}").value == two


@given(st.text(max_size=80))
def test_text_without_a_statement_is_a_letter_only_when_it_begins_with_one(text: str) -> None:
    value = read_choice(text).value
    if value is not None and not re.search(r"answer|ans|option|choice|选|答|box", text, re.I):
        assert value in string.ascii_uppercase[:10]
        assert text.strip(" \n\t\r\v\f\x1c\x1d\x1e\x1f\x85\xa0\"'$*_`([\u2028\u2029")


@given(st.text(max_size=60), LETTERS, st.integers(1, 10))
def test_a_letter_beyond_the_options_is_never_read(text: str, letter: str, count: int) -> None:
    value = read_choice(f"{text}\nThe answer is ({letter}).", count).value
    assert value is None or string.ascii_uppercase.index(value) < count


@given(st.text(max_size=80), LETTERS)
def test_an_outcome_is_always_one_of_three(text: str, letter: str) -> None:
    for reading in ("strict", "paper"):
        outcome, read = judge_completion(text, "choice", letter, reading=reading)
        assert outcome in ("correct", "wrong", "unparsed")
        assert (read.value is None) == (outcome == "unparsed")
        assert (read.value == letter) == (outcome == "correct")
