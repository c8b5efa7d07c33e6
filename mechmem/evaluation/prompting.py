"""`prompting`: what a changed prompt does, on the same items as an edit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.errors import PromptError, listed
from mechmem.evaluation.behavior import hits, known_outcome, observe
from mechmem.evaluation.rates import Rates, evaluate
from mechmem.models.model import Model
from mechmem.models.tokenizing import PromptsLike
from mechmem.patching.base import Edit
from mechmem.tasks.base import Task
from mechmem.tasks.prompts import Prompt, PromptSet

Rewrite = str | Callable[[Prompt], "Prompt | str"]
"""Text to put in front of every prompt, or a function from a prompt to a prompt or its text."""


@dataclass(frozen=True)
class Prompting:
    """Rates under rewritten prompts and under edits, of the same items.

    Attributes:
        rates: By name; every one with the unchanged prompts and the unedited model before it.
        kinds: ``"rewrite"`` or ``"edit"``.
    """

    rates: Mapping[str, Rates]
    kinds: Mapping[str, str]

    def compared(self, one: str, other: str, outcome: str) -> Estimate:
        """Share under the one minus share under the other, item by item."""
        missing = [name for name in (one, other) if name not in self.rates]
        if missing:
            raise PromptError(f"Nothing named {listed(missing)}; there are {listed(self.rates)}.")
        first, second = self.rates[one], self.rates[other]
        known_outcome(first.after, outcome)
        return group_mean(
            hits(first.after, outcome) - hits(second.after, outcome),
            first.after.prompts.groups,
            kind="change",
        )

    def table(self) -> pd.DataFrame:
        """One row per name and outcome."""
        return pd.DataFrame(
            [
                {
                    "name": name,
                    "kind": self.kinds[name],
                    "outcome": outcome,
                    **rates.share(outcome).row("share", counted=False),
                    **rates.change(outcome).row("change", counted=False),
                    "n": len(rates.after),
                    "groups": len(set(rates.after.prompts.groups)),
                }
                for name, rates in self.rates.items()
                for outcome in rates.after.allowed
            ]
        )


def prompting(
    model: Model,
    prompts: PromptsLike,
    rewrites: Mapping[str, Rewrite],
    *,
    edits: Mapping[str, Edit] | None = None,
    task: Task | None = None,
) -> Prompting:
    """Compare instructions, few-shot examples or other cues with edits, item by item.

    Give a rewrite that should do nothing (as many words without a message) under its own name: it
    is the control of a rewrite, as a random direction is that of an edit.

    Args:
        model: The unedited model.
        prompts: The items.
        rewrites: By name; see `Rewrite`.
        edits: By name; evaluated on the unchanged prompts.
        task: Reads the completions.

    Raises:
        PromptError: When a rewrite changes which item a prompt is, or does not fit the context.
        LeakageError: When an edit has seen one of the prompts.
    """
    asked = model.encode(prompts, "rewrite")
    before = observe(model, asked, task=task)
    rates: dict[str, Rates] = {"unchanged": Rates(before, before)}
    kinds = {"unchanged": "rewrite"}
    if "unchanged" in rewrites:
        raise PromptError("'unchanged' names the prompts as they are; name that rewrite otherwise.")
    for name, rewrite in rewrites.items():
        rates[name] = Rates(observe(model, rewritten(asked, rewrite), task=task), before)
        kinds[name] = "rewrite"
    for name, edit in (edits or {}).items():
        if name in rates:
            raise PromptError(f"Two settings are named {name!r}; give every one its own name.")
        rates[name] = evaluate(model, asked, task=task, edit=edit, before=before)
        kinds[name] = "edit"
    return Prompting(rates, kinds)


def rewritten(prompts: PromptSet, rewrite: Rewrite) -> PromptSet:
    """The same items in other words: ids, groups and answers stay.

    Text put in front moves the named spans along; a function that returns text loses them.

    Raises:
        PromptError: When a rewrite returns another item.
    """
    out = []
    for prompt in prompts:
        if isinstance(rewrite, str):
            moved = {
                name: (start + len(rewrite), end + len(rewrite))
                for name, (start, end) in prompt.spans.items()
            }
            made = replace(prompt, text=rewrite + prompt.text, spans=moved)
        else:
            given = rewrite(prompt)
            made = (
                given if isinstance(given, Prompt) else replace(prompt, text=str(given), spans={})
            )
        kept = ("id", "group", "memorized", "generalized", "answer")
        changed = [name for name in kept if getattr(made, name) != getattr(prompt, name)]
        if changed:
            raise PromptError(
                f"The rewrite of {prompt.id!r} changed its {listed(changed)}; a rewrite may only "
                "change the text, so that items stay paired."
            )
        out.append(made)
    return PromptSet(out)
