"""`graded_answers`: how much of each answer a completion holds, beside the three classes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechmem.analysis.intervals import NOT_MEASURED, Estimate, group_mean
from mechmem.errors import PromptError, listed
from mechmem.evaluation.behavior import Observations, hits
from mechmem.seeding import keyed_rng
from mechmem.tasks.base import BEHAVIORS
from mechmem.tasks.prompts import PromptSet


@dataclass(frozen=True)
class GradedAnswers:
    """Graded readings of what a model wrote.

    Attributes:
        observed: What the readings are of.
        similarity: ``similarity[behavior]``: 1 when the completion holds that answer letter by
            letter, 0 when it has nothing of it (see `similarity`).
        words: ``words[behavior]``: share of the answer's words that come, in their order.
        chance: Similarity to the answer of another instance that has another one.
        preference: ``1 / (1 + exp(-margin))``: how the model's probability for the two answers is
            divided, 1 for all on the memorized one. It grades what was not written; NaN without a
            margin.
        seed: Keys the other instances.
    """

    observed: Observations
    similarity: dict[str, np.ndarray]
    words: dict[str, np.ndarray]
    chance: dict[str, np.ndarray]
    preference: Float[np.ndarray, " example"]
    seed: int

    def table(self) -> pd.DataFrame:
        """One row per prompt."""
        seen = self.observed
        columns: dict[str, object] = {
            "id": seen.prompts.ids,
            "group": seen.prompts.groups,
            "behavior": seen.outcomes,
            "completion": seen.completions,
            "preference": self.preference,
        }
        for name in BEHAVIORS:
            columns |= {
                f"{name}_similarity": self.similarity[name],
                f"{name}_words": self.words[name],
                f"{name}_chance": self.chance[name],
            }
        return pd.DataFrame(columns)

    def summary(self) -> pd.DataFrame:
        """One row per outcome and answer: mean similarity, words, and chance."""
        rows = []
        for outcome in self.observed.allowed:
            at = np.flatnonzero(hits(self.observed, outcome))
            for name in BEHAVIORS:
                rows.append(
                    {
                        "outcome": outcome,
                        "answer": name,
                        **self._mean(self.similarity[name], at).row("similarity", counted=False),
                        **self._mean(self.words[name], at).row("words", counted=False),
                        **self._mean(self.chance[name], at).row("chance", counted=False),
                        "n": len(at),
                    }
                )
        return pd.DataFrame(rows)

    def partly(self, behavior: str = "memorized") -> Estimate:
        """Share of the prompts that were not classified as the behavior and are still closer to
        its answer than 95 % of the completions are to another instance's answer."""
        level = float(np.quantile(self.chance[behavior], 0.95))
        called = dict(zip(BEHAVIORS, self.observed.behaviors, strict=True))[behavior]
        rows = [k for k, name in enumerate(self.observed.outcomes) if name != called]
        if not rows:
            return NOT_MEASURED
        hit = (self.similarity[behavior][rows] > level).astype(float)
        return group_mean(hit, [self.observed.prompts[k].group for k in rows], kind="share")

    def _mean(self, values: np.ndarray, rows: np.ndarray) -> Estimate:
        if rows.size == 0:
            return NOT_MEASURED
        groups = [self.observed.prompts[int(k)].group for k in rows]
        return group_mean(values[rows], groups, kind="share")


def graded_answers(seen: Observations, *, seed: int = 0) -> GradedAnswers:
    """Grade every completion against both answers.

    What it does not prove: that a similar answer was remembered. Short answers are similar by
    chance (``17`` and ``19`` share half), so read it beside ``chance``.

    Args:
        seen: Observations of prompts with `memorized` and `generalized`.
        seed: Keys which other instance's answer serves for chance.

    Raises:
        PromptError: When a prompt lacks an answer, all groups have the same one, or nothing was
            written.
    """
    if seen.reading != "text":
        raise PromptError(
            f"These were read by {seen.reading}, so nothing was written that could be graded; "
            "observe them with reading='text'."
        )
    prompts = seen.prompts
    lacking = [p.id for p in prompts if p.memorized is None or p.generalized is None]
    if lacking:
        raise PromptError(
            "A graded score needs `memorized` and `generalized` of every prompt; missing on "
            f"{listed(lacking, 5)}."
        )
    close, words, chance = {}, {}, {}
    for name in BEHAVIORS:
        answers = [str(getattr(prompt, name)) for prompt in prompts]
        pairs = list(zip(seen.completions, answers, strict=True))
        close[name] = np.array([similarity(text, answer) for text, answer in pairs])
        words[name] = np.array([_words_in_order(text, answer) for text, answer in pairs])
        others = _others(prompts, answers, seed, name)
        chance[name] = np.array(
            [similarity(text, other) for text, other in zip(seen.completions, others, strict=True)]
        )
    with np.errstate(over="ignore"):
        preference = 1 / (1 + np.exp(-np.asarray(seen.margins, dtype=float)))
    return GradedAnswers(seen, close, words, chance, preference, seed)


def _others(prompts: PromptSet, answers: Sequence[str], seed: int, name: str) -> list[str]:
    """Per prompt another answer, of another group; the same whatever the order of the prompts."""
    groups, known = np.array(prompts.groups), np.array(answers)
    out = []
    for prompt, answer in zip(prompts, answers, strict=True):
        pool = sorted(known[(groups != prompt.group) & (known != answer)].tolist())
        if not pool:
            raise PromptError(
                f"Chance needs another group with another answer than {answer!r}; there is none."
            )
        out.append(pool[int(keyed_rng(seed, "graded", name, prompt.id).integers(len(pool)))])
    return out


def similarity(completion: str, answer: str) -> float:
    """1 minus the edit distance per letter of the answer to the completion's best beginning.

    Case and runs of white space aside. What follows the answer costs nothing; what precedes it
    does. Between 0 and 1.
    """
    text, wanted = (" ".join(value.split()).casefold() for value in (completion, answer))
    if not wanted:
        return 1.0
    row = np.arange(len(wanted) + 1)
    best = int(row[-1])
    # No beginning much longer than the answer can be closer than the empty one.
    for letter in text[: 2 * len(wanted)]:
        swapped = row[:-1] + np.array([letter != other for other in wanted])
        new = np.empty_like(row)
        new[0] = row[0] + 1
        for k in range(1, len(row)):
            new[k] = min(swapped[k - 1], row[k] + 1, new[k - 1] + 1)
        row = new
        best = min(best, int(row[-1]))
    return max(0.0, 1 - best / len(wanted))


def _words_in_order(completion: str, answer: str) -> float:
    """Longest common subsequence of words, per word of the answer."""
    text, wanted = (value.casefold().split() for value in (completion, answer))
    if not wanted:
        return 1.0
    row = [0] * (len(wanted) + 1)
    for word in text:
        before = list(row)
        for k, other in enumerate(wanted, 1):
            row[k] = before[k - 1] + 1 if word == other else max(before[k], row[k - 1])
    return row[-1] / len(wanted)
