"""Numbers: every expectation below was written by hand from the completion, not from the parser."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechmem.errors import TaskError
from mechmem.tasks.parsing import (
    bare_number,
    canonical_number,
    gold_number,
    read_number,
)
from mechmem.tasks.questions.kinds import judge_completion

TABLE: list[tuple[str, str | None]] = [
    # As the data and the worked examples end.
    ("Janet sells 16 - 3 - 4 = <<16-3-4=9>>9 eggs.\nShe makes 9 * 2 = $18.\n#### 18", "18"),
    ("#### 1,080", "1080"),
    ("#### -5", "-5"),
    ("#### $70,000", "70000"),
    ("There were 15 trees, then 21. The final answer is 6.", "6"),
    ("The answer is 6. The final answer is 6", "6"),
    ("The answer is 18.", "18"),
    ("Answer: 18", "18"),
    ("So the answer is: 18 dollars.", "18"),
    # Signs, currencies, units, percent, decimals, separators.
    ("The answer is -5.", "-5"),
    ("The answer is −5 degrees.", "-5"),
    ("The answer is –7", "-7"),
    ("The answer is minus 7.", "-7"),
    ("The answer is negative 12.", "-12"),
    ("The answer is -$5.00.", "-5"),
    ("The answer is $-5.", "-5"),
    ("The answer is $1,234.50.", "2469/2"),
    (r"The answer is \$18.", "18"),
    ("The answer is €20", "20"),
    ("The answer is £1,000,000.", "1000000"),
    ("The answer is 18 m².", "18"),
    ("The answer is 5kg.", "5"),
    ("The answer is 25%.", "25"),
    (r"The answer is 25\%.", "25"),
    ("The answer is 12.5 percent.", "25/2"),
    ("The answer is 0.75", "3/4"),
    ("The answer is .5", "1/2"),
    ("The answer is 18.00 dollars", "18"),
    ("The answer is 1 234 567.", "1234567"),
    ("The answer is 12,34,567 rupees.", "1234567"),
    ("The answer is 2 million.", "2000000"),
    ("The answer is 1.5 × 10^3.", "1500"),
    ("The answer is 1e3", "1000"),
    ("The answer is approximately 33.3.", "333/10"),
    ("The answer is (18).", "18"),
    # Fractions, LaTeX, markdown.
    ("The answer is 3/4.", "3/4"),
    ("The answer is 6/8 of a cup.", "3/4"),
    ("The answer is 1 1/2 cups.", "3/2"),
    ("The answer is 2½ miles.", "5/2"),
    (r"\boxed{42}", "42"),
    (r"The answer is $\boxed{\frac{3}{4}}$.", "3/4"),
    (r"\boxed{1{,}234}", "1234"),
    ("**The answer is 18.**", "18"),
    ("The answer is **18** apples.", "18"),
    # Equations and what follows the number.
    ("The answer is 5 + 3 = 8.", "8"),
    ("The answer is x = 5.", "5"),
    ("The answer is 20 because 5 * 4 = 20.", "20"),
    ("The answer is 18 (6 * 3).", "18"),
    ("The answer is 18, since 6 and 3 multiply to 18.", "18"),
    ("The answer is 5, not 6.", "5"),
    # A later statement replaces an earlier one; an invented question ends the answer.
    ("The answer is 5. Wait, that is wrong. The answer is 6.", "6"),
    ("The answer is 6. The answer is not 5.", "6"),
    ("The answer is 18.\n\nQ: And 7 more?\nA: The final answer is 25.", "18"),
    ("#### 18\n#### 2. Compute the total", "18"),
    ("The answer is 5. Wait, twice that and more.\n#### 18 dollars", "18"),
    ("#### 18 dollars a day.", "18"),
    # Only a number, as after a zero-shot prompt.
    ("18", "18"),
    (" $18", "18"),
    ("18 dollars.", "18"),
    ("-3", "-3"),
    # Digits and phrases of other languages.
    ("উত্তর হল ১৮", "18"),
    ("คำตอบคือ ๑๘", "18"),
    ("答えは18です。", "18"),
    ("答案是５万。", "50000"),
    ("سؤال ... the answer is ١٨", "18"),
    ("Ответ — 18.", "18"),
    ("Jibu ni 18.", "18"),
    ("సమాధానం 18.", "18"),
    ("La respuesta es 18.", "18"),
    ("La réponse est 18.", "18"),
    ("Die Antwort lautet 18.", "18"),
    # Nothing is taken from elsewhere.
    ("", None),
    ("She has 5 apples and buys 3 more, which makes 8.", None),
    ("Answer: She sold 48 clips in April.", None),
    ("Let's think step by step. 16 - 3 - 4 = 9", None),
    ("3 apples and 4 oranges", None),
    ("2024 was a good year. Then came", None),
    ("#### 2. Compute the total", None),
    ("#### 18 or 20", None),
    ("The answer is 5.\n#### 3rd place", None),
    ("1. First we add the eggs.", None),
    ("The answer is found by adding 5 to the total.", None),
    ("The answer is eighteen.", None),
    ("The answer is", None),
    ("The answer is not 5.", None),
    ("If the answer is 5, then she has none left.", None),
    ("Could it be that the answer is 5?", None),
    # Two numbers, ranges, sums left undone, other things with digits.
    ("The answer is 5 + 3.", None),
    ("The answer is 18, 20.", None),
    ("The answer is 18 or 20.", None),
    ("The answer is 3-5.", None),
    ("The answer is 3–5 days", None),
    ("The answer is between 3 and 5.", None),
    ("The answer is less than 5.", None),
    ("The answer is 2 hours and 30 minutes.", None),
    ("The answer is 3:30 pm.", None),
    ("The answer is 3:1.", None),
    ("The answer is 10².", None),
    ("The answer is 2^10.", None),
    ("The answer is 5!", "5"),  # an exclamation, as people write it
    ("The answer is 5k.", None),
    ("The answer is the 4th day.", None),
    ("The answer is 4th.", None),
    ("The answer is 2 dozen eggs.", None),
    ("The answer is 10,20", None),
    ("The answer is 1,23,45", None),
    ("The answer is 1/0.", None),
    ("The answer is 5 or more.", None),
    ("The answer is 5x3.", None),
    ("The answer is 5x.", None),
    ("The answer is 5+", None),
    ("The answer is 5 pm.", None),
    ("The answer is 12 noon.", None),
    ("The answer is 18 out of 20.", None),
    ("The answer is 6 ft 2 in.", None),
    ("The answer is 18 eggs - 2 eggs.", None),
    ("The answer is 7/10/2020.", None),
    ("The final answer is $$18$$.", "18"),
    ("The answer is " + "1" * 5000, None),
    ("The answer is 5" + " trillion" * 900, None),
    ("The answer is 5. On reflection the answer is 5 or 6.", None),
]


@pytest.mark.parametrize(("completion", "expected"), TABLE)
def test_a_completion_reads_as_the_number_it_states(completion: str, expected: str | None) -> None:
    assert read_number(completion).value == expected


def test_the_table_is_long_enough_and_has_no_row_twice() -> None:
    assert len(TABLE) >= 60
    assert len({row[0] for row in TABLE}) == len(TABLE)


@pytest.mark.parametrize(
    ("stated", "english", "german"),
    [
        ("1.234", "617/500", "1234"),
        ("1,234", "1234", None),  # models mix both habits, so nobody can know
        ("1.234.567", "1234567", "1234567"),
        ("1.234,50", "2469/2", "2469/2"),
        ("1,234.50", "2469/2", "2469/2"),
        ("3,5", None, "7/2"),
        ("0,5", "1/2", "1/2"),
        ("0.125", "1/8", "1/8"),
        ("18", "18", "18"),
        ("1.5", "3/2", "3/2"),
    ],
)
def test_the_language_decides_what_a_point_and_a_comma_mean(
    stated: str, english: str | None, german: str | None
) -> None:
    assert read_number(f"The answer is {stated} km.").value == english
    assert read_number(f"Die Antwort ist {stated} km.", "de").value == german


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("He runs 3*3=<<3*3=9>>9 sprints\n#### 540", "540"),
        ("#### 1,234", "1234"),
        (18, "18"),
        (18.0, "18"),
        (-2.5, "-5/2"),
        ("18", "18"),
        ("$1,080", "1080"),
        ("blue", None),
        (True, None),
    ],
)
def test_a_data_sets_own_answer_is_read(answer: object, expected: str | None) -> None:
    assert gold_number(answer) == expected


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("50 Cent", None),
        ("2 Chainz", None),
        ("7 Years", None),
        ("5kg", None),
        ("Catch 22", None),
        ("18", "18"),
        (-2.5, "-5/2"),
        ("$1,080.50", "2161/2"),
        ("18 €", "18"),
        ("1,080 USD", "1080"),
        ("25 percent", "25"),
        ("25%", "25"),
        ("2 million", "2000000"),
        ("x = 5", "5"),
        ("18元", "18"),
        ("She sells 9 for $2 each.\n#### 18 dollars", "18"),
        (r"\boxed{18}", "18"),
    ],
)
def test_a_bare_number_has_no_words_beside_it(answer: object, expected: str | None) -> None:
    assert bare_number(answer) == expected


def test_an_answer_is_read_in_the_language_of_the_completion() -> None:
    for said in ("Die Antwort ist 1.234.", "Die Antwort ist 1234.", "Die Antwort ist 1.234,0"):
        assert judge_completion(said, "number", "1.234", language="de")[0] == "correct"
    assert judge_completion("Die Antwort ist 3,5.", "number", "3,5", language="de")[0] == "correct"
    assert judge_completion("The answer is 1.234.", "number", "1.234")[0] == "correct"
    with pytest.raises(TaskError, match=r"'1,234' is not a number in language 'de'.*separators"):
        judge_completion("Die Antwort ist 1234.", "number", "1,234", language="de")


def test_correct_is_equal_as_a_number_and_not_as_text() -> None:
    assert judge_completion("The answer is 18.00.", "number", "#### 18")[0] == "correct"
    assert judge_completion("The answer is 1,080.", "number", "1080")[0] == "correct"
    assert judge_completion("The answer is 3/4.", "number", "0.75")[0] == "correct"
    assert judge_completion("The answer is 180.", "number", "18")[0] == "wrong"
    assert judge_completion("It is 18 in all, I guess", "number", "18")[0] == "unparsed"


def test_an_answer_that_is_no_number_is_refused() -> None:
    with pytest.raises(TaskError, match=r"'blue' is not a number; set kind='short'"):
        judge_completion("18", "number", "blue")


INTEGERS = st.integers(-(10**9), 10**9)
FORMS = st.sampled_from(
    ["#### {}", "The final answer is {}.", "The answer is ${}.", "Answer: {} apples", "{}"]
)


@given(INTEGERS, FORMS, st.booleans())
def test_any_integer_comes_back_with_or_without_commas(n: int, form: str, commas: bool) -> None:
    assert read_number(form.format(f"{n:,}" if commas else n)).value == str(n)


@given(INTEGERS)
def test_digits_of_other_scripts_are_the_same_numbers(n: int) -> None:
    bengali = str(n).translate(str.maketrans("0123456789", "০১২৩৪৫৬৭৮৯"))
    assert read_number(f"The answer is {bengali}.", "bn").value == str(n)


@given(INTEGERS, st.integers(1, 10**4))
def test_fractions_come_back_reduced(top: int, bottom: int) -> None:
    assert read_number(f"The answer is {top}/{bottom}.").value == str(Fraction(top, bottom))


@given(st.decimals(-(10**6), 10**6, places=2))
def test_decimals_are_exact(value: object) -> None:
    assert read_number(f"The answer is {value}.").value == str(Fraction(str(value)))


@given(st.lists(st.sampled_from("she has 12 eggs, sells 3 * 4 = 12 and 7 left. then 5".split())))
def test_numbers_in_prose_change_nothing(words: list[str]) -> None:
    assert read_number("Well, " + " ".join(words)).value is None
    assert read_number(" ".join(words) + "\nThe answer is 31.").value == "31"


@given(INTEGERS, INTEGERS)
def test_the_last_of_two_statements_wins(one: int, two: int) -> None:
    assert read_number(f"The answer is {one}. Wait. #### {two}").value == str(two)


@given(st.text(max_size=80))
def test_whatever_the_text_a_value_is_a_fraction_in_lowest_terms(text: str) -> None:
    for completion in (text, f"The answer is {text}"):
        value = read_number(completion).value
        assert value is None or str(Fraction(value)) == value


@given(st.text(max_size=30))
def test_a_bare_number_is_read_from_itself_only(text: str) -> None:
    if canonical_number(text) is not None:
        assert any(char.isdecimal() or char.isnumeric() for char in text)
