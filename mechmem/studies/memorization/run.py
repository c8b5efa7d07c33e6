"""Two other meanings of memorization, beside the direction between reasoning and memory.

arXiv 2503.23084 leaves open whether *perturbational* memorization (the answer breaks when the
question is perturbed) and *counterfactual* memorization (the answer depends on having trained on
the item) are mediated by the same direction. Here both are measured on the world of
`recall-reasoning`, where models can be trained without an item.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mechmem.analysis.correlation import score_correlation
from mechmem.analysis.directions import Direction, Directions, difference_of_means
from mechmem.analysis.draws import DRAWS
from mechmem.analysis.geometry import separation
from mechmem.caching.extract import cache_activations
from mechmem.errors import EditError, TaskError
from mechmem.evaluation.controls import control_draws
from mechmem.evaluation.perturbation import perturbational_memorization
from mechmem.evaluation.steering import RANDOM
from mechmem.models.model import Model
from mechmem.models.sites import Site
from mechmem.numeric import MOST, finite_number, whole_number
from mechmem.patching.base import Edit
from mechmem.patching.directions import AddDirection
from mechmem.seeding import keyed_order, keyed_seed
from mechmem.studies.memorization.counterfactual import check_models, counterfactual_memorization
from mechmem.studies.memorization.study import TRAINED, MemorizationStudy
from mechmem.tasks.lab.recall_reasoning import KINDS, RecallReasoning
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.labels import LABELS
from mechmem.training.lab.recall_reasoning import STEPS, recall_model


def run_memorization_study(
    model: Model,
    *,
    task: RecallReasoning | None = None,
    models: int = 16,
    steps: int = STEPS,
    prompts: int = 4,
    alpha: float = 1.0,
    draws: int = DRAWS,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> MemorizationStudy:
    """Measure both kinds of memorization on one half of the items; fit directions on the other.

    Args:
        model: A lab model of the task.
        task: Its world; default that of the model's card.
        models: Small models for the counterfactual scores; even. Each is trained from nothing.
        steps: Optimizer steps of each.
        prompts: Questions per item.
        alpha: Strength of the edits, in differences of means, both ways.
        draws: Random directions of the same length beside them.
        seed: Keys halves, models, controls and resampling.
        folder: Keeps what each small model did; a killed run goes on there.
        progress: Called with a line per step.

    Raises:
        PromptError: For an odd number of models.
        TaskError: For no steps, or no prompts.
        EditError: For an ``alpha`` that is no number, or no draws.
        ArtifactError: When the folder holds small models of another study: another world, other
            items, steps, strength, seed or site, or made by another mechmem.

    What it does not prove: both scores are measured where their cause is known, in a world of one
    question format; a correlation there is an example, not a law.
    """
    check_models(models)
    whole_number(steps, "steps", most=MOST, error=TaskError)
    whole_number(prompts, "prompts", most=MOST, error=TaskError)
    finite_number(alpha, "alpha", error=EditError)
    whole_number(draws, "draws", most=MOST, error=EditError)
    keyed_seed(seed)
    world = task or RecallReasoning(**model.card.get("task_options", {}))
    say = progress or (lambda line: None)
    fitting, scored = _halves(world, prompts, seed)
    say("fitting the direction")
    directions = _directions(model, fitting)
    site = _best_site(directions, model, fitting, seed)
    direction = directions[site]
    say("perturbing")
    variants = world.perturbations(scored)
    perturbational = {
        name: perturbational_memorization(model, scored, variants, task=world, edit=edit)
        for name, edit in {"": None, **_edits(model, direction, alpha, draws, seed)}.items()
    }

    def train(gone: frozenset[str], number: int) -> Model:
        return recall_model(world, seed=1000 + number, steps=steps, without=gone)

    def edits(own: Model, gone: frozenset[str]) -> dict[str, Edit]:
        # Its own direction: those of models that were trained separately have nothing in common.
        return _edits(own, _directions(own, fitting)[site], alpha, draws, seed)

    counterfactual = counterfactual_memorization(
        train,
        scored,
        task=world,
        models=models,
        edits=edits,
        seed=seed,
        folder=folder,
        settings={
            "steps": steps,
            "alpha": alpha,
            "draws": draws,
            "seed": seed,
            "site": list(site),
            "fitted on": fitting.to_records(),
        },
        progress=say,
    )
    say("correlating")
    acts = cache_activations(model, scored, sites=[site])
    only = Directions({site: direction})
    along = score_correlation(
        only, acts, perturbational[""].scores, name="perturbational score", seed=seed
    )
    means = counterfactual.scores()
    per_item = score_correlation(
        only, acts, [means[name] for name in scored.groups], name="counterfactual score", seed=seed
    )
    return MemorizationStudy(
        model.info,
        dict(model.card),
        world.name,
        seed,
        site,
        perturbational,
        counterfactual,
        along,
        per_item,
        alpha * direction.norm,
    )


def _halves(world: RecallReasoning, prompts: int, seed: int) -> tuple[PromptSet, PromptSet]:
    """Prompts of items to fit on, which every model is trained on, and of items to score.

    Items of one entity stay together; each kind is divided by itself.
    """
    pairs = int(np.isin(world.world.kind, [KINDS.index(kind) for kind in TRAINED]).sum())
    return _divided(world.questions(prompts * pairs, seed, TRAINED), seed)


def _divided(prompts: PromptSet, seed: int) -> tuple[PromptSet, PromptSet]:
    kinds: dict[str, str] = {}
    for prompt in prompts:
        kinds.setdefault(str(prompt.meta["entity"]), str(prompt.meta["item"]))
    first: set[str] = set()
    for kind in TRAINED:
        mine = [entity for entity, own in kinds.items() if own == kind]
        first |= set(keyed_order(mine, seed, "memorization-study", kind)[: len(mine) // 2])
    return (
        prompts.filter(lambda prompt: str(prompt.meta["entity"]) in first),
        prompts.filter(lambda prompt: str(prompt.meta["entity"]) not in first),
    )


def _directions(model: Model, fitting: PromptSet) -> Directions:
    acts = cache_activations(model, fitting, sites="resid_post")
    return difference_of_means(acts, toward=LABELS[0], by="label")


def _best_site(directions: Directions, model: Model, fitting: PromptSet, seed: int) -> Site:
    """Where half of the fitting items separate the other half best."""
    one, other = _divided(fitting, seed + 1)  # the same seed would give the same order again
    acts = cache_activations(model, other, sites=directions.sites)
    areas = separation(_directions(model, one), acts, by="label", seed=seed).auroc
    return max(areas, key=lambda site: areas[site].value)


def _edits(
    model: Model, direction: Direction, alpha: float, draws: int, seed: int
) -> dict[str, Edit]:
    """Both ways, and as far in random directions."""
    out: dict[str, Edit] = {
        f"toward {name}": AddDirection(direction, alpha=alpha, toward=name) for name in LABELS
    }
    drawn = control_draws(out[f"toward {LABELS[0]}"], model, draws=draws, seed=seed)[RANDOM]
    return {**out, **{f"{RANDOM} {k + 1}": one for k, one in enumerate(drawn)}}
