"""One result for every figure, small, with the tables that a user would save for it.

`CASES` names every figure function of `mechmem.plotting`; a new one must be added here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, lru_cache
from typing import Any

import numpy as np
import pandas as pd
from helpers import bench, contrast_set, made_states, ragged
from question_scene import scene, two_sets
from small_study import small_study

import mechmem as mm
from mechmem import plotting
from mechmem.caching.provenance import Seen

__all__ = [
    "CASES", "CHANGES", "ITEMS", "RESULTS", "SITES", "Case", "directions", "grid", "results",
    "states",
]  # fmt: skip

SITES = [("resid_post", k) for k in range(3)]


@lru_cache
def results() -> dict[str, Any]:
    """Every result once, on the tiny model."""
    here = scene()
    model, acts, test = here.lab.model, here.acts, here.test
    edit = mm.ShiftNeurons(here.scores, top=6, alpha=4.0)
    halves = {"one": acts.take(range(12)), "two": acts.take(range(12, 24))}
    edits = {
        name: mm.ShiftNeurons(mm.neuron_mean_difference(half), top=6, alpha=4.0)
        for name, half in halves.items()
    }
    clusters = mm.neuron_clusters(acts, here.scores.top(6), threshold=0.3)
    parts = {f"part {k}": clusters.members(k) for k in range(len(clusters.sizes))}
    seen = mm.observe(model, test)
    outcomes = ["memorized", "generalized"] * (len(test) // 2)
    return {
        "layers": mm.layer_distribution(acts, top=6, draws=20),
        "halves": mm.split_halves(acts, top=6, splits=10),
        "clusters": clusters,
        "interaction": mm.evaluation.interaction(model, edit, test, parts=parts, draws=2),
        "response": mm.evaluation.margin_response(model, edit, test, doses=(0.5, 1.0)),
        "ties": mm.evaluation.near_ties(replace(seen, outcomes=tuple(outcomes)), bins=3),
        "probes": mm.evaluation.probe_transfer(halves, site=("resid_post", 1)),
        "edits": mm.evaluation.edit_transfer(model, edits, {"a": test[:10], "b": test[10:]}),
        "axes": mm.evaluation.compare_axes(
            model,
            two_sets(),
            {"fit": "memorized", "more": "memorized"},
            items={"more": test},
            shuffles=3,
        ),
        "costs": mm.side_effects(model, edit, clean=test, texts=["w1 w2 w3"]),
        "prompting": mm.evaluation.prompting(
            model, test, {"in front": "w3 w4 "}, edits={"edit": edit}
        ),
        "sampling": mm.evaluation.sampling(model, test, temperatures=(0.5, 1.0), draws=3),
        "models": mm.evaluation.compare_models({"a": model, "b": model}, test),
        "map": mm.evaluation.projection_map(
            model, mm.difference_of_means(acts, toward="generalized"), test[:1], draws=5
        ),
    }


@cache
def states(prefix: str, n: int = 24) -> mm.Activations:
    rng = np.random.default_rng(len(prefix))
    names = ["memorized", "generalized"] * (n // 2)
    arrays = {site: rng.normal(size=(n, 1, 6)) for site in SITES}
    for site in SITES:
        arrays[site][1::2] += 0.8 * (site[1] + 1)
    first = {"fit": 100, "held": 200, "other!": 300}[prefix]
    ids = [(0, first + k) for k in range(n)]
    return made_states(arrays, names, [f"{prefix}{k // 2}" for k in range(n)], token_ids=ids)


@cache
def directions(toward: str = "generalized", method: str = "difference_of_means") -> mm.Directions:
    return mm.fit_directions(states("fit"), method=method, toward=toward)


@cache
def grid() -> mm.evaluation.SteeringGrid:
    rows = []
    for layer in range(2):
        for alpha in (-1.0, 0.0, 1.0):
            for kind, control in (("edit", ""), ("control", "random direction")):
                for j, name in enumerate(("memory", "reasoning")):
                    share = 0.5 + 0.1 * layer + 0.2 * alpha * (kind == "edit") - 0.05 * j
                    row = {"stream": "resid_pre", "layer": layer, "alpha": alpha, "kind": kind}
                    row |= {
                        "control": control,
                        "class": name,
                        "share": share,
                        "share_low": share - 0.1,
                        "share_high": share + 0.1,
                    }
                    row |= {"change": share - 0.5, "n": 40, "groups": 20}
                    if kind == "edit" and alpha:
                        edge = 0.2 * alpha
                        row |= {"beyond": edge, "beyond_low": edge - 0.1 - 0.15 * j}
                        row |= {"beyond_high": edge + 0.1 + 0.15 * j}
                    rows.append(row)
    return mm.evaluation.SteeringGrid(pd.DataFrame(rows), "correct", "reasoning", 1, Seen())


RESULTS = {
    "state_map": lambda: mm.state_map(
        states("fit"),
        SITES[1],
        direction=directions(),
        others={"held <out>": states("held")},
        by="behavior",
    ),
    "cosine_profile": lambda: mm.cosine_profile(directions(), states("held")),
    "direction_cosines": lambda: mm.compare_directions(
        {name: directions(method=name) for name in ("difference_of_means", "pca", "logistic")}
    ),
    "principal_cosines": lambda: mm.principal_cosines(directions(), states("held"), components=4),
    "score_correlation": lambda: mm.score_correlation(
        directions(), states("held"), np.arange(24.0), by="behavior", name="the score"
    ),
    "steering_grid": grid,
}
ITEMS = pd.DataFrame(
    {
        "group": ["a", "b", "c", "d"],
        "kind": ["fact", "fact", "computation", "disputed"],
        "projection": [-1.0, -2.0, 3.0, 0.5],
        "perturbational": [0.0, 0.1, 0.2, 0.3],
        "counterfactual": [1.0, 0.9, 0.0, 0.4],
        "counterfactual_low": [0.8, 0.7, -0.1, 0.2],
        "counterfactual_high": [1.0, 1.0, 0.1, 0.6],
    }
)
CHANGES = pd.DataFrame(
    [
        {"score": score, "edit": edit, "kind": kind, "change": change, "change_low": change - 0.1,
         "change_high": change + 0.1, "n": 4, "groups": 4}
        for score, change in (("perturbational", 0.2), ("counterfactual", -0.3))
        for edit in ("toward reasoning", "random direction")
        for kind in ("all", "fact")
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Moved:
    """What a `MemorizationStudy` hands to its figure; a real one trains twelve models."""

    def table(self) -> pd.DataFrame:
        return ITEMS

    def changes(self) -> pd.DataFrame:
        return CHANGES


def refitted() -> pd.DataFrame:
    """The saved table of a verdict: three claims, nineteen refits."""
    rows = []
    for claim, real, p in (("any", 0.3, 0.05), ("both", 0.1, 0.2), ("memorized", 0.3, 0.05)):
        null = np.random.default_rng(0).normal(0, 0.08, 19)
        for k, effect in enumerate((real, *null)):
            kind = "refit" if k else "edit"
            rows.append({"claim": claim, "kind": kind, "draw": k, "effect": effect,
                         "p": np.nan if k else p})  # fmt: skip
    return pd.DataFrame(rows)


@lru_cache
def learning() -> mm.analysis.LearningCurve:
    rng = np.random.default_rng(2)
    data = np.repeat(rng.normal(size=(40, 1, 8)), 2, axis=0) + rng.normal(size=(80, 1, 8))
    data[::2, 0, :4] += 1.4
    acts = made_states({SITES[0]: data}, ["memorized", "generalized"] * 40)
    return mm.learning_curve(acts, repeats=1, sizes=[4, 16])


@lru_cache
def graded() -> mm.evaluation.GradedAnswers:
    here = scene()
    seen = mm.observe(here.lab.model, here.test)
    prompts = mm.PromptSet(
        replace(p, memorized=f"w{k}", generalized=f"v{k}") for k, p in enumerate(here.test)
    )
    return mm.evaluation.graded_answers(replace(seen, prompts=prompts))


def effects() -> mm.evaluation.EffectByModel:
    study = small_study()
    best = study.sweep.best
    controls = {t: named["random direction"] for t, named in best.controls.items()}
    seen = study.observed["test"]
    return mm.evaluation.EffectByModel(
        {"one": study.model, "two": study.model},
        {"one": 1000, "two": 9000},
        {"one": seen, "two": seen},
        {"one": best.rates, "two": best.rates},
        {"one": controls, "two": controls},
        {"one": 12, "two": 14},
    )


@lru_cache
def tokens() -> mm.analysis.TokenProjections:
    acts = mm.cache_activations(bench().model, contrast_set(), sites=[SITES[1]])
    along = mm.difference_of_means(acts, toward="generalized")[SITES[1]]
    return mm.project_tokens(bench().model, along, ragged(2), ["w3 w4", "w5"])


def curves() -> pd.DataFrame:
    shares = {"memorized": [0.9, 0.6], "memorized_low": [0.8, 0.5], "memorized_high": [1.0, 0.7]}
    return pd.DataFrame({"step": [100, 200], **shares, "loss": [2.0, 0.5], "n": 40})


@dataclass(frozen=True)
class Case:
    """One figure.

    Attributes:
        result: What its function takes first.
        tables: What a user saves: the first stands for the result, others have the names of
            further arguments.
        options: Further arguments.
    """

    result: Any
    tables: Mapping[str, pd.DataFrame]
    options: Mapping[str, Any] = field(default_factory=dict)


def case(result: Any, table: pd.DataFrame | None = None, **options: Any) -> Case:
    return Case(result, {"": result.table() if table is None else table}, options)


def _transitions(s: mm.Study) -> list[Case]:
    rates = s.sweep.best.rates["memorized"]
    return [case(rates, rates.transitions.reset_index())]


CASES: dict[str, Callable[[mm.Study], list[Case]]] = {
    "axis_matrices": lambda s: [case(results()["axes"])],
    "behavior_mix": lambda s: [case(s.observed, plotting.mix_table(s.observed))],
    "cosine_profile": lambda s: [case(RESULTS["cosine_profile"]())],
    "direction_cosines": lambda s: [case(RESULTS["direction_cosines"]())],
    "depth_profile": lambda s: [case(s.depth)],
    "dose_response": lambda s: [case(s.dose, s.dose)],
    "effect_by_model": lambda s: [case(effects())],
    "graded_answers": lambda s: [case(graded(), graded().summary())],
    "interaction": lambda s: [case(results()["interaction"])],
    "layer_distribution": lambda s: [
        Case(s.scores, {"": plotting.distribution_table(s.scores, top=0.1)}, {"top": 0.1})
    ],
    "layer_shares": lambda s: [case(results()["layers"])],
    "learning_curve": lambda s: [case(learning())],
    "margin_response": lambda s: [case(results()["response"])],
    "margins": lambda s: [case(s.observed["test"])],
    "memorization": lambda s: [Case(Moved(), {"": ITEMS, "changes": CHANGES})],
    "model_accuracy": lambda s: [case(results()["models"])],
    "near_ties": lambda s: [case(results()["ties"])],
    "neuron_clusters": lambda s: [
        case(results()["clusters"], results()["clusters"].correlations())
    ],
    "neuron_map": lambda s: [case(s.window_scores), case(s.mlp_scores)],
    "principal_cosines": lambda s: [case(RESULTS["principal_cosines"]())],
    "probe_accuracy": lambda s: [case(s.probes)],
    "prompting": lambda s: [case(results()["prompting"])],
    "rates_bars": lambda s: [
        case(s.sweep, s.sweep.test_table()),
        case(s.sweep.best.rates["memorized"]),
    ],
    "refits": lambda s: [case(refitted(), refitted())],
    "sampling": lambda s: [case(results()["sampling"])],
    "score_correlation": lambda s: [case(RESULTS["score_correlation"](), site=SITES[1])],
    "separation_profile": lambda s: [case(s.separation)],
    "side_effects": lambda s: [case(results()["costs"])],
    "split_halves": lambda s: [case(results()["halves"])],
    "state_map": lambda s: [case(RESULTS["state_map"]())],
    "steering_grid": lambda s: [case(grid())],
    "sweep_cells": lambda s: [case(s.sweep)],
    "token_map": lambda s: [case(results()["map"])],
    "token_projection": lambda s: [case(tokens()), case(tokens(), prompt="p1")],
    "training_curves": lambda s: [case(curves(), curves())],
    "transfer_matrix": lambda s: [case(results()["probes"]), case(results()["edits"])],
    "transitions": _transitions,
}
