"""Prompts that a user brings: what is wrong with them is said before a model runs."""

from __future__ import annotations

from collections.abc import Iterable

from mechmem.errors import PromptError, did_you_mean
from mechmem.tasks.prompts import PromptSet


def misspelt(prompts: PromptSet, names: Iterable[str]) -> str:
    """A hint when a column that became ``meta`` looks like one that is missing, else nothing."""
    wanted = list(names)
    columns = dict.fromkeys(key for prompt in prompts[:5] for key in prompt.meta)
    hints = {column: did_you_mean(column, wanted) for column in columns}
    return " ".join(f" The column {column!r}:{hint}" for column, hint in hints.items() if hint)


def check_own_pairs(prompts: PromptSet, fewest: int, share: float) -> None:
    """Refuse prompts from which no study can come, whatever the model does.

    Args:
        prompts: Rephrasings share their group.
        fewest: Flips that fitting needs.
        share: Of the groups, that fitting gets.

    Raises:
        PromptError: When no two prompts share a group, when a text stands in two groups (so that it
            would be fitted on and tested on), or when there are too few pairs.
    """
    pairs = len(prompts.pairs())
    if not pairs:
        raise PromptError(
            f"None of {len(prompts)} prompts has a rephrasing: no two share a `group`. Give the "
            f"rephrasings of one question the same group.{misspelt(prompts, ['group'])}"
        )
    group_of: dict[str, str] = {}
    twice = []
    for prompt in prompts:
        first = group_of.setdefault(prompt.same_text, prompt.group)
        if first != prompt.group:
            twice.append(f"{prompt.text[:60]!r} in {first!r} and {prompt.group!r}")
    if twice:
        raise PromptError(
            f"{len(twice)} prompts stand in two groups, so the same text could be fitted on and "
            f"tested on: {'; '.join(twice[:3])}. Give them one group, or leave one out."
        )
    if pairs * share < fewest:
        raise PromptError(
            f"There are {pairs} pairs of rephrasings ({len(prompts)} prompts in "
            f"{len(set(prompts.groups))} groups). Fitting gets {share:.0%} of the groups and needs "
            f"at least {fewest} pairs that come out once memorized and once generalized, so give "
            f"{round(fewest / share)} pairs at the very least; a few hundred are usual."
        )
