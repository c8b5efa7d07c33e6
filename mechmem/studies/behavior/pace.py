"""How long a study takes on this machine, said before it starts; the plan that fits a budget."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from mechmem.analysis.directions import difference_of_means
from mechmem.caching.extract import cache_activations
from mechmem.errors import MechmemError
from mechmem.evaluation.behavior import observe
from mechmem.evaluation.many_edits import evaluate_each
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.model import Model
from mechmem.patching.directions import AddDirection
from mechmem.studies.behavior.plan import Plan
from mechmem.tasks.base import Task
from mechmem.tasks.prompts import PromptSet

TIMED, FEW, MANY = 8, 2, 10
"""Prompts that are timed, and two numbers of edits on them: what an edit more takes."""
UNITS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Pace:
    """Seconds, by the clock: per prompt that is observed, and per prompt and edit."""

    prompt: float
    edit: float

    def seconds(self, plan: Plan, prompts: Mapping[str, int], layers: int, shuffles: int) -> float:
        """About how long a study with this plan takes."""
        return self.prompt * sum(prompts.values()) + self.edit * plan.work(
            prompts, layers, shuffles
        )


def measure_pace(
    model: Model, prompts: PromptSet, task: Task, *, token_budget: int = DEFAULT_TOKEN_BUDGET
) -> Pace:
    """Time a few prompts, unedited and under edits of no meaning in the middle layer."""
    few = prompts[:TIMED]
    dealt = PromptSet(replace(p, behavior=task.behaviors[k % 2]) for k, p in enumerate(few))
    acts = cache_activations(model, dealt, sites=[("resid_post", model.n_layers // 2)])
    (direction,) = difference_of_means(acts, toward=task.behaviors[1])
    edits = [
        AddDirection(direction, alpha=(k + 1) / MANY, positions="each_step") for k in range(MANY)
    ]
    started = time.perf_counter()
    before = observe(model, few, task=task, margins=False, token_budget=token_budget)
    alone = time.perf_counter() - started
    took = []
    for count in (FEW, MANY):
        started = time.perf_counter()
        evaluate_each(
            model, few, edits[:count], task=task, before=before, allow_seen=True, margins=False,
            token_budget=token_budget,
        )  # fmt: skip
        took.append(time.perf_counter() - started)
    more = max(took[1] - took[0], 0.1 * took[1])
    return Pace(alone / len(few), more / (MANY - FEW) / len(few))


def fitting_plan(
    whole: Plan,
    pace: Pace,
    budget: float | None,
    prompts: Mapping[str, int],
    layers: int,
    shuffles: int,
) -> tuple[Plan, float]:
    """The largest plan that fits, and about how many seconds it takes; without a budget the whole.

    Raises:
        MechmemError: When the smallest plan takes longer.
    """
    seconds = 0.0
    for plan in whole.smaller():
        seconds = pace.seconds(plan, prompts, layers, shuffles)
        if budget is None or seconds <= budget:
            return plan, seconds
    raise MechmemError(
        f"A budget of {spoken(budget or 0)} is too little: the smallest plan takes about "
        f"{spoken(seconds)} on this machine, most of it for {shuffles} refits. Give more, or bring "
        "fewer or shorter prompts."
    )


def seconds_of(text: str) -> float:
    """Seconds of ``90s``, ``10m`` or ``1h``.

    Raises:
        MechmemError: For anything else.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text.strip())
    if found is None or not float(found[1]):
        raise MechmemError(f"A budget is a number with s, m or h, such as 10m, got {text!r}.")
    return float(found[1]) * UNITS[found[2]]


def spoken(seconds: float) -> str:
    """A time in words."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
