"""`evaluate`: how often each outcome happens, with intervals, and what an edit turned into what."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.errors import PromptError, listed
from mechmem.evaluation.behavior import (
    Observations,
    check_kinds,
    hits,
    known_outcome,
    observe,
    reader_for,
)
from mechmem.evaluation.shared import refuse_seen
from mechmem.models.model import Model
from mechmem.models.tokenizing import PromptsLike, TokenizedPrompt
from mechmem.patching.apply import patched
from mechmem.patching.base import Edit, as_edits
from mechmem.tasks.base import Task
from mechmem.tasks.choice import Choice
from mechmem.tasks.prompts import PromptSet


@dataclass(frozen=True)
class Rates:
    """Shares of the outcomes, with 95 % intervals over groups.

    Attributes:
        after: What the (edited) model did.
        before: What the unedited model did on the same prompts; ``None`` without an edit.
    """

    after: Observations
    before: Observations | None = None

    def __repr__(self) -> str:
        shares = ", ".join(f"{name} {self.share(name)}" for name in self.after.allowed)
        return f"Rates({shares}; n={len(self.after)})"

    def share(self, outcome: str) -> Estimate:
        """Share of the prompts with this outcome."""
        return group_mean(self._is(self.after, outcome), self.after.prompts.groups, kind="share")

    def change(self, outcome: str) -> Estimate:
        """Share after minus share before, paired prompt by prompt."""
        if self.after is self.before:
            return Estimate.exact(0.0, self.after.prompts.groups)
        difference = self._is(self.after, outcome) - self._is(self._before, outcome)
        return group_mean(difference, self.after.prompts.groups, kind="change")

    def compared_with(self, other: Rates, outcome: str) -> Estimate:
        """This share minus another edit's on the same prompts, paired prompt by prompt.

        Raises:
            PromptError: When the two were not measured on the same prompts.
        """
        if not _same_prompts(self.after, other.after.prompts, other.after.tokenized):
            raise PromptError(
                "Two edits are compared prompt by prompt; these two were evaluated on different "
                "prompts. Evaluate both on one set."
            )
        if self.after is other.after:
            return Estimate.exact(0.0, self.after.prompts.groups)
        difference = self._is(self.after, outcome) - self._is(other.after, outcome)
        return group_mean(difference, self.after.prompts.groups, kind="change")

    def given(self, start: str, outcome: str) -> Estimate:
        """Of the prompts that were ``start`` without the edit, the share that is ``outcome`` now.

        This is how P1 reports its intervention.

        Raises:
            PromptError: When no prompt had that outcome before.
        """
        rows = np.flatnonzero(self._is(self._before, start))
        if rows.size == 0:
            raise PromptError(
                f"No prompt was {start!r} before the edit; they were "
                f"{listed(sorted(set(self._before.outcomes)))}."
            )
        groups = [self.after.prompts[int(k)].group for k in rows]
        return group_mean(self._is(self.after, outcome)[rows], groups, kind="share")

    @cached_property
    def transitions(self) -> pd.DataFrame:
        """Counts of prompts, rows the outcome before and columns the outcome after the edit."""
        pairs = list(zip(self._before.outcomes, self.after.outcomes, strict=True))
        counts = [
            [pairs.count((start, end)) for end in self.after.allowed]
            for start in self._before.allowed
        ]
        return pd.DataFrame(
            counts,
            index=pd.Index(self._before.allowed, name="before"),
            columns=pd.Index(self.after.allowed, name="after"),
        )

    def table(self) -> pd.DataFrame:
        """One row per outcome with interval, and the paired change where there was an edit."""
        rows = []
        for outcome in self.after.allowed:
            share = self.share(outcome)
            row = {
                "outcome": outcome,
                **share.row("share"),
            }
            if self.before is not None:
                change = self.change(outcome)
                row |= {
                    **change.row("change", counted=False),
                }
            rows.append(row)
        return pd.DataFrame(rows)

    @property
    def _before(self) -> Observations:
        if self.before is None:
            raise PromptError(
                "There is no 'before': these rates are of the unedited model. "
                "Use evaluate(..., edit=...)."
            )
        return self.before

    def _is(self, seen: Observations, outcome: str) -> np.ndarray:
        known_outcome(seen, outcome)
        return hits(seen, outcome)


def evaluate(
    model: Model,
    prompts: PromptsLike,
    *,
    task: Task | None = None,
    reading: str | Choice | None = None,
    edit: Edit | Sequence[Edit] | None = None,
    before: Observations | None = None,
    allow_seen: bool = False,
    margins: bool = True,
) -> Rates:
    """Rates of the outcomes, under an edit if one is given.

    Args:
        model: The model.
        prompts: What to ask. None of them, and no rephrasing, may have been seen in making the
            edit.
        task: Reads the completions; default the prompts' own answers.
        reading: ``"text"`` or ``"choice"`` (see `observe`); default the task's own.
        edit: One edit or a list that composes in order.
        before: Observations of the unedited model on the same prompts, to save the time.
        allow_seen: Evaluate on fitted prompts all the same (in-sample; say so when you show it).
        margins: Also score both answers (see `observe`).

    Raises:
        LeakageError: When the edit has seen a prompt or a group of the set.
        EditError: When the edit never reached the model.
        PromptError: When ``before`` belongs to other prompts or another model.
    """
    check_kinds(model, task)
    asked = model.encode(prompts, "evaluate")
    task = reader_for(asked, task, reading)
    if edit is None:
        return Rates(observe(model, asked, task=task, margins=margins))
    edits = as_edits(edit)
    if not allow_seen:
        refuse_seen(edits, asked, "evaluate an edit")
    if before is None:
        before = observe(model, asked, task=task, margins=margins)
    else:
        check_before(before, model, asked, asked.rows, task)
    with patched(model, edits) as view:
        after = observe(view, asked, task=task, margins=margins)
    return Rates(after, before)


def check_before(
    before: Observations,
    model: Model,
    prompts: PromptSet,
    tokenized: Sequence[TokenizedPrompt],
    task: Task | None = None,
) -> None:
    """Refuse observations that are not of this model on these prompts, or were read another way.

    Raises:
        PromptError: Saying what differs.
    """
    if task is not None and before.choice != task.choice:
        rules = before.reading == task.reading
        was, now = (one.choice if rules else one.reading for one in (before, task))
        raise PromptError(
            f"`before` was read by {was}, and this evaluation reads by {now}; observe with "
            f"reading={now!r}, or leave `before` out."
        )
    if not _same_prompts(before, prompts, tokenized):
        raise PromptError(
            "`before` was observed on other prompts than the ones to evaluate; observe these, or "
            "leave it out."
        )
    if before.model.fingerprint != model.info.fingerprint:
        raise PromptError(
            f"`before` was observed on another model, {before.model.name!r} (fingerprint "
            f"{before.model.fingerprint}), than the one to evaluate, {model.name!r} (fingerprint "
            f"{model.info.fingerprint}); observe this one, or leave it out."
        )


def _same_prompts(
    seen: Observations, prompts: PromptSet, tokenized: Sequence[TokenizedPrompt]
) -> bool:
    """Whether these are the prompts observed, by what the model reads: ids alone may coincide."""
    return seen.prompts.ids == prompts.ids and [item.ids for item in seen.tokenized] == [
        item.ids for item in tokenized
    ]
