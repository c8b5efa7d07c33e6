"""`conflict`: what a prompt says against what a pretrained model knows.

A false statement stands before a question whose answer the model knows: ``Redefine: the capital of
France is Rome. The capital of France is``. The answer is the *known* one or that of the *context*.
Which of the two it is depends on the item, in one and the same wording, and on the wording; so
classes are contrasted within a wording, or in equal numbers of each wording.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mechmem.errors import PromptError, TaskError, did_you_mean, listed
from mechmem.seeding import keyed_order
from mechmem.tasks.base import Task, register_task
from mechmem.tasks.choice import UNDECIDED, Choice
from mechmem.tasks.facts.rows import Fact, read_facts, shipped_rows
from mechmem.tasks.parsing.answers import which_answer
from mechmem.tasks.prompts import Prompt, PromptSet

WORDINGS: Mapping[str, str] = {
    "redefine": "Redefine: {false}. {question}",
    "stated": "{false}. {question}",
    "news": "News: since today {false}. {question}",
    "belief": "Anna believes: {false}. In truth, {question}",
    "twice": "{false}. {false}. {question}",
    "thrice": "{false}. {false}. {false}. {question}",
}
"""How the false statement is put; the last ones repeat it."""
ALONE = "{question}"


@register_task
class Conflict(Task):
    """Facts that the model knows, behind a false statement.

    Read by choice: `known` when the true answer is likelier than the stated one, `context` when it
    is the other way round. ``reading="text"`` of `observe` reads what is written instead.

    Args:
        data: Facts, in any form that `mechmem.tasks.facts.rows.read_facts` takes; the shipped
            CounterFact rows by default.
        wordings: Names of `WORDINGS`, or your own templates by name, with ``{false}`` and
            ``{question}``.

    Attributes:
        facts: The facts that are asked; after `prepared` those that the model knows.
        left_out: How many rows were left out, by reason.
    """

    name = "conflict"
    outcomes = ("known", "context", UNDECIDED)
    behaviors = ("known", "context")
    choice = Choice()
    max_new_tokens = 8

    def __init__(
        self, data: Any = None, wordings: Sequence[str] | Mapping[str, str] = ("redefine",)
    ) -> None:
        self.facts, self.left_out = read_facts(shipped_rows() if data is None else data)
        self.wordings = _wordings(wordings)

    def alone(self) -> PromptSet:
        """Every fact without a false statement: what the model knows by itself."""
        return PromptSet(self._prompt(fact, "alone", ALONE) for fact in self.facts)

    def prepared(self, ask: Callable[[PromptSet], Sequence[str]]) -> Conflict:
        """The same task with only those facts whose true answer is the likelier one without a
        false statement.

        Args:
            ask: From prompts to outcomes, such as
                ``lambda prompts: mm.observe(model, prompts, task=task).outcomes``.

        Raises:
            PromptError: When the model knows none.
        """
        outcomes = ask(self.alone())
        out = copy.copy(self)
        out.facts = [
            fact
            for fact, outcome in zip(self.facts, outcomes, strict=True)
            if outcome == self.behaviors[0]
        ]
        out.left_out = self.left_out.copy()
        out.left_out["the model does not know it"] += len(self.facts) - len(out.facts)
        if not out.facts:
            raise PromptError(
                f"The model knows none of {len(self.facts)} facts: without a false statement the "
                "true answer is never the likelier one. Give facts that it knows."
            )
        return out

    def prompts(self, wording: str | None = None) -> PromptSet:
        """Every fact in one wording, or in all wordings of the task.

        Raises:
            TaskError: For a wording that the task does not have.
        """
        if wording is not None and wording not in self.wordings:
            raise TaskError(
                f"Unknown wording {wording!r}; this task has {listed(self.wordings)}."
                f"{did_you_mean(wording, self.wordings)}"
            )
        chosen = self.wordings if wording is None else {wording: self.wordings[wording]}
        return PromptSet(
            self._prompt(fact, name, text) for fact in self.facts for name, text in chosen.items()
        )

    def pairs(self, n: int, seed: int = 0) -> PromptSet:
        """At most ``2 n`` prompts: facts in a keyed order, each in every wording of the task.

        There are as many as there are facts, so ``n`` is a limit here. Facts about one subject
        share a group.
        """
        whole = self.prompts()
        order = keyed_order(list(dict.fromkeys(whole.groups)), seed, self.name, "pairs")
        place = {group: k for k, group in enumerate(order)}
        return PromptSet(sorted(whole, key=lambda prompt: place[prompt.group])[: 2 * n])

    def classify(self, prompt: Prompt, completion: str) -> str:
        answers = dict(zip(self.behaviors, (prompt.memorized, prompt.generalized), strict=True))
        return which_answer(completion, answers) or self.outcomes[-1]

    def contrast(self, prompts: PromptSet) -> PromptSet:
        """Item against item: as many `known` as `context` prompts of every wording, so that the
        wording says nothing about the class. Which ones is keyed by their ids."""
        kept: set[str] = set()
        for wording in dict.fromkeys(str(prompt.meta.get("wording")) for prompt in prompts):
            sides = [
                [p.id for p in prompts if str(p.meta.get("wording")) == wording and p.behavior == b]
                for b in self.behaviors
            ]
            fewest = min(map(len, sides))
            for side in sides:
                kept |= set(keyed_order(side, 0, self.name, "contrast")[:fewest])
        return prompts.filter(lambda prompt: prompt.id in kept)

    def stratum(self, prompt: Prompt) -> str:
        return str(prompt.meta.get("wording", ""))

    def _prompt(self, fact: Fact, name: str, text: str) -> Prompt:
        said = text.format(false=f"{fact.question} {fact.other}", question=fact.question)
        start = len(said) - len(fact.question)
        return Prompt(
            id=f"{fact.question} | {name}",
            text=said,
            group=fact.subject,
            memorized=fact.true,
            generalized=fact.other,
            spans={"question": (start, len(said))},
            meta={"wording": name, "strength": text.count("{false}"), "subject": fact.subject},
        )


def _wordings(given: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    if isinstance(given, str):
        given = (given,)
    if not isinstance(given, Mapping):
        unknown = [name for name in given if name not in WORDINGS]
        if unknown or not given:
            raise TaskError(
                f"Unknown wordings {listed(unknown)}; there are {listed(WORDINGS)}. Your own come "
                "as a mapping from names to texts with {false} and {question}."
            )
        return {name: WORDINGS[name] for name in given}
    if not given:
        raise TaskError("No wordings are given; for example {'mine': '{false}? {question}'}.")
    for name, text in given.items():
        try:
            filled = text.format(false="\0", question="\1")
        except (KeyError, IndexError, ValueError):
            filled = ""
        if "\0" not in filled or not filled.endswith("\1"):
            raise TaskError(
                f"Wording {name!r} must hold {{false}} and end with {{question}}, got {text!r:.80}."
            )
    return dict(given)
