from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import at_positions, close, hf_logits
from question_scene import scene

import mechmem as mm

ALPHA = 3.0


@pytest.fixture(scope="module")
def here():
    return scene()


@pytest.fixture(scope="module")
def edit(here):
    return mm.ShiftNeurons(here.scores, top=8, alpha=ALPHA)


@pytest.fixture(scope="module")
def found(here, edit):
    return mm.side_effects(
        here.lab.model, edit, clean=here.test, texts=["w3 w4 w5 w6", "w7 w8"], task=None
    )


def shifted(here, edit, toward: str) -> dict:
    """The edit by hand: every site's shift on the tokens from ``start`` on."""
    return dict(replace(edit, toward=toward).shift(here.lab.model))


def by_hand(here, ids: list[int], shift: dict, start: int) -> torch.Tensor:
    edits = {
        tuple(site): [at_positions(lambda h, v=value: h + v.to(h.dtype), lambda at: at >= start)]
        for site, value in shift.items()
    }
    return hf_logits(here.lab.hf, ids, edits).double().log_softmax(-1)


def test_a_token_that_is_impossible_adds_nothing_to_the_kl(here, edit, monkeypatch) -> None:
    module = sys.modules["mechmem.evaluation.side_effects"]
    own = module._log_probabilities

    def barred(model, prompts):
        out = own(model, prompts).copy()
        out[:, 7] = -np.inf
        return out

    monkeypatch.setattr(module, "_log_probabilities", barred)
    got = mm.side_effects(here.lab.model, edit, clean=here.test, texts=["w3 w4"], task=None)
    kl = got.table().query("measure == 'kl'")[["value", "value_low", "value_high", "change"]]
    assert np.isfinite(kl.to_numpy()).all()


class TestCosts:
    def test_kl_and_surprise_are_those_of_plain_transformers(self, here, edit, found) -> None:
        for toward in ("memorized", "generalized"):
            shift = shifted(here, edit, toward)
            kl, loss = [], []
            for prompt in here.test:
                ids = here.lab.ids(prompt.text)
                plain = by_hand(here, ids, {}, 0)[-1]
                edited = by_hand(here, ids, shift, len(ids) - 1)[-1]
                kl.append(float((plain.exp() * (plain - edited)).sum()))
                loss.append(-float(edited[here.lab.tokenizer.convert_tokens_to_ids(prompt.answer)]))
            got = found.values[f"toward {toward}"]
            close(got["kl"].value, np.mean(kl), 1e-4)
            close(got["answer_perplexity"].value, np.exp(np.mean(loss)), 1e-4)
            assert got["kl"].groups == 10

    def test_perplexity_of_text_is_per_token_with_the_edit_on_all_of_it(
        self, here, edit, found
    ) -> None:
        for setting, shift in (
            ("unedited", {}),
            ("toward memorized", shifted(here, edit, "memorized")),
        ):
            loss, tokens = 0.0, 0
            for text in ("w3 w4 w5 w6", "w7 w8"):
                ids = here.lab.ids(text)
                table = by_hand(here, ids, shift, 0)
                loss -= sum(float(table[k, ids[k + 1]]) for k in range(len(ids) - 1))
                tokens += len(ids) - 1
            close(found.values[setting]["text_perplexity"].value, np.exp(loss / tokens), 1e-4)

    def test_changes_are_paired_with_the_unedited_model(self, here, edit, found) -> None:
        plain, edited = found.values["unedited"], found.values["toward memorized"]
        change = found.changes["toward memorized"]
        assert change["accuracy"].value == pytest.approx(
            edited["accuracy"].value - plain["accuracy"].value
        )
        for name in ("answer_perplexity", "text_perplexity"):
            assert change[name].value == pytest.approx(edited[name].value / plain[name].value)
        assert plain["kl"].high == 0
        with mm.patched(here.lab.model, replace(edit, toward="memorized")) as view:
            right = [
                text.split()[:1] == [p.answer]
                for text, p in zip(view.generate(here.test), here.test, strict=True)
            ]
        assert edited["accuracy"].value == np.mean(right)

    def test_strength_0_costs_nothing(self, here, edit) -> None:
        got = mm.side_effects(here.lab.model, replace(edit, alpha=0.0), clean=here.test)
        assert got.values["toward memorized"]["kl"].value == 0
        assert got.changes["toward memorized"]["accuracy"].value == 0

    def test_controls_stand_beside_every_setting(self, found) -> None:
        assert list(found.values) == [
            "unedited",
            "toward memorized",
            "random neurons, toward memorized",
            "toward generalized",
            "random neurons, toward generalized",
        ]
        assert len(found.table()) == 5 * 4
        rows = found.table().set_index(["kind", "toward", "control", "measure"])
        for toward in ("memorized", "generalized"):
            for measure in ("kl", "accuracy", "answer_perplexity", "text_perplexity"):
                row, other = (
                    rows.loc["edit", toward, "", measure],
                    rows.loc["control", toward, "random neurons", measure],
                )
                gap = row["value"] - other["value"]
                if measure.endswith("perplexity"):
                    gap = np.log(row["value"] / other["value"])
                assert row["beyond"] == pytest.approx(gap)
                assert row["draws"] == 30
                assert row["size"] == pytest.approx(row["control_size"])

    def test_an_edit_without_a_class_and_prompts_without_answers(self, here) -> None:
        r = mm.difference_of_means(here.acts, toward="generalized")["resid_post", 0]
        prompts = mm.PromptSet(replace(p, answer=None) for p in here.test)
        got = mm.side_effects(here.lab.model, mm.ProjectOut(r), clean=prompts)
        assert list(got.values) == ["unedited", "edit", "random direction"]
        assert list(got.values["edit"]) == ["kl"]


class TestRefusals:
    def test_what_cannot_be_measured(self, here, edit) -> None:
        model = here.lab.model
        with pytest.raises(mm.PromptError, match=r"clean=.*texts="):
            mm.side_effects(model, edit)
        with pytest.raises(mm.LeakageError, match=r"measure side effects"):
            mm.side_effects(model, edit, clean=here.fit)
