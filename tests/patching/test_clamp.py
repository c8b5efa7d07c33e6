"""Clamped neurons against NumPy's clip, in plain hooks on the HF model."""

from __future__ import annotations

import helpers
import numpy as np
import pytest
import torch
from helpers import close, differs, hf_greedy, hf_logits

import mechmem as mm
from mechmem.errors import EditError

PROMPTS = helpers.ragged(5)
CHOSEN = [2, 9, 20]


def clipped(low, high, where):
    def edit(states, at):
        out = states.numpy().copy()
        rows = np.flatnonzero(where(at.numpy()))
        for column in CHOSEN:
            out[rows, column] = np.clip(out[rows, column], low, high)
        return torch.from_numpy(out)

    return edit


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize(("low", "high"), [(0.2, None), (None, 0.1), (-0.05, 0.05), (0.7, 0.7)])
def test_clamped_neurons_stay_within_their_bounds_and_the_others_as_they_are(kind, low, high):
    bench = helpers.bench(kind)
    edit = mm.ClampNeurons({("mlp_post", 1): CHOSEN}, minimum=low, maximum=high, positions="all")
    with mm.patched(bench.model, edit) as view:
        got = view.logits(PROMPTS)
    hand = clipped(low, high, lambda at: at >= 0)
    want = [hf_logits(bench.hf, bench.ids(p.text), {("mlp_post", 1): [hand]})[-1] for p in PROMPTS]
    close(got, torch.stack(want))
    differs(got, bench.model.logits(PROMPTS))


def test_a_clamp_acts_on_the_last_prompt_token_and_every_generated_one_by_default():
    bench = helpers.bench()
    with mm.patched(
        bench.model, mm.ClampNeurons({("mlp_post", 0): CHOSEN}, minimum=3.0, maximum=4.0)
    ) as view:
        done = view.complete(PROMPTS, max_new_tokens=4)
    changed = 0
    for prompt, completion in zip(PROMPTS, done, strict=True):
        ids = bench.ids(prompt.text)
        first = len(ids) - 1
        hand = clipped(3.0, 4.0, lambda at, first=first: at >= first)
        assert completion.ids == hf_greedy(bench.hf, ids, 4, {("mlp_post", 0): [hand]})
        changed += completion.ids != hf_greedy(bench.hf, ids, 4)
    assert changed


def test_neurons_of_a_window_are_clamped_each_at_its_own_position():
    bench = helpers.bench()
    source = helpers.contrast_set(5)
    acts = mm.cache_activations(bench.model, source, sites=("resid_post", 1), positions="cue")
    chosen = mm.neuron_mean_difference(acts).top(6)
    mask = chosen.mask(mm.Site("resid_post", 1)).numpy()
    assert mask.shape[0] == 2
    assert (mask[0] != mask[1]).any()
    with mm.patched(bench.model, mm.ClampNeurons(chosen, minimum=0.0, maximum=0.0)) as view:
        got = view.logits(source)
    want = []
    for prompt, tokens in zip(source, bench.model.tokenize(source), strict=True):

        def hand(states, at, cue=tokens.spans["cue"]):
            out = states.clone()
            for k, token in enumerate(cue):
                out[token, np.flatnonzero(mask[k])] = 0.0
            return out

        want.append(hf_logits(bench.hf, bench.ids(prompt.text), {("resid_post", 1): [hand]})[-1])
    close(got, torch.stack(want))


def test_bounds_that_no_neuron_reaches_change_nothing_at_all():
    model = helpers.bench().model
    edit = mm.ClampNeurons({("mlp_post", 1): CHOSEN}, minimum=-1e6, maximum=1e6)
    with mm.patched(model, edit) as view:
        assert torch.equal(view.logits(PROMPTS), model.logits(PROMPTS))
    assert view.edit_report().fired[0].tokens == 0


@pytest.mark.parametrize(
    ("bounds", "words"),
    [
        ({}, "minimum, a maximum, or both"),
        ({"minimum": 1.0, "maximum": 0.5}, "minimum=1.0 is above maximum=0.5"),
        ({"minimum": float("nan")}, "minimum must be a finite number"),
        ({"maximum": float("inf")}, "maximum must be a finite number"),
    ],
)
def test_bounds_that_bound_nothing_are_refused(bounds, words):
    def act():
        edit = mm.ClampNeurons({("mlp_post", 1): CHOSEN}, **bounds)
        with mm.patched(helpers.bench().model, edit):
            pass

    with pytest.raises(EditError, match=words):
        act()
