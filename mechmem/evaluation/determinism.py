"""`determinism`: does the same prompt twice give the same answer?"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.evaluation.behavior import Observations, observe
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.model import Model
from mechmem.models.tokenizing import PromptsLike
from mechmem.seeding import keyed_rng
from mechmem.tasks.base import Task


@dataclass(frozen=True)
class Determinism:
    """Runs of the same prompts, against the first.

    Attributes:
        same: Share of the prompts with the same completion and outcome, by run.
        logits: Largest difference of a logit after the prompt, and the largest logit there is.
    """

    same: dict[str, Estimate]
    logits: dict[str, tuple[float, float]]

    def table(self) -> pd.DataFrame:
        """One row per run."""
        return pd.DataFrame(
            [
                {
                    "run": name,
                    **share.row("same"),
                    "logit_gap": self.logits[name][0],
                    "largest_logit": self.logits[name][1],
                }
                for name, share in self.same.items()
            ]
        )


def determinism(
    model: Model, prompts: PromptsLike, *, task: Task | None = None, seed: int = 0
) -> Determinism:
    """Greedy answers run again: unchanged, in another order, and one prompt at a time.

    Greedy decoding draws no random number, but sums in another order round otherwise: a batch of
    another shape may turn an exact tie. What is repeated here is one machine and one library
    version.

    Args:
        model: The model, or a view inside `patched`.
        prompts: What to ask.
        task: Reads the completions.
        seed: Keys the other order.
    """
    asked = model.encode(prompts, "repeat")
    order = keyed_rng(seed, "determinism").permutation(len(asked))
    mixed = asked.select(asked.ids[int(k)] for k in order)
    longest = max(len(item.ids) for item in asked.rows)
    first = observe(model, asked, task=task, margins=False)
    plain = model.logits(asked).double().numpy()
    same, gaps = {}, {}
    for name, items, budget in (
        ("again", asked, DEFAULT_TOKEN_BUDGET),
        ("another order", mixed, DEFAULT_TOKEN_BUDGET),
        ("one at a time", asked, longest),
    ):
        seen = observe(model, items, task=task, margins=False, token_budget=budget)
        found = dict(zip(items.ids, _done(seen), strict=True))
        hit = [float(found[k] == one) for k, one in zip(asked.ids, _done(first), strict=True)]
        same[name] = group_mean(hit, asked.groups, kind="share")
        again = model.logits(items, token_budget=budget).double().numpy()
        at = {k: row for row, k in enumerate(items.ids)}
        again = again[[at[k] for k in asked.ids]]
        gaps[name] = (float(np.abs(again - plain).max()), float(np.abs(plain).max()))
    return Determinism(same, gaps)


def _done(seen: Observations) -> list[tuple[str, str]]:
    return list(zip(seen.completions, seen.outcomes, strict=True))
