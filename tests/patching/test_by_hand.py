"""Every edit against plain PyTorch hooks on the transformers model, without a KV cache."""

from __future__ import annotations

import pytest
import torch
from helpers import (
    at_positions,
    bench,
    close,
    contrast_set,
    differs,
    hf_greedy,
    hf_logits,
    hf_states,
    ragged,
)
from torch import Tensor

import mechmem as mm
from mechmem.models.sites import STREAMS

PROMPTS = ragged(7)
NEW = 6


@pytest.fixture(params=["gpt2", "llama"])
def lab(request):
    return bench(request.param)


_CACHE: dict = {}


def _direction(lab, site) -> mm.Direction:
    key = (id(lab), "direction", site)
    if key not in _CACHE:
        acts = mm.cache_activations(lab.model, contrast_set(), sites=[site])
        _CACHE[key] = mm.difference_of_means(acts, toward="generalized")[site]
    return _CACHE[key]


def _scores(lab, sites, positions="last") -> mm.NeuronScores:
    key = (id(lab), "scores", str(sites), str(positions))
    if key not in _CACHE:
        acts = mm.cache_activations(lab.model, contrast_set(), sites=sites, positions=positions)
        _CACHE[key] = mm.neuron_mean_difference(acts)
    return _CACHE[key]


def _agrees(lab, edit, by_hand, prompts=PROMPTS, moves: bool = True) -> None:
    """Logits, generated text and answer log-probabilities under the edit.

    ``by_hand(prompt, length)`` gives the hooks for a prompt of so many tokens.
    """
    plain = lab.model.logits(prompts)
    with mm.patched(lab.model, edit) as view:
        logits = view.logits(prompts)
        texts = view.complete(prompts, NEW)
        answers = [completion.ids[:3] or [5] for completion in texts]
        words = [lab.tokenizer.decode(ids) for ids in answers]
        words = [word if word.strip() else "w5" for word in words]
        scores = view.logprobs(prompts, words)
    want = []
    for k, prompt in enumerate(prompts):
        ids = lab.ids(prompt.text)
        hooks = by_hand(prompt, len(ids))
        want.append(hf_logits(lab.hf, ids, hooks)[-1])
        assert texts[k].ids == hf_greedy(lab.hf, ids, NEW, hooks)
        tail = lab.tokenizer(words[k], add_special_tokens=False)["input_ids"]
        steps = hf_logits(lab.hf, ids + tail, hooks).double().log_softmax(-1)
        summed = sum(float(steps[len(ids) - 1 + j, token]) for j, token in enumerate(tail))
        close(scores[k], summed, 1e-4)
    close(logits, torch.stack(want))
    if moves:
        differs(plain, torch.stack(want))


def _everywhere(sites, change, where=None):
    """By-hand hooks for the same change at several sites."""

    def hooks(prompt, length: int):
        meant = where(length) if where is not None else (lambda at: at >= 0)
        return {tuple(site): [at_positions(change, meant)] for site in sites}

    return hooks


WHERE = {
    "all": lambda length: lambda at: at >= 0,
    "prompt": lambda length: lambda at: at < length,
    "last": lambda length: lambda at: at == length - 1,
    "each_step": lambda length: lambda at: at >= length - 1,
    0: lambda length: lambda at: at == 0,
    -2: lambda length: lambda at: at == length - 2,
}


class TestAlongADirection:
    @pytest.mark.parametrize("stream", STREAMS)
    def test_adding_in_every_stream(self, lab, stream) -> None:
        direction = _direction(lab, (stream, 1))
        vector = 1.7 * torch.tensor(direction.vector.numpy(), dtype=torch.float32)
        _agrees(
            lab,
            mm.AddDirection(direction, alpha=1.7),
            _everywhere([(stream, 1)], lambda h: h + vector),
        )

    @pytest.mark.parametrize("positions", list(WHERE), ids=str)
    def test_adding_at_every_kind_of_position(self, lab, positions) -> None:
        direction = _direction(lab, ("resid_post", 0))
        vector = 2.0 * direction.vector.float()
        _agrees(
            lab,
            mm.AddDirection(direction, alpha=2.0, positions=positions),
            _everywhere([("resid_post", 0)], lambda h: h + vector, WHERE[positions]),
        )

    def test_only_what_is_generated_leaves_the_first_token_alone(self, lab) -> None:
        direction = _direction(lab, ("resid_post", 0))
        vector = 3.0 * direction.vector.float()
        edit = mm.AddDirection(direction, alpha=3.0, positions="generated")
        with mm.patched(lab.model, edit) as view:
            done = view.complete(PROMPTS, NEW)
        plain = lab.model.complete(PROMPTS, NEW)
        for prompt, after in zip(PROMPTS, done, strict=True):
            ids = lab.ids(prompt.text)
            hooks = _everywhere(
                [("resid_post", 0)], lambda h: h + vector, lambda n: lambda at: at >= n
            )(prompt, len(ids))
            assert after.ids == hf_greedy(lab.hf, ids, NEW, hooks)
        assert [c.ids[:1] for c in done] == [c.ids[:1] for c in plain]
        assert [c.ids for c in done] != [c.ids for c in plain]

    def test_toward_the_other_class_is_minus(self, lab) -> None:
        direction = _direction(lab, ("resid_post", 0))
        vector = direction.vector.float()
        _agrees(
            lab,
            mm.AddDirection(direction, alpha=1.5, toward="memorized"),
            _everywhere([("resid_post", 0)], lambda h: h - 1.5 * vector),
        )

    def test_projecting_out(self, lab) -> None:
        direction = _direction(lab, ("resid_post", 0))
        unit = direction.vector.float() / direction.vector.float().norm()
        _agrees(
            lab,
            mm.ProjectOut(direction),
            _everywhere([("resid_post", 0)], lambda h: h - torch.outer(h @ unit, unit)),
        )

    @pytest.mark.parametrize("scale", [0.1, -1.0, 1.5])
    def test_scaling_the_projection_everywhere(self, lab, scale) -> None:
        direction = _direction(lab, ("resid_pre", 1))
        unit = direction.vector.float() / direction.vector.float().norm()
        sites = [
            (stream, layer)
            for layer in range(lab.model.n_layers)
            for stream in ("resid_pre", "attn_out", "mlp_out")
        ]
        _agrees(
            lab,
            mm.ScaleProjection(direction, scale=scale, at="everywhere"),
            _everywhere(sites, lambda h: h + scale * torch.outer(h @ unit, unit)),
        )

    @pytest.mark.parametrize("toward", ["generalized", "memorized"])
    def test_setting_the_projection_to_a_class_mean(self, lab, toward) -> None:
        site = ("resid_mid", 1)
        direction = _direction(lab, site)
        prompts = contrast_set()
        states = torch.stack(
            [hf_states(lab.hf, lab.ids(p.text), [site])[site][-1] for p in prompts]
        ).double()
        one = torch.tensor([p.behavior == "generalized" for p in prompts])
        vector = states[one].mean(0) - states[~one].mean(0)
        unit = vector / vector.norm()
        mean = float(states[one if toward == "generalized" else ~one].mean(0) @ unit)
        single = unit.float()
        _agrees(
            lab,
            mm.SetProjection(direction, toward=toward),
            _everywhere([site], lambda h: h + torch.outer(mean - h @ single, single)),
        )

    def test_alpha_zero_is_the_unedited_model_bit_for_bit(self, lab) -> None:
        plain, text = lab.model.logits(PROMPTS), lab.model.complete(PROMPTS, NEW)
        edits = [
            mm.AddDirection(_direction(lab, (stream, 0)), alpha=0.0, at=at)
            for stream, at in (("resid_mid", None), ("z", None), ("resid_post", "everywhere"))
        ]
        edits.append(mm.ShiftNeurons(_scores(lab, "resid_post"), alpha=0.0))
        for edit in [*edits, edits]:
            with mm.patched(lab.model, edit) as view:
                assert torch.equal(view.logits(PROMPTS), plain)
                assert view.complete(PROMPTS, NEW) == text


class TestNeurons:
    def _shift(self, scores, top, sign, alpha) -> dict:
        """The chosen shifts by an own ranking."""
        every = sorted(
            (-abs(float(scores.correlation[site][k, i])), n, site, k, i)
            for n, site in enumerate(scores.sites)
            for k in range(len(scores.columns))
            for i in range(scores.correlation[site].shape[1])
        )
        shift = {site: torch.zeros(scores.mean_difference[site].shape) for site in scores.sites}
        for _, _, site, k, i in every[:top]:
            shift[site][k, i] = sign * alpha * float(scores.mean_difference[site][k, i])
        return shift

    @pytest.mark.parametrize(("toward", "sign"), [("memorized", 1), ("generalized", -1)])
    def test_shifting_at_each_step_over_all_layers(self, lab, toward, sign) -> None:
        scores = _scores(lab, "resid_post")
        total = scores.total
        shift = self._shift(scores, round(0.25 * total), sign, 2.0)

        def hooks(prompt, length):
            return {
                tuple(site): [
                    at_positions(lambda h, v=value[0]: h + v, lambda at: at >= length - 1)
                ]
                for site, value in shift.items()
            }

        _agrees(lab, mm.ShiftNeurons(scores, top=0.25, alpha=2.0, toward=toward), hooks)

    def test_a_window_gives_every_position_its_own_shift_and_nothing_elsewhere(self, lab) -> None:
        scores = _scores(lab, ["resid_post"], ["cue", "last"])
        assert len(scores.columns) == 3
        shift = self._shift(scores, 40, -1, 1.5)
        prompts = contrast_set(3, seed=5)

        def hooks(prompt, length):
            rows = [2, 3, length - 1]  # BOS, first word, the two of the cue, ...

            def put(h: Tensor, value) -> Tensor:
                out = h.clone()
                for k, row in enumerate(rows):
                    out[row] = out[row] + value[k]
                return out

            return {
                tuple(site): [lambda h, at, v=value: put(h, v)] for site, value in shift.items()
            }

        _agrees(lab, mm.ShiftNeurons(scores, top=40, alpha=1.5), hooks, prompts)

    def test_a_window_refuses_prompts_whose_window_is_another_size(self, lab) -> None:
        scores = _scores(lab, ["resid_post"], ["cue", "last"])
        short = mm.PromptSet([mm.Prompt(id="short", text="w1 w2 w3", spans={"cue": (3, 5)})])
        edit = mm.ShiftNeurons(scores, top=10)
        with (
            pytest.raises(mm.MechmemError, match=r"'short' has 2 .*cue\+last.*3"),
            mm.patched(lab.model, edit) as view,
        ):
            view.logits(short)

    @pytest.mark.parametrize("mode", ["zero", "mean"])
    @pytest.mark.parametrize("stream", ["mlp_post", "resid_mid"])
    def test_ablating(self, lab, mode, stream) -> None:
        scores = _scores(lab, [(stream, 0), (stream, 1)])
        neurons = scores.top(12)
        prompts = contrast_set()
        states = [hf_states(lab.hf, lab.ids(p.text), [(stream, 0), (stream, 1)]) for p in prompts]
        one = torch.tensor([p.behavior == "memorized" for p in prompts])
        value = {}
        for site in scores.sites:
            stacked = torch.stack([found[tuple(site)][-1] for found in states])
            mean = (stacked[one].mean(0) + stacked[~one].mean(0)) / 2
            value[site] = mean if mode == "mean" else torch.zeros_like(mean)

        def hooks(prompt, length):
            out = {}
            for site, index in neurons.index.items():
                if not len(index):
                    continue

                def put(h: Tensor, index=index, new=value[site]) -> Tensor:
                    h = h.clone()
                    h[:, index] = new[index]
                    return h

                out[tuple(site)] = [at_positions(put, lambda at: at >= length - 1)]
            return out

        _agrees(lab, mm.AblateNeurons(neurons, mode=mode), hooks)


class TestTogether:
    def test_two_edits_at_one_site_act_in_the_order_given(self, lab) -> None:
        direction = _direction(lab, ("resid_post", 0))
        vector = direction.vector.float()
        unit = vector / vector.norm()
        add, remove = mm.AddDirection(direction, alpha=2.0), mm.ProjectOut(direction)

        def out(h: Tensor) -> Tensor:
            return h - torch.outer(h @ unit, unit)

        site = [("resid_post", 0)]
        _agrees(lab, [add, remove], _everywhere(site, lambda h: out(h + 2 * vector)))
        _agrees(lab, [remove, add], _everywhere(site, lambda h: out(h) + 2 * vector))

    def test_nested_blocks_are_the_same_as_a_list(self, lab) -> None:
        one = mm.AddDirection(_direction(lab, ("resid_mid", 0)), alpha=1.5)
        two = mm.ProjectOut(_direction(lab, ("resid_mid", 0)))
        with mm.patched(lab.model, [one, two]) as view:
            want = view.logits(PROMPTS)
        with mm.patched(lab.model, one) as outer:
            first = outer.logits(PROMPTS)
            with mm.patched(outer, two) as inner:
                assert torch.equal(inner.logits(PROMPTS), want)
            assert torch.equal(outer.logits(PROMPTS), first)
        differs(first, want)

    def test_edits_of_all_streams_of_one_block_at_once(self, lab) -> None:
        edits, hooks = [], {}
        for stream in STREAMS:
            direction = _direction(lab, (stream, 1))
            vector = 0.7 * direction.vector.float()
            edits.append(mm.AddDirection(direction, alpha=0.7))
            if stream != "resid_mid":
                hooks[stream, 1] = [lambda h, at, v=vector: h + v]
        # By hand the middle of the stream is moved through what attention adds to it.
        middle = 0.7 * _direction(lab, ("resid_mid", 1)).vector.float()
        hooks["attn_out", 1].append(lambda h, at: h + middle)
        _agrees(lab, edits[::-1], lambda prompt, length: hooks)

    def test_every_position_generated_or_not_with_a_middle_edit_in_each_block(self, lab) -> None:
        direction = _direction(lab, ("resid_mid", 0))
        unit = direction.vector.float() / direction.vector.float().norm()
        sites = [("resid_mid", layer) for layer in range(lab.model.n_layers)]
        _agrees(
            lab,
            mm.ScaleProjection(direction, scale=-0.5, at="resid_mid"),
            _everywhere(sites, lambda h: h - 0.5 * torch.outer(h @ unit, unit)),
        )
