"""The plan before the run, memory that runs out, and progress."""

from __future__ import annotations

import random

import pytest
import torch
from helpers import HOOKED, bench, close, fresh_bench, ragged

import mechmem as mm
from mechmem.models.engine import plan as plans
from mechmem.models.engine.batching import MAX_PAIRS, rows_that_fit
from mechmem.models.engine.plan import make_plan
from mechmem.models.tokens import TokenizedPrompt


def alike(n: int = 9) -> list[str]:
    start = " ".join(f"w{random.Random(0).randrange(40)}" for _ in range(12))
    return [
        f"{start} " + " ".join(f"w{(k * j) % 40}" for j in range(1, 2 + k % 4)) for k in range(n)
    ]


class Short:
    """A model's forward that runs out of memory above a number of tokens."""

    def __init__(self, monkeypatch, model: mm.Model, limit: int, error: Exception) -> None:
        self.tried: list[int] = []
        own = type(model.backend).forward

        def forward(backend, ids, mask, **options):
            self.tried.append(ids.numel())
            if ids.numel() > limit:
                raise error
            return own(backend, ids, mask, **options)

        monkeypatch.setattr(type(model.backend), "forward", forward)


CPU = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:119] err == 0. DefaultCPUAllocator: can't allocate memory: you "
    "tried to allocate 137438953472 bytes. Error code 12 (Cannot allocate memory)"
)


class TestOutOfMemory:
    @pytest.mark.parametrize(
        "error", [torch.OutOfMemoryError("CUDA out of memory."), CPU, MemoryError()]
    )
    def test_batches_are_halved_and_the_results_are_the_same(self, monkeypatch, error) -> None:
        lab, prompts = bench(), ragged(12)
        want = mm.cache_activations(lab.model, prompts)
        logits, text = lab.model.logits(prompts), lab.model.generate(prompts, 3)
        scores = lab.model.logprobs(prompts, [" w1 w2"] * 12)
        short = Short(monkeypatch, lab.model, 45, error)
        got = mm.cache_activations(lab.model, prompts)
        close(got.values, want.values, 1e-5)
        assert any(tokens > 45 for tokens in short.tried)
        close(lab.model.logits(prompts), logits, 1e-5)
        close(lab.model.logprobs(prompts, [" w1 w2"] * 12), scores, 1e-5)
        assert lab.model.generate(prompts, 3) == text

    def test_batches_as_large_as_one_that_failed_are_not_tried_again(self, monkeypatch) -> None:
        lab = bench()
        prompts = mm.PromptSet(mm.Prompt(id=str(k), text="w1 w2 w3") for k in range(40))
        lab.model.logits(prompts)
        short = Short(monkeypatch, lab.model, 20, CPU)
        lab.model.logits(prompts, token_budget=40)
        assert sum(tokens > 20 for tokens in short.tried) == 1

    @pytest.mark.skipif(HOOKED, reason="shared beginnings need a bridge")
    def test_shared_beginnings_survive_it(self, monkeypatch) -> None:
        monkeypatch.setattr("mechmem.models.engine.forward.pass_cost", lambda backend: 6.0)
        lab = bench("llama")
        want = mm.cache_activations(lab.model, alike(), share_prefixes=False, positions="mean")
        mm.cache_activations(lab.model, alike())
        short = Short(monkeypatch, lab.model, 20, CPU)
        got = mm.cache_activations(lab.model, alike(), positions="mean")
        assert max(short.tried) > 20
        assert short.tried[0] == 13  # the beginning, with its BOS
        close(got.values, want.values, 1e-5)

    def test_a_single_prompt_that_does_not_fit_is_named_by_its_length(self, monkeypatch) -> None:
        lab = bench()
        lab.model.logits("w1")
        Short(monkeypatch, lab.model, 4, CPU)
        with pytest.raises(mm.ModelError, match=r"prompt of 6 tokens does not fit.*device_map"):
            lab.model.logits(["w1 w2 w3 w4 w5", "w1"])

    @pytest.mark.parametrize("error", [RuntimeError("shapes do not match"), ValueError("no")])
    def test_other_errors_are_left_alone(self, monkeypatch, error) -> None:
        lab = bench()
        short = Short(monkeypatch, lab.model, 0, error)
        with pytest.raises(type(error), match=str(error)):
            lab.model.logits(ragged(5))
        assert len(short.tried) == 1


class TestBounds:
    def test_attention_never_grows_beyond_its_bound(self) -> None:
        prompts = [TokenizedPrompt(str(k), (1,) * (100 * (k + 1)), {}) for k in range(40)]
        plan = make_plan(prompts, 1 << 30)
        for work in plan.works:
            assert len(work.rows) == 1 or len(work.rows) * work.width**2 <= MAX_PAIRS
        assert any(len(work.rows) > 1 for work in plan.works)
        assert rows_that_fit(1 << 30, 4000) == 1
        assert rows_that_fit(1 << 30, 4, 100_000) == MAX_PAIRS // 400_000

    def test_estimated_memory_grows_with_the_square_of_the_length(self) -> None:
        cfg = bench().model.tl.cfg
        sizes = [
            plans.peak_bytes(
                cfg, make_plan([TokenizedPrompt("a", (1,) * n, {})]), 4, keeps=False, logits=False
            )
            for n in (10_000, 20_000)
        ]
        assert 3.5 < sizes[1] / sizes[0] < 4


class TestThePlanOfAnExtraction:
    def test_it_says_what_will_run(self) -> None:
        lab, prompts = bench(), ragged(9)
        plan = mm.plan_extraction(lab.model, prompts, sites=["resid_post", "mlp_post"])
        ids = [lab.ids(prompt.text) for prompt in prompts]
        assert plan.plan.tokens == sum(map(len, ids))
        width = {"resid_post": 16, "mlp_post": lab.model.info.d_mlp}
        assert plan.state_bytes == 9 * lab.model.n_layers * sum(width.values()) * 4
        assert plan.seconds is not None
        assert plan.seconds > 0
        text = str(plan)
        for part in (f"9 prompts, {plan.plan.tokens} tokens", "tokens/s", "of memory beside"):
            assert part in text

    def test_untimed_it_runs_one_short_prompt_only(self, monkeypatch) -> None:
        lab, prompts = bench(), ragged(9)
        mm.cache_activations(lab.model, prompts)
        short = Short(monkeypatch, lab.model, 10**9, CPU)
        plan = mm.plan_extraction(lab.model, prompts, timed=False)
        assert plan.seconds is None
        assert short.tried == [min(len(lab.ids(prompt.text)) for prompt in prompts)]


class TestProgress:
    def test_a_function_hears_of_every_prompt_once(self) -> None:
        heard: list[int] = []
        mm.cache_activations(bench().model, ragged(9), token_budget=30, progress=heard.append)
        assert sum(heard) == 9
        assert len(heard) > 1

    def test_a_bar_on_stderr_counts_prompts_and_tokens_per_second(self, capsys) -> None:
        mm.cache_activations(bench().model, ragged(9), progress=True)
        out, err = capsys.readouterr()
        assert out == ""
        assert "9/9" in err
        assert "tokens/s" in err

    def test_silent_unless_asked(self, capsys) -> None:
        mm.cache_activations(fresh_bench().model, ragged(3))
        assert capsys.readouterr() == ("", "")
