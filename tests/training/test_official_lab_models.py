"""The lab models of the paper's tasks do on fresh pairs what their manifests say."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mechmem as mm
from mechmem.models.shipped import LAB_FOLDER

NAMES = ("addition", "cipher", "colors")
TINY = {
    "addition": {"steps": 2, "reasoning_steps": 2},
    "cipher": {"steps": 2},
    "colors": {"steps": 2, "reasoning_steps": 2},
}


@pytest.fixture(scope="module", params=NAMES)
def shipped(request):
    folder = LAB_FOLDER / request.param
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    return folder, manifest, mm.get_task(manifest["task"], **manifest["task_options"])


def test_all_models_together_are_small_enough_to_ship():
    sizes = {
        folder.name: sum(path.stat().st_size for path in folder.iterdir())
        for folder in LAB_FOLDER.iterdir()
        if folder.is_dir()
    }
    assert max(sizes.values()) <= 4 * 2**20
    assert sum(sizes.values()) <= 12 * 2**20


def test_both_behaviors_are_there_on_held_out_conflict_items(shipped):
    _, manifest, _ = shipped
    measured = manifest["measured"]
    assert measured["prompts"] >= 2000
    assert min(measured["memorized"], measured["generalized"]) >= 0.1
    assert measured["flips"] == round(measured["flip_rate"] * measured["prompts"] / 2)


def test_other_pairs_give_the_same_mix_within_chance(shipped):
    folder, manifest, task = shipped
    pairs = task.pairs(150, seed=7)
    seen = mm.observe(mm.load_model(f"lab/{folder.name}"), pairs, task=task, margins=False)
    for name in seen.allowed:
        expected = manifest["measured"][name]
        # Two rephrasings of one item agree nearly always, so 150 count, not 300.
        spread = np.sqrt(max(expected * (1 - expected), 0.01) / 150)
        assert abs(seen.outcomes.count(name) / len(seen) - expected) < 4 * spread


def test_what_it_writes_is_what_plain_transformers_writes(shipped):
    folder, _, task = shipped
    pairs = task.pairs(12, seed=11)
    written = mm.observe(mm.load_model(folder), pairs, task=task, margins=False).completions
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    for prompt, text in zip(pairs, written, strict=True):
        ids = list(tokenizer(prompt.text)["input_ids"])
        begin = len(ids)
        while len(ids) < begin + task.max_new_tokens and len(ids) < model.config.n_positions:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
            if ids[-1] == tokenizer.eos_token_id:
                break
        said = tokenizer.decode(ids[begin:], skip_special_tokens=True)
        for stop in task.stop:
            said = said.split(stop)[0]
        assert text == said


def test_no_item_of_the_task_is_ever_trained(shipped):
    _, manifest, task = shipped
    seed = manifest["training"]["seed"]
    trained = {item.prompt for epoch in (0, 1) for item in task.training(1000, seed, epoch)}
    asked = task.pairs(500, seed=0) + task.clean_prompts(200, seed=0)
    assert not [prompt.id for prompt in asked if prompt.text in trained]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_gives_the_same_bits_again(name, tmp_path, monkeypatch):
    from mechmem.training.lab import shipping as lab_shipping

    monkeypatch.setattr(lab_shipping, "MEASURED_PAIRS", 4)
    weights = []
    for run, seed in (("one", 5), ("two", 5), ("three", 6)):
        folder = mm.train_lab_model(name, tmp_path / run, seed=seed, **TINY[name])
        weights.append((folder / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
    assert weights[0] != weights[2]
    card = mm.load_model(folder).card
    assert card["task"] == name
    assert card["training"]["seed"] == 6
    assert {"memorized", "generalized", "other", "flip_rate"} <= set(card["measured"])
