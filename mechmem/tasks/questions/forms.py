"""Evaluation prompts: worked examples, then the question, then the beginning of an answer."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from importlib import resources
from typing import NamedTuple

from mechmem.errors import PromptError, TaskError, listed
from mechmem.tasks.prompts import Prompt, PromptSet
from mechmem.tasks.questions.reader import extraction_text, read_questions
from mechmem.tasks.questions.sources import SOURCES

STEPS = "Let's think step by step."


class Form(NamedTuple):
    """How a kind of question is put.

    Attributes:
        header: What stands first, from the category.
        ask: The question up to where an answer begins; the question's text occurs once in it.
        answer: What follows in a worked example.
    """

    header: Callable[[str], str]
    ask: Callable[[Prompt], str]
    answer: Callable[[Prompt], str]


@cache
def bundled_examples() -> PromptSet:
    """The eight worked word problems of this project, used where you give none."""
    file = resources.files("mechmem.tasks.questions") / "examples.jsonl"
    text = file.read_text(encoding="utf-8")
    return read_questions([json.loads(line) for line in text.splitlines()], "gsm8k")


def extraction_prompts(prompts: PromptSet) -> PromptSet:
    r"""The same questions as ``Q: {question}\nA: ``, from any form."""
    return PromptSet(
        replace(
            prompt,
            text=extraction_text(_question(prompt)),
            spans={"question": (3, 3 + len(_question(prompt)))},
        )
        for prompt in prompts
    )


def evaluation_prompts(
    prompts: PromptSet, examples: PromptSet | None = None, shots: int | None = None
) -> PromptSet:
    """The same questions in the form that asks for an answer: ids, groups, labels stay.

    Args:
        prompts: From `read_questions`.
        examples: Worked examples, read with the same source. Choices use those of the question's
            category; MGSM those of its language where there are any; the question itself is never
            among its own examples. Numbers have `bundled_examples`.
        shots: How many; the set's own habit when left out (MMLU-Pro 5, GSM8K 8, PopQA 0).

    Raises:
        TaskError: When there are fewer examples than shots.
        PromptError: For code, which is never run.
    """
    return PromptSet(_asked(prompt, examples, shots) for prompt in prompts)


def _asked(prompt: Prompt, examples: PromptSet | None, shots: int | None) -> Prompt:
    source = str(prompt.meta.get("source", "questions"))
    wanted = SOURCES[source].shots if shots is None and source in SOURCES else shots or 0
    form = _form(prompt)
    shown = _chosen(prompt, examples, wanted) if wanted else ()
    header = form.header(str(prompt.meta.get("category", "")))
    before = header + "".join(f"{form.ask(e)}{form.answer(e)}\n\n" for e in shown)
    asked, question = form.ask(prompt), _question(prompt)
    start = len(before) + asked.index(question)
    return replace(prompt, text=before + asked, spans={"question": (start, start + len(question))})


def _chosen(prompt: Prompt, examples: PromptSet | None, wanted: int) -> Sequence[Prompt]:
    kind = prompt.meta.get("kind")
    if examples is None:
        if kind != "number":
            raise TaskError(
                f"{prompt.id!r} wants {wanted} worked examples, and only number questions have "
                "some of ours. Pass examples=task.read(<the set's validation part>, source=...), "
                "or shots=0."
            )
        examples = bundled_examples()
    pool = [e for e in examples if e.meta.get("kind") == kind and e.group != prompt.group]
    if kind == "choice":
        category = prompt.meta.get("category", "")
        pool = [e for e in pool if e.meta.get("category", "") == category]
        of = f" of category {category!r}"
    else:
        language = prompt.meta.get("language", "en")
        pool = [e for e in pool if e.meta.get("language", "en") == language] or pool
        of = ""
    if len(pool) < wanted:
        raise TaskError(
            f"{prompt.id!r} wants {wanted} worked {kind} examples{of}, there are {len(pool)}. "
            "Pass more of them, or fewer shots=."
        )
    return pool[:wanted]


def _form(prompt: Prompt) -> Form:
    kind = prompt.meta.get("kind")
    if kind == "choice":
        chinese = prompt.meta.get("source") == "c-eval"
        return _CHINESE_CHOICE if chinese else _CHOICE
    if kind in ("number", "short"):
        return _NUMBER if kind == "number" else _SHORT
    raise PromptError(
        f"Prompt {prompt.id!r} (source {prompt.meta.get('source')!r}) has no answer that is read: "
        "code is never run here, and your own questions need an 'answer'. Use its extraction form."
    )


def _question(prompt: Prompt) -> str:
    question = prompt.meta.get("question")
    if not isinstance(question, str):
        raise PromptError(
            f"Prompt {prompt.id!r} has no meta['question']; read your questions with "
            f"get_task('reasoning').read(...). Its meta holds {listed(prompt.meta)}."
        )
    return question


def _options(prompt: Prompt, mark: str = ". ") -> str:
    pairs = zip(string.ascii_uppercase, prompt.meta.get("options", ()), strict=False)
    return "".join(f"{letter}{mark}{option}\n" for letter, option in pairs)


def _steps(prompt: Prompt) -> str:
    """A solution in one line, without its data set's own beginning and end."""
    text = re.sub(r"<<[^<>]*>>", "", str(prompt.meta.get("solution", "")))
    text = text.rsplit("####", 1)[0]
    text = re.sub(rf"^\s*[^\s:]{{0,24}}(?:[- ][^\s:]+)?\s*:\s*(?={re.escape(STEPS)})", "", text)
    text = re.sub(r"^\s*Step-by-Step Answer\s*:\s*", "", text)
    return " ".join(text.replace(STEPS, "", 1).split())


def _spaced(text: str) -> str:
    return f" {text}" if text else ""


def _choice_answer(prompt: Prompt) -> str:
    steps, end = _steps(prompt), f"The answer is ({prompt.answer})."
    return _spaced(steps if steps.endswith(end) else f"{steps} {end}".strip())


def _number_answer(prompt: Prompt) -> str:
    return _spaced(f"{_steps(prompt)} The final answer is {prompt.answer}.".strip())


# MMLU-Pro's own words and layout.
_CHOICE = Form(
    lambda category: (
        "The following are multiple choice questions (with answers)"
        + (f" about {category}" if category else "")
        + '. Think step by step and then finish your answer with "the answer is (X)" where X is '
        "the correct letter choice.\n\n"
    ),
    lambda p: f"Question:\n{_question(p)}\nOptions:\n{_options(p)}Answer: {STEPS}",
    _choice_answer,
)
# C-Eval's own words; without worked steps, as its plain setting has it.
_CHINESE_CHOICE = Form(
    lambda category: (
        f"以下是中国关于{category.replace('_', ' ')}考试的单项选择题"
        "\uff0c请选出其中的正确答案。\n\n"
    ),
    lambda p: f"{_question(p)}\n{_options(p)}答案\uff1a",
    lambda p: str(p.answer),
)
# The words of GSM-Symbolic's evaluation, to which "The final answer is" belongs.
_NUMBER = Form(
    lambda _: (
        "As an expert problem solver, solve step by step the following mathematical questions.\n\n"
    ),
    lambda p: f"Q: {_question(p)}\nA: {STEPS}",
    _number_answer,
)
_SHORT = Form(
    lambda _: "",
    lambda p: f"Q: {_question(p)}\n\nA: ",
    lambda p: str(p.answer),
)
