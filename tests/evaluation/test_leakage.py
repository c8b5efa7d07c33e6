"""No measurement takes an item that fitted, chose or labeled anything: each is tried."""

from __future__ import annotations

import warnings
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from helpers import bench, contrast_set

import mechmem as mm

SITES = [("resid_post", k) for k in range(3)]


def renamed(prompts: mm.PromptSet, prefix: str) -> mm.PromptSet:
    """Other ids and groups, the same texts."""
    return mm.PromptSet(replace(p, id=prefix + p.id, group=prefix + str(p.group)) for p in prompts)


def rephrased(prompts: mm.PromptSet) -> mm.PromptSet:
    """Other ids and texts, the same groups."""
    return mm.PromptSet(replace(p, id="r" + p.id, text="w9 " + p.text, spans={}) for p in prompts)


FITTED = contrast_set(8, seed=1)
CHOSEN = renamed(contrast_set(4, seed=2), "v")
FRESH = renamed(contrast_set(6, seed=3), "f")
SEEN = {
    "the fitted items": FITTED,
    "the fitted items under other ids and groups": renamed(FITTED, "x"),
    "rephrasings of the fitted items": rephrased(FITTED),
}


@cache
def fit(method: str = "difference_of_means") -> mm.Directions:
    acts = mm.cache_activations(bench().model, FITTED, sites=SITES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mm.MechmemWarning)
        return mm.fit_directions(acts, method=method, toward="generalized")


def states(prompts: mm.PromptSet) -> mm.Activations:
    return mm.cache_activations(bench().model, prompts, sites=SITES)


def edit(method: str = "difference_of_means") -> mm.AddDirection:
    return mm.AddDirection(fit(method)["resid_post", 1], toward="generalized")


MEASUREMENTS = {
    "evaluate": lambda p: mm.evaluate(bench().model, p, edit=edit()),
    "evaluate, each layer its own": lambda p: mm.evaluate(
        bench().model, p, edit=mm.ProjectOut(fit())
    ),
    "evaluate an eraser": lambda p: mm.evaluate(bench().model, p, edit=mm.Erase(fit("leace"))),
    "evaluate behind a probe": lambda p: mm.evaluate(
        bench().model,
        p,
        edit=mm.OnlyWhere(
            mm.AblateSites(("mlp_out", 1)), fit("logistic")["resid_post", 0], when="memorized"
        ),
    ),
    "separation": lambda p: mm.separation(fit(), states(p)),
    "cosine_profile": lambda p: mm.cosine_profile(fit(), states(p)),
    "score_correlation": lambda p: mm.score_correlation(
        fit(), states(p), np.arange(len(p)), by="behavior"
    ),
    "steering_grid": lambda p: mm.steering_grid(
        bench().model, fit(), p, alphas=[1.0], by="behavior", draws=0
    ),
    "select_direction": lambda p: mm.select_direction(bench().model, fit(), validation=p),
    "select_direction, neutral": lambda p: mm.select_direction(
        bench().model, fit(), validation=CHOSEN, neutral=p
    ),
    "sweep, validation": lambda p: mm.sweep(
        bench().model, [edit()], validation=p, test=FRESH, draws=1
    ),
    "sweep, test": lambda p: mm.sweep(bench().model, [edit()], validation=CHOSEN, test=p, draws=1),
}


@pytest.mark.parametrize("seen", SEEN)
@pytest.mark.parametrize("name", MEASUREMENTS)
def test_a_seen_item_is_refused(name, seen) -> None:
    with pytest.raises(mm.LeakageError, match="prompts that fitting or choosing has seen"):
        MEASUREMENTS[name](SEEN[seen])


@pytest.mark.parametrize("name", MEASUREMENTS)
def test_fresh_items_are_taken(name) -> None:
    prompts = CHOSEN if name == "sweep, validation" else FRESH
    MEASUREMENTS[name](prompts)


def test_one_seen_item_among_fresh_ones_is_enough() -> None:
    mixed = mm.PromptSet([*FRESH, FITTED[0]])
    with pytest.raises(mm.LeakageError, match=FITTED[0].id):
        mm.separation(fit(), states(mixed))


@cache
def chosen_on_validation() -> tuple[mm.Direction, mm.Sweep, mm.evaluation.SteeringGrid]:
    model = bench().model
    one = mm.Directions({mm.Site("resid_post", 1): fit()["resid_post", 1]})
    selected = mm.select_direction(model, one, validation=CHOSEN, induce_minimum=-1e9, kl_limit=1e9)
    swept = mm.sweep(model, [edit()], validation=CHOSEN, test=FRESH, draws=1)
    grid = mm.steering_grid(model, one, CHOSEN, alphas=[1.0], by="behavior", draws=0)
    return selected.direction, swept, grid


@pytest.mark.parametrize("chosen", [CHOSEN, renamed(CHOSEN, "y"), rephrased(CHOSEN)])
def test_what_chose_is_refused_as_what_fitted(chosen) -> None:
    model = bench().model
    best, swept, grid = chosen_on_validation()
    with pytest.raises(mm.LeakageError):
        mm.separation(mm.Directions({best.site: best}), states(chosen))
    with pytest.raises(mm.LeakageError):
        mm.evaluate(model, chosen, edit=mm.ProjectOut(best))
    for seen in (swept.seen, grid.seen):
        with pytest.raises(mm.LeakageError):
            seen.refuse(chosen, model.tokenize(chosen), "report")


def test_a_saved_direction_still_remembers(tmp_path) -> None:
    back = mm.Directions.load(fit("logistic").save(tmp_path / "r"))
    with pytest.raises(mm.LeakageError):
        mm.cosine_profile(back, states(rephrased(FITTED)))
