"""Short answers: expectations written by hand for the strict and for the paper's matching."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mechmem.errors import TaskError
from mechmem.tasks.parsing import match_short, match_short_paper
from mechmem.tasks.questions.kinds import judge_completion

PARIS = ["Paris", "City of Light"]
OMAN = ["Oman", "Sultanate of Oman"]
ACTOR = ["actor", "actress"]
C, W, U = "correct", "wrong", "unparsed"

# completion, aliases, strict outcome, the paper's outcome
TABLE: list[tuple[str, list[str], str, str]] = [
    ("Paris", PARIS, C, C),
    (" Paris.", PARIS, C, C),
    ("paris", PARIS, C, C),
    ("PARIS", PARIS, C, W),
    ("The capital of France is Paris.", PARIS, C, C),
    ("**Paris**", PARIS, C, C),
    ("“Paris”", PARIS, C, C),
    ("A: Paris", PARIS, C, C),
    ("\n\nParis\n", PARIS, C, C),
    ("the city of light", PARIS, C, C),
    ("City  of Light", PARIS, C, W),
    ("It is Paris, of course.", PARIS, C, C),
    ("Paris, Texas", PARIS, C, C),
    ("Berlin", PARIS, W, W),
    ("Parisian", PARIS, W, C),
    ("Comparison", PARIS, W, C),
    ("Romania", OMAN, W, C),
    ("a Roman general", OMAN, W, C),
    ("Womankind", OMAN, W, C),
    ("Oman", OMAN, C, C),
    ("the Sultanate of Oman", OMAN, C, C),
    ("She is an actor.", ACTOR, C, C),
    ("Factory worker", ACTOR, W, C),
    ("Actor", ACTOR, C, C),
    ("film actor and singer", ACTOR, C, C),
    ("She is an ACTOR", ACTOR, C, W),
    # What follows the first line is another matter.
    ("Berlin\n\nQ: What is the capital of France?\nA: Paris", PARIS, W, C),
    ("Paris\n\nQ: What is the capital of Oman?\nA: Muscat", PARIS, C, C),
    ("Lyon\nParis", PARIS, W, C),
    ("London Question: Paris?", PARIS, C, C),
    # Denied.
    ("It is not Paris.", PARIS, W, C),
    ("not Paris but Lyon", PARIS, W, C),
    ("It isn't Paris", PARIS, W, C),
    ("Not Lyon, which many would say, but Paris.", PARIS, C, C),
    # Two answers at once.
    ("Paris or London", PARIS, U, C),
    ("London or Paris", PARIS, U, C),
    ("Either Paris or Lyon.", PARIS, U, C),
    ("Paris or the City of Light", PARIS, C, C),
    ("actor or actress", ACTOR, C, C),
    ("Oslo or Rome", PARIS, W, W),
    # No answer at all.
    ("", PARIS, U, U),
    ("  \n ", PARIS, U, U),
    ("...", PARIS, U, W),
    ("I don't know.", PARIS, U, W),
    ("I do not know whether it is Paris", PARIS, U, C),
    ("I’m not sure, maybe Paris", PARIS, U, C),
    ("Unknown", PARIS, U, W),
    ("It is unknown.", PARIS, U, W),
    ("Sorry, I cannot answer that.", PARIS, U, W),
    ("As an AI, I cannot say.", PARIS, U, W),
    ("Unknown Pleasures", ["Unknown Pleasures"], C, C),
    ("unknown artist", ["unknown"], C, C),
    ("N/A", PARIS, U, W),
    # Numbers, articles, punctuation, scripts.
    ("1999", ["1999"], C, C),
    ("in 1999", ["1999"], C, C),
    ("19991", ["1999"], W, C),
    ("1,234", ["1,234"], C, C),
    ("-40 °C", ["-40 °C"], C, C),
    ("40 °C", ["-40 °C"], W, W),
    ("-5", ["-5", "minus five"], C, C),
    ("5", ["-5", "minus five"], W, W),
    ("minus five", ["-5", "minus five"], C, C),
    ("112", ["12"], W, C),
    ("Beatles", ["The Beatles"], C, W),
    ("The Beatles", ["Beatles"], C, C),
    ("J.R.R. Tolkien", ["J. R. R. Tolkien"], C, W),
    ("rock 'n' roll", ["Rock n Roll"], C, W),
    ("AC/DC", ["AC DC"], C, W),
    ("São Paulo", ["São Paulo"], C, C),
    ("Sao Paulo", ["São Paulo"], W, W),
    ("答案是北京。", ["北京"], C, C),
    ("北京市", ["北京"], C, C),
    ("上海", ["北京"], W, W),
    ("New York City", ["New York"], C, C),
    ("York", ["New York"], W, W),
    ("New Delhi, York", ["New York"], W, W),
]


@pytest.mark.parametrize(("completion", "aliases", "strict", "paper"), TABLE)
def test_a_short_answer_is_judged(
    completion: str, aliases: list[str], strict: str, paper: str
) -> None:
    assert match_short(completion, aliases) == strict
    assert match_short_paper(completion, aliases) == paper


def test_the_table_is_long_enough_and_has_no_row_twice() -> None:
    assert len(TABLE) >= 60
    assert len({row[0] for row in TABLE}) == len(TABLE)


def test_an_unknown_reading_or_kind_names_the_known_ones() -> None:
    with pytest.raises(TaskError, match=r"reading must be one of 'strict', 'paper', got 'loose'"):
        judge_completion("Paris", "short", "Paris", reading="loose")
    with pytest.raises(TaskError, match=r"'numbers'; known are.* Did you mean 'number'\?"):
        judge_completion("Paris", "numbers", "Paris")


WORDS = st.lists(
    st.text("bcdfg", min_size=2, max_size=5).filter(lambda word: word != "or"),
    min_size=1,
    max_size=6,
)


@given(WORDS, WORDS, st.data())
def test_an_alias_counts_as_whole_words_and_only_so(
    text: list[str], alias: list[str], data: st.DataObject
) -> None:
    wanted = " ".join(alias)
    spaced = f" {' '.join(text)} "
    assert match_short(" ".join(text), [wanted]) == (
        "correct" if f" {wanted} " in spaced else "wrong"
    )
    at = data.draw(st.integers(0, len(text)))
    assert match_short(" ".join([*text[:at], *alias, *text[at:]]), [wanted]) == "correct"


@given(st.text(max_size=40), st.text(min_size=1, max_size=8))
def test_the_papers_matching_is_pythons_own_in(text: str, alias: str) -> None:
    forms = (alias, alias.lower(), alias.capitalize())
    expected = "correct" if any(form in text for form in forms) else "wrong"
    assert match_short_paper(text, [alias]) == (expected if text.strip() else "unparsed")


@given(st.text(max_size=60), st.lists(st.text(max_size=8), max_size=3))
def test_more_aliases_never_turn_a_right_answer_wrong(text: str, more: list[str]) -> None:
    if match_short(text, ["Paris"]) == "correct":
        assert match_short(text, ["Paris", *more]) in ("correct", "unparsed")
    assert match_short(text, ["Paris", *more]) in ("correct", "wrong", "unparsed")
