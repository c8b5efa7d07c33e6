"""How the chosen edit's effect grows with its strength, and what it costs elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import nan
from typing import Any

import pandas as pd

from mechmem.evaluation.behavior import Observations, observe
from mechmem.evaluation.controls import beyond, draws_of_one, share_of_draws
from mechmem.evaluation.many_edits import evaluate_each
from mechmem.evaluation.rates import Rates
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.model import Model
from mechmem.patching.base import Edit
from mechmem.sweeps.result import Sweep
from mechmem.tasks.base import PromptAnswers, Task
from mechmem.tasks.prompts import PromptSet

PLACEBO = "random direction"
DOSES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)


def dose_response(
    model: Model,
    found: Sweep,
    test: PromptSet,
    task: Task | None,
    seed: int,
    doses: Sequence[float],
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> pd.DataFrame:
    """Rates of the chosen edit and of random directions of its size over a range of alphas.

    What the sweep has measured on the same prompts is taken from there: strength 0, the chosen
    strength, and as many draws of the control as it has.
    """
    best = found.best
    chosen: Any = best.edit
    if not hasattr(chosen, "alpha"):
        return pd.DataFrame()  # an edit without a strength has one dose
    known: dict[tuple[str, float], list[Observations]] = {}
    planned: list[tuple[str, float]] = []
    tried: list[list[Edit]] = []
    for toward in best.rates:
        for dose in doses:
            if dose in (0.0, 1.0):
                known[toward, dose] = _known(found, toward, dose)
                continue
            edit = replace(chosen, toward=toward, alpha=chosen.alpha * dose)
            draws = len(best.controls[toward][PLACEBO])
            _, mixed = draws_of_one(edit, model, draws=draws, seed=seed, name=PLACEBO)
            planned.append((toward, dose))
            tried.append([edit, *mixed])
    plain = [group[0] for group in tried], [one for group in tried for one in group[1:]]
    edits, controls = (
        evaluate_each(
            model, test, part, task=task, before=found.before, margins=margins,
            token_budget=token_budget,
        )
        if part
        else []
        for part, margins in zip(plain, (True, False), strict=True)
    )  # fmt: skip
    mine, others = iter(edits), iter(controls)
    for place, group in zip(planned, tried, strict=True):
        known[place] = [next(mine).after, *(next(others).after for _ in group[1:])]
    return pd.DataFrame(
        [
            row
            for toward in best.rates
            for dose in doses
            for row in _dose_rows(known[toward, dose], toward, chosen.alpha * dose)
        ]
    )


def _known(found: Sweep, toward: str, dose: float) -> list[Observations]:
    """What the sweep knows of the edit and its control at strength 0, or at the chosen one."""
    if not dose:
        return [found.before, found.before]
    best = found.best
    return [best.rates[toward].after, *(one.after for one in best.controls[toward][PLACEBO])]


def _dose_rows(seen: Sequence[Observations], toward: str, alpha: float) -> Iterator[dict[str, Any]]:
    own, draws = seen[0], seen[1:]
    drawn = bool(alpha)
    for kind in ("edit", "control"):
        for outcome in own.allowed:
            share = (
                Rates(own).share(outcome)
                if kind == "edit"
                else share_of_draws(draws, outcome, drawn=drawn)
            )
            yield {
                "toward": toward,
                "alpha": alpha,
                "kind": kind,
                "control": PLACEBO if kind == "control" else "",
                "outcome": outcome,
                **share.row("share", counted=False),
                "margin": float(pd.Series(own.margins).mean()) if kind == "edit" else nan,
                **(beyond(own, draws, outcome, drawn=drawn).row() if kind == "edit" else {}),
                "n": share.n,
                "groups": share.groups,
            }


def clean_cost(
    model: Model,
    found: Sweep,
    task: Task | None,
    seed: int,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> pd.DataFrame:
    """Accuracy on the task's clean items, unedited and under the chosen edit; empty where nothing
    is written."""
    if task is None or task.choice or type(task).clean_prompts is Task.clean_prompts:
        return pd.DataFrame()
    items = model.encode(task.clean_prompts(400, seed))
    reader = PromptAnswers("answer")
    reader.max_new_tokens, reader.stop = task.max_new_tokens, task.stop
    plain = observe(model, items, task=reader, margins=False, token_budget=token_budget)
    settings = {"unedited": Rates(plain)}
    chosen: Any = found.best.edit
    edited = evaluate_each(
        model, items, [replace(chosen, toward=toward) for toward in found.best.rates], task=reader,
        before=plain, margins=False, token_budget=token_budget,
    )  # fmt: skip
    settings |= {
        f"toward {name}": rates for name, rates in zip(found.best.rates, edited, strict=True)
    }
    rows = []
    for name, rates in settings.items():
        share = rates.share("correct")
        rows.append(
            {
                "setting": name,
                **share.row("accuracy"),
            }
        )
    return pd.DataFrame(rows)
