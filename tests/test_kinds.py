"""Every public function and class names the argument that has the wrong kind."""

from __future__ import annotations

import inspect
import pickle
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import pytest
from helpers import as_users_run_it, bench, contrast_set

import mechmem as mm
from mechmem.kinds import fits, hints_of, refusing

ANYTHING = {
    "models.load_model": "Cannot load a model from",
    "plotting.figure": "Nothing says which figure Nothing has",
    "reports.push_to_hub": "cannot be pushed",
    "tasks.register_task": "A task is registered with",
}
"""What takes many kinds, and says so in words of its own."""

WRITES = {"reports.push_to_hub", "reports.write_report"}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch) -> None:
    """What is written by a call that was let through lands nowhere."""
    monkeypatch.chdir(tmp_path)


class Nothing:
    """Of no kind that anything takes."""


def public() -> dict[str, Any]:
    """Every function of every room, and every class at the top that is made by its name."""
    found: dict[str, Any] = {}
    for room in mm._ROOMS:
        module = getattr(mm, room)
        for name in module.__all__:
            one = getattr(module, name)
            made = inspect.isclass(one) and name in mm._WHERE and name not in ("Model", "Study")
            if inspect.isfunction(one) or (made and "__init__" in vars(one)):
                found[f"{room}.{name}"] = one
    return found


def first_two(function: Any) -> list[inspect.Parameter]:
    """Those that are given by place, or must be given."""
    parameters = inspect.signature(function).parameters.values()
    kept = [
        p
        for p in parameters
        if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)
        and (p.kind is not p.KEYWORD_ONLY or p.default is p.empty)
    ]
    return kept[:2]


@cache
def right() -> dict[str, Any]:
    """Something of the right kind, by the name that such an argument has everywhere."""
    model, prompts = bench().model, contrast_set(8)
    acts = mm.cache_activations(model, prompts)
    directions = mm.difference_of_means(acts, toward="generalized")
    edit, scores = mm.ProjectOut(directions["resid_post", 1]), mm.neuron_mean_difference(acts)
    return {
        "acts": acts, "states": acts, "source": acts, "model": model,
        "backend": model.backend, "tokens": model.tokens,
        "prompts": prompts, "items": prompts, "directions": directions, "edit": edit,
        "edits": {"a": edit}, "direction": directions["resid_post", 1], "scores": scores,
        "one": scores, "neurons": scores.top(3), "mean_difference": scores.mean_difference,
        "features": np.ones((4, 2)), "question": prompts[0], "original": prompts[0],
        "models": {"a": (model, mm.get_task("addition-cued"))}, "train": lambda inside, seed: model,
        "name": "addition-cued", "task": "addition-cued", "path": "a.npy", "folder": "a", "id": "a",
        "provenance": acts.provenance, "units": {}, "vector": np.zeros(16), "within": 0.1,
        "at": "resid_post", "sets": {"a": acts}, "top": 0.05, "text": "a",
    }  # fmt: skip


def call(function: Any, wrong: str, value: Any) -> None:
    """With ``value`` where ``wrong`` is asked for, and the right kind before it."""
    given = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            continue
        if parameter.name == wrong:
            given[parameter.name] = value
        elif parameter.default is parameter.empty:
            given[parameter.name] = right().get(parameter.name, Nothing())
    by_place = [
        given.pop(p.name)
        for p in inspect.signature(function).parameters.values()
        if p.kind is p.POSITIONAL_ONLY and p.name in given
    ]
    function(*by_place, **given)


@pytest.mark.parametrize("function", sorted(public()))
def test_an_argument_of_no_kind_is_named(function) -> None:
    one = public()[function]
    for parameter in first_two(one):
        with as_users_run_it(), pytest.raises(mm.MechmemError) as caught:
            call(one, parameter.name, Nothing())
        said = str(caught.value)
        named = any(f"{name} must be" in said for name in inspect.signature(one).parameters)
        assert named or "got Nothing" in said or ANYTHING[function] in said


@pytest.mark.parametrize("function", sorted(set(public()) - WRITES))
def test_a_wrong_argument_never_ends_in_a_raw_error(function) -> None:
    one = public()[function]
    for parameter in first_two(one):
        for name in ("model", "prompts", "acts", "directions", "edit"):
            if hints_of(one).get(parameter.name) is Any or name == parameter.name:
                continue
            with as_users_run_it(), suppress(mm.MechmemError):
                call(one, parameter.name, right()[name])
                assert fits(right()[name], hints_of(one)[parameter.name])


def test_swapped_arguments_are_said_to_be_swapped() -> None:
    acts, directions = right()["acts"], right()["directions"]
    with as_users_run_it(), pytest.raises(mm.MechmemError) as caught:
        mm.separation(acts, directions)
    assert str(caught.value) == (
        "directions must be Directions, got Activations; for example directions = "
        "mm.fit_directions(acts, toward=...). It seems to be swapped with acts. separation takes "
        "directions, acts, by, seed, allow_seen."
    )


def test_a_task_by_its_name_is_refused_with_the_way_to_get_it() -> None:
    with (
        as_users_run_it(),
        pytest.raises(mm.MechmemError, match=r"task must be a task, got str .*get_task"),
    ):
        mm.observe(bench().model, "w1", task="addition-cued")  # type: ignore[arg-type]


def test_the_kinds_of_every_public_name_are_known() -> None:
    for name, one in public().items():
        assert hints_of(one) is not None, name


def test_functions_stay_what_they_were() -> None:
    assert pickle.loads(pickle.dumps(mm.separation)) is mm.separation
    assert list(inspect.signature(mm.bake).parameters) == ["model", "edit"]
    with pytest.raises(TypeError, match=r"missing.*'edit'"):
        mm.bake(bench().model)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("value", "fits"),
    [(1, True), (np.float64(1), True), ("1", False), ([1], False), (None, False)],
)
def test_numbers_of_any_library_are_numbers(value, fits) -> None:
    def f(x: float) -> float:
        return x + 0

    f.__annotations__ = {"x": "float"}
    checked = refusing(f, f)
    if fits:
        assert checked(value) == value
    else:
        with pytest.raises(mm.MechmemError, match="x must be a number"):
            checked(value)
