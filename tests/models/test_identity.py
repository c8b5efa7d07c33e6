"""Two models with one fingerprint are one model, whatever was done to the weights of the other."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from models.zoo import build, tokenizer
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    FalconConfig,
    GPTNeoConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

import mechmem as mm
from mechmem.models import identity


def load(plain):
    return mm.load_model(plain, tokenizer=tokenizer())


def mlp(plain, layer=1):
    return plain.model.layers[layer].mlp.down_proj.weight


def heads(plain, layer=0):
    return plain.model.layers[layer].self_attn.o_proj.weight


CHANGES = {
    "one neuron pruned": lambda p: mlp(p).data[:, 17].zero_(),
    "neurons pruned but for the first": lambda p: mlp(p).data[:, 1:9].zero_(),
    "a neuron scaled": lambda p: mlp(p).data[:, 3].mul_(1.01),
    "a head pruned": lambda p: heads(p).data[:, 8:16].zero_(),
    "a row scaled": lambda p: mlp(p).data[5].mul_(2),
    "two rows exchanged": lambda p: mlp(p).data[2:4].copy_(mlp(p).data[2:4].flip(0)),
    "two columns exchanged": lambda p: mlp(p).data.copy_(mlp(p).data[:, torch.randperm(48)]),
    "all scaled in place": lambda p: mlp(p).data.mul_(1.001),
    "a sign turned everywhere": lambda p: mlp(p).data.neg_(),
    "one bias": lambda p: p.model.norm.weight.data[-1].add_(1e-3),
    "a token's embedding": lambda p: p.model.embed_tokens.weight.data[60].zero_(),
    "the smaller half of all weights": lambda p: mlp(p).data.mul_(
        mlp(p).data.abs() > mlp(p).data.abs().median()
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_changed_weights_are_another_model_before_and_after_loading(change):
    plain = build("llama")
    changed = copy.deepcopy(plain)
    change(changed)
    model, other = load(plain), load(changed)
    before = model.info
    assert before.fingerprint != other.info.fingerprint
    assert model.info == before
    # The same in place, on a model whose fingerprint was asked for already; views share it.
    view = model.with_interventions([])
    body = copy.deepcopy(plain)
    taken = mm.load_model(body, tokenizer=tokenizer(), consume=True)
    assert taken.info.fingerprint == before.fingerprint
    weights = dict(taken.tl.original_model.named_parameters())
    for name, value in changed.named_parameters():
        own = next(p for n, p in weights.items() if n.replace("._original_component", "") == name)
        own.data.copy_(value.data)
    assert taken.info.fingerprint == other.info.fingerprint
    assert view.info == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_one_bit_anywhere_is_another_fingerprint(dtype):
    generator = np.random.default_rng(0)
    value = torch.tensor(generator.normal(size=(37, 53))).to(dtype)
    seen = {identity._sum(value)}
    size = value.element_size() * 8
    for _ in range(300):
        flipped = value.clone()
        place, bit = generator.integers(value.numel()), int(generator.integers(size))
        raw = flipped.reshape(-1)[place : place + 1].view(torch.uint8)
        raw[bit // 8] ^= 1 << bit % 8
        seen.add(identity._sum(flipped))
    assert len(seen) > 290  # draws of one and the same bit happen


def test_the_sum_is_what_integers_of_python_say():
    value = torch.randn(3, 1500)
    words = value.reshape(-1).view(torch.int32).tolist()
    columns = identity._numbers(identity._WORDS, identity._FIRST).tolist()
    rows = identity._numbers(3, identity._SECOND).tolist()
    by_hand = sum(
        word * columns[k % identity._WORDS] * rows[k // identity._WORDS]
        for k, word in enumerate(words)
    )
    assert identity._sum(value) == by_hand % 2**64


def test_numbers_are_those_of_splitmix64():
    def splitmix(k):
        x = (k * identity._FIRST + identity._SECOND) % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        return (x ^ x >> 31) | 1

    got = [n % 2**64 for n in identity._numbers(100, identity._SECOND).tolist()]
    assert got == [splitmix(k) for k in range(100)]


@pytest.mark.parametrize("shape", [(40, 30), (3, 20, 10), (1, 7), (9,), (5, 1)])
def test_a_glance_meets_every_row_and_column_of_every_matrix(shape):
    met = torch.zeros(shape)
    met.view(-1)[identity._places("name", torch.Size(shape))] = 1
    matrices = met.reshape(-1, shape[-2] if len(shape) > 1 else 1, shape[-1])
    assert (matrices.sum(-1) > 0).all()
    assert (matrices.sum(-2) > 0).all()


def test_other_dtypes_and_processing_in_place_are_seen():
    model = load(build("gpt2"))
    first = model.info
    model.tl.to(torch.bfloat16)
    second = model.info
    assert (first.dtype, second.dtype) == ("float32", "bfloat16")
    assert first.fingerprint != second.fingerprint
    model = load(build("gpt2"))
    assert model.info == first
    model.tl.enable_compatibility_mode(disable_warnings=True)
    assert model.info.processing == "compatibility"
    assert model.info.fingerprint != first.fingerprint


BUFFERS = {"llama": "inv_freq", "gpt_neox": "inv_freq", "gemma2": "embed_scale",
           "gemma3": "full_attention_inv_freq"}  # fmt: skip


@pytest.mark.parametrize("family", BUFFERS)
def test_rotation_and_scale_count_as_weights_do_and_stay_what_they_are_in_use(family):
    model = load(build(family))
    first = model.info.fingerprint
    before = model.logits("1 2 3 4 5 6 7")
    model.generate("1 2 3 4 5 6 7 8 9", 4)
    assert model.info.fingerprint == first == load(build(family)).info.fingerprint
    for name, value in model.tl.named_buffers():
        if name.endswith(f".{BUFFERS[family]}"):
            value.data.mul_(1.7)  # nothing of it is counted by PyTorch
    assert float((model.logits("1 2 3 4 5 6 7") - before).abs().max()) > 0
    assert model.info.fingerprint != first


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_frequencies_that_a_long_prompt_sets_are_no_change(kind):
    width = 4
    rope = {"rope_type": kind, "rope_theta": 1e4, "factor": 2.0}
    if kind == "longrope":
        short, long = [1.0] * width, [3.0] * width
        rope |= {"short_factor": short, "long_factor": long, "original_max_position_embeddings": 8}
    shape = {**build("llama").config.to_dict(), "max_position_embeddings": 16}
    shape["rope_parameters"] = rope
    model = load(LlamaForCausalLM(LlamaConfig.from_dict(shape)))
    first = model.info.fingerprint
    frequencies = [v for n, v in model.tl.named_buffers() if n.endswith(".inv_freq")]
    before = [value.clone() for value in frequencies]
    model.logits(" ".join(["1"] * 15))
    model.tl.original_model(torch.ones(1, 24, dtype=torch.long))
    after = [v for n, v in model.tl.named_buffers() if n.endswith(".inv_freq")]
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert model.info.fingerprint == first


@pytest.mark.parametrize(
    "setting", [{"rms_norm_eps": 1e-3}, {"num_attention_heads": 2, "num_key_value_heads": 1,
    "head_dim": 16}, {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}}],
    ids=["norm", "heads", "rotation"],
)  # fmt: skip
def test_the_same_weights_used_otherwise_are_another_model(tmp_path, setting):
    import json

    plain = build("llama")
    plain.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    first = mm.load_model(tmp_path)
    config = tmp_path / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **setting}))
    if "head_dim" in setting:  # key and value matrices of one head of 16 are those of two of 8
        assert load_file(tmp_path / "model.safetensors")
    second = mm.load_model(tmp_path)
    assert float((first.logits("1 2 3 4 5 6 7") - second.logits("1 2 3 4 5 6 7")).abs().max()) > 0
    assert first.info.fingerprint != second.info.fingerprint


@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma3", "phi3"])
def test_a_model_keeps_its_fingerprint_through_files_and_placement(tmp_path, family):
    plain = build(family)
    plain.save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    want = load(plain).info.fingerprint
    assert mm.load_model(tmp_path).info.fingerprint == want
    assert mm.load_model(tmp_path, device_map="cpu").info.fingerprint == want


@pytest.mark.tl4
def test_weights_that_are_kept_on_disk_are_seen(tmp_path):
    plain = build("llama")
    plain.save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    placed = {
        "model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu",
        "model.layers.1": "disk", "model.norm": "cpu", "lm_head": "cpu",
    }  # fmt: skip
    more = {"device_map": placed, "offload_folder": str(tmp_path / "offload")}
    want = mm.load_model(tmp_path / "m").info.fingerprint
    assert mm.load_model(tmp_path / "m", **more).info.fingerprint == want
    weights = load_file(tmp_path / "m" / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"][:, 3] = 0
    save_file(weights, tmp_path / "m" / "model.safetensors", metadata={"format": "pt"})
    assert mm.load_model(tmp_path / "m", **more).info.fingerprint != want


LOCAL = {"attention_types": [[["global", "local"], 1]]}


@pytest.mark.parametrize(
    ("family", "common", "one", "other"),
    [
        (GPTNeoConfig, LOCAL, {"window_size": 64}, {"window_size": 3}),
        (BloomConfig, {}, {}, {"apply_residual_connection_post_layernorm": True}),
        (FalconConfig, {"new_decoder_architecture": False}, {}, {"activation": "relu"}),
    ],
    ids=["windows", "residuals", "activations"],
)  # fmt: skip
def test_a_setting_that_leaves_no_mark_on_the_weights_is_another_model(family, common, one, other):
    sizes = {"vocab_size": len(tokenizer()), "hidden_size": 16, "num_layers": 2, "num_heads": 2}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2, "n_layer": 2, "n_head": 2}
    prints = set()
    for changed in (one, other):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(family(**{**sizes, **common, **changed}))
        prints.add(mm.load_model(model.eval(), tokenizer=tokenizer()).info.fingerprint)
    assert len(prints) == 2


class TestWhatWasMadeOnTheOtherModel:
    """Refused, although the model is the same object: its weights were changed in place."""

    @pytest.fixture
    def changed(self, prompts, tiny_gpt2, word_tokenizer):
        """What was made, the model, and a change to it."""
        model = mm.load_model(tiny_gpt2, tokenizer=word_tokenizer)

        def change():
            for name, weight in model.tl.named_parameters():
                if "mlp" in name:
                    weight.data.mul_(0.5)

        return model, change

    def test_directions(self, changed, prompts):
        model, change = changed
        acts = mm.cache_activations(model, prompts, sites="resid_post")
        fitted = mm.difference_of_means(acts, by="label", toward="reasoning")
        edit = mm.AddDirection(fitted["resid_post", 1], alpha=1.0)
        with mm.patched(model, edit) as m:
            m.logits("w1 w2")
        change()
        with pytest.raises(mm.ModelError, match="was made on model"), mm.patched(model, edit) as m:
            m.logits("w1 w2")

    def test_observations_before(self, changed, prompts):
        model, change = changed
        seen = mm.observe(model, prompts)
        change()
        with pytest.raises(mm.MechmemError, match="observed on another model"):
            mm.evaluate(model, prompts, edit=mm.SkipLayers([("mlp_out", 1)]), before=seen)

    def test_stores(self, changed, prompts, tmp_path):
        model, change = changed
        mm.extract_activations(model, prompts, tmp_path, sites="resid_post")
        change()
        with pytest.raises(mm.MechmemError, match=r"model"):
            mm.extract_activations(model, prompts, tmp_path, sites="resid_post")

    def test_a_few_weights_that_a_glance_misses(self, changed, prompts, tmp_path):
        model, _ = changed
        mm.extract_activations(model, prompts[:2], tmp_path, sites="resid_post")
        glance, before = model.backend.identity._glance("raw"), model.info.fingerprint
        weight = next(w for name, w in model.tl.named_parameters() if w.ndim == 2)
        for place in range(weight.numel()):  # one that is not looked at
            weight.data.view(-1)[place] += 50
            if model.backend.identity._glance("raw") == glance:
                break
            weight.data.view(-1)[place] -= 50
        assert model.info.fingerprint == before
        with pytest.raises(mm.ArtifactError, match="model"):
            mm.extract_activations(model, prompts, tmp_path, sites="resid_post")
        assert model.info.fingerprint != before


@pytest.mark.parametrize("kind", ["states", "moments", "cells"])
def test_hooks_of_others_leave_nothing_in_a_folder(tiny_gpt2, word_tokenizer, kind, tmp_path):
    model = mm.load_model(tiny_gpt2, tokenizer=word_tokenizer)
    asked = mm.PromptSet(
        mm.Prompt(
            f"p{k}", f"w{k} w1", label="ab"[k % 2], memorized="w1", generalized="w2",
            behavior=("memorized", "generalized")[k % 2],
        )
        for k in range(12)
    )  # fmt: skip
    acts = mm.cache_activations(model, asked[:8], sites="resid_post")
    add = mm.AddDirection(mm.difference_of_means(acts, toward="memorized")["resid_post", 0])
    work = {
        "states": lambda: mm.extract_activations(model, asked, tmp_path / "out"),
        "moments": lambda: mm.extract_moments(model, asked, tmp_path / "out", by="label"),
        "cells": lambda: mm.sweep(
            model, [add], validation=asked[8:10], test=asked[10:], folder=tmp_path / "out", draws=1,
        ),
    }[kind]  # fmt: skip
    hook = model.tl.original_model.transformer.h[0].register_forward_hook(lambda *a: None)
    with pytest.raises(mm.ModelError, match="has hooks that are not mechmem's"):
        work()
    assert not (tmp_path / "out").exists()
    hook.remove()
    work()
