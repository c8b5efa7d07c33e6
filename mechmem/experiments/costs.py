"""How the chosen edit's effect grows with its strength, and what it costs elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from mechmem.evaluation.controls import controls
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
    rows = []
    chosen: Any = found.best.edit
    for toward in BEHAVIORS:
        for dose in doses:
            edit = replace(chosen, toward=toward, alpha=chosen.alpha * dose)
            placebo = controls(replace(edit, alpha=edit.alpha or 1.0), model, seed=seed)
            kinds = {"edit": edit, "placebo": placebo["random direction"]}
            if dose == 0:
                kinds["placebo"] = edit
            for kind, item in kinds.items():
                rates = evaluate(
                    model,
                    test,
                    task=task,
                    edit=item,
                    before=found.before,
                    margins=kind == "edit",
                    seed=seed,
                )
                rows += _dose_rows(rates, toward, edit.alpha, kind)
    return pd.DataFrame(rows)


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
    for toward in BEHAVIORS:
        settings[f"toward {toward}"] = evaluate(
            model,
            items,
            task=reader,
            edit=replace(chosen, toward=toward),
            before=plain.after,
            margins=False,
            seed=seed,
        )
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
