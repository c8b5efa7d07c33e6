"""Prompts that begin alike run their beginning once, and nothing about the results shows it."""

from __future__ import annotations

import copy
import random
from functools import cache

import numpy as np
import pytest
import torch
from helpers import close, differs, fresh_bench
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPTNeoConfig, GPTNeoForCausalLM, MistralConfig, MistralForCausalLM

import mechmem as mm
from mechmem.models.engine import generation, kv_cache, prefixes
from mechmem.models.engine.capabilities import forget
from mechmem.models.engine.forward import plan_passes
from mechmem.models.engine.generation import generate
from mechmem.models.engine.plan import make_plan
from mechmem.models.engine.prefixes import shareable_lengths
from mechmem.models.engine.reading import take_states
from mechmem.models.engine.scoring import answer_logprobs, last_logits
from mechmem.models.positions import Positions
from mechmem.models.tokenizing import TokenizedPrompt
from tests.models.plain import greedy, plain_pass
from tests.models.zoo import FAMILIES, SLIDING, VOCAB, build, tokenizer

SHARING = [family for family in FAMILIES if family not in SLIDING]


CHEAP = 6.0


@pytest.fixture(autouse=True)
def _passes_are_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """So few tokens as here would otherwise not be worth a pass of their own."""
    monkeypatch.setattr("mechmem.models.engine.forward.pass_cost", lambda backend: CHEAP)


@cache
def loaded(family: str) -> tuple[object, mm.Model]:
    plain = build(family)
    return plain, mm.load_model(plain, tokenizer=tokenizer())


def words(rng: random.Random, n: int) -> str:
    return " ".join(str(rng.randrange(60)) for _ in range(n))


def few_shot(n: int = 7, header: int = 16, seed: int = 0) -> mm.PromptSet:
    """One header for all, rests of 1 to 5 words, in no order."""
    rng = random.Random(seed)
    start = words(rng, header)
    texts = [f"{start} {words(rng, 1 + (k * 3) % 5)}" for k in range(n)]
    return mm.PromptSet(
        mm.Prompt(id=f"p{k}", text=text, spans={"head": (0, len(start.split()[0]))})
        for k, text in enumerate(texts)
    )


def pairs(n: int = 4, seed: int = 1) -> mm.PromptSet:
    """Members of a pair share a beginning of their own, of different lengths."""
    rng = random.Random(seed)
    made = []
    for group in range(n):
        start = words(rng, 12 + group)
        for member in range(2):
            text = f"{start} {words(rng, 1 + (group + 2 * member) % 4)}"
            made.append(mm.Prompt(id=f"g{group}.{member}", text=text, group=f"g{group}"))
    return mm.PromptSet(made)


def everyone(model: mm.Model) -> list[mm.Site]:
    return model.sites(["resid_pre", "z", "mlp_post", "resid_post"])


def counting(model: mm.Model, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of every forward pass from now on."""
    computed: list[int] = []
    own = type(model.backend).forward

    def forward(self, ids, mask, **options):
        computed.append(ids.numel())
        return own(self, ids, mask, **options)

    monkeypatch.setattr(type(model.backend), "forward", forward)
    return computed


def states(model, prompts, positions="last", share=True, budget=8192):
    tokenized = model.tokenize(prompts)
    out: dict[mm.Site, list] = {}
    for taken in take_states(
        model.backend, tokenized, everyone(model), Positions.parse(positions), share=share,
        interventions=model.interventions, token_budget=budget,
    ):  # fmt: skip
        for site, value in taken.states.items():
            rows = out.setdefault(site, [None] * len(tokenized))
            for k, row in enumerate(taken.rows):
                assert rows[row] is None
                rows[row] = value[k]
    return {site: torch.stack(rows) for site, rows in out.items()}


class TestAgainstPlainTransformers:
    @pytest.mark.parametrize("family", SHARING)
    @pytest.mark.parametrize("prompts", [few_shot(), pairs()], ids=["few-shot", "pairs"])
    @pytest.mark.parametrize("positions", ["last", "mean", [0, 3, -1]], ids=str)
    def test_states_at_any_position(self, family, prompts, positions) -> None:
        plain, model = loaded(family)
        got = states(model, prompts, positions)
        for k, item in enumerate(model.tokenize(prompts)):
            want, _ = plain_pass(plain, family, item.ids)
            for site, value in got.items():
                if positions == "mean":
                    expected = want[site].double().mean(0, keepdim=True)
                else:
                    at = (
                        {"last": [-1]}.get(positions, positions)
                        if isinstance(positions, str)
                        else positions
                    )
                    expected = want[site][at]
                close(value[k].flatten(1), expected, 1e-4)

    @pytest.mark.parametrize("family", SHARING)
    def test_what_enters_the_first_block_alone(self, family) -> None:
        # Of equal length, so that no row is padded and nobody but the cache tells where they begin.
        plain, model = loaded(family)
        start = " ".join(f"w{k}" for k in range(12))
        prompts = [f"{start} w{k} w3" for k in range(4)]
        tokenized, site = model.tokenize(prompts), mm.Site("resid_pre", 0)
        assert plan_passes(model.backend, tokenized, 8192).shared
        for taken in take_states(model.backend, tokenized, [site], Positions.parse("last")):
            for k, row in enumerate(taken.rows):
                want, _ = plain_pass(plain, family, tokenized[row].ids)
                close(taken.states[site][k, 0], want[site][-1], 1e-5)

    @pytest.mark.parametrize("family", SHARING)
    def test_edits_deeper_than_what_is_read(self, family, monkeypatch) -> None:
        # What those blocks see behind the beginning must be the beginning.
        _, model = loaded(family)
        tokenized, site, deep = model.tokenize(few_shot(4)), mm.Site("resid_post", 0), []

        class Look:
            site, where = mm.Site("resid_post", 1), Positions.parse("last")

            def apply(self, activation, feed):
                deep[-1].update(zip(feed.rows, activation[:, -1].clone(), strict=True))
                return activation

        for share in (True, False):
            deep.append({})
            list(take_states(
                model.backend, tokenized, [site], Positions.parse("last"),
                interventions=[Look()], share=share,
            ))  # fmt: skip
        assert len(deep[0]) == len(tokenized)
        for row, state in deep[1].items():
            close(deep[0][row], state, 1e-5)

    @pytest.mark.parametrize("family", SHARING)
    def test_logits_and_text(self, family) -> None:
        plain, model = loaded(family)
        for prompts in (few_shot(5), pairs(3)):
            logits, done = model.logits(prompts), model.complete(prompts, 4)
            for k, item in enumerate(model.tokenize(prompts)):
                close(logits[k], plain_pass(plain, family, item.ids)[1][-1], 1e-4)
                want, lead = greedy(plain, family, item.ids, 4)
                assert lead > 1e-4
                assert done[k].ids == want[: len(done[k].ids)]
                assert len(done[k].ids) == 4 or want[len(done[k].ids)] == 3  # the end token

    @pytest.mark.parametrize("family", ["gpt2", "llama"])
    def test_logprobs_of_answers_after_the_same_prompt(self, family) -> None:
        plain, model = loaded(family)
        rng = random.Random(5)
        text = words(rng, 14)
        prompts = mm.PromptSet(mm.Prompt(id=str(k), text=text) for k in range(5))
        answers = [" " + words(rng, 1 + k % 3) for k in range(5)]
        got = model.logprobs(prompts, answers)
        ids = model.token_ids(text)
        for k, answer in enumerate(answers):
            own = model.token_ids(answer.strip())
            _, logits = plain_pass(plain, family, [*ids, *own])
            scores = logits.double().log_softmax(-1)
            want = sum(scores[len(ids) + j - 1, token] for j, token in enumerate(own))
            close(got[k], want, 1e-4)


class TestItIsDone:
    @pytest.mark.parametrize("prompts", [few_shot(), pairs()], ids=["few-shot", "pairs"])
    def test_a_beginning_is_computed_once(self, prompts, monkeypatch) -> None:
        _, model = loaded("llama")
        tokenized = model.tokenize(prompts)
        take_all = lambda share: list(  # noqa: E731
            take_states(
                model.backend, tokenized, model.sites("resid_post"), Positions.parse("last"),
                share=share, token_budget=64,
            )
        )  # fmt: skip
        take_all(True)  # checks of the model run once
        computed = counting(model, monkeypatch)
        take_all(True)
        shared, computed[:] = sum(computed), []
        take_all(False)
        distinct = len({item.ids[:k] for item in tokenized for k in range(1, len(item.ids) + 1)})
        assert distinct <= shared < 0.75 * sum(computed)

    def test_one_header_is_run_once_for_all_batches(self, monkeypatch) -> None:
        _, model = loaded("gpt2")
        prompts = few_shot(9, header=21)
        states(model, prompts, budget=14)
        computed = counting(model, monkeypatch)
        states(model, prompts, budget=14)
        assert computed[0] == 21
        assert len(computed) > 3
        assert max(computed[1:]) <= 14

    def test_generation_prefills_it_once(self, monkeypatch) -> None:
        _, model = loaded("gpt2")
        prompts = few_shot(6, header=20)
        model.generate(prompts, 2)
        computed = counting(model, monkeypatch)
        model.generate(prompts, 2)
        assert computed[0] == 20
        assert sum(computed) < 20 * len(prompts)

    @pytest.mark.parametrize("most", [0, 1 << 30])
    def test_rows_write_the_same_with_and_without_copies_of_their_own(
        self, most, monkeypatch
    ) -> None:
        plain, model = loaded("llama")
        monkeypatch.setattr(kv_cache, "MOST_KEPT", most)
        kinds = set()
        own = kv_cache.reserve

        def watched(cache, room):
            own(cache, room)
            kinds.update(type(layer).__name__ for layer in cache.layers)

        monkeypatch.setattr(generation, "reserve", watched)
        prompts = few_shot(5)
        done = model.complete(prompts, 6)
        assert kinds == {"GrowingLayer" if most else "PrefixedLayer"}
        for k, item in enumerate(model.tokenize(prompts)):
            want, lead = greedy(plain, "llama", item.ids, 6)
            assert lead > 1e-4
            assert done[k].ids == want[: len(done[k].ids)]

    def test_the_model_is_left_without_hooks(self) -> None:
        _, model = loaded("gpt2")
        states(model, few_shot())
        assert not any(point.fwd_hooks for point in model.tl.hook_dict.values())


class TestEdits:
    def _fit(self, model):
        labeled = mm.PromptSet(
            mm.Prompt(id=f"f{k}", text=words(random.Random(k), 4), label="ab"[k % 2])
            for k in range(6)
        )
        acts = mm.cache_activations(model, labeled)
        return mm.difference_of_means(acts, toward="a", by="label")["resid_post", 0]

    @pytest.mark.parametrize("family", ["gpt2", "llama"])
    @pytest.mark.parametrize("positions", ["last", "each_step", "all", 3, [2, -1], "head"], ids=str)
    def test_edited_results_are_those_of_one_prompt_at_a_time(self, family, positions) -> None:
        plain, model = loaded(family)
        prompts, direction = few_shot(5), self._fit(model)
        edit = mm.AddDirection(direction, alpha=3.0, positions=positions)
        with mm.patched(model, edit) as view:
            got, logits = states(view, prompts, [0, 5, -1]), view.logits(prompts)
        vector = (3.0 * direction.vector).float()
        for k, item in enumerate(model.tokenize(prompts)):
            where = Positions.parse(positions)
            touched_positions = [at for _, at in where.columns(item)]
            change = (mm.Site("resid_post", 0), lambda h: h + vector, touched_positions)
            want, out = plain_pass(plain, family, item.ids, change)
            close(logits[k], out[-1], 1e-4)
            for site, value in got.items():
                close(value[k].flatten(1), want[site][[0, 5, -1]], 1e-4)
        differs(logits, model.logits(prompts))

    @pytest.mark.parametrize(
        ("positions", "shared"), [("last", True), (12, True), (2, False), ("all", False)]
    )
    def test_only_what_lies_before_the_edited_tokens_is_shared(self, positions, shared) -> None:
        _, model = loaded("llama")
        edit = mm.AddDirection(self._fit(model), positions=positions)
        with mm.patched(model, edit) as view:
            tokenized = view.tokenize(few_shot())
            allowed = prefixes.shareable_lengths(view.backend, tokenized, view.interventions)
        assert allowed is not None
        assert bool(make_plan(tokenized, limits=allowed, pass_cost=CHEAP).shared) == shared
        if positions == 12:
            assert set(allowed) == {12}

    def test_an_edit_of_unknown_reach_shares_nothing(self) -> None:
        _, model = loaded("llama")

        class Anything:
            site = mm.Site("resid_post", 0)

            def apply(self, activation, feed):
                return None

        tokenized = model.tokenize(few_shot())
        assert prefixes.shareable_lengths(model.backend, tokenized, [Anything()]) is None
        assert prefixes.shareable_lengths(model.backend, tokenized, []) is not None

    @pytest.mark.parametrize("positions", ["all", "last"])
    def test_alpha_zero_is_the_unedited_model_to_the_last_bit(self, positions) -> None:
        _, model = loaded("gpt2")
        prompts = few_shot()
        edit = mm.AddDirection(self._fit(model), alpha=0.0, positions=positions)
        with mm.patched(model, edit) as view:
            assert torch.equal(view.logits(prompts), model.logits(prompts))


class TestNotShared:
    @pytest.mark.parametrize("family", SLIDING)
    def test_sliding_windows_that_a_prompt_could_outgrow(self, family) -> None:
        plain, model = loaded(family)
        prompts = few_shot(4)
        tokenized = model.tokenize(prompts)
        assert prefixes.shareable_lengths(model.backend, tokenized, []) is None
        logits = model.logits(prompts)
        for k, item in enumerate(tokenized):
            close(logits[k], plain_pass(plain, family, item.ids)[1][-1], 1e-4)

    def test_windows_that_an_answer_outgrows(self, monkeypatch) -> None:
        """The prompts alone fit twice; one long answer beside short ones does not."""
        monkeypatch.setattr("mechmem.models.engine.forward.pass_cost", lambda backend: 60.0)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
            heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "vocab_size": VOCAB}
            plain = MistralForCausalLM(
                MistralConfig(**sizes, **heads, sliding_window=40, initializer_range=0.6)
            ).eval()
        model = mm.load_model(plain, tokenizer=tokenizer())
        rng = random.Random(2)
        start = words(rng, 14)
        prompts = mm.PromptSet(mm.Prompt(id=str(k), text=f"{start} {k % 9}") for k in range(60))
        answers = [" " + words(rng, 40 if k % 7 == 0 else 2) for k in range(60)]
        tokenized = model.tokenize(prompts)
        assert shareable_lengths(model.backend, tokenized, []) is not None
        got = model.logprobs(prompts, answers)
        for k in (0, 1, 7, 59):
            own = model.token_ids(answers[k].strip())
            with torch.no_grad():
                ids = torch.tensor([[*tokenized[k].ids, *own]])
                scores = plain(ids).logits[0].double().log_softmax(-1)
            first = len(tokenized[k].ids) - 1
            want = sum(scores[first + j, token] for j, token in enumerate(own))
            close(got[k], want, 1e-4)

    def test_hooks_of_the_user_see_whole_prompts(self) -> None:
        bench = fresh_bench("gpt2", seed=3)
        seen: list[int] = []
        text = "w1 w2 w3 w4 w5 w6 w7 w8 w9 w10 w11 w12"
        prompts = [f"{text} w{k}" for k in range(6)]
        bench.model.logits(prompts)
        bench.model.tl.add_hook(
            "blocks.0.hook_resid_post", lambda tensor, hook: seen.append(tensor.shape[1])
        )
        bench.model.logits(prompts)
        assert seen == [len(bench.ids(prompts[0]))]

    def test_a_model_whose_cache_gives_other_numbers(self, monkeypatch) -> None:
        _, model = loaded("olmo2")
        prompts = few_shot()
        want = model.logits(prompts)
        forget(model.backend)
        own = type(model.backend).forward

        def forgetful(self, ids, mask, *, cache=None, **options):
            return own(self, ids, mask[:, -ids.shape[1] :], cache=None, **options)

        monkeypatch.setattr(type(model.backend), "forward", forgetful)
        assert not prefixes.can_continue_prefixes(model.backend)
        close(model.logits(prompts), want, 1e-5)
        forget(model.backend)

    def test_local_attention_of_gpt_neo_that_a_prompt_could_outgrow(self) -> None:
        config = GPTNeoConfig(
            vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, max_position_embeddings=64,
            attention_types=[[["global", "local"], 1]], window_size=16,
        )  # fmt: skip
        torch.manual_seed(0)
        plain = GPTNeoForCausalLM(config).eval()
        model = mm.load_model(copy.deepcopy(plain), tokenizer=tokenizer())
        for header, shares in ((11, False), (4, False), (1, True)):
            tokenized = model.tokenize(few_shot(4, header=header))
            longest = max(len(item.ids) for item in tokenized)
            assert (2 * longest <= 16) == shares
            assert (shareable_lengths(model.backend, tokenized, []) is not None) == shares
            got = last_logits(model.backend, tokenized)
            for k, item in enumerate(tokenized):
                with torch.no_grad():
                    close(got[k], plain(torch.tensor([item.ids])).logits[0, -1], 1e-4)

    def test_when_told_not_to(self, monkeypatch) -> None:
        _, model = loaded("gpt2")
        tokenized = model.tokenize(few_shot())
        computed = counting(model, monkeypatch)
        last_logits(model.backend, tokenized, share=False)
        answer_logprobs(model.backend, tokenized, [(5,)] * len(tokenized), share=False)
        generate(model.backend, tokenized, str, max_new_tokens=1, share=False)
        assert sum(computed) >= 3 * sum(len(item.ids) for item in tokenized)


@st.composite
def token_lists(draw: st.DrawFn) -> list[tuple[int, ...]]:
    bases = draw(st.lists(st.lists(st.integers(0, 1), max_size=30), min_size=1, max_size=3))
    made = []
    for _ in range(draw(st.integers(1, 10))):
        base = draw(st.sampled_from(bases))
        cut = draw(st.integers(0, len(base)))
        made.append((*base[:cut], *draw(st.lists(st.integers(0, 1), min_size=1, max_size=5))))
    return made


def most_saved(keys: list[tuple[int, ...]], least: int = 8) -> int:
    """By walking the tree of beginnings: share here, or only further down."""

    def below(rows: list[int], depth: int) -> int:
        if len(rows) < 2:
            return 0
        while all(len(keys[r]) > depth for r in rows) and len({keys[r][depth] for r in rows}) == 1:
            depth += 1
        here = (len(rows) - 1) * depth if depth >= least else 0
        branches: dict[int, list[int]] = {}
        for row in rows:
            if len(keys[row]) > depth:
                branches.setdefault(keys[row][depth], []).append(row)
        return max(here, sum(below(branch, depth) for branch in branches.values()))

    return below(list(range(len(keys))), 0)


class TestThePlan:
    @settings(deadline=None, max_examples=200)
    @given(token_lists(), st.integers(1, 80), st.booleans(), st.integers(0, 20))
    def test_every_token_runs_exactly_once(self, lists, budget, share, cost) -> None:
        prompts = [TokenizedPrompt(str(k), ids, {}) for k, ids in enumerate(lists)]
        limits = [len(ids) for ids in lists] if share else None
        plan = make_plan(prompts, budget, limits=limits, pass_cost=cost)
        assert sorted(row for work in plan.works for row in work.rows) == list(range(len(lists)))
        for work in plan.works:
            skips = work.skip or (0,) * len(work.rows)
            assert work.width == max(
                len(lists[row]) - skip for row, skip in zip(work.rows, skips, strict=True)
            )
            assert len(work.rows) == 1 or len(work.rows) * work.width <= budget
            for row, root in zip(work.rows, work.prefix_of, strict=False):
                prefix = work.prefixes[root]
                assert prefix.length < len(lists[row])
                assert lists[row][: prefix.length] == lists[prefix.row][: prefix.length]
        assert plan.tokens == sum(map(len, lists))
        assert plan.computed >= plan.tokens - plan.shared
        padding = plan.computed - plan.tokens + plan.shared
        assert padding <= cost * plan.passes

    @settings(deadline=None, max_examples=200)
    @given(token_lists())
    def test_no_other_choice_of_beginnings_saves_more(self, lists) -> None:
        from mechmem.models.engine.prefixes import best_prefixes

        keys = [ids[:-1] for ids in lists]
        found = best_prefixes(keys)
        rows = [row for _, family in found for row in family]
        assert len(rows) == len(set(rows))
        assert sum((len(family) - 1) * depth for depth, family in found) == most_saved(keys)

    def test_beginnings_side_by_side_stay_within_the_context(self) -> None:
        long, short = tuple(range(60)), tuple(range(100, 150))
        lists = [(*long, 200 + k) for k in range(10)]
        lists += [(*short, 300 + k, *range(19)) for k in range(10)]
        prompts = [TokenizedPrompt(str(k), ids, {}) for k, ids in enumerate(lists)]
        limits = [len(ids) for ids in lists]
        for n_ctx, together in ((1000, True), (80, True), (79, False)):
            plan = make_plan(prompts, limits=limits, pass_cost=110, n_ctx=n_ctx)
            assert plan.shared
            assert (len(plan.works) == 1) == together
            assert all(
                len(w.prefixes) == 1 or w.prefix_width + w.width <= n_ctx for w in plan.works
            )

    def test_what_looking_back_costs_counts(self) -> None:
        prompts = [TokenizedPrompt(str(k), (1, 2, 3), {}) for k in range(4)]
        plan = make_plan(prompts, 6, pass_cost=5)
        assert [(w.computed, w.width) for w in plan.works] == [(6, 3), (6, 3)]
        assert plan.cost(5) == 12 + 2 * 5
        assert plan.cost(5, 0.5) == 12 + 2 * 5 + 0.5 * 12 * 3

    def test_halves_hold_the_same_rows_and_beginnings(self) -> None:
        _, model = loaded("gpt2")
        tokenized = model.tokenize(pairs(3))
        (work,) = make_plan(tokenized, limits=[99] * 6, pass_cost=20).works
        one, other = work.halves()
        assert one.rows + other.rows == work.rows
        assert one.skip + other.skip == work.skip
        assert all(part.prefixes[root] == work.prefixes[work.prefix_of[k + start]]
                   for part, start in ((one, 0), (other, 3))
                   for k, root in enumerate(part.prefix_of))  # fmt: skip
        assert one.halves()[0].halves() == []

    def test_the_digest_knows_tokens_and_batches(self) -> None:
        prompts = [TokenizedPrompt(str(k), (1, 2, 3 + k), {}) for k in range(4)]
        other = [*prompts[:3], TokenizedPrompt("3", (1, 2, 9), {})]
        assert make_plan(prompts, 6).digest == make_plan(list(prompts), 6).digest
        digests = [make_plan(p, b).digest for p, b in ((prompts, 6), (other, 6), (prompts, 12))]
        assert len(set(digests)) == 3

    def test_it_reads_as_a_sentence(self) -> None:
        _, model = loaded("gpt2")
        plan = make_plan(model.tokenize(few_shot(7, header=16)), limits=[99] * 7, pass_cost=20)
        assert str(plan) == (
            f"7 prompts, {plan.tokens} tokens, in 1 batches; 96 tokens shared by 1 prefixes; "
            f"51 tokens computed, {1 - (plan.tokens - 96) / 51:.0%} of them padding"
        )


def test_numbers_do_not_depend_on_sharing() -> None:
    _, model = loaded("qwen3")
    for prompts in (few_shot(8), pairs(5)):
        for positions in ("last", "mean", [0, 11, -1]):
            with_it = states(model, prompts, positions, budget=40)
            without = states(model, prompts, positions, share=False)
            for site, value in with_it.items():
                close(value, without[site], 1e-5)
                assert np.isfinite(np.asarray(value)).all()
