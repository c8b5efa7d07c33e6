"""Where an answer ends, in every script; what a model thinks aloud; what published texts look like.

Every right value is written by hand.
"""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

import mechmem as mm
from mechmem.tasks.base import PromptAnswers
from mechmem.tasks.parsing import match_short, read_choice, read_number
from mechmem.tasks.parsing.answers import folded, starts_with_answer, which_answer
from mechmem.tasks.parsing.thoughts import without_thoughts

# text, answer, whether the text begins with it as a whole
ENDS: list[tuple[str, str, bool]] = [
    # A mark belongs to its letter; a joiner holds a word together.
    ("दिल्ली", "दिल", False),
    ("दिल्ली है", "दिल्ली", True),
    ("தமிழ்", "தமி", False),
    ("বাংলাদেশ", "বাংলা", False),
    ("తెలుగు", "తెల", False),
    ("cafe\u0301", "cafe", False),
    ("cafe\u0301", "caf\u00e9", True),
    ("caf\u00e9", "cafe\u0301", True),
    ("می\u200cخواهم", "می", False),  # noqa: RUF001
    ("한국어", "한국", False),
    # Scripts without blanks; a run of katakana is one word.
    ("巴黎是法国的首都", "巴黎", True),
    ("パリです", "パリ", True),
    ("パリス", "パリ", False),
    ("コーヒー", "コーヒ", False),
    ("ไทยแลนด์", "ไทย", True),
    ("ពេញចិត្ត", "ពេញ", True),
    # Numbers that go on.
    ("1/2", "1", False),
    ("1 / 2", "1", False),
    ("1:30", "1", False),
    ("5-6", "5", False),
    ("5\u20136", "5", False),
    ("5 - 6", "5", False),
    ("1\u00a0000", "1", False),
    ("1\u202f000", "1", False),
    ("1 000", "1", False),
    ("1'000", "1", False),
    ("1,000", "1", False),
    ("1.5", "1", False),
    ("3×10^5", "3", False),
    ("3 \\times 10^5", "3", False),
    ("5e3", "5", False),
    ("5²", "5", False),
    ("1½", "1", False),
    ("5 + 3", "5", False),
    ("5 million", "5", False),
    ("5万", "5", False),
    ("5个", "5", True),
    ("12, 13", "12", True),
    ("1. Next", "1", True),
    ("3.Then", "3", True),
    ("5%", "5", True),
    ("5 - it is", "5", True),
    ("12 3456", "12", True),
    # Words that go on.
    ("C++", "C", False),
    ("C", "C++", False),
    ("C++ is", "C++", True),
    ("C#", "C", False),
    ("Don\u2019t", "Don't", True),
    ("Don't", "Don\u2019t", True),
    ("Don\u2019t", "Don", False),
    ("John\u2019s hat", "John", True),
    ("Jean-Paul", "Jean", False),
    ("AT&T", "AT", False),
    ("Paris/London", "Paris", False),
    ("U.S.A. is", "U", False),
    ("U.S.A. is", "U.S", False),
    ("U.S. is", "U.S.", True),
    ("H₂O", "H", False),
    ("x²", "x", False),
    ("Paris\u2014the capital", "Paris", True),
    ("Paris.The capital", "Paris", True),
    ("Paris\u3002", "Paris", True),
    # Characters of one meaning.
    ("\u22125", "-5", True),
    ("\uff11\uff12", "12", True),
    ("STRASSE", "Straße", True),
    ("  New\u00a0York is", "new york", True),
    # Tags and special tokens.
    ("<|im_end|>", "<|im_end|>", True),
    ("<mem-ced71018>\n", "<mem-ced71018>", True),
]


@pytest.mark.parametrize(("text", "answer", "whole"), ENDS)
def test_an_answer_counts_where_it_ends(text: str, answer: str, whole: bool) -> None:
    assert starts_with_answer(text, answer) is whole


@pytest.mark.parametrize(("text", "answer", "whole"), ENDS)
def test_own_prompts_and_short_questions_agree_about_the_end(
    text: str, answer: str, whole: bool
) -> None:
    prompt = mm.Prompt(id="q", text="?", memorized=answer, generalized="quite another")
    assert PromptAnswers().classify(prompt, text) == ("memorized" if whole else "other")
    if any(char.isalnum() for char in answer) and "<" not in answer and answer[0] != "-":
        assert match_short(text, [answer]) == ("correct" if whole else "wrong")


@given(st.text(max_size=12), st.text(max_size=12))
def test_composed_and_decomposed_text_are_read_alike(text: str, answer: str) -> None:
    apart = unicodedata.normalize("NFD", text), unicodedata.normalize("NFD", answer)
    assert starts_with_answer(text, answer) == starts_with_answer(*apart)


@given(st.text(min_size=1, max_size=12).filter(folded))  # marks that nobody sees are no answer
def test_an_answer_alone_is_itself(answer: str) -> None:
    assert starts_with_answer(f" {answer}\n", answer)


class TestTwoAnswers:
    def classify(self, said: str, **answers: str) -> str:
        return PromptAnswers().classify(mm.Prompt(id="q", text="?", **answers), said)

    def test_of_two_that_begin_alike_the_longer_one_written_counts(self) -> None:
        both = {"memorized": "white", "generalized": "white whale"}
        assert self.classify(" white whale.", **both) == "generalized"
        assert self.classify(" white.", **both) == "memorized"
        assert self.classify(" white wall.", **both) == "memorized"
        assert self.classify(" whitewash", **both) == "other"

    def test_two_that_no_completion_could_tell_apart_are_refused(self) -> None:
        for one, other in (("caf\u00e9", "cafe\u0301"), ("-5", "\u22125"), ("White", "white ")):
            prompts = mm.PromptSet([mm.Prompt(id="q", text="?", memorized=one, generalized=other)])
            with pytest.raises(mm.TaskError, match="same memorized and generalized answer"):
                PromptAnswers.for_prompts(prompts)
            assert which_answer(one, {"m": one, "g": other}) is None


THOUGHTS = [
    ("<think>So the answer is (A). Wait, no.</think>\n\nB", "B"),
    ("So the answer is (A). Wait, no.</think>\n\nB", "B"),
    ("<thinking>Answer: A</thinking> The answer is B", "The answer is B"),
    ("<Thought>A</Thought>B", "B"),
    ("<think>a <think> b</think> c</think>B", "B"),
    ("<seed:think>A</seed:think>B", "B"),
    ("[THINK]A[/THINK]B", "B"),
    ("◁think▷A◁/think▷B", "B"),
    ("<|begin_of_thought|>A<|end_of_thought|>B", "B"),
    ("<|START_THINKING|>A<|END_THINKING|>B", "B"),
    ("<|channel|>analysis<|message|>A<|end|><|channel|>final<|message|>B", "B"),
    ("<reasoning>A</reasoning>\n<answer>B</answer>", "<answer>B</answer>"),
    *((form.format("The answer is A."), "B") for form in (
        "<|channel>thought\n{}\n<channel|>B", "<unused94>thought\n{}<unused95>\n\nB",
        "<|im_start|>think\n{}<|im_end|>\nB", "&lt;think&gt;{}&lt;/think&gt;B",
        "< think >{}</ think >B",
        "<|im_start|>think\n{}<|im_end|>\n<|im_start|>assistant\nB",
        '<details type="reasoning" done="true">\n{}</details>\nB',
        "<plan>{}</plan><mind>x</mind> B",
        "<mind>\n{}\n</mind>\nB", "{}</draft>B",
    )),
    *((f"<{name}>The answer is A.</{name}>\nB", "B") for name in (
        "ponder", "planning", "draft", "working", "internal", "explanation", "step",
    )),
    ("<unused94>thought\nThe answer is A.", ""),
    ("<b>B</b> it is", "<b>B</b> it is"),
    ("<response>B</response> it is", "<response>B</response> it is"),
    ("<mind>B</mind>", "<mind>B</mind>"),
    ("<think>the answer is A", ""),
    ("The answer is B", "The answer is B"),
    ("<b>B</b> < thinkable", "<b>B</b> < thinkable"),
    ("<scratch>\n1\n</scratch>\n2", "<scratch>\n1\n</scratch>\n2"),
]  # fmt: skip


class TestThoughts:
    @pytest.mark.parametrize(("said", "left"), THOUGHTS)
    def test_what_is_thought_aloud_is_no_answer(self, said: str, left: str) -> None:
        assert without_thoughts(said).strip() == left

    @pytest.mark.parametrize(("said", "left"), THOUGHTS)
    def test_only_what_stands_behind_the_thought_is_read_as_a_letter(
        self, said: str, left: str
    ) -> None:
        expected = read_choice(left, 4).value
        assert read_choice(said, 4).value == expected

    def test_numbers_short_answers_and_own_prompts_skip_thoughts_too(self) -> None:
        assert read_number("<think>The answer is 7.</think>\n\n12").value == "12"
        assert match_short("<think>maybe London</think>\nParis", ["Paris"]) == "correct"
        assert match_short("<think>Paris</think>\nLondon", ["Paris"]) == "wrong"
        assert match_short("<think>Paris, I say", ["Paris"]) == "unparsed"
        prompt = mm.Prompt(id="q", text="?", memorized="7", generalized="12")
        assert PromptAnswers().classify(prompt, "<think>7</think>12") == "generalized"

    @pytest.mark.parametrize("name", ["colors", "cipher", "addition", "addition-cued"])
    @pytest.mark.parametrize(
        "form", ["{}</think>\n\n{}", "<think>{}</think>{}", "<mind>{}</mind>{}"]
    )
    def test_every_task_reads_what_stands_behind_the_thought(self, name: str, form: str) -> None:
        task = mm.get_task(name)
        prompt = task.pairs(2)[0]
        answers = (prompt.memorized or "", prompt.generalized or "")
        for thought, said in (answers, answers[::-1]):
            bare = task.classify(prompt, said)
            assert task.classify(prompt, form.format(thought, said)) == bare
        assert task.classify(prompt, answers[0]) == "memorized"

    def test_stored_values_and_sums_are_read_behind_the_thought(self) -> None:
        task = mm.get_task("recall-reasoning")
        prompt = task.pairs(2)[0]
        wrong = str(int(prompt.answer or 0) + 1)
        assert task.classify(prompt, f"<think>{wrong}</think> {prompt.answer}") == "correct"
        assert task.classify(prompt, f"<think>{prompt.answer}</think> {wrong}") == "wrong"


class TestStatements:
    def test_a_letter_a_at_a_lines_start_states_what_follows(self) -> None:
        # The form of GSM8K's published completions.
        said = "She makes 9 * 2 = $<<9*2=18>>18 every day\nA: 18"
        assert read_number(said).value == "18"
        assert read_number("5 + 5 = 10\n A: $1,080").value == "1080"
        assert read_number("Plan A: 18 eggs").value is None
        assert read_choice("Let me see.\nA: C", 4).value == "C"
        assert read_choice("A: one\nB: two", 4).value is None

    @pytest.mark.parametrize("denier", ["not", "It is surely not", "I do not think", "I doubt"])
    def test_a_line_that_ends_in_a_denial_does_not_deny_the_next(self, denier: str) -> None:
        assert read_number(f"{denier}\nThe answer is 5.").value == "5"
        assert read_choice(f"{denier}\nThe answer is B.", 4).value == "B"
        assert read_number(f"{denier} the answer is 5.").value is None


ANOTHER = [
    *(("5", said) for said in (
        "5\u20446", "5\u22156", "5\u22363", "5±1", "5 ± 1", "5~6", "5\uff5e6", "5\u301c6",
        "5\u20146", "5 x 10^5", "5**2", "5√2", "5{,}000", "5\\,000", "5\u066b5", "5\u066c000",
        "5 lakh",
        "5 crore", "5 bn", "5 Millionen", "5 millones", "5 mil",
    )),
    ("U.S.", "U.S.A."), ("Jean", "Jean\u00adPaul"), ("node", "node.js"), ("Na", "Na\u207a"),
]  # fmt: skip
THE_SAME = [
    ("5", "\u0665"), ("5", "\u096b"), ("Paris", "\ufeffParis"), ("Paris", "\u200bParis"),
    ("Paris", "\u200eParis"), ("5", "5 milk"), ("5", "5 xylophones"), ("5", "5 \u2014 it is"),
    ("Paris", "Paris \u2014 it is"), ("U.S.", "U.S. is"), ("JeanPaul", "Jean\u00adPaul"),
]  # fmt: skip


class TestWhereAnAnswerGoesOn:
    @pytest.mark.parametrize(("answer", "said"), ANOTHER)
    def test_the_beginning_of_another_answer_is_not_it(self, answer: str, said: str) -> None:
        assert not starts_with_answer(said, answer)
        assert match_short(said, [answer]) == "wrong"

    @pytest.mark.parametrize(("answer", "said"), THE_SAME)
    def test_an_answer_in_other_characters_is_it(self, answer: str, said: str) -> None:
        assert starts_with_answer(said, answer)

    @pytest.mark.parametrize(("said", "language"), [
        ("The answer is 2**10", "en"), ("The answer is 5_000", "en"), ("The answer is --5", "en"),
        ("The answer is 2π", "en"), ("The answer is \\boxed{3\\pi}", "en"),
        ("The answer is $3\\sqrt2$", "en"), ("\\boxed{3\\sqrt{2}}", "en"),
        ("The answer is 3\\alpha", "en"),
        ("\\boxed{5!}", "en"), ("The answer is 5;6", "en"),
        ("答案是5万3千", "zh"), ("The answer is 5 lakh", "en"), ("The answer is 5 bn", "en"),
        ("Die Antwort ist 5 Millionen", "de"), ("La respuesta es 5 mil", "es"),
    ])  # fmt: skip
    def test_a_number_that_goes_on_is_not_read(self, said: str, language: str) -> None:
        assert read_number(said, language).value is None

    @pytest.mark.parametrize(("said", "value"), [
        ("The answer is **5**.", "5"), ("**Answer:** 5", "5"), ("Answer: **5", "5"),
        ("The answer is 5!", "5"), ("The answer is 5; that is all", "5"),
        ("The final answer is **-5**", "-5"), ("The answer is 3 **eggs**", "3"),
        ("The answer is 5 million", "5000000"), ("The answer is 12 miles", "12"),
    ])  # fmt: skip
    def test_emphasis_and_units_are_read_over(self, said: str, value: str) -> None:
        assert read_number(said).value == value

    @pytest.mark.parametrize(("said", "answer"), [
        ("不是巴黎", "巴黎"), ("Nicht Paris", "Paris"), ("pas Paris", "Paris"),
        ("no es París", "París"), ("1\u20442", "2"), ("10 crore", "10"),
    ])  # fmt: skip
    def test_a_denied_answer_in_any_language_is_wrong(self, said: str, answer: str) -> None:
        assert match_short(said, [answer]) == "wrong"
        assert match_short(f"No, {answer}", [answer]) == "correct"
