"""A direction read off at every token: as plain transformers compute it, completions included."""

from __future__ import annotations

import helpers
import numpy as np
import pytest
from helpers import bench, contrast_set, hf_states, ragged

import mechmem as mm
from mechmem.errors import LeakageError, ModelError, PromptError, SiteError

SITE = ("resid_post", 1)


def direction(kind: str, site: tuple[str, int] = SITE) -> mm.Direction:
    acts = mm.cache_activations(bench(kind).model, contrast_set(), sites=[site])
    return mm.difference_of_means(acts, toward="generalized")[site]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("site", [SITE, ("resid_pre", 0)])
def test_every_token_is_projected_like_its_hidden_state(kind: str, site: tuple[str, int]) -> None:
    lab, asked = bench(kind), ragged(5, seed=3)
    along = direction(kind, site)
    wrote = ["w3 w4 w5", "", "w7", "w1 w2", "w9"]
    found = mm.project_tokens(lab.model, along, asked, wrote)
    unit = along.vector.double().numpy() / np.linalg.norm(along.vector.double().numpy())
    middle = (along.toward_mean + along.away_mean) / 2
    for prompt, text in zip(asked, wrote, strict=True):
        head = lab.ids(prompt.text)
        ids = [*head, *(lab.tokenizer(text, add_special_tokens=False)["input_ids"])]
        wanted = hf_states(lab.hf, ids, [site])[site].double().numpy() @ unit
        rows = found.of(prompt.id)
        scale = np.abs(wanted).max()
        np.testing.assert_allclose(rows["projection"], wanted, atol=1e-5 * scale)
        np.testing.assert_allclose(rows["from_middle"], wanted - middle, atol=1e-5 * scale)
        assert list(rows["position"]) == list(range(len(ids)))
        assert list(rows["part"]) == ["prompt"] * len(head) + ["completion"] * len(text.split())
        assert "".join(rows["token"]).replace("<bos>", "").split() == [
            *prompt.text.split(),
            *text.split(),
        ]
        assert set(rows["toward"]) == {"generalized"}
        assert set(zip(rows["stream"], rows["layer"], strict=True)) == {site}


def test_without_completions_only_the_prompts_are_read() -> None:
    lab, asked = bench(), ragged(3)
    found = mm.project_tokens(lab.model, direction("gpt2"), asked)
    assert set(found.table()["part"]) == {"prompt"}
    assert len(found.table()) == sum(len(lab.ids(prompt.text)) for prompt in asked)
    assert "3 texts" in repr(found)


def test_the_last_prompt_token_has_the_projection_that_the_direction_was_fitted_on() -> None:
    lab, asked = bench(), ragged(4)
    along = direction("gpt2")
    acts = mm.cache_activations(lab.model, asked, sites=[SITE])
    wanted = along.project(acts[SITE][:, 0]).numpy()
    found = mm.project_tokens(lab.model, along, asked, ["w1"] * 4)
    for prompt, value in zip(asked, wanted, strict=True):
        rows = found.of(prompt.id)
        last = rows[rows["part"] == "prompt"].iloc[-1]
        assert last["projection"] == pytest.approx(value, rel=1e-5)


def test_pieces_of_words_keep_their_blanks() -> None:
    lab = bench()
    tokens = helpers.bpe_tokenizer()
    model = mm.load_model(helpers.tiny_gpt2(), tokenizer=helpers.word_tokenizer())
    assert model.tokens.pieces(lab.ids("w1 w2")) == ["<bos>", " w1", " w2"]
    pieces = mm.models.tokenizing.Tokens(tokens).pieces(tokens("the answer is 1234")["input_ids"])
    assert "".join(pieces) == "the answer is 1234"
    assert len(pieces) == len(tokens("the answer is 1234")["input_ids"])


def test_what_does_not_fit_together_is_named() -> None:
    lab, asked, along = bench(), ragged(3), direction("gpt2")
    with pytest.raises(PromptError, match=r"3 prompts.*1 completion"):
        mm.project_tokens(lab.model, along, asked, ["w1"])
    with pytest.raises(PromptError, match=r"'none'.*p0"):
        mm.project_tokens(lab.model, along, asked).of("none")
    with pytest.raises(SiteError, match="width"):
        mm.project_tokens(bench("llama").model, direction("gpt2", ("mlp_post", 1)), asked)
    with (
        mm.patched(lab.model, mm.AddDirection(along, alpha=1.0)) as edited,
        pytest.raises(ModelError, match=r"inside `patched`.*prompts alone"),
    ):
        mm.project_tokens(edited, along, asked, ["w1"] * 3)


def test_reading_is_no_evaluation_so_seen_prompts_may_be_shown() -> None:
    try:
        mm.project_tokens(bench().model, direction("gpt2"), contrast_set())
    except LeakageError:  # pragma: no cover
        pytest.fail("showing tokens makes no claim about unseen prompts")
