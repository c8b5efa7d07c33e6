"""Training a model on a task of the paper: the same numbers as by hand, and after a kill."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, LlamaConfig

import mechmem as mm
from mechmem.models.tokenizing import Tokens
from mechmem.training.data import Items, collate, encode
from mechmem.training.loop import kept_row
from mechmem.training.settings import TrainingSettings
from mechmem.training.tokenizers import build_tokenizer

TINY = {
    "steps": 4,
    "batch": 4,
    "samples": 12,
    "evaluate_every": 2,
    "evaluation_pairs": 4,
    "validation_items": 6,
    "learning_rate": 1e-3,
    "device": "cpu",
    "seed": 3,
}


@pytest.fixture(scope="module")
def cipher():
    return mm.get_task("cipher", length=6)


@pytest.fixture(scope="module")
def letters(cipher):
    texts = [item.text for item in cipher.training(400, seed=0)]
    return build_tokenizer(texts, "characters", context=96)


def tiny(tokenizer, dropout=0.0):
    return GPT2Config(
        vocab_size=len(tokenizer),
        n_positions=96,
        n_embd=16,
        n_layer=1,
        n_head=2,
        resid_pdrop=dropout,
        embd_pdrop=dropout,
        attn_pdrop=dropout,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


@pytest.fixture(scope="module")
def run(cipher, letters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return mm.train(
        cipher, folder, model=tiny(letters), tokenizer=letters, keep="last", loss="answer", **TINY
    )


def test_the_weights_are_those_of_a_plain_loop_in_torch(run, cipher, letters):
    from mechmem.seeding import keyed_seed

    torch.manual_seed(keyed_seed(3, "training", "weights"))
    model = AutoModelForCausalLM.from_config(tiny(letters))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.0)
    items = cipher.training(12, seed=3)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3 * 1_000_003 + 1)).tolist()
    rows = [*items, *[items[k] for k in order]]
    for step in range(4):
        batch = rows[4 * step : 4 * step + 4]
        heads = [letters(item.prompt)["input_ids"] for item in batch]
        whole = [[*letters(item.text)["input_ids"], letters.eos_token_id] for item in batch]
        total, count = torch.zeros(()), 0
        for head, ids in zip(heads, whole, strict=True):
            logits = model(torch.tensor([ids])).logits[0, len(head) - 1 : -1]
            total = total + torch.nn.functional.cross_entropy(
                logits, torch.tensor(ids[len(head) :]), reduction="sum"
            )
            count += len(ids) - len(head)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * (4 - step) / 4
        optimizer.zero_grad()
        (total / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    trained = AutoModelForCausalLM.from_pretrained(run.folder)
    for name, weight in model.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], weight, rtol=0, atol=2e-5)
    assert not torch.equal(trained.transformer.h[0].mlp.c_fc.weight, torch.zeros(16, 64))


def test_the_curves_are_what_the_kept_model_does_and_lie_in_files(run, cipher, letters):
    from mechmem.seeding import keyed_seed

    table = np.genfromtxt(run.folder / "curves.csv", delimiter=",", names=True)
    assert table["step"].tolist() == [2, 4]
    pairs = cipher.pairs(4, keyed_seed(3, "evaluation") % 2**31)
    seen = mm.observe(mm.load_model(run.folder), pairs, task=cipher)
    for name in seen.allowed:
        assert table[name][-1] == pytest.approx(seen.outcomes.count(name) / 8)
    model = AutoModelForCausalLM.from_pretrained(run.folder).eval()
    total, count = 0.0, 0
    for item in cipher.training(6, seed=3, epoch=-1):
        head = len(letters(item.prompt)["input_ids"])
        ids = [*letters(item.text)["input_ids"], letters.eos_token_id]
        with torch.no_grad():
            scores = model(torch.tensor([ids])).logits[0].log_softmax(-1)
        total -= sum(float(scores[k - 1, ids[k]]) for k in range(head, len(ids)))
        count += len(ids) - head
    assert table["validation_loss"][-1] == pytest.approx(total / count, rel=1e-4)
    assert "validation loss" in (run.folder / "curves.html").read_text()
    assert len(run.figure().data) >= 5


def test_a_finished_run_is_not_done_again_and_other_settings_are_refused(run, cipher, letters):
    again = {"model": tiny(letters), "tokenizer": letters, "keep": "last", "loss": "answer"}
    before = (run.folder / "model.safetensors").stat().st_mtime_ns
    same = mm.train(cipher, run.folder, **again, **TINY)
    assert same.kept == run.kept
    assert (run.folder / "model.safetensors").stat().st_mtime_ns == before
    with pytest.raises(mm.ArtifactError, match="another 'settings'"):
        mm.train(cipher, run.folder, **again, **{**TINY, "seed": 4})


SCRIPT = """
import os, signal, sys
import mechmem as mm
from transformers import GPT2Config
from mechmem.training.tokenizers import build_tokenizer
task = mm.get_task("cipher", length=6)
texts = [item.text for item in task.training(400, seed=0)]
letters = build_tokenizer(texts, "characters", context=96)
config = GPT2Config(vocab_size=len(letters), n_positions=96, n_embd=16, n_layer=1, n_head=2,
                    bos_token_id=2, eos_token_id=3, pad_token_id=0)
kill_at = int(sys.argv[2])
def progress(done, total):
    if done == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
mm.train(task, sys.argv[1], model=config, tokenizer=letters, steps=8, batch=4, samples=12,
         evaluate_every=2, evaluation_pairs=4, validation_items=6, learning_rate=1e-3, seed=3,
         save_every=2, device="cpu", keep="best-validation-loss", progress=progress)
"""


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_to_the_same_weights(tmp_path):
    env = {**os.environ, "OMP_NUM_THREADS": "1"}

    def started(folder, kill_at):
        command = [sys.executable, "-c", SCRIPT, str(tmp_path / folder), str(kill_at)]
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=600)

    whole, killed = started("whole", 0), started("killed", 5)
    assert whole.returncode == 0, whole.stderr
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "model.safetensors").exists()
    assert (tmp_path / "killed" / "work" / "checkpoint-4" / "whole").exists()
    on = started("killed", 0)
    assert on.returncode == 0, on.stderr
    one, two = (tmp_path / name / "model.safetensors" for name in ("whole", "killed"))
    assert one.read_bytes() == two.read_bytes()
    one, two = (tmp_path / name / "curves.csv" for name in ("whole", "killed"))
    assert one.read_text() == two.read_text()


def test_a_run_that_was_stopped_after_its_last_step_writes_the_same_record(
    run, cipher, letters, tmp_path, monkeypatch
):
    again = {"model": tiny(letters), "tokenizer": letters, "keep": "last", "loss": "answer"}

    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as inside:
        inside.setattr("mechmem.training.run.write_model", stopped)
        with pytest.raises(KeyboardInterrupt):
            mm.train(cipher, tmp_path, **again, **TINY)
    mm.train(cipher, tmp_path, **again, **TINY)
    one, two = (folder / "training.json" for folder in (run.folder, tmp_path))
    assert two.read_text() == one.read_text()  # in the same order, too


@pytest.fixture(scope="module")
def llama(cipher, letters, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=len(letters),
        max_position_embeddings=96,
        bos_token_id=2,
        eos_token_id=3,
        pad_token_id=0,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    letters.save_pretrained(folder)
    return folder


def test_lora_trains_adapters_on_queries_and_values_and_the_merged_model_loads(
    cipher, llama, tmp_path
):
    settings = TrainingSettings.paper("cipher", lora_dropout=0.0, learning_rate=1e-2, keep="last")
    short = {name: value for name, value in TINY.items() if name != "learning_rate"}
    run = mm.train(cipher, tmp_path / "out", model=str(llama), settings=settings, **short)
    adapter = load_file(run.folder / "adapter" / "adapter_model.safetensors")
    assert {name.split(".")[-3] for name in adapter} == {"q_proj", "v_proj"}
    assert all(float(value.abs().max()) > 0 for value in adapter.values())
    base = AutoModelForCausalLM.from_pretrained(llama).state_dict()
    merged = AutoModelForCausalLM.from_pretrained(run.folder).state_dict()
    for name, weight in base.items():
        wanted = weight
        if "q_proj" in name or "v_proj" in name:
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            wanted = weight + 32 / 8 * (
                adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
            )
        torch.testing.assert_close(merged[name], wanted, rtol=1e-4, atol=1e-5)
    prompt = cipher.pairs(1)[0].text
    ids = torch.tensor([AutoTokenizer.from_pretrained(run.folder)(prompt)["input_ids"]])
    with torch.no_grad():
        plain = AutoModelForCausalLM.from_pretrained(run.folder).eval()(ids).logits[0, -1]
    model = mm.load_model(run.folder)
    torch.testing.assert_close(model.logits([prompt])[0], plain, rtol=1e-4, atol=1e-4)


def test_half_precision_rounds_the_passes_and_leaves_the_weights_float32(
    run, cipher, letters, tmp_path
):
    again = {"model": tiny(letters), "tokenizer": letters, "keep": "last", "loss": "answer"}
    half = mm.train(cipher, tmp_path, **again, **TINY, bf16=True)
    whole, rounded = (load_file(one.folder / "model.safetensors") for one in (run, half))
    assert {value.dtype for value in rounded.values()} == {torch.float32}
    away = max(float((rounded[name] - whole[name]).abs().max()) for name in whole)
    assert 1e-6 < away < 8e-3  # four steps of AdamW, each at most the learning rate either way
    assert half.kept["loss"] == pytest.approx(run.kept["loss"], rel=2e-2)
    assert half.kept["loss"] != run.kept["loss"]


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_a_model_of_ours_is_tuned_by_its_name_and_its_adapter_belongs_to_that(tmp_path):
    task = mm.get_task("cipher")
    lora = {"method": "lora", "lora_dropout": 0.0, "keep": "last"}
    run = mm.train(task, tmp_path / "out", model="lab/cipher", **lora, **TINY)
    note = json.loads((run.folder / "adapter" / "adapter_config.json").read_text())
    assert note["base_model_name_or_path"] == run.record["model"] == "lab/cipher"
    prompt = [task.pairs(1)[0].text]
    base, whole, adapted = (
        mm.load_model(where).logits(prompt)
        for where in ("lab/cipher", run.folder, run.folder / "adapter")
    )
    torch.testing.assert_close(adapted, whole, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(base, whole, atol=1e-3)


def test_the_papers_settings_are_offered():
    settings = TrainingSettings.paper("addition")
    assert (settings.method, settings.epochs, settings.batch) == ("lora", 50, 16)
    assert (settings.lora_rank, settings.lora_alpha, settings.lora_dropout) == (8, 32, 0.1)
    assert (settings.learning_rate, settings.schedule) == (5e-5, "linear")
    assert settings.loss == "instance"
    assert TrainingSettings.paper("colors").epochs == TrainingSettings.paper("cipher").epochs == 30
    assert TrainingSettings.paper("cipher", steps=7).epochs is None


def test_the_kept_row_follows_the_rule():
    def row(step, memorized, generalized, loss):
        rates = {"memorized": memorized, "generalized": generalized}
        return {"step": step, "loss": 1.0, "validation_loss": loss, **rates}

    rows = [row(1, 0.9, 0.1, 0.5), row(2, 0.4, 0.5, 0.3), row(3, 0.5, 0.4, 0.2), row(4, 0, 1, 0.4)]
    assert kept_row(rows, "gen*mem")["step"] == 2
    assert kept_row(rows, "best-validation-loss")["step"] == 3
    assert kept_row(rows, "last")["step"] == 4
    assert kept_row([rows[3], {**rows[3], "step": 5}], "gen*mem")["step"] == 5


def test_the_loss_counts_the_answer_alone_or_the_whole_instance(cipher, letters):
    item = cipher.training(1, seed=0)[0]
    tokens = Tokens(letters, 96)
    encoded = encode([item], tokens)
    head = letters(item.prompt)["input_ids"]
    whole = [*letters(item.text)["input_ids"], letters.eos_token_id]
    assert encoded == [(tuple(whole), len(head))]
    answer = collate(encoded, "answer", 0)["labels"][0].tolist()
    assert answer == [-100] * len(head) + whole[len(head) :]
    assert collate(encoded, "instance", 0)["labels"][0].tolist() == whole


def test_a_batch_is_padded_where_nothing_counts():
    batch = collate([((5, 6, 7), 1), ((8,), 0)], "answer", 0)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]


def test_colors_are_drawn_afresh_every_epoch_and_ciphers_come_again_in_another_order(letters):
    for name, fresh in (("colors", True), ("cipher", False)):
        task = mm.get_task(name)
        texts = [item.text for item in task.training(200, seed=1)]
        tokens = Tokens(build_tokenizer(texts, "words" if fresh else "characters"), None)
        items = Items(task, TrainingSettings(epochs=2, samples=40, seed=1), tokens, 80)
        first, second = [items[k] for k in range(40)], [items[k] for k in range(40, 80)]
        assert (sorted(first) == sorted(second)) is not fresh
        assert first != second
        assert items[3] == first[3]


@pytest.mark.parametrize(
    ("name", "split"),
    [("colors", "words"), ("colors", "characters"), ("cipher", r"<mem-\w+>|[\s\S]"),
     ("addition", r"<mem-\w+>|\d|has|[^\d]")],
)  # fmt: skip
def test_a_built_tokenizer_gives_every_text_back(name, split):
    task = mm.get_task(name)
    made = task.training(300, seed=0)
    tokenizer = build_tokenizer([item.text for item in made], split)
    for item in made[:40]:
        ids = tokenizer(item.text)["input_ids"]
        assert tokenizer.decode(ids, skip_special_tokens=True) == item.text
        assert tokenizer.unk_token_id not in ids
        answer = tokenizer(item.text)["input_ids"][len(tokenizer(item.prompt)["input_ids"]) :]
        assert tokenizer.decode(answer).strip() == item.target.strip()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "steps=, not both"),
        ({"steps": 2, "epochs": 1}, "not both"),
        ({"steps": 2, "keep": "best"}, "'gen\\*mem', 'last'"),
        ({"steps": 0}, "steps must be an integer from 1, got 0"),
        ({"steps": 2, "learning_rate": 0}, "learning_rate must be above 0"),
        ({"steps": 2, "batch": 6, "micro_batch": 4}, "not a multiple of micro_batch=4"),
    ],
)
def test_settings_that_make_no_sense_are_refused(changes, words):
    with pytest.raises(mm.TaskError, match=words):
        TrainingSettings(**changes)


def test_what_cannot_be_trained_is_refused_with_the_way_out(tmp_path, cipher, letters):
    with pytest.raises(mm.TaskError, match="train_lab_model"):
        mm.train("addition-cued", tmp_path / "a", steps=1)
    with pytest.raises(mm.ModelError, match="to train it"):
        mm.train("cipher", tmp_path / "b", steps=1, model=str(tmp_path / "none"))
    with pytest.raises(mm.TaskError, match="Did you mean 'learning_rate'"):
        TrainingSettings.paper("cipher", learning_rat=1)
    with pytest.raises(mm.TaskError, match="longer context"):
        encode(cipher.training(1), Tokens(letters, 8))
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "training.json").write_text("{")
    with pytest.raises(mm.ArtifactError, match="cannot be read"):
        mm.train("cipher", tmp_path / "c", steps=1)


def test_training_leaves_the_callers_model_and_random_state_alone(cipher, letters, tmp_path):
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(tiny(letters))
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    mm.train(cipher, tmp_path, model=model, tokenizer=letters, **{**TINY, "steps": 2})
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert json.loads((tmp_path / "training.json").read_text())["kept"]["step"] == 2
