"""What to do when a model writes neither of the two answers, said from the first few prompts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace

from mechmem.evaluation.behavior import observe
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.model import Model
from mechmem.tasks.base import Task
from mechmem.tasks.prompts import Chat, PromptSet

FIRST = 24
"""Prompts that are looked at: seconds, on any model."""
MOSTLY, HOPELESS = 0.75, 0.9
LEAST = 0.1
"""Share that either answer must have by choice for that reading to be worth proposing."""


@dataclass(frozen=True)
class FirstLook:
    """How a model answers the first prompts.

    Attributes:
        neither: Share that came out as none of the two behaviors.
        wrote: The commonest things written, with their counts.
        by_choice: Shares of the outcomes when read by choice.
        in_chat: Share that is neither when the chat template is used; ``None`` without one.
        n: Prompts looked at.
    """

    neither: float
    wrote: tuple[tuple[str, int], ...]
    by_choice: dict[str, float]
    in_chat: float | None
    n: int

    @property
    def remedy(self) -> str:
        """Which of the three fits: the chat template, the reading by choice, another wording."""
        if self.in_chat is not None and self.in_chat <= 1 - MOSTLY:
            return (
                "Use the chat template (chat=mm.Chat() of every prompt): with it "
                f"{1 - self.in_chat:.0%} are one of the two answers."
            )
        if min(list(self.by_choice.values())[:2]) >= LEAST:
            return (
                "Use reading='choice' (--reading choice): which of the two answers is likelier "
                "then counts, and nothing is written."
            )
        return (
            "Word the prompts so that the answer is what comes next, such as '... The answer is'; "
            "neither the chat template nor a reading by choice shows both behaviors here."
        )

    def __str__(self) -> str:
        wrote = ", ".join(f"{text!r:.40} ({count}x)" for text, count in self.wrote)
        shares = ", ".join(f"{name} {share:.0%}" for name, share in self.by_choice.items())
        return (
            f"The model writes neither of the two answers after {self.neither:.0%} of the first "
            f"{self.n} prompts, but {wrote}. By choice: {shares}. {self.remedy}"
        )


def first_look(
    model: Model, prompts: PromptSet, task: Task, *, token_budget: int = DEFAULT_TOKEN_BUDGET
) -> FirstLook | None:
    """How the first prompts are answered; ``None`` unless most are neither behavior, or where the
    task reads by choice anyway.

    Args:
        task: Reads what is written; its first two outcomes are the behaviors.
    """
    first = prompts[:FIRST]
    if task.choice is not None or task.outcomes[:2] != task.behaviors:
        return None
    seen = observe(model, first, task=task, margins=False, token_budget=token_budget)
    neither = _neither(seen.outcomes, task)
    if neither < MOSTLY:
        return None
    chosen = observe(model, first, task=task, reading="choice", token_budget=token_budget)
    in_chat = None
    templated = getattr(model.tokens.tokenizer, "chat_template", None)
    if templated and all(prompt.chat is None for prompt in first):
        chatted = PromptSet(replace(prompt, chat=Chat(), spans={}) for prompt in first)
        again = observe(model, chatted, task=task, margins=False, token_budget=token_budget)
        in_chat = _neither(again.outcomes, task)
    return FirstLook(
        neither,
        tuple(Counter(seen.completions).most_common(3)),
        {name: chosen.outcomes.count(name) / len(first) for name in chosen.allowed},
        in_chat,
        len(first),
    )


def _neither(outcomes: tuple[str, ...], task: Task) -> float:
    return sum(name not in task.behaviors for name in outcomes) / len(outcomes)
