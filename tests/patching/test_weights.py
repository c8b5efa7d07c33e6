"""Baked weights compute without hooks what the model computes under the edit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from models import zoo

import mechmem as mm
from mechmem.caching.provenance import Provenance, Seen
from mechmem.errors import EditError, ModelError

ROWS = [[5, 9, 33, 7, 60, 12, 41], [8, 50, 13, 21], [17]]


@pytest.fixture(params=["gpt2", "llama", "gpt_neox", "qwen2", "mistral"])
def loaded(request):
    hf = zoo.build(request.param)
    return request.param, hf, mm.load_model(hf, tokenizer=zoo.tokenizer())


def direction(model, site=("resid_post", 0), seed=0) -> mm.Direction:
    vector = torch.from_numpy(np.random.default_rng(seed).normal(size=model.info.d_model))
    provenance = Provenance(model.info, Seen(), "last")
    return mm.Direction(vector, mm.Site(*site), "reasoning", "memory", 1.0, -1.0, provenance)


@torch.no_grad()
def logits(hf, rows=ROWS) -> torch.Tensor:
    """All positions' logits of a plain model, one row at a time."""
    return torch.cat([hf(torch.tensor([row]), use_cache=False).logits[0] for row in rows])


def hooked(model, edit) -> torch.Tensor:
    """Last-token logits of every beginning of every row, under the hooks."""
    begun = [row[: end + 1] for row in ROWS for end in range(len(row))]
    texts = [" ".join(str(token - 4) for token in row) for row in begun]
    with mm.patched(model, edit) as view:
        return view.logits(texts)


def agree(got: torch.Tensor, want: torch.Tensor) -> None:
    """To 1e-4 of the logits' spread."""
    gap = float((got - want).abs().max() / want.std())
    assert gap <= 1e-4, gap


def test_orthogonal_weights_are_the_projection_everywhere(loaded) -> None:
    _, hf, model = loaded
    edit = mm.ProjectOut(direction(model), at="everywhere")
    before = logits(hf)
    baked = mm.bake(model, edit)
    agree(logits(baked), hooked(model, edit))
    assert torch.equal(logits(hf), before)
    assert float((logits(baked) - before).abs().max()) > 0.05 * float(before.std())


def test_nothing_writes_along_the_direction_any_more(loaded) -> None:
    family, _, model = loaded
    r = direction(model)
    baked = mm.bake(model, mm.ProjectOut(r, at="everywhere"))
    unit = (r.vector / r.vector.norm()).float()
    with torch.no_grad():
        states = baked(torch.tensor([ROWS[0]]), output_hidden_states=True).hidden_states
    # The last entry is taken after the final norm.
    for state in states[:-1]:
        assert float((state @ unit).abs().max()) < 1e-4 * float(state.norm(dim=-1).max()), family


@pytest.mark.parametrize("scale", [0.3, -1.0])
def test_stretched_branches(loaded, scale) -> None:
    _, _, model = loaded
    sites = [("attn_out", 0), ("mlp_out", 1), ("resid_pre", 0)]
    edit = mm.ScaleProjection(direction(model), scale=scale, at=sites)
    agree(logits(mm.bake(model, edit)), hooked(model, edit))


@pytest.mark.parametrize(
    "site", [("resid_post", 0), ("attn_out", 1), ("mlp_out", 0), ("resid_pre", 1)]
)
@pytest.mark.parametrize("family", ["gpt2", "llama", "gpt_neox"])
def test_an_addition_becomes_a_bias(family, site) -> None:
    model = mm.load_model(zoo.build(family), tokenizer=zoo.tokenizer())
    edit = mm.AddDirection(direction(model), alpha=0.7, at=site, toward="memory")
    agree(logits(mm.bake(model, edit)), hooked(model, edit))


def test_an_addition_to_the_embeddings(loaded) -> None:
    _, _, model = loaded
    edit = mm.AddDirection(direction(model), alpha=0.5, at=("resid_pre", 0))
    agree(logits(mm.bake(model, edit)), hooked(model, edit))


def test_embeddings_that_are_scaled_take_the_addition_at_the_scale_of_the_stream() -> None:
    model = mm.load_model(zoo.build("gemma2"), tokenizer=zoo.tokenizer())
    edit = mm.AddDirection(direction(model), alpha=0.5, at=("resid_pre", 0))
    agree(logits(mm.bake(model, edit)), hooked(model, edit))


def test_several_edits_at_once_and_each_layer_its_own() -> None:
    model = mm.load_model(zoo.build("gpt2"), tokenizer=zoo.tokenizer())
    own = mm.Directions(
        {d.site: d for d in (direction(model, ("mlp_out", k), seed=k) for k in range(2))}
    )
    edits = [
        mm.ProjectOut(own),
        mm.AddDirection(direction(model, seed=7), alpha=0.4, at=("attn_out", 1)),
    ]
    agree(logits(mm.bake(model, edits)), hooked(model, edits))


def test_a_saved_model_is_read_again_and_says_the_same(tmp_path) -> None:
    model = mm.load_model(zoo.build("llama"), tokenizer=zoo.tokenizer())
    edits = [mm.AddDirection(direction(model, ("resid_post", 1)), alpha=0.6)]
    baked = mm.bake(model, edits)
    baked.save_pretrained(tmp_path)
    zoo.tokenizer().save_pretrained(tmp_path)
    again = mm.load_model(str(tmp_path))
    with mm.patched(model, edits) as view:
        agree(again.logits(["1 2 3", "9 30"]), view.logits(["1 2 3", "9 30"]))


@pytest.mark.parametrize("sizes", [("5GB", "20KB"), ("20KB", "5GB"), ("20KB", "10KB")])
def test_a_model_that_is_saved_over_another_is_the_one_that_is_read(tmp_path, sizes) -> None:
    model = mm.load_model(zoo.build("llama"), tokenizer=zoo.tokenizer())
    zoo.tokenizer().save_pretrained(tmp_path)
    mine = tmp_path / "model_of_mine.safetensors"
    mine.write_text("a vector")
    for alpha, size in zip((0.6, -3.0), sizes, strict=True):
        edit = mm.AddDirection(direction(model, ("resid_post", 1)), alpha=alpha)
        baked = mm.bake(model, [edit])
        baked.save_pretrained(tmp_path, max_shard_size=size)
    with mm.patched(model, [edit]) as view:
        agree(mm.load_model(str(tmp_path)).logits(["1 2 3"]), view.logits(["1 2 3"]))
    assert mine.read_text() == "a vector"


def test_tied_embeddings_are_untied_and_the_unembedding_stays() -> None:
    model = mm.load_model("lab/addition-cued")
    source = model.tl.original_model
    assert source.config.tie_word_embeddings
    baked = mm.bake(model, mm.ProjectOut(direction(model), at="everywhere"))
    assert not baked.config.tie_word_embeddings
    head, table = baked.get_output_embeddings().weight, baked.get_input_embeddings().weight
    assert not torch.equal(head, table)
    assert torch.equal(head, source.get_output_embeddings().weight)


@pytest.mark.parametrize("family", ["gemma2", "olmo2"])
def test_a_norm_behind_the_projection_is_refused(family) -> None:
    model = mm.load_model(zoo.build(family), tokenizer=zoo.tokenizer())
    with pytest.raises(EditError, match=r"norm follows.*attn_out\[0\].*mm\.patched"):
        mm.bake(model, mm.ProjectOut(direction(model), at="stream"))
    with pytest.raises(EditError, match=r"resid_pre\[1\] changes what several layers.*mm\.patched"):
        mm.bake(model, mm.ProjectOut(direction(model), at="everywhere"))
    modules = mm.ProjectOut(direction(model), at=["attn_module", "mlp_module"])
    mm.bake(model, modules)  # compares itself with the hooks
    with pytest.raises(EditError, match=r"norm follows.*mlp_out\[0\]"):
        mm.bake(model, mm.AddDirection(direction(model)))


def test_a_bias_that_cannot_exist_is_refused() -> None:
    model = mm.load_model(zoo.build("mistral"), tokenizer=zoo.tokenizer())
    with pytest.raises(EditError, match=r"no bias at resid_post\[0\]"):
        mm.bake(model, mm.AddDirection(direction(model)))


REFUSED = {
    "one place of the stream": (lambda r: mm.ProjectOut(r), "several layers"),
    "compounding": (lambda r: mm.ScaleProjection(r, scale=0.1, at="everywhere"), "several layers"),
    "some positions": (lambda r: mm.ProjectOut(r, positions="last"), "at 'last'"),
    "a length kept": (lambda r: mm.ProjectOut(r, preserve_norm=True), "preserve_norm"),
    "a gate": (lambda r: mm.OnlyWhere(mm.ProjectOut(r), r, when="memory"), "some tokens only"),
    "a set projection": (lambda r: mm.SetProjection(r), "SetProjection"),
    "the heads": (lambda r: mm.AddDirection(r, at=("z", 0)), "cannot be baked"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_weights_cannot_express_is_refused(name) -> None:
    model = mm.load_model(zoo.build("gpt2"), tokenizer=zoo.tokenizer())
    make, words = REFUSED[name]
    with pytest.raises(EditError, match=words):
        mm.bake(model, make(direction(model)))


def test_edits_that_only_cancel_under_hooks_are_found_by_the_comparison() -> None:
    """At one place of the stream the order of adding and removing matters; weights have none."""
    model = mm.load_model(zoo.build("gpt2"), tokenizer=zoo.tokenizer())
    r = direction(model)
    both = [mm.ProjectOut(r, at="everywhere"), mm.AddDirection(r, alpha=2.0, at=("attn_out", 0))]
    agree(logits(mm.bake(model, both[:1])), hooked(model, both[:1]))
    with pytest.raises(EditError, match=r"differ from the hooks by .*one after the other"):
        mm.bake(model, both)


def test_a_view_and_a_model_without_transformers_weights_are_refused() -> None:
    model = mm.load_model(zoo.build("gpt2"), tokenizer=zoo.tokenizer())
    edit = mm.ProjectOut(direction(model), at="everywhere")
    with mm.patched(model, edit) as view:
        with pytest.raises(EditError, match="edits act already"):
            mm.bake(view, edit)
        view.logits("1 2")
    model.tl.enable_compatibility_mode(disable_warnings=True)
    with pytest.raises(ModelError, match="only raw weights"):
        mm.bake(model, mm.ProjectOut(direction(model), at="everywhere"))
