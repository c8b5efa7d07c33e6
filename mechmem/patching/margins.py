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

__all__ = ["answer_ids", "behavior_margins", "choice_ids", "choice_margins", "margins_of_scores"]


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
    first, second = answer_ids(model, prompts, task)
    if all(len(ids) == 1 for ids in (*first, *second)):
        # Both answers are one token: the normalization cancels, and one pass gives both.
        logits = model.logits(prompts, token_budget=token_budget).double().numpy()
        rows = np.arange(len(prompts))
        margin: np.ndarray = (
            logits[rows, [ids[0] for ids in first]] - logits[rows, [ids[0] for ids in second]]
        )
        return margin
    texts = _answers(prompts, task)
    one, other = (model.logprobs(prompts, text, token_budget=token_budget) for text in texts)
    difference: np.ndarray = (one - other).numpy()
    return difference


def answer_ids(
    model: Model, prompts: PromptSet, task: Task | None = None
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Token ids of the memorized and of the generalized answer of every prompt.

    Raises:
        PromptError: When a prompt lacks one of the two answers.
    """
    memorized, generalized = _answers(prompts, task)
    return (
        [model.tokens.continuation(p, text) for p, text in zip(prompts, memorized, strict=True)],
        [model.tokens.continuation(p, text) for p, text in zip(prompts, generalized, strict=True)],
    )


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
    answers = choice_ids(model, prompts, task)
    scores = np.full((len(prompts), max(map(len, answers))), np.nan)
    short = one_token_each(answers)
    if short:
        # One pass gives them all; a constant of the prompt cancels in the margin.
        asked = PromptSet(prompts[row] for row in short)
        every = model.logits(asked, token_budget=token_budget).double().log_softmax(-1).numpy()
        for k, row in enumerate(short):
            scores[row, : len(answers[row])] = every[k, [ids[0] for ids in answers[row]]]
    rest = sorted(set(range(len(answers))) - set(short))
    if rest:
        at = [(row, k) for row in rest for k in range(len(answers[row]))]
        tokenized = model.tokenize(PromptSet(prompts[row] for row in rest))
        own = dict(zip(rest, tokenized, strict=True))
        flat = model.answer_scores(
            [own[row] for row, _ in at], [answers[row][k] for row, k in at], token_budget
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
    return [
        tuple(
            model.tokens.continuation(prompt, task.continuation(prompt, answer))
            for answer in task.choices(prompt)
        )
        for prompt in prompts
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
