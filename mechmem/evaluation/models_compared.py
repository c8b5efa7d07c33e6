"""Several models on the same items, and the same effect in models of several sizes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechmem.analysis.draws import DRAWS
from mechmem.analysis.intervals import Estimate, IntervalKind, group_mean
from mechmem.errors import EditError, ModelError, PromptError
from mechmem.evaluation.behavior import Observations, hits, observe
from mechmem.evaluation.controls import beyond, change_of_draws, draws_of_one
from mechmem.evaluation.many_edits import evaluate_each
from mechmem.evaluation.rates import Rates
from mechmem.evaluation.shared import behaviors_of, steered
from mechmem.models.model import Model, ModelInfo
from mechmem.models.tokenizing import PromptsLike, as_prompts
from mechmem.numeric import MOST, whole_number
from mechmem.patching.base import Edit
from mechmem.tasks.base import PromptAnswers, Task
from mechmem.tasks.prompts import PromptSet

MIN_FLIPS = 10
"""Pairs of flips below which nothing is fitted."""


@dataclass(frozen=True)
class ModelComparison:
    """Accuracy of several models on the same items.

    Attributes:
        accuracy: Share of right answers, by model.
        surprise: Mean negative log-probability of the right answer, nats.
        accuracy_change, surprise_change: The same minus the reference, item by item.
        reference: Name of the reference.
    """

    accuracy: Mapping[str, Estimate]
    surprise: Mapping[str, Estimate]
    accuracy_change: Mapping[str, Estimate]
    surprise_change: Mapping[str, Estimate]
    reference: str

    def table(self) -> pd.DataFrame:
        """One row per model."""
        return pd.DataFrame(
            [
                {
                    "model": name,
                    **value.row("accuracy", counted=False),
                    **self.accuracy_change[name].row("accuracy_change", counted=False),
                    **self.surprise[name].row("surprise", counted=False),
                    **self.surprise_change[name].row("surprise_change", counted=False),
                    "n": value.n,
                    "groups": value.groups,
                }
                for name, value in self.accuracy.items()
            ]
        )


def compare_models(
    models: Mapping[str, Model],
    prompts: PromptsLike,
    *,
    task: Task | None = None,
    reference: str | None = None,
) -> ModelComparison:
    """Right answers of several models to the same questions, paired item by item.

    What does training the memorized part cost? Compare the model with one trained on the same
    ordinary items alone. The interval is over items: it says nothing about another training.

    Args:
        models: By name.
        prompts: With an ``answer`` each, that no model was trained on.
        task: Gives length and stop strings of an answer.
        reference: The model that the others are compared with; default the first.

    Raises:
        PromptError: When a prompt lacks its answer.
        ModelError: For a reference that is not among the models.
    """
    if not models:
        raise ModelError("compare_models needs at least one model.")
    base = next(iter(models)) if reference is None else reference
    if base not in models:
        raise ModelError(f"No model named {base!r}; there are {sorted(models)}.")
    asked = as_prompts(prompts).require("compare models on")
    lacking = [prompt.id for prompt in asked if prompt.answer is None]
    if lacking:
        raise PromptError(f"Every prompt needs an `answer`; missing on {lacking[:5]}.")
    reader = PromptAnswers("answer")
    if task is not None:
        reader.max_new_tokens, reader.stop = task.max_new_tokens, task.stop
    wanted = [(task or reader).continuation(prompt, str(prompt.answer)) for prompt in asked]
    right = {
        name: hits(observe(model, asked, task=reader, margins=False), "correct")
        for name, model in models.items()
    }
    loss = {name: -model.logprobs(asked, wanted).numpy() for name, model in models.items()}

    def means(
        values: Mapping[str, np.ndarray], kind: IntervalKind, than: Any = 0.0
    ) -> dict[str, Estimate]:
        return {
            name: Estimate.exact(0.0, asked.groups)
            if each is than
            else group_mean(each - than, asked.groups, kind=kind)
            for name, each in values.items()
        }

    return ModelComparison(
        means(right, "share"),
        means(loss, "mean"),
        means(right, "change", right[base]),
        means(loss, "mean", loss[base]),
        base,
    )


@dataclass(frozen=True)
class EffectByModel:
    """The same question put to several models, each with an edit of its own.

    Attributes:
        info: Facts of every model.
        parameters: Number of weights; from the manifest where a model has one (a bridge holds
            the query, key and value maps of some architectures twice).
        observed: What the unedited model did on the test prompts.
        rates: ``rates[name][toward]`` under the edit; empty where there were too few flips.
        controls: The same under the draws of the control.
        flips: Flips that the edit was fitted on.
    """

    info: Mapping[str, ModelInfo]
    parameters: Mapping[str, int]
    observed: Mapping[str, Observations]
    rates: Mapping[str, Mapping[str, Rates]]
    controls: Mapping[str, Mapping[str, Sequence[Rates]]]
    flips: Mapping[str, int]

    def table(self) -> pd.DataFrame:
        """One row per model and class steered to."""
        rows = []
        for name, info in self.info.items():
            for toward, rates in self.rates[name].items():
                draws = [one.after for one in self.controls[name][toward]]
                before = self.observed[name]
                rows.append(
                    {
                        "model": name,
                        "parameters": self.parameters[name],
                        "layers": info.n_layers,
                        "width": info.d_model,
                        "flips": self.flips[name],
                        "toward": toward,
                        "before": Rates(self.observed[name]).share(toward).value,
                        "share": rates.share(toward).value,
                        **rates.change(toward).row("change", counted=False),
                        **change_of_draws(draws, before, toward).row("control", counted=False),
                        **beyond(rates.after, draws, toward).row(),
                        "n": len(rates.after),
                        "groups": len(set(rates.after.prompts.groups)),
                    }
                )
        return pd.DataFrame(rows)


def effect_by_model(
    models: Mapping[str, tuple[Model, Task]],
    fit: Callable[[Model, PromptSet], Edit],
    *,
    n: int = 600,
    toward: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> EffectByModel:
    """Fit an edit on the flips of every model and measure it on held-out groups.

    Nothing is chosen, so no validation part is needed: ``fit`` is the same recipe for all.

    Args:
        models: By name, each with its task.
        fit: From a model and its training flips to an edit with a ``toward``.
        n: Pairs of prompts per model; 60 % of the groups are for fitting.
        toward: Classes to steer to; default the task's two behaviors.
        draws: Draws of the control, random neurons or a random direction of the same size.
        seed: Keys prompts, division and control.

    Raises:
        EditError: For no draws.
    """
    whole_number(draws, "draws", most=MOST, error=EditError)
    info, parameters, observed = {}, {}, {}
    rates: dict[str, dict[str, Rates]] = {}
    placebo: dict[str, dict[str, list[Rates]]] = {}
    flips = {}
    for name, (model, task) in models.items():
        parts = task.pairs(n, seed).split(train=0.6, test=0.4, seed=seed)
        turned = observe(model, parts.train, task=task, margins=False).flips()
        before = observe(model, parts.test, task=task)
        info[name], observed[name], flips[name] = model.info, before, len(turned) // 2
        counted = sum(weight.numel() for weight in model.tl.parameters())
        parameters[name] = int(model.card.get("parameters", counted))
        rates[name], placebo[name] = {}, {}
        if len(turned) // 2 < MIN_FLIPS:
            continue
        edit = fit(model, turned)
        for target in toward or behaviors_of(task):
            aimed = steered(edit, target)
            _, mixed = draws_of_one(aimed, model, draws=draws, seed=seed)
            rates[name][target], *placebo[name][target] = evaluate_each(
                model,
                parts.test,
                [aimed, *mixed],
                task=task,
                before=before,
                margins=False,
            )
    return EffectByModel(info, parameters, observed, rates, placebo, flips)
