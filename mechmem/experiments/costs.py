"""How the chosen edit's effect grows with its strength, and what it costs elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from mechmem.evaluation.controls import controls
from mechmem.evaluation.many import evaluate_each
from mechmem.evaluation.rates import Rates, evaluate
from mechmem.experiments.sweep import Sweep
from mechmem.models.hooked import Model
from mechmem.tasks.base import BEHAVIORS, PromptAnswers, Task
from mechmem.tasks.prompts import PromptSet

__all__ = ["DOSES", "clean_cost", "dose_response"]

DOSES = (0.0, 0.25, 0.5, 1.0, 1.5, 2.0)


def dose_response(
    model: Model,
    found: Sweep,
    test: PromptSet,
    task: Task | None,
    seed: int,
    doses: Sequence[float],
) -> pd.DataFrame:
    """Rates of the chosen edit and of a norm-matched random direction over a range of alphas."""
    chosen: Any = found.best.edit
    tried: list[tuple[str, Any, str]] = []
    for toward in BEHAVIORS:
        for dose in doses:
            edit = replace(chosen, toward=toward, alpha=chosen.alpha * dose)
            placebo = controls(replace(edit, alpha=edit.alpha or 1.0), model, seed=seed)
            tried.append((toward, edit, "edit"))
            kind = edit if dose == 0 else placebo["random direction"]
            tried.append((toward, kind, "placebo"))
    if not tried:
        return pd.DataFrame()
    found_at: dict[int, Rates] = {}
    for margins in (True, False):
        mine = [k for k, (_, _, kind) in enumerate(tried) if (kind == "edit") == margins]
        rates = evaluate_each(
            model, test, [tried[k][1] for k in mine], task=task, before=found.before,
            margins=margins, seed=seed,
        )  # fmt: skip
        found_at |= zip(mine, rates, strict=True)
    return pd.DataFrame(
        [
            row
            for k, (toward, edit, kind) in enumerate(tried)
            for row in _dose_rows(found_at[k], toward, edit.alpha, kind)
        ]
    )


def _dose_rows(rates: Rates, toward: str, alpha: float, kind: str) -> list[dict[str, Any]]:
    margin = float(pd.Series(rates.after.margins).mean())
    return [
        {
            "toward": toward,
            "alpha": alpha,
            "kind": kind,
            "outcome": outcome,
            "share": share.value,
            "low": share.low,
            "high": share.high,
            "margin": margin,
            "n": share.n,
            "groups": share.groups,
        }
        for outcome, share in ((name, rates.share(name)) for name in rates.after.allowed)
    ]


def clean_cost(model: Model, found: Sweep, task: Task | None, seed: int) -> pd.DataFrame:
    """Accuracy on the task's clean items, unedited and under the chosen edit."""
    if task is None or type(task).clean_prompts is Task.clean_prompts:
        return pd.DataFrame()
    items = task.clean_prompts(400, seed)
    reader = PromptAnswers("answer")
    reader.max_new_tokens, reader.stop = task.max_new_tokens, task.stop
    plain = evaluate(model, items, task=reader, margins=False, seed=seed)
    settings = {"unedited": plain}
    chosen: Any = found.best.edit
    edited = evaluate_each(
        model, items, [replace(chosen, toward=toward) for toward in BEHAVIORS], task=reader,
        before=plain.after, margins=False, seed=seed,
    )  # fmt: skip
    settings |= {f"toward {name}": rates for name, rates in zip(BEHAVIORS, edited, strict=True)}
    rows = []
    for name, rates in settings.items():
        share = rates.share("correct")
        rows.append(
            {
                "setting": name,
                "accuracy": share.value,
                "low": share.low,
                "high": share.high,
                "n": share.n,
                "groups": share.groups,
            }
        )
    return pd.DataFrame(rows)
