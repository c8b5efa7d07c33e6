"""Attribution patching: its gradient by plain autograd, its estimate against real patching."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import helpers
import numpy as np
import pytest
import torch
from helpers import Bench, close, differs, hf_states
from torch import nn
from transformer_lens.hook_points import HookPoint

import mechmem as mm
from mechmem.errors import ModelError
from mechmem.models.check.invariants import Finding
from mechmem.models.sites import STREAMS, Site
from mechmem.patching.margins import behavior_margins

PAIRS = helpers.contrast_set(4, seed=2)
SITES = [(stream, 1) for stream in STREAMS]


@pytest.fixture(scope="module")
def exact() -> Bench:
    """A tiny model in double precision, so that only the first order counts."""
    bench = helpers.fresh_bench("gpt2", dtype=torch.float64)
    bench.hf.double()
    return bench


def gradient_by_hand(bench: Bench, text: str, site) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the margin at every token, by autograd through the transformers model."""
    zeros = []

    def tap(states, at):
        zeros.append(torch.zeros_like(states, requires_grad=True))
        return states + zeros[-1]

    ids = bench.ids(text)
    with torch.enable_grad(), helpers.hand_edited(bench.hf, {site: [tap]}):
        last = bench.hf(torch.tensor([ids]), use_cache=False).logits[0, -1].log_softmax(-1)
        one, other = (bench.tokenizer.convert_tokens_to_ids(word) for word in ("w1", "w2"))
        (slope,) = torch.autograd.grad(last[one] - last[other], zeros)
    return slope, hf_states(bench.hf, ids, [site])[site]


@pytest.mark.parametrize("kind", ["double", "llama"])
def test_the_estimate_is_the_plain_gradient_times_the_difference(exact, kind):
    exact = helpers.bench(kind) if kind == "llama" else exact
    tolerance = 2e-4 if kind == "llama" else 1e-6
    result = mm.attribution_patching(
        exact.model, PAIRS, sites=SITES, positions=["cue", "last"], controls=False
    )
    for row, (recipient, donor) in enumerate(zip(result.recipients, result.donors, strict=True)):
        for s, site in enumerate(SITES):
            slope, own = gradient_by_hand(exact, recipient.text, site)
            given = hf_states(exact.hf, exact.ids(donor.text), [site])[site]
            for k, (mine, theirs) in enumerate([([2, 3], [2, 3]), ([-1], [-1])]):
                gain = float((slope[mine] * (given[theirs] - own[mine])).sum())
                got = result.margins["patched"][row, s, k] - result.recipient_margins[row]
                assert got == pytest.approx(gain, rel=tolerance, abs=tolerance / 10)


def test_for_small_differences_it_agrees_with_real_patching_to_first_order(exact):
    """Half the step leaves a quarter of the error, and the error vanishes beside the effect."""
    model = exact.model
    result = mm.attribution_patching(model, PAIRS, sites=SITES, controls=False)
    both = [
        mm.cache_activations(model, side, sites=SITES, dtype=torch.float64)
        for side in (result.recipients, result.donors)
    ]
    same = {name: name for name in result.recipients.ids}
    for s, site in enumerate(SITES):
        full = result.margins["patched"][:, s, 0] - result.recipient_margins
        own, given = (acts[site] for acts in both)
        errors = []
        for step in (1e-2, 5e-3):
            between = replace(both[0], states={Site(*site): own + step * (given - own)})
            with mm.patched(model, mm.PatchActivations(between, same, at=site)) as view:
                moved = behavior_margins(view, result.recipients) - result.recipient_margins
            errors.append(np.abs(moved - step * full).max())
            assert errors[-1] < 0.2 * step * np.abs(full).max()
        assert errors[1] < 0.3 * errors[0] + 1e-6  # the logits come back in single precision


class LinearToy(nn.Module):
    """A network without norms and nonlinearities, with the hook points of a transformer."""

    def __init__(self, n_layers: int = 2, d: int = 6, vocab: int = 48) -> None:
        super().__init__()
        self.cfg = SimpleNamespace(
            n_layers=n_layers, d_model=d, n_heads=1, d_head=d, d_mlp=d, d_vocab=vocab, n_ctx=32,
            normalization_type=None, architecture="LinearToy",
        )  # fmt: skip
        draw = torch.Generator().manual_seed(0)

        def matrix(*shape: int) -> nn.Parameter:
            values = torch.randn(*shape, generator=draw, dtype=torch.float64)
            return nn.Parameter(values / shape[0] ** 0.5)

        self.W_E, self.W_U = matrix(vocab, d), matrix(d, vocab)
        self.mix = nn.ParameterList(matrix(d, d) for _ in range(n_layers))
        self.mlp = nn.ParameterList(matrix(d, d) for _ in range(n_layers))
        names = ("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out",
                 "hook_resid_post")  # fmt: skip
        self.points = nn.ModuleDict(
            {f"{k}-{name}": HookPoint() for k in range(n_layers) for name in names}
        )
        self.eval()

    @property
    def hook_dict(self) -> dict[str, nn.Module]:
        return {f"blocks.{k.replace('-', '.')}": point for k, point in self.points.items()}

    def forward(self, ids, attention_mask=None, return_type="logits", past_kv_cache=None):
        keep = attention_mask[..., None].double()
        h = self.W_E[ids]
        for k in range(self.cfg.n_layers):
            h = self.points[f"{k}-hook_resid_pre"](h)
            mean = (h * keep).cumsum(1) / keep.cumsum(1).clamp_min(1)
            h = h + self.points[f"{k}-hook_attn_out"](mean @ self.mix[k])
            h = self.points[f"{k}-hook_resid_mid"](h)
            h = h + self.points[f"{k}-hook_mlp_out"](h @ self.mlp[k])
            h = self.points[f"{k}-hook_resid_post"](h)
        return h @ self.W_U


def linear_model() -> mm.Model:
    model = mm.Model.wrap(LinearToy(), helpers.word_tokenizer(), "linear toy")
    for stream in STREAMS:  # there are no blocks to examine
        model.backend.findings.update({Site(stream, k): Finding(Site(stream, k)) for k in range(2)})
    return model


def test_where_the_margin_is_linear_the_estimate_is_exact():
    model = linear_model()
    sites = ["resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_post"]
    asked = {"sites": sites, "positions": ["cue", "last", 0], "seed": 3}
    estimate = mm.attribution_patching(model, PAIRS, **asked)
    measured = mm.activation_patching(model, PAIRS, **asked)
    for name in ("patched", "unrelated", "same behavior"):
        close(estimate.margins[name], measured.margins[name], tolerance=1e-6)
    differs(
        measured.margins["patched"],
        measured.recipient_margins[:, None, None] + np.zeros((4, 10, 3)),
    )
    close(estimate.recovery(("resid_post", 1), "last").value, 1.0)
    assert (estimate.method, measured.method) == ("attribution patching", "activation patching")


def test_where_it_is_not_linear_the_estimate_is_an_estimate():
    model = helpers.bench().model
    estimate = mm.attribution_patching(model, PAIRS, controls=False)
    measured = mm.activation_patching(model, PAIRS, controls=False)
    differs(estimate.margins["patched"], measured.margins["patched"])
    close(estimate.recipient_margins, measured.recipient_margins)
    close(estimate.donor_margins, measured.donor_margins)


def test_answers_of_several_tokens_give_the_gradient_of_their_joint_log_probability(exact):
    prompts = mm.PromptSet(replace(p, memorized="w1 w5 w7", generalized="w3 w8") for p in PAIRS[:2])
    site = ("mlp_out", 0)
    result = mm.attribution_patching(exact.model, prompts, sites=site, controls=False)
    (recipient,), (donor,) = result.recipients, result.donors
    ids = exact.ids(recipient.text)
    total = 0.0
    for answer, sign in ((recipient.memorized, 1), (recipient.generalized, -1)):
        tail = exact.ids(answer)[1:]
        zeros = []

        def tap(states, at, zeros=zeros):
            zeros.append(torch.zeros_like(states, requires_grad=True))
            return states + zeros[-1]

        with torch.enable_grad(), helpers.hand_edited(exact.hf, {site: [tap]}):
            logits = exact.hf(torch.tensor([[*ids, *tail]]), use_cache=False).logits[0]
            scores = logits.log_softmax(-1)
            total_score = sum(scores[len(ids) - 1 + k, token] for k, token in enumerate(tail))
            (slope,) = torch.autograd.grad(total_score, zeros)
        own = hf_states(exact.hf, ids, [site])[site][-1]
        given = hf_states(exact.hf, exact.ids(donor.text), [site])[site][-1]
        total += sign * float((slope[len(ids) - 1] * (given - own)).sum())
    assert result.at(site)[0] - result.recipient_margins[0] == pytest.approx(total, rel=1e-6)


def test_one_backward_pass_serves_all_sites_and_positions():
    model = helpers.bench().model
    passes = []
    handle = model.tl.register_forward_hook(lambda *given: passes.append(torch.is_grad_enabled()))
    try:
        mm.attribution_patching(model, PAIRS, sites=["z", "resid_post"], positions=["cue", "last"])
    finally:
        handle.remove()
    assert passes.count(True) == 1


def test_batches_of_any_size_give_the_same_estimate():
    model = helpers.bench().model
    whole = mm.attribution_patching(model, PAIRS, sites=SITES)
    single = mm.attribution_patching(model, PAIRS, sites=SITES, token_budget=1)
    for name, values in whole.margins.items():
        close(single.margins[name], values, tolerance=1e-4)


@pytest.mark.parametrize("learning", [True, False])
def test_the_weights_keep_their_state_and_get_no_gradient(learning):
    bench = helpers.fresh_bench("gpt2")
    tl = bench.model.tl
    bench.model.logits(PAIRS)  # a bridge wires hooks of its own at the first pass
    for parameter in tl.parameters():
        parameter.requires_grad_(learning)
    before, hooks = helpers.weights_of(tl), helpers.hook_count(bench.model)
    result = mm.attribution_patching(bench.model, PAIRS, sites=SITES)
    assert all(p.grad is None and p.requires_grad is learning for p in tl.parameters())
    assert all(torch.equal(value, before[name]) for name, value in tl.state_dict().items())
    assert helpers.hook_count(bench.model) == hooks
    assert torch.is_grad_enabled()
    shared = mm.attribution_patching(helpers.bench().model, PAIRS, sites=SITES)
    close(result.margins["patched"], shared.margins["patched"])


def test_the_callers_switched_off_gradients_stay_switched_off():
    with torch.no_grad():
        result = mm.attribution_patching(helpers.bench().model, PAIRS, sites=("z", 0))
        assert not torch.is_grad_enabled()
    assert np.isfinite(result.margins["patched"]).all()


def test_a_model_in_train_mode_is_refused():
    bench = helpers.fresh_bench("gpt2")
    bench.model.tl.train()
    with pytest.raises(ModelError, match="train mode"):
        mm.attribution_patching(bench.model, PAIRS)


def test_edits_in_force_belong_to_the_function_that_is_differentiated(exact):
    edit = mm.AblateSites(("attn_out", 1))
    with mm.patched(exact.model, edit) as view:
        result = mm.attribution_patching(view, PAIRS, sites=("resid_post", 0), controls=False)
    site = ("resid_post", 0)
    zeros = []

    def tap(states, at):
        zeros.append(torch.zeros_like(states, requires_grad=True))
        return states + zeros[-1]

    recipient, donor = result.recipients[0], result.donors[0]
    off = {("attn_out", 1): [lambda states, at: torch.zeros_like(states)], site: [tap]}
    with torch.enable_grad(), helpers.hand_edited(exact.hf, off):
        ids = torch.tensor([exact.ids(recipient.text)])
        last = exact.hf(ids, use_cache=False).logits[0, -1]
        one, other = (exact.tokenizer.convert_tokens_to_ids(word) for word in ("w1", "w2"))
        (slope,) = torch.autograd.grad(last[one] - last[other], zeros)
    own, given = (hf_states(exact.hf, exact.ids(p.text), [site])[site] for p in (recipient, donor))
    gain = float((slope[-1] * (given[-1] - own[-1])).sum())
    assert result.at(site)[0] - result.recipient_margins[0] == pytest.approx(gain, rel=1e-6)


def test_in_bfloat16_the_estimate_is_close_to_that_of_the_same_weights_in_full_precision():
    half = helpers.fresh_bench("gpt2", dtype=torch.bfloat16)
    full = helpers.tiny_gpt2().bfloat16().float()
    model = mm.load_model(full, tokenizer=helpers.word_tokenizer())
    sites = [("resid_post", 1), ("mlp_out", 2)]
    rough, fine = (
        mm.attribution_patching(m, PAIRS, sites=sites, controls=False) for m in (half.model, model)
    )
    gains = [r.margins["patched"] - r.recipient_margins[:, None, None] for r in (rough, fine)]
    close(gains[0], gains[1], tolerance=0.1)
