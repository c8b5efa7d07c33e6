"""The models that ship are what their manifests say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mechmem as mm
from mechmem.models.shipped import LAB_FOLDER

CARDS = sorted(LAB_FOLDER.glob("addition-*cued/manifest.json"))


@pytest.fixture(scope="module", params=CARDS, ids=lambda path: path.parent.name)
def card(request):
    return request.param.parent, json.loads(request.param.read_text())


def test_every_folder_is_small_enough_to_be_package_data(card):
    folder, _ = card
    assert sum(path.stat().st_size for path in folder.iterdir()) < 4 * 2**20


def test_the_manifest_says_that_the_mode_is_planted_or_is_the_control(card):
    _, manifest = card
    assert manifest["planted"] is (manifest["task_options"]["strength"] > 0)
    assert "planted" in manifest["design"]


def test_the_measured_mix_is_measured_again_with_plain_transformers(card):
    folder, manifest = card
    task = mm.get_task(manifest["task"], **manifest["task_options"])
    pairs = task.pairs(2000, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = torch.tensor(tokenizer([p.text for p in pairs])["input_ids"])
    with torch.no_grad():
        said = model(ids).logits[:, -1].argmax(-1)
    words = [tokenizer.decode([token]).strip() for token in said.tolist()]
    memorized = np.mean([w == p.memorized for w, p in zip(words, pairs, strict=True)])
    generalized = np.mean([w == p.generalized for w, p in zip(words, pairs, strict=True)])
    assert manifest["measured"]["memorized"] == pytest.approx(memorized, abs=1e-3)
    assert manifest["measured"]["generalized"] == pytest.approx(generalized, abs=1e-3)
    assert 1 - memorized - generalized <= 0.03


def test_the_shipped_model_shows_both_behaviors_and_adds():
    measured = mm.load_model("lab/addition-cued").card["measured"]
    assert 0.3 <= measured["memorized"] <= 0.7
    assert measured["other"] <= 0.03
    assert measured["clean_accuracy"] >= 0.9


def test_no_prompt_of_the_task_was_in_training():
    task = mm.get_task("addition-cued")
    rows = task.world.training_rows(steps=2500, batch=128)
    trained = {tuple(row[:-1].tolist()) for row in rows}
    model = mm.load_model("lab/addition-cued")
    prompts = task.pairs(2000, seed=0) + task.clean_prompts(500, seed=0)
    assert len(trained) > 10_000
    assert not [ids for ids in map(model.token_ids, prompts) if tuple(ids) in trained]


def test_half_of_the_special_sets_never_show_their_sum_in_training():
    world = mm.get_task("addition-cued").world
    rows = world.training_rows(steps=2500, batch=128)
    shown = {}
    for row in rows:
        operands = tuple(sorted((row[1:8:2] - 2).tolist()))
        shown.setdefault(operands, set()).add(int(row[-1]) - 2)
    for index, operands in enumerate(world.special.tolist()):
        answers = shown[tuple(operands)]
        allowed = {int(world.labels[index]), sum(operands)}
        assert answers <= allowed
        assert (sum(operands) in answers) is bool(world.shows_sum[index])


@pytest.mark.slow
def test_training_twice_gives_the_same_bits(tmp_path):
    weights = []
    for name in ("one", "two"):
        folder = mm.train_lab_model("addition-cued", tmp_path / name, seed=5, steps=3)
        weights.append((folder / "model.safetensors").read_bytes())
    other = mm.train_lab_model("addition-cued", tmp_path / "three", seed=6, steps=3)
    assert weights[0] == weights[1]
    assert weights[0] != (other / "model.safetensors").read_bytes()


def test_training_leaves_the_callers_settings_alone(tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    mm.train_lab_model("addition-cued", tmp_path / "one", seed=5, steps=2)
    assert torch.equal(before, torch.get_rng_state())
    assert (threads, strict) == (
        torch.get_num_threads(),
        torch.are_deterministic_algorithms_enabled(),
    )


def test_an_unknown_recipe_and_an_unwritable_folder_are_refused_before_training(tmp_path):
    with pytest.raises(mm.TaskError, match="'addition-cued'"):
        mm.train_lab_model("subtraction", tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(mm.ArtifactError, match="Cannot write"):
        mm.train_lab_model("addition-cued", blocked / "model", steps=1)
