"""The lab model of recall and reasoning is what its manifest says, and can be trained again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import mechmem as mm
from mechmem.models.shipped import LAB_FOLDER
from mechmem.tasks.lab.recall_reasoning import KINDS, RECALL_VOCABULARY, RecallWorld

FOLDER = LAB_FOLDER / "recall-reasoning"


@pytest.fixture(scope="module")
def manifest():
    return json.loads((FOLDER / "manifest.json").read_text(encoding="utf-8"))


def test_the_shipped_model_is_small_and_says_what_is_planted(manifest):
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) < 4 * 2**20
    assert manifest["planted"] is True
    assert "planted" in manifest["design"]
    assert manifest["task_options"] == {"seed": 0, "shared": True}


def test_the_measured_shares_are_measured_again_with_plain_transformers(manifest):
    task = mm.get_task("recall-reasoning", **manifest["task_options"])
    questions = task.questions(4000, seed=0)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    model = AutoModelForCausalLM.from_pretrained(FOLDER).eval()
    ids = torch.tensor(tokenizer([p.text for p in questions])["input_ids"])
    with torch.no_grad():
        said = model(ids).logits[:, -1].argmax(-1)
    words = [tokenizer.decode([token]).strip() for token in said.tolist()]
    for kind in KINDS:
        mine = [k for k, p in enumerate(questions) if p.meta["item"] == kind]
        measured = manifest["measured"][kind]
        for name, field in (("correct", "answer"), ("stored", "memorized"), ("sum", "generalized")):
            share = np.mean([words[k] == getattr(questions[k], field) for k in mine])
            assert measured[name] == pytest.approx(share, abs=2e-3)


def test_the_shipped_model_recalls_and_computes(manifest):
    measured = manifest["measured"]
    assert measured["fact"]["correct"] >= 0.9
    assert measured["computation"]["correct"] >= 0.85


def test_the_tokenizer_reads_a_training_row_back_token_by_token():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for row in RecallWorld(0).training_rows(2, 32):
        words = [RECALL_VOCABULARY[index] for index in row]
        text = " ".join(words[1:-1])
        assert tokenizer(text)["input_ids"] == row[:-1].tolist()
        assert tokenizer.decode([row[-1]]).strip() == words[-1]


def test_the_same_seed_trains_the_same_model_and_leaves_the_caller_alone(tmp_path):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    for name in ("one", "two"):
        mm.train_lab_model("recall-reasoning", tmp_path / name, seed=3, steps=2)
    assert torch.equal(torch.get_rng_state(), before)
    one, two = ((tmp_path / n / "model.safetensors").read_bytes() for n in ("one", "two"))
    assert one == two
    mm.train_lab_model("recall-reasoning", tmp_path / "other", seed=4, steps=2)
    assert (tmp_path / "other" / "model.safetensors").read_bytes() != one
    card = mm.load_model(str(tmp_path / "one")).card
    assert card["task_options"] == {"seed": 3, "shared": True}


def test_impossible_steps_are_refused(tmp_path):
    with pytest.raises(mm.TaskError, match="steps must be"):
        mm.train_lab_model("recall-reasoning", tmp_path / "x", steps=0)
