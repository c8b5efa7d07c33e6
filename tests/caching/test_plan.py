"""The plan before the run, memory that runs out, and progress."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import HOOKED, bench, close, fresh_bench, ragged, word_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import mechmem as mm
from mechmem.caching import speed
from mechmem.models.engine.batching import MAX_PAIRS, rows_that_fit
from mechmem.models.engine.plan import make_plan
from mechmem.models.tokenizing import TokenizedPrompt


def alike(n: int = 9) -> list[str]:
    start = " ".join(f"w{random.Random(0).randrange(40)}" for _ in range(12))
    return [
        f"{start} " + " ".join(f"w{(k * j) % 40}" for j in range(1, 2 + k % 4)) for k in range(n)
    ]


@cache
def wide(family: str) -> mm.Model:
    """Wide enough that tensors, and not Python, are what takes memory."""
    tokenizer = word_tokenizer()
    common = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1}
    torch.manual_seed(0)
    if family == "gpt2":
        sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 2600}
        return mm.load_model(GPT2LMHeadModel(GPT2Config(**sizes, **common)), tokenizer=tokenizer)
    sizes = {
        "hidden_size": 64, "intermediate_size": 172, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2600,
    }  # fmt: skip
    return mm.load_model(LlamaForCausalLM(LlamaConfig(**sizes, **common)), tokenizer=tokenizer)


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

    def test_untimed_it_runs_short_passes_only(self, monkeypatch) -> None:
        lab, prompts = bench(), ragged(9)
        mm.cache_activations(lab.model, prompts)
        short = Short(monkeypatch, lab.model, 10**9, CPU)
        plan = mm.plan_extraction(lab.model, prompts, timed=False)
        assert plan.seconds is None
        lengths = [len(lab.ids(prompt.text)) for prompt in prompts]
        one, *passes = short.tried
        assert one == min(lengths)
        assert len(passes) == 4  # of random tokens, to see what they take
        assert max(passes) <= 8 * max(lengths)


def words(low: int, high: int, rows: int, first: int = 0) -> list[str]:
    rng = random.Random(high)
    start = [f"w{rng.randrange(40)}" for _ in range(first)]
    return [
        " ".join([*start, *(f"w{rng.randrange(40)}" for _ in range(rng.randint(low, high)))])
        for _ in range(rows)
    ]


@pytest.mark.skipif(HOOKED, reason="shared beginnings need a bridge")
@pytest.mark.parametrize(
    "texts",
    [
        words(5, 30, 100),
        words(5, 300, 12),
        [*words(5, 15, 60), *words(1500, 1500, 1)],
        words(10, 40, 12, first=600),
    ],
    ids=["short", "ragged", "one long", "header"],
)
@pytest.mark.parametrize("law", [(5e-3, 1e-5, 2e-8), (1e-4, 1e-5, 1e-7)])
def test_the_time_is_what_the_passes_take_whatever_takes_it(monkeypatch, law, texts) -> None:
    """On a clock that only passes move on: each by itself, by its tokens, by their pairs."""
    model, own, now = wide("llama"), type(wide("llama").backend).forward, [0.0]

    def forward(backend, ids, mask, **options):
        now[0] += law[0] + ids.numel() * (law[1] + law[2] * mask.shape[-1])
        return own(backend, ids, mask, **options)

    prompts = mm.PromptSet.from_texts(texts)
    mm.cache_activations(model, prompts)  # what the model can do is tried once
    monkeypatch.setattr(type(model.backend), "forward", forward)
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    plan = mm.plan_extraction(model, prompts)
    begun = now[0]
    mm.cache_activations(model, prompts)
    assert plan.seconds == pytest.approx(now[0] - begun, rel=0.1)


def allocated(run: Callable[[], object]) -> int:
    """The most bytes that torch's allocator has held at once, beside what was there."""
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        run()
    events = profile.profiler.kineto_results.events()
    memory = [event for event in events if event.name() == "[memory]"]
    steps = [event.nbytes() for event in sorted(memory, key=lambda event: event.start_ns())]
    return int(np.cumsum(steps).max())


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize(
    ("rows", "width", "ragged"),
    [(1, 2500, 0), (16, 120, 90), (256, 60, 30)],
)
def test_the_memory_is_within_a_third_of_what_torch_allocates(family, rows, width, ragged) -> None:
    model = wide(family)
    rng = random.Random(rows)
    texts = [
        " ".join(f"w{rng.randrange(40)}" for _ in range(width - rng.randrange(ragged + 1)))
        for _ in range(rows)
    ]
    options = {"sites": ["resid_post"], "token_budget": 16384, "share_prefixes": False}
    prompts = mm.PromptSet.from_texts(texts)
    plan = mm.plan_extraction(model, prompts, timed=False, **options)
    took = allocated(lambda: mm.cache_activations(model, prompts, **options))
    assert took / 1.3 < plan.peak_bytes < took * 1.3


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
