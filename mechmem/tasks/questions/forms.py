"""Evaluation prompts: worked examples, then the question, then the beginning of an answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from importlib import resources

from mechmem.errors import PromptError, TaskError
from mechmem.numeric import MOST, whole_number
from mechmem.tasks.prompts import Prompt, PromptSet
from mechmem.tasks.questions.kinds import QUESTION_KINDS, question_of
from mechmem.tasks.questions.reader import extraction_text, read_questions
from mechmem.tasks.questions.sources import SOURCES


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
            text=extraction_text(question_of(prompt)),
            spans={"question": (3, 3 + len(question_of(prompt)))},
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
        TaskError: When there are fewer examples than shots, or shots are no number.
        PromptError: For code, which is never run.
    """
    if shots is not None:
        whole_number(shots, "shots", 0, most=MOST, error=TaskError)
    return PromptSet(_asked(prompt, examples, shots) for prompt in prompts)


def _asked(prompt: Prompt, examples: PromptSet | None, shots: int | None) -> Prompt:
    source = str(prompt.meta.get("source", "questions"))
    if prompt.meta.get("kind") not in QUESTION_KINDS:
        raise PromptError(
            f"Prompt {prompt.id!r} (source {source!r}) has no answer that is read: code is never "
            "run here, and your own questions need an 'answer'. Use its extraction form."
        )
    kind = QUESTION_KINDS[prompt.meta["kind"]]
    wanted = SOURCES[source].shots if shots is None and source in SOURCES else shots or 0
    shown = _chosen(prompt, examples, wanted) if wanted else ()
    before = kind.header(prompt) + "".join(f"{kind.ask(e)}{kind.worked(e)}\n\n" for e in shown)
    asked, question = kind.ask(prompt), question_of(prompt)
    start = len(before) + asked.index(question)
    return replace(prompt, text=before + asked, spans={"question": (start, start + len(question))})


def fitting_examples(prompt: Prompt, examples: PromptSet) -> list[Prompt]:
    """Examples that may stand before a question: of its kind, and of its category or language."""
    kind = QUESTION_KINDS[prompt.meta["kind"]]
    pool = [e for e in examples if e.meta.get("kind") == kind.name and e.group != prompt.group]
    if kind.alike == "category":
        category = prompt.meta.get("category", "")
        return [e for e in pool if e.meta.get("category", "") == category]
    language = prompt.meta.get("language", "en")
    return [e for e in pool if e.meta.get("language", "en") == language] or pool


def _chosen(prompt: Prompt, examples: PromptSet | None, wanted: int) -> Sequence[Prompt]:
    kind = QUESTION_KINDS[prompt.meta["kind"]]
    if examples is None:
        if kind.name != "number":
            raise TaskError(
                f"{prompt.id!r} wants {wanted} worked examples, and only number questions have "
                "some of ours. Pass examples=task.read(<the set's validation part>, source=...), "
                "or shots=0."
            )
        examples = bundled_examples()
    pool = fitting_examples(prompt, examples)
    if len(pool) < wanted:
        of = ""
        if kind.alike == "category":
            of = f" of category {prompt.meta.get('category', '')!r}"
        raise TaskError(
            f"{prompt.id!r} wants {wanted} worked {kind.name} examples{of}, there are {len(pool)}. "
            "Pass more of them, or fewer shots=."
        )
    return pool[:wanted]
