"""After any fault the model is as it was: no hook of ours, the user's in place, the same logits."""

from __future__ import annotations

import random

import pytest
import torch
from models.parity import Edit, change, prompts
from models.zoo import build, tokenizer
from transformer_lens.hook_points import HookPoint

import mechmem as mm
from mechmem.models import STREAMS, Site
from mechmem.models.engine.reading import take_states
from mechmem.models.positions import Positions

TEXTS = [" ".join(str(token - 4) for token in ids) for ids in prompts()]
FAULTS = (RuntimeError, KeyboardInterrupt, SystemExit, MemoryError)


def load(family="llama", dtype=torch.float32):
    return mm.load_model(build(family, dtype), tokenizer=tokenizer())


def hooks(model):
    """Every hook on every module, and the hook points' own lists."""
    return {
        name: (
            tuple(m._forward_hooks), tuple(m._forward_pre_hooks), tuple(m._backward_hooks),
            len(m.fwd_hooks) if isinstance(m, HookPoint) else 0,
        )
        for name, m in model.tl.named_modules()
    }  # fmt: skip


def edited(model):
    sites = [Site("resid_pre", 0), Site("resid_mid", 0), Site("mlp_post", 1), Site("resid_post", 1)]
    widths = {"mlp_post": 48}
    return model.with_interventions(
        [Edit(site, change(widths.get(site.stream, 32))) for site in sites]
    )


ACTIONS = {
    "logits": lambda m: m.logits(TEXTS),
    "edited logits": lambda m: edited(m).logits(TEXTS),
    "edited text": lambda m: edited(m).generate(TEXTS, 3),
    "states": lambda m: mm.cache_activations(m, TEXTS, sites=["resid_mid", "z", "mlp_out"]),
    "answers": lambda m: edited(m).logprobs(TEXTS, ["5", "6 7", "8"]),
    "check": lambda m: mm.models.check_model(m),
}


class Countdown:
    """Raises at the n-th tick."""

    def __init__(self, n, fault):
        self.left, self.fault = n, fault

    def tick(self):
        self.left -= 1
        if self.left == 0:
            raise self.fault


def test_a_hundred_random_faults_leave_no_hook_and_the_same_logits(monkeypatch):
    draw = random.Random(0)
    model = load()
    model.logits(TEXTS)  # TransformerLens wires some hooks of its own at the first pass
    clean, wanted, forward = hooks(model), model.logits(TEXTS), HookPoint.forward
    hit = 0
    for _ in range(100):
        name = draw.choice(list(ACTIONS))
        if draw.random() < 0.5:
            model.backend.findings.clear()  # so that the fault may strike inside the site check
        countdown = Countdown(draw.randrange(1, 90), draw.choice(FAULTS)("injected"))

        def faulty(self, x, countdown=countdown):
            countdown.tick()
            return forward(self, x)

        monkeypatch.setattr(HookPoint, "forward", faulty)
        try:
            ACTIONS[name](model)
        except FAULTS as error:
            hit += error is countdown.fault
        monkeypatch.setattr(HookPoint, "forward", forward)
        assert hooks(model) == clean, name
        assert torch.is_grad_enabled()
        assert torch.equal(model.logits(TEXTS), wanted), name
    assert hit >= 60


@pytest.mark.parametrize("action", ["edited logits", "edited text", "states", "answers"])
def test_an_exception_in_an_edit_reaches_the_user_and_leaves_nothing(action):
    model = load("gpt2")
    model.logits(TEXTS)
    clean, wanted = hooks(model), model.logits(TEXTS)

    def fail(h):
        raise ZeroDivisionError("in my edit")

    view = model.with_interventions([Edit(Site("attn_out", 0), fail)])
    with pytest.raises(ZeroDivisionError, match="in my edit"):
        ACTIONS[action](view)
    assert hooks(model) == clean
    assert torch.equal(model.logits(TEXTS), wanted)


def test_a_generator_closed_early_leaves_nothing():
    model = load()
    model.logits(TEXTS)
    clean = hooks(model)
    running = take_states(
        model.backend, model.tokenize(TEXTS), [Site("resid_post", 0)], Positions.parse("last"),
        token_budget=1,
    )  # fmt: skip
    next(running)
    assert hooks(model) == clean
    running.close()
    assert hooks(model) == clean


def test_the_users_hooks_run_first_in_their_order_and_stay():
    model, seen = load(), []
    point = model.tl.hook_dict["blocks.0.hook_resid_post"]

    def add(name, by):
        def hook(h, hook):
            seen.append((name, h.clone()))
            return h + by

        point.add_hook(hook)

    add("first", 1.0)
    add("second", 2.0)
    plain = mm.cache_activations(load(), TEXTS, sites=("resid_post", 0))["resid_post", 0]
    read = mm.cache_activations(model, TEXTS, sites=("resid_post", 0))["resid_post", 0]
    assert torch.allclose(read, plain + 3.0, atol=1e-5)
    assert [name for name, _ in seen] == ["first", "second"]
    assert len(point.fwd_hooks) == 2
    ours = model.with_interventions([Edit(Site("resid_post", 0), lambda h: h * 2)])
    doubled = mm.cache_activations(ours, TEXTS, sites=("resid_post", 0))["resid_post", 0]
    assert torch.allclose(doubled, 2 * (plain + 3.0), atol=1e-4)
    model.tl.reset_hooks()


def test_a_users_hook_after_an_edited_middle_stream_sees_the_edit_and_keeps_its_own():
    model, other = load(), load()
    edit = Edit(Site("resid_mid", 0), lambda h: h + 1.0, Positions.parse("all"))
    seen = []

    def watch(h, hook):
        seen.append(h.clone())
        return h + 0.5

    model.tl.hook_dict["blocks.0.hook_resid_post"].add_hook(watch)
    view = model.with_interventions([edit])
    read = mm.cache_activations(view, "1 2 3", sites=("resid_post", 0), positions="all")
    bare = mm.cache_activations(
        other.with_interventions([edit]), "1 2 3", sites=("resid_post", 0), positions="all"
    )
    assert torch.allclose(seen[-1], bare["resid_post", 0], atol=1e-6)
    assert torch.allclose(read["resid_post", 0], bare["resid_post", 0] + 0.5, atol=1e-6)


@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "phi3"])
def test_no_attention_pattern_stays_alive_after_a_pass(family):
    model = load(family)
    for action in ("logits", "edited text", "states", "check"):
        if family == "gpt_neox" and action in ("edited text", "states"):
            continue  # they ask for the middle stream
        if family == "gpt2" and action == "edited text":
            continue  # its MLP is wider
        ACTIONS[action](model)
        for block in model.tl.blocks:
            assert getattr(block.attn, "_pattern", None) is None


@pytest.mark.parametrize("stream", STREAMS)
def test_a_float32_vector_may_be_added_to_a_bfloat16_model(stream):
    model = load("llama", torch.bfloat16)
    width = 48 if stream == "mlp_post" else 32
    view = model.with_interventions([Edit(Site(stream, 0), change(width))])
    assert torch.isfinite(view.logits(TEXTS)).all()
    assert not torch.equal(view.logits(TEXTS), model.logits(TEXTS))


def test_gradients_train_mode_and_grad_mode_are_the_callers():
    model = load()
    flags = [p.requires_grad for p in model.tl.parameters()]
    with torch.enable_grad():
        for action in ACTIONS.values():
            action(model)
            assert torch.is_grad_enabled()
    with torch.no_grad():
        for action in ACTIONS.values():
            action(model)
            assert not torch.is_grad_enabled()
    assert [p.requires_grad for p in model.tl.parameters()] == flags
    assert all(p.grad is None for p in model.tl.parameters())
    assert not model.tl.training
