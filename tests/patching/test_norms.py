"""Direction edits that keep every token's length, and edits behind a gate."""

from __future__ import annotations

import helpers
import numpy as np
import pytest
import torch
from helpers import close, differs, hf_logits, hf_states

import mechmem as mm
from mechmem.errors import EditError

PROMPTS = helpers.ragged(6)
SITE = ("resid_post", 1)


def direction(bench, site=SITE) -> mm.Direction:
    acts = mm.cache_activations(bench.model, helpers.contrast_set(6), sites=site)
    return mm.difference_of_means(acts, toward="generalized")[site]


def numpy_edit(name: str, r: np.ndarray, means: tuple[float, float]):
    """The four equations, token by token in float64."""
    unit = r / np.sqrt((r**2).sum())

    def one(h: np.ndarray) -> np.ndarray:
        along = h @ unit
        return {
            "add": h + 1.5 * r,
            "out": h - along * unit,
            "scale": h + 0.8 * along * unit,
            "set": h + (means[0] - along) * unit,
        }[name]

    return one


MAKE = {
    "add": lambda r, **kw: mm.AddDirection(r, alpha=1.5, **kw),
    "out": lambda r, **kw: mm.ProjectOut(r, **kw),
    "scale": lambda r, **kw: mm.ScaleProjection(r, scale=0.8, **kw),
    "set": lambda r, **kw: mm.SetProjection(r, **kw),
}


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("name", MAKE)
def test_a_norm_preserving_edit_turns_the_activation_and_keeps_its_length(kind, name):
    bench = helpers.bench(kind)
    r = direction(bench)
    one = numpy_edit(name, r.vector.numpy(), (r.toward_mean, r.away_mean))

    def hand(states, at):
        out = []
        for h in states.double().numpy():
            turned = one(h)
            out.append(turned * np.sqrt((h**2).sum() / (turned**2).sum()))
        return torch.from_numpy(np.stack(out)).to(states)

    with mm.patched(bench.model, MAKE[name](r, preserve_norm=True)) as view:
        got = view.logits(PROMPTS)
        after = mm.cache_activations(view, PROMPTS, sites=SITE)
    want = [hf_logits(bench.hf, bench.ids(p.text), {SITE: [hand]})[-1] for p in PROMPTS]
    close(got, torch.stack(want))
    before = [hf_states(bench.hf, bench.ids(p.text), [SITE])[SITE][-1] for p in PROMPTS]
    lengths = [float(h.double().norm()) for h in before]
    close(after[SITE][:, 0].double().norm(dim=-1), lengths)
    with mm.patched(bench.model, MAKE[name](r)) as view:
        plain = mm.cache_activations(view, PROMPTS, sites=SITE)
    differs(plain[SITE][:, 0].double().norm(dim=-1), lengths)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_strength_zero_that_preserves_norms_is_exactly_the_unedited_model(dtype):
    bench = helpers.fresh_bench("gpt2", dtype=dtype)
    edit = mm.AddDirection(direction(bench), alpha=0.0, preserve_norm=True, at="everywhere")
    with mm.patched(bench.model, edit) as view:
        assert torch.equal(view.logits(PROMPTS), bench.model.logits(PROMPTS))


def test_in_bfloat16_the_length_is_kept_to_the_rounding_of_the_coordinates():
    bench = helpers.fresh_bench("gpt2", dtype=torch.bfloat16)
    edit = mm.AddDirection(direction(bench), alpha=2.0, preserve_norm=True)
    with mm.patched(bench.model, edit) as view:
        after = mm.cache_activations(view, PROMPTS, sites=SITE)[SITE].norm(dim=-1)
    before = mm.cache_activations(bench.model, PROMPTS, sites=SITE)[SITE].norm(dim=-1)
    close(after, before, tolerance=2**-8)


def test_what_an_edit_makes_zero_stays_zero():
    model = helpers.bench().model
    r = direction(helpers.bench())
    with mm.patched(model, [mm.AblateSites(SITE), mm.ProjectOut(r, preserve_norm=True)]) as view:
        after = mm.cache_activations(view, PROMPTS, sites=SITE)[SITE]
    assert torch.equal(after, torch.zeros_like(after))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("when", ["memorized", "generalized"])
def test_a_conditional_edit_moves_only_tokens_on_the_side_of_its_class_and_counts_the_rest(
    kind, when
):
    bench = helpers.bench(kind)
    r = direction(bench)
    unit = r.vector.numpy() / np.linalg.norm(r.vector.numpy())
    middle = (r.toward_mean + r.away_mean) / 2
    counts = {"open": 0, "closed": 0}

    def hand(states, at):
        out = states.double().numpy().copy()
        for h in out:
            opened = h @ unit > middle if when == "generalized" else h @ unit < middle
            counts["open" if opened else "closed"] += 1
            if opened:
                h += 2.0 * r.vector.numpy()
        return torch.from_numpy(out).to(states)

    want = [hf_logits(bench.hf, bench.ids(p.text), {SITE: [hand]})[-1] for p in PROMPTS]
    edit = mm.OnlyWhere(mm.AddDirection(r, alpha=2.0), r, when=when)
    with mm.patched(bench.model, edit) as view:
        got = view.logits(PROMPTS)
    (fired,) = view.edit_report().fired
    close(got, torch.stack(want))
    assert (fired.tokens, fired.closed) == (counts["open"], counts["closed"])
    assert min(counts.values()) > 0


def test_a_gate_that_never_opens_is_reported_and_no_error():
    bench = helpers.bench()
    r = direction(bench)
    edit = mm.OnlyWhere(mm.AddDirection(r, alpha=2.0), r, when="generalized", threshold=1e6)
    with mm.patched(bench.model, edit) as view:
        assert torch.equal(view.logits(PROMPTS), bench.model.logits(PROMPTS))
    (fired,) = view.edit_report().fired
    n_tokens = sum(len(item.ids) for item in bench.model.tokenize(PROMPTS))
    assert (fired.tokens, fired.closed, fired.applied) == (0, n_tokens, 1)
    assert f"gate closed at {n_tokens}" in repr(view.edit_report())


def test_a_gate_needs_a_direction_at_every_site_of_its_edit():
    bench = helpers.bench()
    r = direction(bench)
    edit = mm.OnlyWhere(mm.AddDirection(r, at="resid_post"), r, when="memorized")
    words = r"reads resid_post\[1\].*also acts at resid_post\[0\], which.*before"
    with pytest.raises(EditError, match=words), mm.patched(bench.model, edit):
        pass
    acts = mm.cache_activations(bench.model, helpers.contrast_set(6), sites="resid_post")
    many = mm.difference_of_means(acts, toward="generalized")
    edit = mm.OnlyWhere(mm.AddDirection(r, at="resid_post"), many, when="memorized")
    with mm.patched(bench.model, edit) as view:
        view.logits(PROMPTS)
    assert sum(item.tokens > 0 for item in view.edit_report().fired) > 1
    assert edit.seen.groups == set(helpers.contrast_set(6).groups)


def test_a_gate_names_one_of_its_two_classes():
    bench = helpers.bench()
    r = direction(bench)
    edit = mm.OnlyWhere(mm.AddDirection(r), r, when="reasoning")
    words = "neither 'generalized' nor 'memorized'"
    with pytest.raises(EditError, match=words), mm.patched(bench.model, edit):
        pass


def test_the_controls_of_a_conditional_edit_are_behind_the_same_gate():
    bench = helpers.bench()
    r = direction(bench)
    edit = mm.OnlyWhere(mm.AddDirection(r, alpha=2.0), r, when="memorized")
    made = mm.controls(edit, bench.model)
    assert set(made) == {"alpha 0", "random direction", "covariance direction"}
    for control in made.values():
        assert isinstance(control, mm.OnlyWhere)
        assert control.gate is r
    with mm.patched(bench.model, made["alpha 0"]) as view:
        assert torch.equal(view.logits(PROMPTS), bench.model.logits(PROMPTS))


def test_a_skipped_layer_behind_a_gate_still_sees_what_entered_it():
    bench = helpers.bench()
    r = direction(bench)
    low = mm.OnlyWhere(mm.SkipLayers(SITE), r, when="generalized", threshold=-1e6)
    with mm.patched(bench.model, low) as view, mm.patched(bench.model, mm.SkipLayers(SITE)) as all_:
        close(view.logits(PROMPTS), all_.logits(PROMPTS), tolerance=0)
