from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from helpers import (
    N_CTX,
    as_users_run_it,
    bench,
    close,
    fresh_bench,
    hf_greedy,
    hf_logits,
    hook_count,
    ragged,
    sentence,
    weights_of,
    word_tokenizer,
)

import mechmem as mm
from mechmem.models.check.site_check import require_sites
from mechmem.models.engine.batched_edits import packs_cells

KINDS = ["gpt2", "llama"]


@pytest.fixture(params=KINDS)
def lab(request):
    return bench(request.param)


class TestLogits:
    def test_a_padded_batch_equals_plain_transformers_one_by_one(self, lab) -> None:
        prompts = ragged(12)
        want = torch.stack([hf_logits(lab.hf, lab.ids(p.text))[-1] for p in prompts])
        close(lab.model.logits(prompts), want)

    def test_order_and_batching_do_not_matter(self, lab) -> None:
        prompts = ragged(12)
        want = lab.model.logits(prompts)
        for budget in (1, 25, 60, 10_000):
            close(lab.model.logits(prompts, token_budget=budget), want)
        back = mm.PromptSet(reversed(list(prompts)))
        close(lab.model.logits(back).flip(0), want)

    def test_one_token_and_full_context_prompts(self, lab) -> None:
        prompts = ["", sentence(N_CTX - 1), "w3"]
        want = torch.stack([hf_logits(lab.hf, lab.ids(text))[-1] for text in prompts])
        close(lab.model.logits(prompts), want)

    def test_they_are_float32_on_the_cpu_without_a_graph(self, lab) -> None:
        logits = lab.model.logits("w1")
        assert logits.dtype is torch.float32
        assert logits.device.type == "cpu"
        assert not logits.requires_grad

    def test_too_long_is_refused_before_anything_runs(self, lab) -> None:
        with pytest.raises(mm.PromptError, match=rf"'1' has {N_CTX + 1} tokens"):
            lab.model.logits(["w1", sentence(N_CTX)])

    def test_no_prompts_are_refused(self, lab) -> None:
        with pytest.raises(mm.PromptError, match=r"No prompts to run"):
            lab.model.logits([])


class TestGenerate:
    def test_a_ragged_batch_writes_what_transformers_writes_one_by_one(self, lab) -> None:
        prompts = ragged(12)
        done = lab.model.complete(prompts, 10)
        for prompt, completion in zip(prompts, done, strict=True):
            ids = torch.tensor([lab.ids(prompt.text)])
            out = lab.hf.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=10,
                do_sample=False,
                pad_token_id=3,
            )[0, ids.shape[1] :].tolist()
            want = out[: out.index(1)] if 1 in out else out
            assert completion.ids == want
            assert completion.finished == (1 in out)
            assert completion.text == lab.tokenizer.decode(want)

    def test_an_end_of_sequence_ends_its_row_alone_as_in_transformers(self) -> None:
        lab, prompts = bench("llama"), ragged(12)
        plain = lab.model.complete(prompts, 10)
        assert len({completion.text for completion in plain}) > 6  # there is something to compare
        end = plain[0].ids[2]
        tokenizer = word_tokenizer()
        tokenizer.eos_token = tokenizer.convert_ids_to_tokens(end)
        done = mm.load_model(lab.hf, tokenizer=tokenizer).complete(prompts, 10)
        for before, after in zip(plain, done, strict=True):
            assert after.finished == (end in before.ids)
            assert after.ids == before.ids[: before.ids.index(end) if end in before.ids else None]
        assert {completion.finished for completion in done} == {True, False}

    def test_it_does_not_depend_on_batching(self, lab) -> None:
        prompts = ragged(12)
        want = lab.model.generate(prompts, 6)
        for budget in (1, 40, 10_000):
            assert lab.model.generate(prompts, 6, token_budget=budget) == want

    def test_a_stop_string_cuts_the_text_and_ends_the_row_alone(self, lab) -> None:
        prompts = ragged(12)
        plain = lab.model.generate(prompts, 8)
        stop = plain[0].split()[2]
        for text, whole, done in zip(
            plain,
            lab.model.complete(prompts, 8),
            lab.model.complete(prompts, 8, stop=stop),
            strict=True,
        ):
            if stop in text:
                assert done.text == text[: text.index(stop)]
                assert done.finished
                assert len(done.ids) <= len(whole.ids)
            else:
                assert done == whole

    def test_the_earliest_of_several_stop_strings_wins(self, lab) -> None:
        prompts = ragged(4)
        plain = lab.model.generate(prompts, 8)
        text = max(plain, key=lambda text: len(set(text.split())))
        words = list(dict.fromkeys(text.split()))
        got = lab.model.generate(prompts, 8, stop=[words[2], words[1]])[plain.index(text)]
        assert got == text[: text.index(words[1])]

    def test_a_prompt_that_fills_the_context_does_not_shorten_the_others(self, lab) -> None:
        prompts = ["w1 w2", sentence(N_CTX - 1), sentence(N_CTX - 3), "w3"]
        done = lab.model.complete(prompts, 12)
        room = [12, 1, 3, 12]  # the last token need not be read again
        for text, completion, limit in zip(prompts, done, room, strict=True):
            want = hf_greedy(lab.hf, lab.ids(text), limit)
            assert completion.ids == want
            assert completion.finished == (len(want) < limit)

    def test_at_least_one_token_must_be_asked_for(self, lab) -> None:
        with pytest.raises(mm.ModelError, match=r"max_new_tokens must be an integer from 1, got 0"):
            lab.model.generate("w1", 0)


class TestLogprobs:
    ANSWERS = ("w1", "w2 w3 w4", "w5 w6", "w1", "w7 w8 w9 w10", "w0", "w11 w1")

    def _by_hand(self, lab, prompts) -> list[float]:
        out = []
        for prompt, answer in zip(prompts, self.ANSWERS, strict=True):
            head = lab.ids(prompt.text)
            tail = lab.tokenizer(answer, add_special_tokens=False)["input_ids"]
            scores = hf_logits(lab.hf, head + tail).double().log_softmax(-1)
            out.append(sum(float(scores[len(head) - 1 + k, token]) for k, token in enumerate(tail)))
        return out

    def test_they_are_the_sum_over_the_answers_tokens(self, lab) -> None:
        prompts = ragged(7)
        want = self._by_hand(lab, prompts)
        for budget in (1, 50, 10_000):
            close(lab.model.logprobs(prompts, self.ANSWERS, token_budget=budget), want)

    def test_an_answer_may_end_just_beyond_the_context_but_not_further(self, lab) -> None:
        text = sentence(N_CTX - 2)  # one free place: the last answer token is never read
        assert torch.isfinite(lab.model.logprobs([text], ["w1 w2"])).all()
        with pytest.raises(mm.PromptError, match=rf"'0'.*{N_CTX + 1}.*at most {N_CTX}"):
            lab.model.logprobs([text], ["w1 w2 w3"])

    def test_no_more_logits_than_answers_need_are_computed(self, lab, monkeypatch) -> None:
        own, seen = type(lab.model.backend).forward, []

        def forward(self, *args, **options):
            logits, cache = own(self, *args, **options)
            seen.append(logits.shape[1])
            return logits, cache

        monkeypatch.setattr(type(lab.model.backend), "forward", forward)
        lab.model.logprobs(["w1 w2 w3 w4 w5", "w6 w7"], ["w1 w2 w3", "w4"])
        assert seen == [3]

    def test_one_answer_for_every_prompt(self, lab) -> None:
        with pytest.raises(mm.PromptError, match=r"2 prompts.*1 answer"):
            lab.model.logprobs(["w1", "w2"], ["w3"])

    def test_a_bare_string_is_one_answer_not_its_letters(self, lab) -> None:
        with as_users_run_it():
            close(lab.model.logprobs("w1", "w3"), lab.model.logprobs("w1", ["w3"]))


class TestNothingIsChanged:
    def test_weights_hooks_random_states_and_grad_mode(self) -> None:
        lab = fresh_bench("gpt2", seed=4)
        lab.model.tl(torch.tensor([[1, 2]]))  # TransformerLens wires hooks of its own on first use
        before, hooks = weights_of(lab.model.tl), hook_count(lab.model)
        states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
        lab.model.logits(ragged(5))
        lab.model.generate(ragged(5), 4)
        lab.model.logprobs("w1", ["w2"])
        mm.cache_activations(lab.model, ragged(5))
        assert random.getstate() == states[0]
        assert np.random.get_state()[1].tolist() == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])
        assert torch.is_grad_enabled()
        assert hook_count(lab.model) == hooks
        after = weights_of(lab.model.tl)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)

    def test_the_transformers_model_handed_over_is_as_before(self) -> None:
        lab = fresh_bench("gpt2")
        assert all(not module._forward_hooks for module in lab.hf.modules())
        again = type(lab.hf)(lab.hf.config).eval()
        again.load_state_dict(lab.hf.state_dict())
        ids = torch.tensor([lab.ids("w1 w2 w3")])
        with torch.no_grad():
            assert torch.equal(again(ids).logits, lab.hf(ids).logits)

    def test_a_model_in_train_mode_is_refused(self) -> None:
        lab = fresh_bench("gpt2")
        lab.model.tl.train()
        for run in (
            lambda: lab.model.logits("w1"),
            lambda: lab.model.generate("w1"),
            lambda: lab.model.logprobs("w1", ["w2"]),
            lambda: mm.cache_activations(lab.model, "w1"),
        ):
            with pytest.raises(mm.ModelError, match=r"train mode.*model\.eval\(\)"):
                run()

    def test_nothing_that_was_asked_in_train_mode_is_remembered(self) -> None:
        lab = fresh_bench("gpt2")
        for module in lab.model.tl.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.5
        prompts = ["w1 w2 w3", "w4", "w1 w2 w5 w6"]
        lab.model.tl.train()
        for run in (lab.model.logits, lambda p: mm.cache_activations(lab.model, p)):
            with pytest.raises(mm.ModelError, match="train mode"):
                run(prompts)
        for ask in (
            packs_cells,
            lambda backend: require_sites(backend, [mm.Site("resid_post", 0)]),
        ):
            with pytest.raises(mm.ModelError, match="train mode"):
                ask(lab.model.backend)
        assert not lab.model.backend.findings
        lab.model.tl.eval()
        want = mm.cache_activations(fresh_bench("gpt2").model, prompts)
        close(mm.cache_activations(lab.model, prompts).values, want.values, 1e-6)
        assert packs_cells(lab.model.backend) == (lab.model.backend.kind == "TransformerBridge")

    def test_fingerprints_tell_weights_apart_and_nothing_else(self) -> None:
        one, same, other = fresh_bench(seed=1), fresh_bench(seed=1), fresh_bench(seed=2)
        assert one.model.info == same.model.info
        assert one.model.info.fingerprint != other.model.info.fingerprint
