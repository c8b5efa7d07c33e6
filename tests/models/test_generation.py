"""Writing text: as plain transformers does token by token, in any batch, however a text ends."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import pytest
import torch
import transformers as hf
from helpers import ragged
from models import parity, zoo
from transformers.cache_utils import DynamicCache, DynamicLayer

import mechmem as mm
from mechmem.models.engine import generation, kv_cache
from mechmem.models.engine.capabilities import bytes_per_token
from mechmem.models.engine.kv_cache import keep_rows, reserve
from mechmem.models.engine.stopping import Completion, StoppingCriteria
from mechmem.models.positions import Positions
from mechmem.models.sites import Site

NEW = 10
LENGTHS = (3, 9, 1, 6, 12, 4, 8, 2, 11, 5)


def numbers(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 60, (length,), generator=generator).tolist()


PROMPTS = mm.PromptSet(
    mm.Prompt(id=str(k), text=" ".join(map(str, numbers(length, k))))
    for k, length in enumerate(LENGTHS)
)


@torch.no_grad()
def greedy(hf, ids: Sequence[int], n: int, ends: Sequence[int]) -> tuple[list[int], bool]:
    """One prompt, the whole text run anew for every token."""
    text = list(ids)
    for _ in range(n):
        token = int(hf(torch.tensor([text]), use_cache=False).logits[0, -1].argmax())
        if token in ends:
            return text[len(ids) :], True
        text.append(token)
    return text[len(ids) :], False


class TestFamilies:
    @pytest.mark.parametrize("family", sorted(zoo.FAMILIES))
    def test_rows_that_end_early_leave_and_the_rest_is_written_as_by_plain_transformers(
        self, family
    ) -> None:
        hf = zoo.build(family)
        model = mm.load_model(zoo.build(family), tokenizer=zoo.tokenizer())
        ids = [model.token_ids(prompt) for prompt in PROMPTS]
        free = [greedy(hf, row, NEW, ())[0] for row in ids]
        # Two of the tokens that are written often end a text from now on: rows end all over.
        written = [token for text in free for token in text]
        ends = sorted(set(written), key=lambda token: (-written.count(token), token))[:2]
        wanted = [greedy(hf, row, NEW, ends) for row in ids]
        lengths = {len(text) for text, _ in wanted}
        assert len(lengths) > 1
        model.__dict__["eos_ids"] = tuple(ends)
        found = model.complete(PROMPTS, NEW)
        assert [(done.ids, done.finished) for done in found] == wanted


class Letters:
    """Every token is a few letters."""

    def __init__(self, *pieces: str) -> None:
        self.pieces, self.calls = pieces, 0

    def decode(self, ids: Sequence[int]) -> str:
        self.calls += 1
        return "".join(self.pieces[token] for token in ids)


def written(letters: Letters, ids: Sequence[int], stop: Sequence[str], eos=()) -> Completion:
    ending, completion = StoppingCriteria(letters.decode, stop, eos), Completion()
    for token in ids:
        if ending.ends(completion, token):
            break
    ending.close(completion)
    return completion


class TestEnding:
    def test_a_stop_string_over_several_tokens_ends_the_text_where_it_begins(self) -> None:
        letters = Letters("ab", "\nQ", "ues", "tion", ":", "x")
        done = written(letters, [0, 5, 1, 2, 3, 4, 0, 0], ["\nQuestion:"])
        assert done == Completion([0, 5, 1, 2, 3, 4], "abx", True)

    def test_the_first_of_several_stop_strings_counts(self) -> None:
        done = written(Letters("a", "b.c;"), [0, 1, 0], [";", "."])
        assert done == Completion([0, 1], "ab", True)

    def test_an_end_token_is_not_part_of_the_text(self) -> None:
        done = written(Letters("a", "b", "<end>"), [0, 1, 2, 0], ["."], eos=[2])
        assert done == Completion([0, 1], "ab", True)

    def test_a_text_that_reaches_its_limit_is_not_finished(self) -> None:
        assert written(Letters("a", "b"), [0, 1, 0], ["."]) == Completion([0, 1, 0], "aba", False)

    def test_a_blank_at_the_end_of_a_stop_string_may_come_with_any_token(self) -> None:
        letters = Letters("a", "Q:", "b")
        letters.decode = lambda ids: " ".join(letters.pieces[token] for token in ids)
        done = written(letters, [0, 1, 2, 2], ["Q: "])
        assert done == Completion([0, 1, 2], "a ", True)

    def test_a_character_over_several_tokens_is_found(self) -> None:
        data = [bytes([value]) for value in "以x".encode()]
        letters = Letters()
        letters.decode = lambda ids: b"".join(data[t] for t in ids).decode(errors="replace")
        done = written(letters, [3, 0, 1, 2, 3], ["以"])
        assert done == Completion([3, 0, 1, 2], "x", True)

    def test_what_the_last_tokens_did_not_show_the_whole_text_does(self) -> None:
        # Tokens without text push the beginning of the stop string out of the last tokens.
        letters = Letters("a", "EN", "D", "")
        ids = [0, 1, *[3] * 40, 2, 0, 0]
        done = written(letters, ids, ["END"])
        assert done == Completion(ids[:-2], "a", True)

    def test_the_work_for_a_token_does_not_grow_with_the_text(self) -> None:
        letters, seen = Letters("a", "b"), []
        whole = letters.decode
        letters.decode = lambda ids: (seen.append(len(ids)), whole(ids))[1]
        ending, completion = StoppingCriteria(letters.decode, ["aac"], []), Completion()
        for k in range(500):
            ending.ends(completion, k % 2)
        assert sum(seen) <= 20  # 'c' is in no token, so nothing had to be put together
        ending = StoppingCriteria(letters.decode, ["bb"], [])
        for k in range(500):
            ending.ends(completion, k % 2)
        assert max(seen) <= 10


class TestCaches:
    @staticmethod
    def cache(rows: int = 3, tokens: int = 4) -> DynamicCache:
        generator = torch.Generator().manual_seed(0)
        cache = DynamicCache()
        for layer in range(2):
            cache.update(*torch.randn(2, rows, 2, tokens, 5, generator=generator), layer)
        return cache

    def test_room_changes_nothing_that_can_be_read(self) -> None:
        plain, roomy = self.cache(), self.cache()
        reserve(roomy, 3)
        assert type(roomy.layers[0]) is not DynamicLayer
        for _ in range(3):
            keys, values = torch.randn(2, 3, 2, 1, 5)
            for layer in range(2):
                wanted, found = (c.update(keys, values, layer) for c in (plain, roomy))
                assert all(torch.equal(a, b) for a, b in zip(wanted, found, strict=True))
            assert roomy.get_seq_length() == plain.get_seq_length()

    def test_nothing_is_copied_while_there_is_room(self) -> None:
        cache = self.cache()
        reserve(cache, 2)
        before = cache.layers[0].keys.data_ptr()
        keys, _ = cache.update(*torch.randn(2, 3, 2, 1, 5), 0)
        assert keys.data_ptr() == before

    @pytest.mark.parametrize("room", [0, 2])
    def test_rows_that_leave_are_gone_and_the_others_unchanged(self, room) -> None:
        cache, whole = self.cache(), self.cache()
        if room:
            reserve(cache, room)
        assert keep_rows(cache, [2, 0])
        new = torch.randn(2, 2, 2, 1, 5)
        keys, values = cache.update(*new, 1)
        wanted = torch.cat([whole.layers[1].keys[[2, 0]], new[0]], dim=-2)
        assert torch.equal(keys, wanted)
        assert values.shape == (2, 2, 5, 5)

    def test_a_cache_of_another_kind_is_left_alone(self) -> None:
        class Odd(DynamicLayer):
            pass

        cache = self.cache()
        cache.layers[1] = Odd()
        assert not keep_rows(cache, [0])
        assert cache.layers[0].keys.shape[0] == 3


def test_a_shared_beginning_stays_shared_when_rows_leave() -> None:
    hf = zoo.build("llama")
    model = mm.load_model(zoo.build("llama"), tokenizer=zoo.tokenizer())
    begin = " ".join(map(str, numbers(12, 99)))
    prompts = [f"{begin} {prompt.text}" for prompt in PROMPTS]
    ids = [model.token_ids(text) for text in prompts]
    written = [token for row in ids for token in greedy(hf, row, NEW, ())[0]]
    ends = sorted(set(written), key=lambda token: (-written.count(token), token))[:2]
    model.__dict__["eos_ids"] = tuple(ends)
    wanted = [greedy(hf, row, NEW, ends) for row in ids]
    assert len({len(text) for text, _ in wanted}) > 1
    assert [(done.ids, done.finished) for done in model.complete(prompts, NEW)] == wanted


def test_a_stop_string_of_words_cuts_every_text_by_itself() -> None:
    model = mm.load_model(zoo.build("qwen2"), tokenizer=zoo.tokenizer())
    free = model.complete(PROMPTS, NEW)
    word = max((done.text for done in free), key=len).split()[3]
    found = model.complete(PROMPTS, NEW, stop=(f" {word}",))
    for before, after in zip(free, found, strict=True):
        cut = before.text.find(f" {word}")
        assert after.text == (before.text[:cut] if cut >= 0 else before.text)
        assert after.finished == (cut >= 0 or before.finished)
        assert after.ids == before.ids[: len(after.ids)]
        assert len(after.ids) == len(before.ids) or cut >= 0


def test_no_prompt_is_forgotten_when_all_end_at_once() -> None:
    model = mm.load_model(zoo.build("gpt2"), tokenizer=zoo.tokenizer())
    model.__dict__["eos_ids"] = tuple(range(zoo.VOCAB))
    found = model.complete(ragged(3), NEW)
    assert [(done.ids, done.text, done.finished) for done in found] == [([], "", True)] * 3


class TestRowsThatWait:
    """With room for few rows those of the next batch take the places of those that are done."""

    @pytest.fixture
    def joined(self, monkeypatch) -> list[int]:
        rows: list[int] = []
        own = generation.join_rows

        def counted(cache, mask, other, other_mask, room):
            rows.append(len(other_mask))
            return own(cache, mask, other, other_mask, room)

        monkeypatch.setattr(generation, "join_rows", counted)
        monkeypatch.setattr(kv_cache, "MOST_KEPT", 0)  # no more than one batch's
        return rows

    def written(
        self, view: mm.Model, prompts: mm.PromptSet, budget: int, **more
    ) -> list[list[int]]:
        done = generation.generate(
            view.backend, view.tokenize(prompts), view.tokens.decode, max_new_tokens=NEW,
            eos_ids=view.eos_ids, interventions=view.interventions, token_budget=budget, **more,
        )  # fmt: skip
        return [item.ids for item in done]

    def ends(self, hf, model) -> tuple[int, ...]:
        return self.commonest(
            [greedy(hf, model.token_ids(prompt), NEW, ())[0] for prompt in PROMPTS]
        )

    def commonest(self, free: list[list[int]]) -> tuple[int, ...]:
        tokens = [token for text in free for token in text]
        return tuple(sorted(set(tokens), key=lambda token: (-tokens.count(token), token))[:2])

    @pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
    def test_they_write_what_plain_transformers_writes(self, family, joined) -> None:
        hf = zoo.build(family)
        model = mm.load_model(zoo.build(family), tokenizer=zoo.tokenizer())
        ends = model.__dict__["eos_ids"] = self.ends(hf, model)
        wanted = [greedy(hf, model.token_ids(prompt), NEW, ends)[0] for prompt in PROMPTS]
        assert [done.ids for done in model.complete(PROMPTS, NEW, token_budget=70)] == wanted
        assert sum(joined) > 2

    @pytest.mark.parametrize("factor", [1, 2, 100])
    def test_so_many_write_at_once_as_memory_allows(self, factor, monkeypatch) -> None:
        """A pass reads no more than the budget; rows that write hold more, up to eight batches."""
        model = mm.load_model(zoo.build("gpt2"), tokenizer=zoo.tokenizer())
        budget = 2 * max(len(model.token_ids(prompt)) for prompt in PROMPTS)
        each = bytes_per_token(model.backend)
        assert each == 2 * model.info.n_layers * model.info.d_model * 4
        monkeypatch.setattr(kv_cache, "MOST_KEPT", factor * budget * each)
        kept = min(factor, 8) * budget
        assert kv_cache.tokens_kept(each, budget) == kept
        read, steps, own = [], [], type(model.backend).forward

        def counted(backend, ids, mask, **more):
            (steps if ids.shape[1] == 1 else read).append(ids.numel())
            return own(backend, ids, mask, **more)

        model.__dict__["eos_ids"] = ()
        wanted = [done.ids for done in model.complete(PROMPTS, NEW, token_budget=10**6)]
        monkeypatch.setattr(type(model.backend), "forward", counted)
        assert [done.ids for done in model.complete(PROMPTS, NEW, token_budget=budget)] == wanted
        assert max(read) <= budget
        longest, shortest = (
            f(len(model.token_ids(prompt)) for prompt in PROMPTS) for f in (max, min)
        )
        assert kept // (longest + NEW) <= max(steps) <= max(1, kept // (shortest + NEW))

    @pytest.mark.parametrize("most", [4, 10, 20])
    def test_memory_that_is_too_small_for_those_who_join(self, most, monkeypatch) -> None:
        """Eight rows are planned; with those who join they are more than fit."""
        model = mm.load_model(zoo.build("gpt2"), tokenizer=zoo.tokenizer())
        prompts = mm.PromptSet(
            mm.Prompt(id=str(k), text=" ".join(map(str, numbers(10, k)))) for k in range(40)
        )
        model.__dict__["eos_ids"] = ()
        wanted = [done.ids for done in model.complete(prompts, NEW)]
        own = type(model.backend).forward

        def small(backend, ids, *args, cache=None, **more):
            held = 0 if cache is None else cache.layers[0].keys.shape[0]
            if max(held, len(ids)) > most:
                raise torch.OutOfMemoryError("too many rows")
            return own(backend, ids, *args, cache=cache, **more)

        monkeypatch.setattr(type(model.backend), "forward", small)
        budget = 8 * len(model.token_ids(prompts[0]))
        assert [done.ids for done in model.complete(prompts, NEW, token_budget=budget)] == wanted

    @pytest.mark.parametrize("family", ["mamba", "rwkv"])
    def test_a_model_that_reads_all_anew_never_reads_more_than_the_budget(
        self, family, monkeypatch
    ) -> None:
        config = {
            "mamba": lambda: hf.MambaConfig(
                num_hidden_layers=2, state_size=8, hidden_size=32, vocab_size=64
            ),
            "rwkv": lambda: hf.RwkvConfig(num_hidden_layers=2, hidden_size=32, vocab_size=64),
        }[family]()
        plain = hf.AutoModelForCausalLM.from_config(config).eval()
        model = mm.load_model(plain, tokenizer=zoo.tokenizer())
        model.__dict__["eos_ids"] = ()
        model.complete(PROMPTS, 2)  # what it can do is tried
        read, own = [], type(model.backend).forward

        def counted(backend, ids, *args, **more):
            read.append(ids.numel())
            return own(backend, ids, *args, **more)

        monkeypatch.setattr(type(model.backend), "forward", counted)
        model.complete(PROMPTS, NEW, token_budget=50)
        assert len(read) >= NEW
        assert max(read) <= 50

    def test_edits_samples_and_shared_beginnings_are_theirs(self, joined) -> None:
        model = mm.load_model(zoo.build("llama"), tokenizer=zoo.tokenizer())
        header = " ".join(map(str, numbers(9, 99)))
        prompts = mm.PromptSet(
            mm.Prompt(id=prompt.id, text=f"{header} {prompt.text}") for prompt in PROMPTS
        )
        drawn = generation.Sampler(1.0, 0, prompts.ids)
        for where in ("each_step", "last", "generated"):
            edit = parity.Edit(Site("resid_post", 0), parity.change(32), Positions((where,)))
            view = model.with_interventions([edit])
            for choose in (generation.greedy, drawn):
                view.__dict__["eos_ids"] = ()
                view.__dict__["eos_ids"] = self.commonest(
                    self.written(view, prompts, 8192, choose=choose)
                )
                alone = [
                    self.written(view, prompts[k : k + 1], 8192, share=False, choose=partial(
                        lambda k, choose, logits, rows, step: choose(logits, [k], step), k, choose
                    ))[0]
                    for k in range(len(prompts))
                ]  # fmt: skip
                joined.clear()
                assert self.written(view, prompts, 180, choose=choose) == alone
                assert joined

    def test_one_that_is_done_does_not_stay_past_a_learned_table_of_positions(self, joined) -> None:
        """All but the first of the first batch end at once, the first one step after others came
        in their places; it alone is not worth copying the others for."""
        model = mm.load_model(zoo.build("gpt2"), tokenizer=zoo.tokenizer())
        prompts = mm.PromptSet(
            mm.Prompt(id=str(k), text=" ".join(map(str, numbers(36, k)))) for k in range(39)
        )
        end = model.eos_ids[0]
        planned = {0: 9, **dict.fromkeys(range(1, 24), 8)}

        def choose(logits, rows, step):
            logits[:, list(model.eos_ids)] = -torch.inf
            picked = logits.argmax(-1)
            over = [planned.get(row, NEW) <= step for row in rows]
            picked[torch.tensor(over)] = end
            return picked

        options = {"choose": choose, "share": False, "n_ctx": 48}
        alone = self.written(model, prompts[:1], 8192, **options)
        found = self.written(model, prompts, 24 * 46 + 20, **options)
        assert joined == [15]
        assert [len(ids) for ids in found] == [planned.get(k, NEW) for k in range(39)]
        assert found[:1] == alone
