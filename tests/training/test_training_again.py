"""Training into a folder that holds a run already: the same one, another, and starting over."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import threading

import pytest
import torch
from helpers import as_users_run_it
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

import mechmem as mm
from mechmem.manifests import sealed
from mechmem.training.tokenizers import build_tokenizer
from mechmem.work_claims import claimed
from mechmem.writing import HERE

TINY = {
    "steps": 2, "batch": 2, "samples": 4, "evaluate_every": 2, "evaluation_pairs": 2,
    "validation_items": 2, "learning_rate": 1e-3, "device": "cpu", "seed": 3, "keep": "last",
}  # fmt: skip
TASK = mm.get_task("cipher", length=6)


def letters(context=96):
    texts = [item.text for item in TASK.training(400, seed=0)]
    return build_tokenizer(texts, "characters", context=context)


def tiny(seed=0):
    torch.manual_seed(seed)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 96}
    special = {"bos_token_id": 2, "eos_token_id": 3, "pad_token_id": 0}
    return AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=len(letters()), **sizes, **heads, **special)
    )


def test_a_run_with_another_tokenizer_is_another_run(tmp_path):
    config, own = tiny().config, letters()
    mm.train(TASK, tmp_path, model=config, tokenizer=own, **TINY)
    own(["a", "abc"], padding=True, truncation=True, max_length=2)  # leaves its mark inside
    mm.train(TASK, tmp_path, model=config, tokenizer=own, **TINY)
    for other in ("characters", letters(context=80), None):
        with pytest.raises(mm.ArtifactError, match="another 'tokenizer'"):
            mm.train(TASK, tmp_path, model=config, tokenizer=other, **TINY)


def test_a_model_in_memory_counts_with_its_weights(tmp_path):
    first, own = tiny(), letters()
    made = mm.train(TASK, tmp_path, model=first, tokenizer=own, **TINY)
    again = mm.train(TASK, tmp_path, model=tiny(), tokenizer=own, **TINY)
    assert again.kept == made.kept
    with torch.no_grad():
        first.model.embed_tokens.weight[5, 3] += 1e-3
    with pytest.raises(mm.ArtifactError, match="another 'weights'"):
        mm.train(TASK, tmp_path, model=first, tokenizer=own, **TINY)


def test_a_model_in_a_folder_counts_with_its_weights(tmp_path):
    base, run = tmp_path / "base", tmp_path / "run"
    for seed in (0, 1):
        tiny(seed).save_pretrained(base)
        letters().save_pretrained(base)
        if seed == 0:
            mm.train(TASK, run, model=base, **TINY)
    with pytest.raises(mm.ArtifactError, match="another 'weights'"):
        mm.train(TASK, run, model=base, **TINY)


def test_starting_over_leaves_nothing_of_the_earlier_run_and_all_of_the_users(tmp_path):
    options = {"model": tiny(), "tokenizer": letters(), **TINY}
    mm.train(TASK, tmp_path / "new", **options)
    wanted = {path.relative_to(tmp_path / "new") for path in (tmp_path / "new").rglob("*")}
    folder = tmp_path / "out"
    mm.train(TASK, folder, **options, method="lora")
    assert (folder / "adapter" / "adapter_model.safetensors").is_file()
    (folder / "notes.txt").write_text("mine")
    mm.train(TASK, folder, **options, resume=False)
    assert {path.relative_to(folder) for path in folder.rglob("*")} == {
        *wanted, (folder / "notes.txt").relative_to(folder)
    }  # fmt: skip
    new, out = (place / "model.safetensors" for place in (tmp_path / "new", folder))
    assert new.read_bytes() == out.read_bytes()

    mm.train(TASK, folder, **options, method="lora", resume=False)
    (folder / "adapter" / "mine.txt").write_text("mine")
    mm.train(TASK, folder, **options, resume=False)
    assert [path.name for path in (folder / "adapter").iterdir()] == ["mine.txt"]


def test_a_run_that_starts_from_the_model_in_its_own_folder_can_start_over(tmp_path):
    mm.train(TASK, tmp_path, model=tiny(), tokenizer=letters(), **TINY)
    before = (tmp_path / "model.safetensors").read_bytes()
    mm.train(TASK, tmp_path, model=str(tmp_path), resume=False, **TINY)
    assert (tmp_path / "model.safetensors").read_bytes() != before


def changed(file, how):
    """One byte flipped, cut in half, gone, or a pipe that nobody writes to."""
    data = bytearray(file.read_bytes())
    file.unlink()
    if how == "flipped":
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    elif how == "cut":
        file.write_bytes(data[: len(data) // 2])
    elif how == "pipe":
        os.mkfifo(file)


HOWS = ("flipped", "cut", "gone", "pipe")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    options = {"model": tiny(), "tokenizer": letters(), **TINY}
    return mm.train(TASK, tmp_path_factory.mktemp("finished"), **options).folder, options


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("name", ["curves.csv", "model.safetensors", "tokenizer.json"])
def test_a_finished_run_is_believed_only_as_it_was_written(finished, tmp_path, name, how):
    folder = shutil.copytree(finished[0], tmp_path / "it")
    changed(folder / name, how)
    with pytest.raises(mm.ArtifactError, match=rf"{name} (is|was|cannot).*"):
        mm.train(TASK, folder, **finished[1])


@pytest.mark.parametrize("seal", [dict, sealed])
@pytest.mark.parametrize(
    "entry", [{"kept": {}}, {"kept": {"step": 9, "loss": 0.0}}, {"digests": 5}]
)
def test_a_record_is_believed_only_as_it_was_written(finished, tmp_path, entry, seal):
    folder = shutil.copytree(finished[0], tmp_path / "it")
    note = folder / "training.json"
    note.write_text(json.dumps(seal({**json.loads(note.read_text()), **entry})))
    if seal is sealed and "step" in (entry.get("kept") or {}):
        assert mm.train(TASK, folder, **finished[1]).kept["step"] == 9  # whoever seals it, wrote it
        return
    with pytest.raises(mm.ArtifactError, match=r"training\.json"):
        mm.train(TASK, folder, **finished[1])


class Stopped(Exception):
    pass


@pytest.fixture(scope="module")
def stopped(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stopped")
    long = {**TINY, "steps": 4, "evaluate_every": 1, "save_every": 1}
    options = {"model": tiny(), "tokenizer": letters(), **long}

    def stop(done, _):
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        mm.train(TASK, folder, **options, progress=stop)
    return folder, options


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    "name",
    ["optimizer.pt", "scheduler.pt", "rng_state.pth", "model.safetensors", "config.json",
     "trainer_state.json", "whole", "../kept-2/model.safetensors"],
)  # fmt: skip
def test_a_run_goes_on_only_from_a_state_that_is_whole(stopped, tmp_path, name, how):
    folder = shutil.copytree(stopped[0], tmp_path / "it")
    changed((folder / "work" / "checkpoint-2" / name).resolve(), how)
    if name == "whole" and how == "gone":
        return  # it was not written to its end, and is not gone on from
    with pytest.raises(mm.ArtifactError, match=r"resume=False|Save it again"):
        mm.train(TASK, folder, **stopped[1])
    assert not (folder / "model.safetensors").exists()


def test_what_was_stopped_and_not_changed_goes_on(stopped, tmp_path):
    whole = mm.train(TASK, tmp_path / "whole", **stopped[1]).folder
    on = mm.train(TASK, shutil.copytree(stopped[0], tmp_path / "it"), **stopped[1]).folder
    for name in ("model.safetensors", "curves.csv"):
        assert (on / name).read_bytes() == (whole / name).read_bytes()


@pytest.mark.parametrize(
    "given",
    [{"device": "xx"}, {"device": 5}, {"device": "cuda:99"}, {"tokenizer": 5}, {"warmup": -1},
     {"warmup": 1.5}, {"steps": True}, {"betas": 5}, {"betas": (2, 2)}, {"weight_decay": "x"},
     {"weight_decay": math.nan}, {"learning_rate": "x"}, {"seed": 1.5}, {"lora_targets": 5}],
)  # fmt: skip
def test_what_cannot_be_trained_with_is_refused_before_anything_runs(tmp_path, given):
    (name,) = given
    options = {"model": tiny(), "tokenizer": letters(), **TINY, **given}
    with as_users_run_it(), pytest.raises(mm.MechmemError, match=rf"{name}|is not a device"):
        mm.train(TASK, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_two_that_train_at_once_in_one_process_get_what_each_gets_alone(tmp_path):
    options = {
        "model": AutoModelForCausalLM.from_config(
            GPT2Config(vocab_size=len(letters()), n_positions=96, n_embd=8, n_layer=1, n_head=2)
        ),
        "tokenizer": letters(), **TINY, "steps": 6, "evaluate_every": 3,
    }  # fmt: skip

    def weights(name):
        mm.train(TASK, tmp_path / name, **options)
        return (tmp_path / name / "model.safetensors").read_bytes()

    alone, found = weights("alone"), {}
    threads = [
        threading.Thread(target=lambda n=n: found.update({n: weights(n)})) for n in ("a", "b")
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found["a"] == found["b"] == alone


def test_nobody_trains_where_another_process_does(tmp_path):
    options = {"model": tiny(), "tokenizer": letters(), **TINY}
    with claimed(tmp_path / "out" / "training.json"):
        with pytest.raises(mm.ArtifactError, match="Another run trains into"):
            mm.train(TASK, tmp_path / "out", **options)
        assert [path.name for path in (tmp_path / "out").iterdir()] == ["training.json.claim"]
    child = subprocess.Popen(["true"])
    child.wait()
    text = json.dumps({"host": HERE, "pid": child.pid})
    (tmp_path / "out" / "training.json.claim").write_text(text)
    mm.train(TASK, tmp_path / "out", **options)
    assert not (tmp_path / "out" / "training.json.claim").exists()


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize("name", [".", "made", "kept-1", "partial-kept-2", "checkpoint-7"])
def test_a_link_where_a_run_works_is_refused_and_what_it_leads_to_stays(tmp_path, name, resume):
    theirs, work = tmp_path / "theirs", tmp_path / "out" / "work"
    theirs.mkdir()
    (theirs / "thesis").write_text("of years")
    (work / name).parent.mkdir(parents=True)
    (work / name).symlink_to(theirs)
    with pytest.raises(mm.ArtifactError, match="is a link"):
        mm.train(TASK, tmp_path / "out", model=tiny(), tokenizer=letters(), resume=resume, **TINY)
    assert [path.name for path in theirs.iterdir()] == ["thesis"]


def test_a_model_that_was_trained_is_the_one_that_was_written(finished, tmp_path):
    folder = shutil.copytree(finished[0], tmp_path / "it")
    assert mm.load_model(folder).logits(["ab"]).isfinite().all()
    changed(folder / "model.safetensors", "flipped")
    for use in (mm.load_model, lambda f: mm.train(TASK, tmp_path / "on", model=f, **TINY)):
        with pytest.raises(mm.ModelError, match=r"model\.safetensors was changed after"):
            use(folder)
    (folder / "training.json").unlink()
    mm.load_model(folder)


def test_a_folder_that_asks_for_more_than_it_holds_is_not_built(tmp_path):
    tiny().save_pretrained(tmp_path / "base")
    letters().save_pretrained(tmp_path / "base")
    note = tmp_path / "base" / "config.json"
    note.write_text(json.dumps({**json.loads(note.read_text()), "num_hidden_layers": 10**9}))
    with pytest.raises(mm.ModelError, match="layers"):
        mm.train(TASK, tmp_path / "out", model=tmp_path / "base", **TINY)
