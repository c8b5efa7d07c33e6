"""Training into a folder that holds a run already: the same one, another, and starting over."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

import mechmem as mm
from mechmem.training.tokenizers import build_tokenizer

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
