"""P2's released intervention, recomputed with PyTorch hooks on plain transformers models.

``h + scale (h . r^) r^`` at the block input, the attention output and the MLP output of every
layer, at every position, in prefill and in every cached step. Its hooks sit on the modules
``self_attn`` and ``mlp``; where a norm follows these, what the branches add to the stream is
another place, ``at="stream"``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from models import zoo
from torch import Tensor

import mechmem as mm
from mechmem.caching.provenance import Provenance, Seen

PROMPTS = ["5 17 33 2 50 9 41 28", "7 7 31", "12"]
STEPS = 4
FAMILIES = {
    # blocks, and the modules of the attention branch and of the MLP branch
    "gpt2": ("transformer.h", "attn", "mlp"),
    "llama": ("model.layers", "self_attn", "mlp"),
    "gemma2": ("model.layers", "self_attn", "mlp"),
    "olmo2": ("model.layers", "self_attn", "mlp"),
}
NORMS = ("post_attention_layernorm", "post_feedforward_layernorm")
"""What stands between a module and the stream in the last two."""


@pytest.fixture(params=list(FAMILIES), scope="module")
def pair(request) -> tuple[str, Any, mm.Model]:
    hf = zoo.build(request.param)
    return request.param, hf, mm.load_model(hf, tokenizer=zoo.tokenizer())


def direction(model: mm.Model, layer: int, seed: int) -> mm.Direction:
    vector = torch.from_numpy(np.random.default_rng(seed).normal(size=model.info.d_model))
    made = Provenance(model.info, Seen(), "last")
    site = mm.Site("resid_pre", layer)
    return mm.Direction(vector, site, "reasoning", "memory", 2.0, -1.0, made)


@contextmanager
def by_hand(
    hf: Any, family: str, move: Callable[[Tensor, int, str], Tensor], stream: bool = False
) -> Iterator[None]:
    """``move(states, layer, place)`` at the three places of every block; with ``stream`` behind the
    norms that follow the modules."""
    home, attention, mlp = FAMILIES[family]
    if stream and family in ("gemma2", "olmo2"):
        attention, mlp = NORMS
    handles = []

    def moved(output: Any, layer: int, place: str) -> Any:
        if isinstance(output, tuple):
            return (move(output[0], layer, place), *output[1:])
        return move(output, layer, place)

    for layer, block in enumerate(hf.get_submodule(home)):

        def entering(module: Any, args: Any, kwargs: Any, layer: int = layer) -> Any:
            if args:
                return (move(args[0], layer, "input"), *args[1:]), kwargs
            changed = move(kwargs["hidden_states"], layer, "input")
            return args, {**kwargs, "hidden_states": changed}

        handles.append(block.register_forward_pre_hook(entering, with_kwargs=True))
        for name, place in ((attention, "attention"), (mlp, "mlp")):

            def leaving(
                module: Any, args: Any, output: Any, layer: int = layer, place: str = place
            ) -> Any:
                return moved(output, layer, place)

            handles.append(block.get_submodule(name).register_forward_hook(leaving))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def stepwise(hf: Any, ids: list[int], steps: int) -> tuple[list[int], Tensor]:
    """Greedy tokens and the logits of prefill and of every cached step."""
    out = hf(torch.tensor([ids]), use_cache=True)
    chosen, seen = [], [out.logits[0, -1]]
    for _ in range(steps - 1):
        chosen.append(int(seen[-1].argmax()))
        out = hf(torch.tensor([chosen[-1:]]), past_key_values=out.past_key_values, use_cache=True)
        seen.append(out.logits[0, -1])
    return [*chosen, int(seen[-1].argmax())], torch.stack(seen)


class Recorder:
    """The last token's state behind the last block, in every forward pass."""

    def __init__(self, layer: int) -> None:
        self.site = mm.Site("resid_post", layer)
        self.lengths: list[int] = []
        self.states: list[Tensor] = []

    def apply(self, activation: Tensor, feed: Any) -> None:
        self.lengths.append(activation.shape[1])
        self.states.append(activation[0, -1].clone())


def cached_steps_agree(
    pair, edit: mm.Edit, move: Callable[[Tensor, int, str], Tensor], stream: bool
) -> None:
    """Prefill and each cached step, state by state."""
    family, hf, model = pair
    record = Recorder(model.n_layers - 1)
    with mm.patched(model, edit) as view:
        view.with_interventions([record]).complete(PROMPTS[:1], STEPS)
    ids = list(zoo.tokenizer()(PROMPTS[0])["input_ids"])
    want: list[Tensor] = []
    last = hf.get_submodule(FAMILIES[family][0])[-1]

    def keep(module: Any, args: Any, output: Any) -> None:
        want.append((output[0] if isinstance(output, tuple) else output)[0, -1].clone())

    handle = last.register_forward_hook(keep)
    with by_hand(hf, family, move, stream):
        stepwise(hf, ids, STEPS)
    handle.remove()
    passes = len(record.states)
    assert passes >= 2
    assert record.lengths == [len(ids), *[1] * (passes - 1)]
    got, hand = torch.stack(record.states), torch.stack(want[:passes])
    assert float((got - hand).abs().max()) <= 1e-4 * float(hand.std()), family


def agrees(
    pair, edit: mm.Edit, move: Callable[[Tensor, int, str], Tensor], stream: bool = False
) -> None:
    cached_steps_agree(pair, edit, move, stream)
    family, hf, model = pair
    tokenizer = zoo.tokenizer()
    with mm.patched(model, edit) as view:
        completions = view.complete(PROMPTS, STEPS)
        # The logits of a step are those after the prompt and what was written so far.
        got = []
        for text, done in zip(PROMPTS, completions, strict=True):
            words = [tokenizer.decode([token]) for token in done.ids]
            begun = [" ".join([text, *words[:k]]) for k in range(len(done.ids))]
            got.append(view.logits(begun))
    plain, edited = [], []
    for text in PROMPTS:
        ids = list(tokenizer(text)["input_ids"])
        plain.append(stepwise(hf, ids, STEPS)[1])
        with by_hand(hf, family, move, stream):
            edited.append(stepwise(hf, ids, STEPS))
    spread = float(torch.cat([logits for _, logits in edited]).std())
    for done, ours, (tokens, want) in zip(completions, got, edited, strict=True):
        n = len(done.ids)
        assert n > 0
        assert list(done.ids) == tokens[:n]
        assert float((ours - want[:n]).abs().max()) <= 1e-4 * spread, family
    moved = max(
        float((after - before)[0].abs().max())
        for (_, after), before in zip(edited, plain, strict=True)
    )
    assert moved > 0.01 * spread, "the edit does nothing, so agreeing says nothing"


@pytest.mark.parametrize("scale", [0.1, -1.0])
def test_the_projection_is_scaled_at_three_places_of_every_block(pair, scale) -> None:
    r = direction(pair[2], 1, seed=0)
    unit = (r.vector / r.vector.norm()).float()

    def move(h: Tensor, layer: int, place: str) -> Tensor:
        return h + scale * (h @ unit)[..., None] * unit

    agrees(pair, mm.ScaleProjection(r, scale=scale, at="everywhere"), move)
    agrees(pair, mm.ScaleProjection(r, scale=scale, at="stream"), move, stream=True)
    if scale == -1.0:
        agrees(pair, mm.ProjectOut(r, at="everywhere"), move)
        agrees(pair, mm.ProjectOut(r, at="stream"), move, stream=True)


def test_behind_a_norm_is_another_place_and_without_one_the_same(pair) -> None:
    family, _, model = pair
    r = direction(model, 1, seed=0)
    logits = []
    for at in ("everywhere", "stream"):
        with mm.patched(model, mm.ScaleProjection(r, scale=0.5, at=at)) as view:
            logits.append(view.logits(PROMPTS))
    gap = float((logits[0] - logits[1]).abs().max() / logits[0].std())
    assert gap > 0.01 if family in ("gemma2", "olmo2") else gap == 0


def test_each_layer_can_have_its_own_direction(pair) -> None:
    own = [direction(pair[2], layer, seed=layer) for layer in range(pair[2].n_layers)]
    units = [(r.vector / r.vector.norm()).float() for r in own]

    def move(h: Tensor, layer: int, place: str) -> Tensor:
        return h + 0.4 * (h @ units[layer])[..., None] * units[layer]

    directions = mm.Directions({r.site: r for r in own})
    agrees(pair, mm.ScaleProjection(directions, scale=0.4, at="everywhere"), move)


def test_added_at_the_input_of_one_block(pair) -> None:
    r = direction(pair[2], 1, seed=3)

    def move(h: Tensor, layer: int, place: str) -> Tensor:
        return h - 0.8 * r.vector.float() if (layer, place) == (1, "input") else h

    agrees(pair, mm.AddDirection(r, alpha=0.8, toward="memory"), move)


def test_each_layer_is_set_to_its_own_class_mean(pair) -> None:
    own = [direction(pair[2], layer, seed=10 + layer) for layer in range(pair[2].n_layers)]
    units = [(r.vector / r.vector.norm()).float() for r in own]

    def move(h: Tensor, layer: int, place: str) -> Tensor:
        if place != "input":
            return h
        return h + (-1.0 - h @ units[layer])[..., None] * units[layer]

    directions = mm.Directions({r.site: r for r in own})
    agrees(pair, mm.SetProjection(directions, toward="memory"), move)
