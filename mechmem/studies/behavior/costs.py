"""How the chosen edit's effect grows with its strength, and what it costs elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from mechmem.evaluation.behavior import observe
from mechmem.evaluation.controls import controls
from mechmem.evaluation.many import evaluate_each
from mechmem.evaluation.rates import Rates
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.model import Model
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
    """Rates of the chosen edit and of a norm-matched random direction over a range of alphas.

    What the sweep has measured on the same prompts is taken from there: strength 0, the chosen
    strength, and its first random direction.
    """
    chosen: Any = found.best.edit
    if not hasattr(chosen, "alpha"):
        return pd.DataFrame()  # an edit without a strength has one dose
    tried: list[tuple[str, Any, str]] = []
    for toward in found.best.rates:
        for dose in doses:
            edit = replace(chosen, toward=toward, alpha=chosen.alpha * dose)
            mixed = controls(replace(edit, alpha=edit.alpha or 1.0), model, seed=seed)
            tried.append((toward, edit, "edit"))
            kind = edit if dose == 0 else mixed[PLACEBO]
            tried.append((toward, kind, "control"))
    found_at = {
        k: known
        for k, (toward, edit, kind) in enumerate(tried)
        if (known := _known(found, toward, edit.alpha, kind, seed)) is not None
    }
    for margins in (True, False):
        mine = [
            k
            for k, (_, _, kind) in enumerate(tried)
            if (kind == "edit") == margins and k not in found_at
        ]
        if not mine:
            continue
        rates = evaluate_each(
            model, test, [tried[k][1] for k in mine], task=task, before=found.before,
            margins=margins, seed=seed, token_budget=token_budget,
        )  # fmt: skip
        found_at |= zip(mine, rates, strict=True)
    return pd.DataFrame(
        [
            row
            for k, (toward, edit, kind) in enumerate(tried)
            for row in _dose_rows(found_at[k], toward, edit.alpha, kind)
        ]
    )


def _known(found: Sweep, toward: str, alpha: float, kind: str, seed: int) -> Rates | None:
    """What the sweep knows already of an edit or its control at this strength."""
    best = found.best
    if alpha == 0:
        return Rates(found.before, found.before, seed)
    if alpha != best.edit.alpha:  # type: ignore[attr-defined]
        return None
    return best.rates[toward] if kind == "edit" else best.controls[toward][PLACEBO][0]


def _dose_rows(rates: Rates, toward: str, alpha: float, kind: str) -> list[dict[str, Any]]:
    margin = float(pd.Series(rates.after.margins).mean())
    return [
        {
            "toward": toward,
            "alpha": alpha,
            "kind": kind,
            "control": PLACEBO if kind == "control" else "",
            "outcome": outcome,
            **share.row("share", counted=False),
            "margin": margin,
            "n": share.n,
            "groups": share.groups,
        }
        for outcome, share in ((name, rates.share(name)) for name in rates.after.allowed)
    ]


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
    items = task.clean_prompts(400, seed)
    reader = PromptAnswers("answer")
    reader.max_new_tokens, reader.stop = task.max_new_tokens, task.stop
    plain = observe(model, items, task=reader, margins=False, token_budget=token_budget)
    settings = {"unedited": Rates(plain, None, seed)}
    chosen: Any = found.best.edit
    edited = evaluate_each(
        model, items, [replace(chosen, toward=toward) for toward in found.best.rates], task=reader,
        before=plain, margins=False, seed=seed, token_budget=token_budget,
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
