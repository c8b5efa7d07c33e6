"""The self-check passes where names are true and refuses, with the reason, where they are not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models.hooked3 import HOOKED_FAMILIES, hooked_transformer
from models.parity import Edit, prompts
from models.plain import PARALLEL
from models.zoo import FAMILIES, build, tokenizer
from transformer_lens.hook_points import HookPoint

import mechmem as mm
from mechmem.models import STREAMS, Site, check_model
from mechmem.models.check.site_check import check_stream

TEXT = "7 8 9 10 11"


def load(family="llama", dtype=torch.float32):
    return mm.load_model(build(family, dtype), tokenizer=tokenizer())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_site_holds_except_the_middle_stream_of_parallel_blocks(family, dtype):
    report = check_model(load(family, dtype))
    table = report.table()
    assert len(table) == 2 * len(STREAMS)
    lost = {"resid_mid"} if family in PARALLEL else set()
    assert {site.stream for site in report.refused} == lost
    held = table[table.verdict == "holds"]
    assert (held.reason == "").all()
    if dtype == torch.float32:
        assert held.read_error.max() < 2e-6
        assert held.edit_error.max() < 5e-6
    assert held.effect.min() > 1e-3


@pytest.mark.tl3
@pytest.mark.parametrize("processed", [False, True], ids=["raw", "processed"])
@pytest.mark.parametrize("family", HOOKED_FAMILIES)
def test_every_site_of_a_hooked_transformer_holds(family, processed):
    hooked = hooked_transformer(family, processed=processed)
    report = check_model(mm.load_model(hooked, tokenizer=tokenizer()))
    assert {site.stream for site in report.refused} == (
        {"resid_mid"} if family in PARALLEL else set()
    )


def test_parallel_blocks_refuse_the_middle_stream_by_name_and_reason():
    model = load("gpt_neox")
    with pytest.raises(mm.SiteError, match=r"resid_mid\[0\].*parallel blocks.*resid_pre"):
        mm.cache_activations(model, TEXT, sites="resid_mid")
    assert "resid_mid[0]" in str(check_model(model))


def moved_points(monkeypatch, model, replaced):
    """Let some names of the model's hook points lead elsewhere."""
    true = dict(model.tl.hook_dict)
    wrong = {**true, **replaced(true)}
    monkeypatch.setattr(type(model.tl), "hook_dict", property(lambda self: wrong))


BROKEN = {
    "resid_pre": "hook_resid_pre",
    "resid_post": "hook_resid_post",
    "attn_out": "hook_attn_out",
    "mlp_out": "hook_mlp_out",
    "z": "attn.hook_z",
    "mlp_post": "mlp.hook_post",
    "resid_mid": "hook_resid_mid",
}


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "gpt_neox"])
@pytest.mark.parametrize("stream", BROKEN)
def test_a_site_that_is_off_by_one_layer_is_refused(monkeypatch, stream, family):
    if stream == "resid_mid" and family in PARALLEL:
        pytest.skip("parallel blocks have no middle stream")
    model, name = load(family), BROKEN[stream]
    moved_points(monkeypatch, model, lambda true: {f"blocks.0.{name}": true[f"blocks.1.{name}"]})
    reason = {found.site.layer: found.reason for found in check_stream(model.backend, stream)}
    assert "off by" in reason[0]
    with pytest.raises(mm.SiteError, match=rf"{stream}\[0\] cannot be read or edited truthfully"):
        mm.cache_activations(model, TEXT, sites=(stream, 0))


@pytest.mark.parametrize("stream", BROKEN)
def test_a_hook_that_is_not_wired_is_refused(monkeypatch, stream):
    model, name = load(), BROKEN[stream]
    moved_points(monkeypatch, model, lambda true: {f"blocks.1.{name}": HookPoint()})
    with pytest.raises(mm.SiteError, match="never called"):
        mm.cache_activations(model, TEXT, sites=(stream, 1))


@pytest.mark.parametrize("stream", BROKEN)
def test_a_hook_that_is_missing_is_refused(monkeypatch, stream):
    model, name = load(), BROKEN[stream]

    class Without(dict):
        def __contains__(self, key):
            return key != f"blocks.1.{name}" and super().__contains__(key)

        def keys(self):
            return [key for key in super().__iter__() if key in self]

        def __iter__(self):
            return iter(self.keys())

    kept = Without(model.tl.hook_dict)
    monkeypatch.setattr(type(model.tl), "hook_dict", property(lambda self: kept))
    with pytest.raises(mm.SiteError, match=rf"no hook point 'blocks.1.{name}'"):
        mm.cache_activations(model, TEXT, sites=(stream, 1))


@pytest.mark.parametrize("stream", ["attn_out", "mlp_out", "resid_post", "z", "mlp_post"])
def test_a_hook_that_reads_truly_but_drops_edits_is_refused(monkeypatch, stream):
    model, name = load(), BROKEN[stream]
    tap = HookPoint()
    point = model.tl.hook_dict[f"blocks.0.{name}"]

    def overhear(module, args, output):
        tap(output.reshape(*output.shape[:2], 4, 8) if stream == "z" else output)

    overhear.part_of_model = True
    point.register_forward_hook(overhear)
    moved_points(monkeypatch, model, lambda true: {f"blocks.0.{name}": tap})
    found = next(f for f in check_stream(model.backend, stream) if f.site.layer == 0)
    assert found.read_error < 1e-5
    assert "an edit does not act" in found.reason


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "qwen3"])
def test_a_dropped_mask_is_refused(monkeypatch, family):
    model = load(family)
    forward = model.tl.forward

    def forgetful(ids, *args, attention_mask=None, **kwargs):
        return forward(ids, *args, **kwargs)

    monkeypatch.setattr(model.tl, "forward", forgetful)
    with pytest.raises(mm.SiteError, match="does not use the attention mask"):
        mm.cache_activations(model, TEXT)


def test_a_model_that_gives_nan_under_padding_is_refused(monkeypatch):
    model = load()
    forward = model.tl.forward

    def overflowing(ids, *args, attention_mask=None, **kwargs):
        logits, cache = forward(ids, *args, attention_mask=attention_mask, **kwargs)
        return logits.masked_fill((attention_mask == 0).any(1)[:, None, None], torch.nan), cache

    monkeypatch.setattr(model.tl, "forward", overflowing)
    with pytest.raises(mm.SiteError, match="gives NaN instead of logits"):
        mm.cache_activations(model, TEXT)


def test_an_architecture_that_scales_what_a_branch_adds_is_refused(monkeypatch):
    model = load()
    block = model.tl.blocks[0].original_component

    def scaled(module, args, output):
        return output + 0.1 * (output - args[0])

    scaled.part_of_model = True
    block.register_forward_hook(scaled)
    lost = {site.stream for site in check_model(model).refused if site.layer == 0}
    assert {"attn_out", "mlp_out"} & lost


def test_the_check_disturbs_neither_hooks_nor_random_numbers_nor_weights():
    model = load()
    model.logits(TEXT)  # TransformerLens wires some hooks of its own at the first pass
    calls = []
    model.tl.hook_dict["blocks.0.hook_resid_post"].add_hook(lambda h, hook: calls.append("lens"))
    handle = model.tl.blocks[1].register_forward_hook(lambda *args: calls.append("torch"))
    before = {
        name: (list(m._forward_hooks), list(m._forward_pre_hooks))
        for name, m in model.tl.named_modules()
    }
    weights = {k: v.clone() for k, v in model.tl.state_dict().items()}
    torch.manual_seed(5)
    np.random.seed(5)
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    check_model(model)
    assert calls == []
    after = {
        name: (list(m._forward_hooks), list(m._forward_pre_hooks))
        for name, m in model.tl.named_modules()
    }
    assert after == before
    assert torch.equal(torch.get_rng_state(), state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert all(torch.equal(v, weights[k]) for k, v in model.tl.state_dict().items())
    model.logits(TEXT)
    assert calls == ["lens", "torch"]
    handle.remove()


def test_hooks_that_transformer_lens_wires_during_the_check_stay():
    with_user, without = load(), load()
    handle = with_user.tl.blocks[0].ln1.register_forward_pre_hook(lambda module, args: None)
    for model in (with_user, without):
        check_model(model)
    handle.remove()
    counts = [
        {name: len(m._forward_pre_hooks) for name, m in model.tl.named_modules()}
        for model in (with_user, without)
    ]
    assert counts[0] == counts[1]
    assert sum(counts[0].values()) > 0


def test_a_stream_is_examined_once_whatever_the_number_of_calls_and_views(monkeypatch):
    model = load()
    passes = []
    forward = model.tl.forward
    monkeypatch.setattr(
        model.tl, "forward", lambda *args, **kwargs: (passes.append(1), forward(*args, **kwargs))[1]
    )
    mm.cache_activations(model, TEXT)
    once = len(passes)
    assert once > 1
    for _ in range(2):
        mm.cache_activations(model, TEXT)
    assert len(passes) == once + 2
    view = model.with_interventions([Edit(Site("resid_post", 0), lambda h: h)])
    view.logits(TEXT)
    assert len(passes) == once + 3


@pytest.mark.parametrize("family", ["gpt2", "llama", "olmo2"])
def test_an_edit_of_the_middle_stream_by_nothing_changes_no_bit(family):
    model = load(family)
    texts = [" ".join(str(token - 4) for token in ids) for ids in prompts()]
    view = model.with_interventions([Edit(Site("resid_mid", k), lambda h: h + 0) for k in (0, 1)])
    assert torch.equal(view.logits(texts), model.logits(texts))
    assert view.generate(texts, 4) == model.generate(texts, 4)
