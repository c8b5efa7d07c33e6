"""What cannot be meant is refused before anything runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from fault_scene import Exited, command
from helpers import as_users_run_it, bench, contrast_set

import mechmem as mm
from mechmem.seeding import keyed_rng


@pytest.fixture
def nothing_runs(monkeypatch: pytest.MonkeyPatch):
    ran = []

    def forward(*args, **options):
        ran.append("the model ran")
        raise AssertionError("the model ran")

    monkeypatch.setattr(type(bench().model.backend), "forward", forward)
    yield
    assert not ran  # a refusal may come of that error: of an argument that is of the wrong kind


@pytest.fixture(autouse=True)
def unchecked():
    """Types are not checked at run time where users run it."""
    with as_users_run_it():
        yield


def others() -> mm.PromptSet:
    return mm.PromptSet(
        replace(p, id=f"o{p.id}", group=f"o{p.group}") for p in contrast_set(8, seed=9)
    )


def test_a_sweep_without_draws_or_with_an_empty_family(monkeypatch, request) -> None:
    acts = mm.cache_activations(bench().model, contrast_set(8), sites=[("resid_post", 1)])
    edit = mm.AddDirection(mm.difference_of_means(acts, toward="generalized")["resid_post", 1])
    request.getfixturevalue("nothing_runs")
    given = {"validation": others()[:8], "test": others()[8:], "reading": "choice"}
    with pytest.raises(mm.EditError, match="families 'mlp' hold no edit"):
        mm.sweep(bench().model, {"residual": [edit], "mlp": []}, **given)
    for draws in (0, -1, 2.5, True, "3"):
        with pytest.raises(
            mm.EditError, match=rf"draws must be an integer from 1 to .*got {draws!r}"
        ):
            mm.sweep(bench().model, [edit], draws=draws, **given)
    for name, value in {
        "objective": "x", "progress": 5, "folder": 5, "token_budget": "x", "seed": 1.5,
    }.items():  # fmt: skip
        with pytest.raises(mm.MechmemError, match=f"{name} must be"):
            mm.sweep(bench().model, [edit], **{name: value}, **given)
    for grid in ({5: [edit]}, {"a": None}, {"a": 5}, 5):
        with pytest.raises(mm.MechmemError, match=r"A grid is a list of edits|grid must be"):
            mm.sweep(bench().model, grid, **given)


@pytest.mark.parametrize("study", ["run_study", "run_reasoning_study", "read_labels"])
def test_a_study_with_refits_or_draws_that_are_no_counts(nothing_runs, study) -> None:
    task = mm.get_task("recall-reasoning" if study == "run_reasoning_study" else "addition-cued")
    given = {} if study == "read_labels" else {"task": task}
    for wrong in (-1, True, 1.5, "3", None):
        with pytest.raises(mm.MechmemError, match="shuffles must be an integer from 0 to"):
            getattr(mm, study)(bench().model, shuffles=wrong, **given)
    if study == "run_reasoning_study":
        with pytest.raises(mm.MechmemError, match=r"draws must be an integer from 1 to .*got 0"):
            mm.run_reasoning_study(bench().model, draws=0, **given)


@pytest.mark.parametrize("path", ["", ".", "..", "/", "a/..", "a\0b"], ids=[
    "nothing", "here", "above", "root", "above a", "nul",
])  # fmt: skip
def test_a_path_that_names_no_file(path, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    directions = mm.difference_of_means(
        mm.cache_activations(bench().model, contrast_set(8)), toward="generalized"
    )
    for work in (
        lambda: directions.save(path), lambda: mm.Directions.load(path),
        lambda: contrast_set(8).to_csv(path), lambda: contrast_set(8).to_jsonl(path),
    ):  # fmt: skip
        with pytest.raises(mm.ArtifactError, match="names no file; give for example"):
            work()


@pytest.mark.parametrize("stop", ["", ["\n", ""], [3]])
def test_a_stop_string_that_is_nothing(nothing_runs, stop) -> None:
    with pytest.raises(mm.PromptError, match="A stop string must be text"):
        bench().model.generate("w1", 3, stop=stop)


def test_a_stop_that_is_no_text(nothing_runs) -> None:
    with pytest.raises(mm.PromptError, match="stop must be texts"):
        bench().model.generate("w1", 3, stop=5)


@pytest.mark.parametrize(
    "budget", [0, -1, "x", 1.5, True, None, 10**400], ids=lambda b: f"{b!r:.6}"
)
def test_a_token_budget_that_is_none(nothing_runs, tmp_path, budget) -> None:
    model = bench().model
    for call in (
        lambda: model.logits("w1", token_budget=budget),
        lambda: model.generate("w1", 3, token_budget=budget),
        lambda: mm.cache_activations(model, "w1", token_budget=budget),
        lambda: mm.plan_extraction(model, "w1", token_budget=budget),
        lambda: mm.extract_activations(model, "w1", tmp_path / "s", token_budget=budget),
        lambda: mm.cache_moments(model, contrast_set(8), by="behavior", token_budget=budget),
        lambda: mm.observe(model, contrast_set(8), token_budget=budget),
        lambda: mm.activation_patching(model, contrast_set(8), token_budget=budget),
        lambda: mm.attribution_patching(model, contrast_set(8), token_budget=budget),
    ):
        with pytest.raises(mm.MechmemError, match="token_budget must be"):
            call()
    with pytest.raises(mm.MechmemError, match="shard_rows must be"):
        mm.extract_activations(model, "w1", tmp_path / "s", shard_rows=budget)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), 10**400, "x", True, None])
def test_strengths_that_are_no_numbers(number) -> None:
    acts = mm.cache_activations(bench().model, contrast_set(8), sites=["resid_post"])
    r = mm.difference_of_means(acts, toward="generalized")["resid_post", 1]
    for make in (
        lambda: mm.AddDirection(r, alpha=number),
        lambda: mm.ShiftNeurons(mm.neuron_mean_difference(acts), alpha=number),
        lambda: replace(mm.AddDirection(r), alpha=number),
        lambda: mm.ScaleProjection(r, scale=number),
    ):
        with pytest.raises(mm.EditError, match=r"(alpha|scale) must be a finite number"):
            make()


@pytest.mark.parametrize("seed", [1.5, "1", None])
def test_a_seed_that_is_not_a_whole_number(seed) -> None:
    with pytest.raises(mm.MechmemError, match="seed must be a whole number"):
        keyed_rng(seed, "anything")
    assert keyed_rng(torch.tensor(3).item(), "a").integers(9) == keyed_rng(3, "a").integers(9)


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.bool, torch.complex64, torch.float8_e4m3fn, "float32", 5, None]
)
def test_states_in_a_precision_that_keeps_none(nothing_runs, tmp_path, dtype) -> None:
    with pytest.raises(mm.ArtifactError, match="States are kept as float16"):
        mm.plan_extraction(bench().model, "w1", dtype=dtype)
    with pytest.raises(mm.ArtifactError, match="States are kept as float16"):
        mm.cache_activations(bench().model, "w1", dtype=dtype)
    with pytest.raises(mm.ArtifactError, match="States are kept as float16"):
        mm.extract_activations(bench().model, "w1", tmp_path / "s", dtype=dtype)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("vector", [torch.ones(4, dtype=torch.complex64), torch.ones(2, 2), [1.0]])
def test_a_direction_that_is_no_real_vector(vector) -> None:
    acts = mm.cache_activations(bench().model, contrast_set(8), sites=[("resid_post", 1)])
    r = mm.difference_of_means(acts, toward="generalized")["resid_post", 1]
    with pytest.raises(mm.SiteError, match="must be a tensor"):
        replace(r, vector=vector)


@pytest.mark.parametrize("name", ["study", "sweep"])
def test_no_pairs_on_the_command_line(name) -> None:
    with pytest.raises(Exited, match="--pairs"):
        command(name, "addition-cued", "--pairs", "0")
