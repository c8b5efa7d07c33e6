"""A prompt is tokenized once, whoever asks about it, and so is what may follow it."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import helpers
import pytest
from small_study import small_grid

import mechmem as mm


class CountingTokenizer:
    """A tokenizer that counts the texts it is given."""

    def __init__(self, tokenizer) -> None:
        self.tokenizer, self.texts = tokenizer, Counter()

    def __call__(self, text, **options):
        self.texts[text] += 1
        return self.tokenizer(text, **options)

    def __getattr__(self, name):
        return getattr(self.tokenizer, name)


@pytest.fixture
def counting(monkeypatch):
    model = mm.load_model("lab/addition-cued")
    assert model.tokens.fingerprint  # made of a text of its own
    counter = CountingTokenizer(model.tokens.tokenizer)
    monkeypatch.setattr(model.tokens, "tokenizer", counter)
    return model, counter.texts


def times_encoded(texts: Counter, prompts: mm.PromptSet) -> set[int]:
    """How often the prompts were tokenized, each alone and with what may follow it."""
    asked = {prompt.text for prompt in prompts}
    assert asked <= set(texts)
    return {n for text, n in texts.items() if text in asked or text.startswith(tuple(asked))}


def test_observe_evaluate_sweep_and_a_study_encode_each_prompt_once(counting) -> None:
    model, texts = counting
    task = mm.get_task("addition-cued")
    pairs = task.pairs(n=60, seed=0)
    train, held, test = pairs.split(train=0.5, validation=0.2, test=0.3)
    seen = mm.observe(model, train, task=task)
    assert set(texts.values()) == {1}, texts.most_common(3)
    flips = seen.flips()
    acts = mm.cache_activations(model, flips, sites=("resid_post", 1))
    assert set(texts.values()) == {1}, "a flip was encoded when it was observed"
    r = mm.difference_of_means(acts, toward="generalized")["resid_post", 1]

    texts.clear()
    mm.evaluate(model, test, task=task, edit=mm.AddDirection(r))
    assert times_encoded(texts, test) == {1}, texts.most_common(3)

    texts.clear()
    mm.sweep(model, [mm.AddDirection(r, alpha=a) for a in (1.0, 2.0)], task=task,
             validation=held, test=test, draws=2)  # fmt: skip
    assert times_encoded(texts, held + test) == {1}, texts.most_common(3)

    texts.clear()
    study = mm.run_study(model, task=task, n=100, grid=small_grid, refine={}, shuffles=1, draws=2)
    parts = [prompt for part in study.splits.values() for prompt in part]
    assert len(parts) > 150
    assert times_encoded(texts, mm.PromptSet(parts)) == {1}, texts.most_common(3)


def test_parts_and_behaviors_keep_the_ids_and_another_text_does_not() -> None:
    model = helpers.bench("llama").model
    asked = model.encode(
        mm.Prompt(id=f"{g}.{k}", text=helpers.sentence(4 + k, 10 * g + k), group=f"g{g}")
        for g in range(6) for k in range(2)
    )  # fmt: skip
    by_id = {row.id: row for row in asked.rows}
    named = asked.with_behaviors(dict.fromkeys(asked.ids, "memorized"))
    split = asked.split(train=0.5, test=0.5)
    for part in (asked[3:7], asked.select(["4.1", "0.0"]), named, split.train, split.test):
        again = model.encode(part)
        assert again is part
        assert [by_id[name] for name in part.ids] == list(again.rows)
    both = asked[:2] + asked[5:6]
    assert model.encode(both) is both
    other = mm.PromptSet(replace(prompt, text=helpers.sentence(5, 77)) for prompt in asked[:2])
    mixed = model.encode(asked[2:] + other)
    assert mixed.rows[-1] == model.encode(other).rows[-1] != asked.rows[1]
    cut = model.truncating("left")
    assert cut.encode(asked) is not asked
    assert model.encode(cut.encode(asked)).tokens is model.tokens
