"""Prompts longer than the context: refused, or cut where that was asked for, and said."""

from __future__ import annotations

import pytest
import torch
from helpers import bench, sentence

import mechmem as mm


@pytest.fixture(scope="module")
def lab():
    return bench()


def test_a_cut_prompt_is_the_prompt_without_the_tokens_of_one_side(lab):
    limit = lab.model.info.n_ctx
    long = sentence(limit + 5)
    words = long.split()
    kept = len(lab.model.token_ids(sentence(3))) - 3  # special tokens
    with pytest.warns(mm.MechmemWarning, match=f"1 of 2 prompts were cut on the left to {limit}"):
        cut = lab.model.truncating("left").logits(["w1 w2", long])
    expected = lab.model.logits(["w1 w2", " ".join(words[len(words) - (limit - kept) :])])
    assert torch.equal(cut, expected)
    with pytest.warns(mm.MechmemWarning, match="cut on the right"):
        ids = lab.model.truncating("right").token_ids(long)
    assert ids == lab.model.token_ids(" ".join(words[: limit - kept]))


def test_it_is_said_how_much_was_cut_and_prompts_that_fit_stay_as_they_are(lab):
    view = lab.model.truncating("left")
    limit = lab.model.info.n_ctx
    with pytest.warns(mm.MechmemWarning):
        short, long = view.tokenize(["w1 w2", sentence(limit + 5)])
    assert short.cut == 0
    assert long.cut > 0
    assert len(long.ids) == limit
    assert view.token_ids("w1 w2") == lab.model.token_ids("w1 w2")


def test_a_span_that_was_cut_away_is_an_error_and_a_span_that_stays_is_moved(lab):
    text = sentence(lab.model.info.n_ctx + 5)
    last = text.rfind(" ") + 1
    prompt = mm.Prompt("p", text, spans={"end": (last, len(text))})
    with pytest.warns(mm.MechmemWarning):
        (found,) = lab.model.truncating("left").tokenize(prompt)
    assert found.spans["end"] == (len(found.ids) - 1,)
    with pytest.raises(mm.PromptError, match="covers no token that is left after cutting"):
        lab.model.truncating("right").tokenize(prompt)


def test_without_asking_it_is_refused_and_the_error_says_how_to_ask(lab):
    with pytest.raises(mm.PromptError, match=r"truncating\('left'\)"):
        lab.model.logits(sentence(lab.model.info.n_ctx + 5))
    with pytest.raises(mm.PromptError, match="'middle'"):
        lab.model.truncating("middle")


def test_reading_a_span_that_begins_inside_a_token_warns_and_names_the_prompts(lab):
    prompt = mm.Prompt("straddler", "w10 w11 w12", spans={"digit": (1, 3)})
    with pytest.warns(
        mm.MechmemWarning, match="begins or ends inside a token in 1 of 1.*straddler"
    ):
        mm.cache_activations(lab.model, prompt, positions="digit")


def test_artifacts_carry_the_prompt_ids(lab, tmp_path):
    prompts = mm.PromptSet([mm.Prompt("one", "w1 w2"), mm.Prompt("two", "w3 w4")])
    mm.cache_activations(lab.model, prompts).save(tmp_path / "acts")
    loaded = mm.Activations.load(tmp_path / "acts")
    assert loaded.provenance.seen.ids == {"one", "two"}
