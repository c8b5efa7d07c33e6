"""Kinds of questions: how one is asked, and how its answer is judged. One class each.

A new kind is a class under `register_kind`; its name then serves in the column ``kind`` of your own
questions and in `mechmem.tasks.questions.sources.Item`.
"""

from __future__ import annotations

import re
import string
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar, NamedTuple

from mechmem.errors import PromptError, TaskError, did_you_mean, listed
from mechmem.tasks.parsing import (
    NO_STATEMENT,
    Reading,
    gold_number,
    match_short,
    match_short_paper,
    read_choice,
    read_choice_paper,
    read_number,
)
from mechmem.tasks.prompts import Prompt
from mechmem.tasks.registry import Registry

READINGS = ("strict", "paper")
STEP_BY_STEP = "Let's think step by step."


class Gold(NamedTuple):
    """What a completion is compared with.

    Attributes:
        answer: The right answer.
        options: The option texts of a choice.
        aliases: Other right answers.
        language: Of the question; decides how numbers are written.
    """

    answer: str
    options: Sequence[str] = ()
    aliases: Sequence[str] = ()
    language: str = "en"


class Kind(ABC):
    """How one kind of question is put and judged.

    Attributes:
        name: What the column ``kind`` says.
        alike: Key of `Prompt.meta` that worked examples share with their question.
    """

    name: ClassVar[str] = ""
    alike: ClassVar[str] = "language"

    @abstractmethod
    def judge(self, completion: str, gold: Gold, reading: str) -> tuple[str, Reading]:
        """``correct``, ``wrong`` or ``unparsed``, and what was read."""

    def header(self, prompt: Prompt) -> str:
        """What stands before the first worked example."""
        return ""

    def ask(self, prompt: Prompt) -> str:
        """The question up to where an answer begins; its text occurs once in it."""
        return f"Q: {question_of(prompt)}\n\nA: "

    def worked(self, prompt: Prompt) -> str:
        """What follows `ask` in a worked example."""
        return str(prompt.answer)


QUESTION_KINDS: Registry[Kind] = Registry("kind of question")


def register_kind(kind: type[Kind]) -> type[Kind]:
    """Decorator: make a class a kind of question, under its ``name``."""
    QUESTION_KINDS.add(kind.name, kind())
    return kind


def judge_completion(
    completion: str,
    kind: str,
    answer: str,
    *,
    options: Sequence[str] = (),
    aliases: Sequence[str] = (),
    language: str = "en",
    reading: str = "strict",
) -> tuple[str, Reading]:
    """``correct``, ``wrong`` or ``unparsed``, with what was read.

    Args:
        kind: ``choice`` (the answer is a letter), ``number``, ``short``, or one of yours.
        answer: The right answer; a number in any form that `gold_number` reads.
        options: The option texts of a choice; ten unnamed ones when left out.
        aliases: Other right answers of a short one.
        language: Number format of the completion and of the answer (`read_number`).
        reading: ``strict``, or ``paper`` for the expressions of arXiv 2503.23084 (letters and
            short answers; its number expression misses negative numbers and commas, so numbers
            are always read strictly).

    Raises:
        TaskError: For an unknown kind or reading, or a number task whose answer is none.
    """
    if reading not in READINGS:
        raise TaskError(
            f"reading must be one of {listed(READINGS)}, got {reading!r}."
            f"{did_you_mean(reading, READINGS)}"
        )
    return QUESTION_KINDS[kind].judge(completion, Gold(answer, options, aliases, language), reading)


def question_of(prompt: Prompt) -> str:
    """The question alone.

    Raises:
        PromptError: When the prompt was not read by the reasoning task.
    """
    question = prompt.meta.get("question")
    if not isinstance(question, str):
        raise PromptError(
            f"Prompt {prompt.id!r} has no meta['question']; read your questions with "
            f"get_task('reasoning').read(...). Its meta holds {listed(prompt.meta)}."
        )
    return question


@register_kind
class ChoiceQuestion(Kind):
    """The answer is a letter. MMLU-Pro's own words and layout; C-Eval's for its questions."""

    name = "choice"
    alike = "category"

    def judge(self, completion: str, gold: Gold, reading: str) -> tuple[str, Reading]:
        if reading == "strict":
            read = read_choice(completion, list(gold.options) or 10)
            if read.value is None and gold.options:
                return _by_value(completion, gold, read)
        else:
            read = read_choice_paper(completion)
        return _compared(read, gold.answer.strip().strip("()").upper())

    def header(self, prompt: Prompt) -> str:
        category = str(prompt.meta.get("category", ""))
        if self._chinese(prompt):
            subject = category.replace("_", " ")
            return f"以下是中国关于{subject}考试的单项选择题\uff0c请选出其中的正确答案。\n\n"
        about = f" about {category}" if category else ""
        return (
            f"The following are multiple choice questions (with answers){about}. Think step by "
            'step and then finish your answer with "the answer is (X)" where X is the correct '
            "letter choice.\n\n"
        )

    def ask(self, prompt: Prompt) -> str:
        pairs = zip(string.ascii_uppercase, prompt.meta.get("options", ()), strict=False)
        options = "".join(f"{letter}. {option}\n" for letter, option in pairs)
        if self._chinese(prompt):
            return f"{question_of(prompt)}\n{options}答案\uff1a"
        return f"Question:\n{question_of(prompt)}\nOptions:\n{options}Answer: {STEP_BY_STEP}"

    def worked(self, prompt: Prompt) -> str:
        if self._chinese(prompt):
            return str(prompt.answer)  # without worked steps, as C-Eval's plain setting has it
        steps, end = _steps(prompt), f"The answer is ({prompt.answer})."
        return _spaced(steps if steps.endswith(end) else f"{steps} {end}".strip())

    @staticmethod
    def _chinese(prompt: Prompt) -> bool:
        return prompt.meta.get("source") == "c-eval"


@register_kind
class NumberQuestion(Kind):
    """The words of GSM-Symbolic's evaluation, to which *The final answer is* belongs."""

    name = "number"

    def judge(self, completion: str, gold: Gold, reading: str) -> tuple[str, Reading]:
        wanted = gold_number(gold.answer, gold.language)
        if wanted is None:
            within = "" if gold.language == "en" else f" in language {gold.language!r}"
            raise TaskError(
                f"The answer {gold.answer!r:.80} is not a number{within}; set kind='short' "
                "instead, or write it without separators of thousands."
            )
        return _compared(read_number(completion, gold.language), wanted)

    def header(self, prompt: Prompt) -> str:
        return (
            "As an expert problem solver, solve step by step the following mathematical "
            "questions.\n\n"
        )

    def ask(self, prompt: Prompt) -> str:
        return f"Q: {question_of(prompt)}\nA: {STEP_BY_STEP}"

    def worked(self, prompt: Prompt) -> str:
        return _spaced(f"{_steps(prompt)} The final answer is {prompt.answer}.".strip())


@register_kind
class ShortQuestion(Kind):
    """A few words, one of several aliases."""

    name = "short"

    def judge(self, completion: str, gold: Gold, reading: str) -> tuple[str, Reading]:
        match = match_short if reading == "strict" else match_short_paper
        outcome = match(completion, [gold.answer, *gold.aliases])
        return outcome, Reading(None if outcome == "unparsed" else outcome, f"{reading} matching")


def _by_value(completion: str, gold: Gold, read: Reading) -> tuple[str, Reading]:
    """Where no letter could be read and the options are numbers: the number that is stated."""
    letter = string.ascii_uppercase.index(gold.answer.strip().strip("()").upper())
    wanted = [gold_number(option, gold.language) for option in gold.options]
    right = wanted[letter]
    if right is None or wanted.count(right) > 1 or read.why != NO_STATEMENT:
        return "unparsed", read
    return _compared(read_number(completion, gold.language), right)


def _compared(read: Reading, wanted: str) -> tuple[str, Reading]:
    if read.value is None:
        return "unparsed", read
    return ("correct" if read.value == wanted else "wrong"), read


def _steps(prompt: Prompt) -> str:
    """A solution in one line, without its data set's own beginning and end."""
    text = re.sub(r"<<[^<>]*>>", "", str(prompt.meta.get("solution", "")))
    text = text.rsplit("####", 1)[0]
    text = re.sub(
        rf"^\s*[^\s:]{{0,24}}(?:[- ][^\s:]+)?\s*:\s*(?={re.escape(STEP_BY_STEP)})", "", text
    )
    text = re.sub(r"^\s*Step-by-Step Answer\s*:\s*", "", text)
    return " ".join(text.replace(STEP_BY_STEP, "", 1).split())


def _spaced(text: str) -> str:
    return f" {text}" if text else ""
