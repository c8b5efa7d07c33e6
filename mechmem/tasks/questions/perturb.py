"""Local perturbations: the same question in another form, with its own right answer.

A perturbed question names its original in ``meta["perturbs"]`` and keeps its group, so that no
split can part the two. *None of the others* is Salido et al. (arXiv 2502.12896); other numbers
with a recomputed answer are the idea of Xie et al. (arXiv 2410.23123).
"""

from __future__ import annotations

import re
import string
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from mechmem.errors import PromptError
from mechmem.seeding import keyed_rng
from mechmem.tasks.prompts import Prompt

ORIGINAL = "perturbs"
"""Key of `Prompt.meta` under which a perturbed prompt names the id of its original."""

NONE_OF_THE_OTHERS = "None of the other answers"
"""What stands in place of the right option; the words are ours."""

_NUMBER = re.compile(r"(?<![\w.,])\d+(?![\w]|[.,]\d)")


def perturbed(original: Prompt, name: str, **changes: Any) -> Prompt:
    """The original with some fields changed, an id of its own, and its original's name.

    Args:
        original: The question.
        name: What was done; part of the id and kept in ``meta["perturbation"]``.
        **changes: Fields of `Prompt`. ``meta`` is added to the original's.
    """
    meta = {
        **original.meta,
        **changes.pop("meta", {}),
        ORIGINAL: original.id,
        "perturbation": name,
    }
    return replace(original, id=f"{original.id}~{name}", behavior=None, meta=meta, **changes)


def none_of_the_others(question: Prompt, words: str = NONE_OF_THE_OTHERS) -> Prompt:
    """The right option's text replaced by ``words``; its letter stays the right answer.

    Whoever knew the right text by heart does not find it; whoever can rule out the others does.
    Perturb questions before their evaluation prompts are made (`Reasoning.evaluation`).

    Raises:
        PromptError: For a question without options or without a right letter.
    """
    options, right = _options(question)
    return perturbed(
        question,
        "none-of-the-others",
        meta={"options": [words if k == right else text for k, text in enumerate(options)]},
    )


def shuffled_options(question: Prompt, seed: int = 0) -> Prompt:
    """The options in another order, the letter of the right one with them.

    Raises:
        PromptError: For a question with fewer than two options or without a right letter.
    """
    options, right = _options(question)
    rng = keyed_rng(seed, "shuffled-options", question.id)
    order = list(range(len(options)))
    while order == sorted(order):
        order = [int(k) for k in rng.permutation(len(options))]
    return perturbed(
        question,
        f"shuffled-{seed}",
        answer=string.ascii_uppercase[order.index(right)],
        meta={"options": [options[k] for k in order]},
    )


def other_numbers(
    question: Prompt,
    solve: Callable[[list[int]], int | float | str],
    n: int = 4,
    *,
    reach: int = 3,
    least: int = 1,
    seed: int = 0,
) -> list[Prompt]:
    """``n`` variants, each with one of the question's whole numbers moved by 1 to ``reach``.

    Args:
        question: Its numbers are those of ``meta["question"]``, or of its text.
        solve: The right answer from the numbers in the order in which they stand.
        n: How many.
        reach: How far a number may move.
        least: The smallest number allowed.
        seed: Keys the draws.

    Raises:
        PromptError: Without numbers, when ``solve`` does not give the original's answer, or when
            there are fewer variants than asked for.
    """
    asked = str(question.meta.get("question", question.text))
    found = list(_NUMBER.finditer(asked))
    numbers = [int(match[0]) for match in found]
    if not numbers:
        raise PromptError(
            f"Question {question.id!r} has no whole number to change: {asked!r:.80}. Leave it out, "
            "or perturb it otherwise."
        )
    if question.answer is not None and str(solve(numbers)) != question.answer:
        raise PromptError(
            f"solve({numbers}) is {solve(numbers)!s:.40}, but question {question.id!r} has the "
            f"answer {question.answer!r}; mend solve, or leave this question out."
        )
    steps = [step for step in range(-reach, reach + 1) if step]
    moves = [
        (k, number + step)
        for k, number in enumerate(numbers)
        for step in steps
        if number + step >= least
    ]
    rng = keyed_rng(seed, "other-numbers", question.id)
    if len(moves) < n:
        raise PromptError(
            f"Question {question.id!r} has {len(moves)} variants within reach={reach}, {n} were "
            "asked for; ask for fewer, or give a larger reach."
        )
    out = []
    for k, value in (moves[int(i)] for i in rng.permutation(len(moves))[:n]):
        changed = [value if j == k else number for j, number in enumerate(numbers)]
        start, end = found[k].span()
        text = f"{asked[:start]}{value}{asked[end:]}"
        out.append(
            perturbed(
                question,
                f"number-{k}-{value}",
                text=question.text.replace(asked, text, 1),
                answer=str(solve(changed)),
                spans={},
                meta={"question": text} if "question" in question.meta else {},
            )
        )
    return out


def _options(question: Prompt) -> tuple[Sequence[str], int]:
    options = list(question.meta.get("options", ()))
    letters = [*string.ascii_uppercase[: len(options)]]
    if len(options) < 2 or question.answer is None or question.answer not in letters:
        raise PromptError(
            f"Question {question.id!r} needs options and the letter of the right one, got "
            f"{len(options)} options and the answer {question.answer!r}; read multiple-choice "
            "questions with get_task('reasoning').read(..., source='mmlu-pro')."
        )
    return options, letters.index(question.answer)
