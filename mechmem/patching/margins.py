"""The behavior margin: how much likelier the memorized answer is than the generalized one."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

from mechmem.errors import PromptError, listed
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.hooked import Model
from mechmem.tasks.base import BEHAVIORS, PromptAnswers, Task
from mechmem.tasks.prompts import PromptSet

__all__ = ["answer_ids", "behavior_margins"]


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
