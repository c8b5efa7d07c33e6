"""A model that writes neither answer: what it writes, and which remedy fits, before the work."""

from __future__ import annotations

import helpers
import pytest

import mechmem as mm
from mechmem.evaluation.advice import FirstLook, first_look
from mechmem.tasks.base import PromptAnswers


def pairs(n: int, memorized: str = "w5 w9", generalized: str = "w7 w3") -> mm.PromptSet:
    return mm.PromptSet(
        mm.Prompt(id=f"{g}.{k}", text=helpers.sentence(4 + k, 10 * g + k), group=f"g{g}",
                  memorized=memorized, generalized=generalized)
        for g in range(n) for k in range(2)
    )  # fmt: skip


@pytest.fixture(scope="module")
def lab():
    return helpers.bench("llama")


def test_a_study_on_own_prompts_stops_at_once_and_says_what_fits(lab, monkeypatch) -> None:
    asked = []
    complete = type(lab.model).complete
    monkeypatch.setattr(
        type(lab.model),
        "complete",
        lambda self, prompts, *a, **k: (
            asked.append(len(prompts)) or complete(self, prompts, *a, **k)
        ),
    )
    prompts = pairs(60)
    with pytest.raises(mm.PromptError, match=r"neither of the two answers after \d+%") as caught:
        mm.run_study(lab.model, prompts=prompts)
    assert sum(asked) == 24
    said = str(caught.value)
    train = prompts.split(train=0.4, validation=0.2, test=0.4).train[:24]
    wrote = mm.observe(lab.model, train, margins=False)
    assert repr(max(wrote.completions, key=wrote.completions.count))[:30] in said
    chosen = mm.observe(lab.model, train, reading="choice")
    share = chosen.outcomes.count("memorized") / 24
    assert f"memorized {share:.0%}" in said
    assert "reading='choice' (--reading choice)" in said


def test_prompts_that_are_answered_need_no_advice(lab) -> None:
    first = lab.model.generate(pairs(12), max_new_tokens=1)
    told = mm.PromptSet(
        mm.Prompt(id=p.id, text=p.text, group=p.group, memorized=word, generalized="w0 w0 w0")
        for p, word in zip(pairs(12), first, strict=True)
        if word
    )
    assert first_look(lab.model, told, PromptAnswers("behavior")) is None


@pytest.mark.parametrize(
    ("in_chat", "by_choice", "words"),
    [
        (0.1, {"memorized": 0.5, "generalized": 0.5}, "chat=mm.Chat"),
        (0.9, {"memorized": 0.4, "generalized": 0.5, "undecided": 0.1}, "reading='choice'"),
        (None, {"memorized": 0.98, "generalized": 0.02}, "Word the prompts so that the answer"),
    ],
)
def test_the_remedy_follows_from_what_was_seen(in_chat, by_choice, words) -> None:
    look = FirstLook(0.95, (("\nA:", 20),), by_choice, in_chat, 24)
    assert words in str(look)
    assert "'\\nA:' (20x)" in str(look)


def test_the_chat_template_is_tried_where_there_is_one() -> None:
    hf = helpers.tiny_llama()
    model = mm.load_model(hf, tokenizer=helpers.word_tokenizer(chat=True))
    look = first_look(model, pairs(12), PromptAnswers("behavior"))
    assert look is not None
    assert look.in_chat is not None
