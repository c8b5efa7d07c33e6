"""How much likelier one answer is than another: the behavior margin, and readings by choice."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from mechmem.errors import PromptError, listed
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.model import Model
from mechmem.tasks.base import BEHAVIORS, PromptAnswers, Task
from mechmem.tasks.choice import Choice
from mechmem.tasks.prompts import PromptSet


def behavior_margins(
    model: Model,
    prompts: PromptSet,
    *,
    task: Task | None = None,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> Float[np.ndarray, " example"]:
    """``log p(memorized answer) - log p(generalized answer)`` after every prompt, in nats.

    Raises:
        PromptError: When a prompt lacks one of the two answers.
    """
    asked = model.encode(prompts)
    first, second = answer_ids(model, asked, task)
    if all(len(ids) == 1 for ids in (*first, *second)):
        # Both answers are one token: the normalization cancels, and one pass gives both.
        logits = model.logits(asked, token_budget=token_budget).double().numpy()
        rows = np.arange(len(asked))
        margin: np.ndarray = (
            logits[rows, [ids[0] for ids in first]] - logits[rows, [ids[0] for ids in second]]
        )
        return margin
    one, other = (model.answer_scores(asked.rows, ids, token_budget) for ids in (first, second))
    difference: np.ndarray = (one - other).numpy()
    return difference


def answer_ids(
    model: Model, prompts: PromptSet, task: Task | None = None
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Token ids of the memorized and of the generalized answer of every prompt.

    Raises:
        PromptError: When a prompt lacks one of the two answers.
    """
    asked = model.encode(prompts)
    memorized, generalized = (
        [asked.following(row, text) for row, text in enumerate(texts)]
        for texts in _answers(asked, task)
    )
    return memorized, generalized


def choice_margins(
    model: Model,
    prompts: PromptSet,
    task: Task,
    *,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> Float[np.ndarray, " example"]:
    """Score of the first of a prompt's `Task.choices` minus that of the best other one, in nats.

    A score is the sum of the log-probabilities of all tokens of an answer after the prompt, in
    float64, or their mean (`Choice.length`). NaN where the answers cannot be compared
    (`margins_of_scores`). It says which of these answers is likelier, not that the model would
    write one of them.
    """
    asked = model.encode(prompts)
    answers = choice_ids(model, asked, task)
    scores = np.full((len(asked), max(map(len, answers))), np.nan)
    short = one_token_each(answers)
    if short:
        # One pass gives them all; a constant of the prompt cancels in the margin.
        ids = {asked[row].id for row in short}
        part = asked.filter(lambda prompt: prompt.id in ids)
        every = model.logits(part, token_budget=token_budget).double().log_softmax(-1).numpy()
        for k, row in enumerate(short):
            scores[row, : len(answers[row])] = every[k, [ids[0] for ids in answers[row]]]
    rest = sorted(set(range(len(answers))) - set(short))
    if rest:
        at = [(row, k) for row in rest for k in range(len(answers[row]))]
        flat = model.answer_scores(
            [asked.rows[row] for row, _ in at], [answers[row][k] for row, k in at], token_budget
        )
        scores[tuple(np.array(at).T)] = flat.numpy()
    return margins_of_scores(scores, answers, task)


def one_token_each(answers: Sequence[Sequence[tuple[int, ...]]]) -> list[int]:
    """The prompts of which every answer is a single token."""
    return [row for row, several in enumerate(answers) if all(len(ids) == 1 for ids in several)]


def margins_of_scores(
    scores: Float[np.ndarray, "example choice"],
    answers: Sequence[Sequence[tuple[int, ...]]],
    task: Task,
) -> Float[np.ndarray, " example"]:
    """From summed log-probabilities of the choices to margins, by the task's rule for length.

    NaN by ``"sum"`` where the first answer's tokens begin another's or the other way round: the
    shorter one is never less likely, whatever the model thinks.
    """
    rule = task.choice or Choice()
    scores = scores.copy()
    comparable = np.ones(len(scores), dtype=bool)
    for row, several in enumerate(answers):
        if rule.length == "mean":
            scores[row, : len(several)] /= [len(ids) for ids in several]
        else:
            first = several[0]
            comparable[row] = not any(
                first[: len(ids)] == ids or ids[: len(first)] == first for ids in several[1:]
            )
    margins = scores[:, 0] - np.nanmax(scores[:, 1:], axis=1)
    return np.where(comparable, margins, np.nan)


def choice_ids(model: Model, prompts: PromptSet, task: Task) -> list[tuple[tuple[int, ...], ...]]:
    """Token ids of every prompt's `Task.choices`."""
    asked = model.encode(prompts)
    return [
        tuple(
            asked.following(row, task.continuation(prompt, answer))
            for answer in task.choices(prompt)
        )
        for row, prompt in enumerate(asked)
    ]


def _answers(prompts: PromptSet, task: Task | None) -> list[list[str]]:
    lacking = [p.id for p in prompts if p.memorized is None or p.generalized is None]
    if lacking:
        raise PromptError(
            "A behavior margin needs `memorized` and `generalized` of every prompt; missing on "
            f"{listed(lacking, 5)}. Set them, or leave those prompts out."
        )
    reader = PromptAnswers("behavior") if task is None else task
    return [
        [reader.continuation(prompt, str(getattr(prompt, behavior))) for prompt in prompts]
        for behavior in BEHAVIORS
    ]
