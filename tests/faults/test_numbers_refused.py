"""Numbers that cannot be meant are refused by their names before anything runs."""

from __future__ import annotations

import math
from functools import lru_cache, partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers import bench, contrast_set
from test_refused_before import nothing_runs, others, unchecked  # noqa: F401

import mechmem as mm


@lru_cache
def scene() -> SimpleNamespace:
    """What the calls below need, made before the model may run no more."""
    model, fit = bench().model, contrast_set(8)
    acts = mm.cache_activations(model, fit, sites=[("resid_post", 0), ("resid_post", 1)])
    directions = mm.difference_of_means(acts, toward="generalized")
    r = directions["resid_post", 1]
    return SimpleNamespace(
        model=model, fit=fit, acts=acts, directions=directions, test=others(),
        edit=mm.AddDirection(r), shift=mm.ShiftNeurons(mm.neuron_mean_difference(acts), top=9),
        seen=mm.observe(model, fit), moments=mm.caching.Moments.from_activations(acts, "behavior"),
    )  # fmt: skip


def adding(**given: Any) -> Any:
    return mm.run_study(bench().model, task=mm.get_task("addition-cued"), **given)


def reasoning(**given: Any) -> Any:
    return mm.run_reasoning_study(bench().model, task=mm.get_task("recall-reasoning"), **given)


def remembering(**given: Any) -> Any:
    task = mm.get_task("recall-reasoning")
    return mm.run_memorization_study(bench().model, task=task, **given)


def turning(s: Any, **given: Any) -> Any:
    from mechmem.studies.reasoning.margins import turn_margins

    return turn_margins(s.model, s.acts, s.test, **given)


def counterfactual(**given: Any) -> Any:
    from mechmem.studies.memorization.counterfactual import counterfactual_memorization

    def train(gone: frozenset[str], number: int) -> Any:
        raise AssertionError("a model was trained")

    return counterfactual_memorization(
        train, scene().test, task=mm.get_task("recall-reasoning"), **given
    )


CALLS: dict[str, Any] = {
    "layer_distribution": lambda s: partial(mm.analysis.layer_distribution, s.acts),
    "depth_profile": lambda s: partial(mm.depth_profile, s.acts),
    "split_halves": lambda s: partial(mm.analysis.split_halves, s.acts),
    "learning_curve": lambda s: partial(mm.learning_curve, s.acts),
    "fit_probes": lambda s: partial(mm.fit_probes, s.acts),
    "margin_map": lambda s: partial(mm.evaluation.margin_map, s.model, s.test[:1]),
    "projection_map": lambda s: partial(
        mm.evaluation.projection_map, s.model, s.directions, s.test[:1]
    ),
    "side_effects": lambda s: partial(mm.evaluation.side_effects, s.model, s.edit, clean=s.test),
    "effect_by_model": lambda s: partial(
        mm.evaluation.effect_by_model, {"a": (s.model, mm.get_task("addition-cued"))},
        lambda model, prompts: s.edit,
    ),
    "edit_transfer": lambda s: partial(
        mm.evaluation.edit_transfer, s.model, {"a": s.edit}, {"a": s.test}
    ),
    "interaction": lambda s: partial(mm.evaluation.interaction, s.model, s.shift, s.test),
    "margin_response": lambda s: partial(mm.evaluation.margin_response, s.model, s.edit, s.test),
    "steering_grid": lambda s: partial(mm.steering_grid, s.model, s.directions, s.test),
    "sampling": lambda s: partial(mm.evaluation.sampling, s.model, s.test),
    "near_ties": lambda s: partial(mm.evaluation.near_ties, s.seen),
    "select_direction": lambda s: partial(
        mm.select_direction, s.model, s.directions, validation=s.test
    ),
    "compare_axes": lambda s: partial(
        mm.evaluation.compare_axes, s.model, {"a": s.acts, "b": s.acts},
        {"a": "memorized", "b": "memorized"},
    ),
    "state_map": lambda s: partial(mm.state_map, s.acts),
    "probe_transfer": lambda s: partial(
        mm.evaluation.probe_transfer, {"a": s.acts, "b": s.acts}
    ),
    "cache_moments": lambda s: partial(mm.cache_moments, s.model, s.fit, by="behavior"),
    "extract_moments": lambda s: partial(
        mm.caching.extract_moments, s.model, s.fit, "/dev/null/no", by="behavior"
    ),
    "histograms": lambda s: partial(
        mm.caching.Histograms.around, s.moments, {("resid_post", 1): [0]}
    ),
    "questions": lambda s: mm.get_task("recall-reasoning").questions,
    "evaluate_each": lambda s: partial(mm.evaluate_each, s.model, s.test),
    "sweep": lambda s: partial(
        mm.sweep, s.model, [s.edit], validation=s.test[:8], test=s.test[8:], reading="choice"
    ),
    "run_study": lambda s: adding,
    "run_reasoning_study": lambda s: reasoning,
    "run_memorization_study": lambda s: remembering,
    "turn_margins": lambda s: partial(turning, s),
    "counterfactual_memorization": lambda s: counterfactual,
}  # fmt: skip

HUGE = 10**400
NAN, INF = math.nan, math.inf
FEW = (0, -1, True, 1.5, "3", None, HUGE)
TEXTS = ("x", b"x", "", {}, {1.0: 2}, None, 3, np.array(1.0))
NUMBERS = (NAN, INF, -INF, HUGE, "x", True, None)
LISTS = (*TEXTS, [NAN], [INF], [HUGE], ["x"], [True], [None])
BELOW = ([], *LISTS, [0], [-1], [1.0, -1.0])

COUNTS: dict[tuple[str, str], tuple[type[mm.MechmemError], int, tuple[Any, ...]]] = {
    ("layer_distribution", "draws"): (mm.MechmemError, 1, FEW),
    ("depth_profile", "draws"): (mm.PromptError, 1, FEW),
    ("split_halves", "splits"): (mm.MechmemError, 1, FEW),
    ("learning_curve", "repeats"): (mm.PromptError, 1, FEW),
    ("learning_curve", "folds"): (mm.PromptError, 2, (*FEW, 1)),
    ("fit_probes", "folds"): (mm.PromptError, 2, (*FEW, 1)),
    ("margin_map", "draws"): (mm.EditError, 1, FEW),
    ("projection_map", "draws"): (mm.EditError, 1, FEW),
    ("side_effects", "draws"): (mm.EditError, 1, FEW),
    ("effect_by_model", "draws"): (mm.EditError, 1, FEW),
    ("edit_transfer", "draws"): (mm.EditError, 1, FEW),
    ("interaction", "draws"): (mm.EditError, 1, FEW),
    ("margin_response", "draws"): (mm.EditError, 1, FEW),
    ("steering_grid", "draws"): (mm.EditError, 0, FEW[1:]),
    ("sampling", "draws"): (mm.MechmemError, 2, (*FEW, 1)),
    ("near_ties", "bins"): (mm.MechmemError, 1, (*FEW, 2**63)),
    ("compare_axes", "shuffles"): (mm.MechmemError, 0, FEW[1:]),
    ("cache_moments", "bootstrap"): (mm.MechmemError, 0, (*FEW[1:], "", [], {}, False, 2**40)),
    ("extract_moments", "bootstrap"): (mm.MechmemError, 0, (*FEW[1:], "", [], {}, False, 2**40)),
    ("histograms", "bins"): (mm.MechmemError, 1, FEW),
    ("sweep", "draws"): (mm.EditError, 1, FEW),
    ("run_study", "shuffles"): (mm.MechmemError, 0, FEW[1:]),
    ("run_reasoning_study", "draws"): (mm.MechmemError, 1, FEW),
    ("run_reasoning_study", "shuffles"): (mm.MechmemError, 0, FEW[1:]),
    ("run_reasoning_study", "shots"): (mm.TaskError, 0, (-1, True, 1.5, "3")),
    ("run_memorization_study", "models"): (mm.PromptError, 2, FEW),
    ("run_memorization_study", "steps"): (mm.TaskError, 1, FEW),
    ("run_memorization_study", "prompts"): (mm.TaskError, 1, FEW),
    ("run_memorization_study", "draws"): (mm.EditError, 1, FEW),
    ("turn_margins", "layers"): (mm.MechmemError, 1, FEW),
    ("turn_margins", "draws"): (mm.MechmemError, 1, FEW),
    ("counterfactual_memorization", "models"): (mm.PromptError, 2, FEW),
}

OTHERS: dict[tuple[str, str], tuple[type[mm.MechmemError], str, tuple[Any, ...]]] = {
    ("learning_curve", "sizes"): (
        mm.PromptError, "sizes must be", (*TEXTS[:5], [], ["x"], [1], [2.5], [True], [HUGE])
    ),
    ("state_map", "site"): (mm.SiteError, "A site is", ("x", b"x", "ab", ("a",), 3, None, (1, 2))),
    ("probe_transfer", "site"): (mm.SiteError, "A site is", ("x", "ab", ("a", "b"), 3)),
    ("compare_axes", "site"): (mm.SiteError, "A site is", ("x", "ab", ("a", "b"), 3)),
    ("compare_axes", "alpha"): (mm.EditError, "alpha must be a finite", NUMBERS),
    ("steering_grid", "alphas"): (mm.EditError, "alphas must be a", BELOW),
    ("margin_response", "doses"): (mm.EditError, "doses must be", BELOW),
    ("sampling", "temperatures"): (mm.ModelError, "temperatures must be a", BELOW),
    ("sampling", "seed"): (mm.MechmemError, "seed must be", (1.5, "x", None)),
    ("interaction", "parts"): (mm.EditError, "parts is empty", ({},)),
    ("near_ties", "threshold"): (mm.MechmemError, "threshold must be a", (*NUMBERS, -1, -0.5)),
    ("cache_moments", "seed"): (mm.MechmemError, "seed must be", (1.5, "x", None, NAN)),
    ("extract_moments", "seed"): (mm.MechmemError, "seed must be", (1.5, "x", None, NAN)),
    ("select_direction", "alpha"): (mm.EditError, "alpha must be", (*NUMBERS, 10**30, -1e30)),
    ("select_direction", "induce_minimum"): (
        mm.EditError, "induce_minimum must be", (NAN, INF, HUGE, "x", True, None)
    ),
    ("select_direction", "kl_limit"): (
        mm.EditError, "kl_limit must be", (NAN, -INF, HUGE, "x", True, None)
    ),
    ("select_direction", "drop_last"): (
        mm.EditError, "drop_last must be", (*NUMBERS, -1, -0.1, 1, 1.0, 1.5)
    ),
    ("evaluate_each", "edits"): (mm.EditError, "edits must be a sequence", ("", "x", b"", {}, 3)),
    ("sweep", "refine"): (mm.EditError, "refine", ("x", [1.0], 3, {"": [NAN]}, {"": "x"})),
    ("run_study", "doses"): (mm.MechmemError, "doses must be a", LISTS),
    ("run_study", "refine"): (mm.EditError, "refine", (
        "x", [1.0], {"one direction": [NAN]}, {"one direction": "x"}, {"one direction": 1.5},
    )),
    ("run_study", "budget"): (
        mm.MechmemError, "budget must be a finite number above 0", (0, -1, *NUMBERS[:-1])
    ),
    ("run_reasoning_study", "alphas"): (mm.EditError, "alphas must be a", BELOW),
    ("run_reasoning_study", "scales"): (mm.EditError, "scales must be a", BELOW),
    ("turn_margins", "alphas"): (mm.EditError, "alphas must be a", BELOW),
    ("histograms", "reach"): (mm.MechmemError, "reach must be a finite", (*NUMBERS, 0, -1)),
    ("questions", "n"): (mm.TaskError, "n must be an integer from 1 to 20,000", (*FEW, 20_001)),
    ("run_study", "draws"): (mm.MechmemError, "A plan needs numbers from 1", FEW),
    ("run_memorization_study", "alpha"): (mm.EditError, "alpha must be a finite", NUMBERS),
    ("run_memorization_study", "models"): (mm.PromptError, "models must be even", (3,)),
    ("counterfactual_memorization", "solved"): (
        mm.TaskError, "Unknown outcome", ("x", "memorised", None, 3)
    ),
}  # fmt: skip


def refused(call: str, name: str, value: Any, error: type[mm.MechmemError], says: str) -> None:
    with pytest.raises(error) as caught:
        CALLS[call](scene())(**{name: value})
    said = str(caught.value)
    assert says in said or said.startswith(f"every number of {name} must be"), said
    assert len(said) < 400


@pytest.fixture
def made_before(request: pytest.FixtureRequest) -> None:
    scene()
    request.getfixturevalue("nothing_runs")


@pytest.mark.parametrize(
    ("call", "name", "value"),
    [(*key, value) for key, (_, _, values) in COUNTS.items() for value in values],
    ids=lambda value: f"{value!r:.12}" if not isinstance(value, str) else value or "''",
)
def test_a_count_that_is_none(made_before, call, name, value) -> None:
    error, least, _ = COUNTS[call, name]
    refused(call, name, value, error, f"{name} must be an integer from {least} to 1,000,000, got")


@pytest.mark.parametrize(
    ("call", "name", "value"),
    [(*key, value) for key, (_, _, values) in OTHERS.items() for value in values],
    ids=lambda value: f"{value!r:.24}" if not isinstance(value, str) else value or "''",
)
def test_a_number_that_is_none(made_before, call, name, value) -> None:
    error, says, _ = OTHERS[call, name]
    refused(call, name, value, error, says)
