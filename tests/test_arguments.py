"""Every public function and class names the argument that has the wrong kind."""

from __future__ import annotations

import inspect
import pickle
from contextlib import suppress
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import pytest
from helpers import as_users_run_it, bench, contrast_set

import mechmem as mm
from mechmem.arguments import fits, hints_of, refusing

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


SETTINGS: dict[str, tuple[Any, str]] = {
    "budget None": (lambda r: mm.cache_activations(
        r["model"], r["prompts"], token_budget=None), "got None"),
    "budget text": (lambda r: r["model"].logits("w1", token_budget="x"), "got 'x'"),
    "budget object": (lambda r: mm.caching.plan_extraction(
        r["model"], r["prompts"], token_budget=object()), "token_budget must be"),
    "bootstrap": (lambda r: mm.cache_moments(
        r["model"], r["prompts"], by="behavior", bootstrap=object()), "bootstrap must be"),
    "draws None": (lambda r: mm.depth_profile(r["acts"], draws=None), "draws must be"),
    "draws -1": (lambda r: mm.depth_profile(r["acts"], draws=-1), "draws must be"),
    "method": (lambda r: mm.fit_directions(r["acts"], toward="generalized", method=[]), "method"),
    "progress": (lambda r: mm.observe(r["model"], r["prompts"], progress=3), "progress must be"),
    "steps": (lambda r: mm.training.TrainingSettings(steps=float("nan")), "steps must be"),
    "theme": (lambda r: mm.plotting.neuron_map(r["scores"], theme=[]), "theme must be text"),
    "statistic": (lambda r: mm.plotting.neuron_map(r["scores"], statistic=[]), "statistic must be"),
    "values": (lambda r: mm.plotting.token_projection(["a", "b"], "x"), "values"),
    "rows": (lambda r: mm.plotting.token_projection(["a"], [1.0], rows=3), "rows must be"),
    "center": (lambda r: mm.plotting.token_projection(["a"], [1.0], center=None), "center must be"),
    "no sets": (lambda r: mm.plotting.behavior_mix({}), "is empty"),
    "no figures": (lambda r: mm.plotting.save_figures({}, "x"), "figures is empty"),
    "no directions": (lambda r: mm.cosine_profile([], []), "must be|is empty"),
    "no states": (lambda r: mm.analysis.split_halves({}), "acts must be"),
}  # fmt: skip
METHODS: dict[str, tuple[Any, str]] = {
    "from_records": (lambda r: mm.PromptSet.from_records(5), "records must be"),
    "from_pandas": (lambda r: mm.PromptSet.from_pandas([1]), "frame must be DataFrame"),
    "from_csv": (lambda r: mm.PromptSet.from_csv(3), "path must be text or Path"),
    "from_datasets": (lambda r: mm.PromptSet.from_datasets(3), "takes one Dataset, got int"),
    "splits": (lambda r: mm.PromptSet.from_datasets({"train": []}), "with 'train'; choose a split"),
    "select": (lambda r: r["prompts"].select(3), "ids must be"),
    "filter": (lambda r: r["prompts"].filter(3), "keep must be a function"),
    "split": (lambda r: r["prompts"].split(train="x"), "train must be a number, got str 'x'"),
    "with_behaviors": (lambda r: r["prompts"].with_behaviors(3), "behaviors must be a mapping"),
    "unknown id": (lambda r: r["prompts"].with_behaviors({"zz": "a"}), "No prompt has the id 'zz'"),
    "to_jsonl": (lambda r: r["prompts"].to_jsonl(3), "path must be"),
    "plus": (lambda r: r["prompts"] + 3, "other must be PromptSet"),
    "by name": (lambda r: r["prompts"]["zz"], "index must be a whole number or slice"),
    "too far": (lambda r: r["prompts"][9999], "There is no prompt 9999"),
    "stop": (lambda r: r["model"].complete("w1", 2, stop=3), "stop must be texts"),
    "answers": (lambda r: r["model"].logprobs("w1", 3), "answers must be a sequence"),
    "scores": (lambda r: r["model"].answer_scores(3, 3), "prompts must be a sequence"),
    "edits": (lambda r: r["model"].with_interventions(3), "interventions must be a sequence"),
    "load": (lambda r: mm.Directions.load(3), "path must be"),
    "load scores": (lambda r: mm.NeuronScores.load(3), "path must be"),
    "threshold": (lambda r: mm.get_task("reasoning", threshold="x"), "threshold must be a number"),
    "task stop": (lambda r: mm.get_task("reasoning", stop=3), "stop must be"),
    "pairs": (lambda r: mm.get_task("colors").pairs("x"), "n must be a whole number, got str 'x'"),
    "half": (lambda r: mm.get_task("addition-cued").pairs(2.5), "n must be a whole number, got fl"),
    "whole": (lambda r: mm.get_task("addition-cued").pairs(2.0), "whole number, got float 2.0"),
    "seed": (lambda r: r["prompts"].split(train=0.5, seed=True), "seed must be .* got True"),
    "a set": (lambda r: r["model"].logits({"w1", "w2"}), "a list of prompts .* got set"),
    "layers": (lambda r: mm.cache_activations(r["model"], "w1", sites={"resid_post": [1]}),
        "Sites are a list, got the dictionary"),
    "tokens": (lambda r: mm.cache_activations(r["model"], "w1", sites="z", positions={"last": 0}),
        "Positions are a list, got the dictionary"),
    "table": (lambda r: r["model"].logits(pd.DataFrame({"text": ["w1"]})), "from_pandas"),
    "texts": (lambda r: mm.PromptSet.from_texts(pd.DataFrame({"a": ["b"]})), "from_pandas"),
}  # fmt: skip


@pytest.mark.parametrize("case", [*SETTINGS.values(), *METHODS.values()], ids=[*SETTINGS, *METHODS])
def test_settings_and_arguments_of_methods_are_named_too(case: tuple[Any, str]) -> None:
    call_it, message = case
    with as_users_run_it(), pytest.raises(mm.MechmemError, match=message):
        call_it(right())


def switches() -> dict[str, tuple[Any, str]]:
    """Every function, class and method of a room with an argument that is True or False."""
    found: dict[str, tuple[Any, str]] = {}
    for room in mm._ROOMS:
        module = getattr(mm, room)
        for name in module.__all__:
            one, inside = getattr(module, name), {}
            if inspect.isclass(one):
                made = one if "__init__" in vars(one) else None
                inside = {
                    f"{name}.{key}": getattr(held, "__func__", held)
                    for key, held in vars(one).items()
                    if not key.startswith("_")
                }
                one = made
            for label, function in {name: one, **inside}.items():
                if not (inspect.isfunction(function) or inspect.isclass(function)):
                    continue
                for parameter in inspect.signature(function).parameters.values():
                    if "bool" in str(parameter.annotation).split(" | "):
                        found[f"{room}.{label}({parameter.name})"] = function, parameter.name
    return found


def test_every_switch_is_found() -> None:
    assert {
        "caching.cache_activations(share_prefixes)", "models.load_model(prepend_bos)",
        "tasks.PromptSet.to_csv(formulas)", "patching.AddDirection(force)", "sweeps.sweep(reuse)",
        "analysis.neuron_mean_difference(auc)", "training.TrainingSettings(fresh)",
    } <= set(switches())  # fmt: skip


@pytest.mark.parametrize("where", sorted(switches()))
def test_a_switch_is_true_or_false_and_nothing_that_python_takes_for_it(where) -> None:
    function, name = switches()[where]
    for value in ("x", "False", 1, 0.0, [], np.array([True, False])):
        with as_users_run_it(), pytest.raises(mm.MechmemError) as caught:
            call(function, name, value)
        assert str(caught.value).startswith(f"{name} must be True")
        assert f", got {value!r}." in str(caught.value)
    with (
        as_users_run_it(),
        pytest.raises(mm.MechmemError, match=r"got np.True_; bool\(...\) makes"),
    ):
        call(function, name, np.True_)


def test_an_error_of_the_callers_own_function_stays_his() -> None:
    with as_users_run_it(), pytest.raises(ZeroDivisionError):
        right()["prompts"].filter(lambda prompt: 1 // 0)
    assert right()["prompts"].index(right()["prompts"][1]) == 1
    assert "nothing" not in right()["prompts"]
