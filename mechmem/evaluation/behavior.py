"""`observe`: let the model answer, and write down what it did."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechmem.errors import ModelError, PromptError, TaskError, did_you_mean, listed
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.engine.stopping import Completion
from mechmem.models.model import Model, ModelInfo
from mechmem.models.tokenizing import EncodedPrompts, PromptsLike, TokenizedPrompt
from mechmem.patching.apply import PatchedModel
from mechmem.patching.margins import behavior_margins, choice_margins
from mechmem.tasks.base import BEHAVIORS, PromptAnswers, Task, with_reading
from mechmem.tasks.choice import READINGS, Choice
from mechmem.tasks.prompts import PromptSet


@dataclass(frozen=True)
class Observations:
    """What a model did, one row per prompt.

    Attributes:
        prompts: What was asked, in order.
        completions: What the model wrote; empty where it was read by choice.
        outcomes: How the task read it.
        margins: Log-probability of the memorized answer minus that of the generalized one, in
            nats, before anything is generated; NaN where a prompt lacks one of the two answers.
            Read by choice: score of the first of `Task.choices` minus the best other one's.
        allowed: Every outcome the task knows, in its order.
        task: Name of the task.
        model: Facts of the model that answered.
        tokenized: What the model was fed.
        truncated: True where the limit of new tokens ended the completion.
        behaviors: The task's names of the two behaviors, memorized first.
        choice: The rule of a reading by choice; ``None`` where what was written is read.
        moved: How far the edits in force moved an activation: the mean length over all tokens and
            sites that they moved; NaN for the unedited model.
    """

    prompts: PromptSet
    completions: tuple[str, ...]
    outcomes: tuple[str, ...]
    margins: Float[np.ndarray, " example"]
    allowed: tuple[str, ...]
    task: str
    model: ModelInfo
    tokenized: tuple[TokenizedPrompt, ...]
    truncated: tuple[bool, ...]
    behaviors: tuple[str, str] = BEHAVIORS
    choice: Choice | None = None
    moved: float = math.nan

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        shares = {name: self.outcomes.count(name) for name in self.allowed}
        return f"Observations({len(self)} prompts: {shares})"

    @property
    def reading(self) -> str:
        """``"text"`` or ``"choice"``."""
        return READINGS[self.choice is not None]

    @cached_property
    def behaving(self) -> PromptSet:
        """The prompts with their outcome attached as `Prompt.behavior`."""
        return self.prompts.with_behaviors(dict(zip(self.prompts.ids, self.outcomes, strict=True)))

    def flips(self) -> PromptSet:
        """Pairs of rephrasings of which one came out memorized and the other generalized.

        Pairs are consecutive rephrasings of a group (`PromptSet.pairs`). Each flip brings one
        prompt of each behavior from the same instance, so a contrast of the two is balanced.
        """
        out = []
        for one, other in self.behaving.pairs():
            if {one.behavior, other.behavior} == set(self.behaviors):
                out += [one.id, other.id]
        return self.behaving.select(out)

    @property
    def flip_rate(self) -> float:
        """Share of the pairs that are flips.

        Raises:
            PromptError: When no group has two rephrasings.
        """
        pairs = len(self.prompts.pairs())
        if pairs == 0:
            raise PromptError(
                "A flip rate needs pairs: give at least two rephrasings the same `group`."
            )
        return len(self.flips()) / 2 / pairs

    def table(self) -> pd.DataFrame:
        """One row per prompt."""
        return pd.DataFrame(
            {
                "id": self.prompts.ids,
                "group": self.prompts.groups,
                "prompt": [prompt.text for prompt in self.prompts],
                "completion": self.completions,
                "behavior": self.outcomes,
                "margin": self.margins,
                "truncated": self.truncated,
                "reading": self.reading,
            }
        )


def known_outcome(seen: Observations, outcome: str) -> None:
    """Refuse an outcome that the task does not have, whose share would be 0.

    Raises:
        TaskError: Naming those it has.
    """
    if outcome not in seen.allowed:
        raise TaskError(
            f"Unknown outcome {outcome!r}; this task has {listed(seen.allowed)}."
            f"{did_you_mean(outcome, seen.allowed)}"
        )


def hits(seen: Observations, outcome: str) -> np.ndarray:
    """1 where a prompt came out so."""
    return np.array([name == outcome for name in seen.outcomes], dtype=float)


def observe(
    model: Model,
    prompts: PromptsLike,
    *,
    task: Task | None = None,
    reading: str | Choice | None = None,
    margins: bool = True,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    progress: Callable[[int], None] | None = None,
) -> Observations:
    """What the model does on every prompt: what it writes, greedily, or which answer it chooses.

    Args:
        model: From `load_model`, or the view inside `patched`.
        prompts: What to ask.
        task: Reads the completions. Without one, the prompts' own `memorized`/`generalized` (or
            `answer`) serve.
        reading: ``"text"``, ``"choice"`` (nothing is written: the likelier of the two answers
            counts, see `mechmem.tasks.base.Choice`, which may be given as well), or ``None`` for
            the task's own.
        margins: Also score both answers; leave out to save two forward passes. A reading by choice
            has them anyway.
        token_budget: Most tokens in one batch.
        progress: Called with the number of prompts once they are done.

    Raises:
        TaskError: Without a task or by choice, when prompts lack their answers.
    """
    check_kinds(model, task)
    asked = model.encode(prompts, "observe")
    reader = reader_for(asked, task, reading)
    if reader.choice is not None:
        scored = choice_margins(model, asked, reader, token_budget=token_budget)
        observed = as_observed(model, asked, reader, None, scored)
        if progress is not None:
            progress(len(asked))
        return observed
    done = model.complete(asked, reader.max_new_tokens, stop=reader.stop, token_budget=token_budget)
    observed = as_observed(
        model,
        asked,
        reader,
        done,
        _margins(model, asked, reader, token_budget) if margins else np.full(len(asked), np.nan),
    )
    if progress is not None:
        progress(len(asked))
    return observed


def reader_for(prompts: PromptSet, task: Task | None, reading: str | Choice | None = None) -> Task:
    """What reads these prompts: the task, else their own answers, by text or by choice."""
    return with_reading(task if task is not None else PromptAnswers.for_prompts(prompts), reading)


def as_observed(
    model: Model,
    prompts: EncodedPrompts,
    task: Task,
    done: Sequence[Completion] | None,
    margins: np.ndarray,
    info: ModelInfo | None = None,
) -> Observations:
    """Completions, read by the task; or, where it is read by choice and nothing was written, the
    margins between its choices.

    Raises:
        TaskError: When the task gives an outcome that it has not declared.
    """
    if done is None:
        outcomes = tuple(task.decide(margin) for margin in margins.tolist())
        done = [Completion(finished=True)] * len(prompts)
    else:
        outcomes = tuple(
            task.classify(prompt, completion.text)
            for prompt, completion in zip(prompts, done, strict=True)
        )
    for prompt, outcome in zip(prompts, outcomes, strict=True):
        if outcome not in task.outcomes:
            raise TaskError(
                f"Task {task.name!r} classified prompt {prompt.id!r} as {outcome!r}; its "
                f"outcomes are {listed(task.outcomes)}. Return one of them, or declare it in "
                "`outcomes`."
            )
    return Observations(
        prompts,
        tuple(completion.text for completion in done),
        outcomes,
        margins,
        task.outcomes,
        task.name,
        info or model.info,
        prompts.rows,
        tuple(not completion.finished for completion in done),
        task.behaviors,
        task.choice,
        model.edit_report().moved if isinstance(model, PatchedModel) else math.nan,
    )


def check_kinds(model: object, task: object) -> None:
    """Names where objects belong are the commonest slip."""
    if not isinstance(model, Model):
        raise ModelError(
            f"model must be a loaded model, got {type(model).__name__} {model!r:.60}; load it "
            "first: model = mm.load_model(...)."
        )
    if task is not None and not isinstance(task, Task):
        raise TaskError(
            f"task must be a task, got {type(task).__name__} {task!r:.60}; get it first: "
            "task = mm.get_task(...)."
        )


def _margins(model: Model, prompts: EncodedPrompts, task: Task, token_budget: int) -> np.ndarray:
    margins = np.full(len(prompts), np.nan)
    rows = [
        k for k, p in enumerate(prompts) if p.memorized is not None and p.generalized is not None
    ]
    if not rows:
        return margins
    chosen = model.encode(prompts.select(prompts[k].id for k in rows))
    margins[rows] = behavior_margins(model, chosen, task=task, token_budget=token_budget)
    return margins
