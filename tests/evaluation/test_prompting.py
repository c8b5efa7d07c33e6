from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import hf_greedy
from question_scene import scene

import mechmem as mm
from mechmem.evaluation.prompting import rewritten


@pytest.fixture(scope="module")
def here():
    return scene()


class TestRewriting:
    def test_text_in_front_moves_the_spans(self) -> None:
        prompts = mm.PromptSet([mm.Prompt(id="a", text="w1 w2 w3", spans={"cue": (3, 5)})])
        (made,) = rewritten(prompts, "w9 w9 ")
        assert made.text == "w9 w9 w1 w2 w3"
        start, end = made.spans["cue"]
        assert made.text[start:end] == "w2"

    def test_a_function_may_return_text_or_a_prompt(self) -> None:
        prompts = mm.PromptSet([mm.Prompt(id="a", text="w1 w2", spans={"cue": (0, 2)})])
        (text,) = rewritten(prompts, lambda p: p.text.upper())
        assert (text.text, text.spans) == ("W1 W2", {})
        (prompt,) = rewritten(prompts, lambda p: replace(p, text="w5 w2"))
        assert prompt.spans == {"cue": (0, 2)}

    def test_another_item_is_refused(self) -> None:
        prompts = mm.PromptSet([mm.Prompt(id="a", text="w1", memorized="w1", generalized="w2")])
        with pytest.raises(mm.PromptError, match=r"'a' changed its 'memorized'"):
            rewritten(prompts, lambda p: replace(p, memorized="w2"))


class TestPrompting:
    def test_shares_are_those_of_the_rewritten_text(self, here) -> None:
        first = {
            text: here.lab.tokenizer.decode(hf_greedy(here.lab.hf, here.lab.ids(text), 1))
            for p in here.test
            for text in (p.text, f"w7 w8 {p.text}")
        }
        prompts = mm.PromptSet(
            replace(p, memorized=first[p.text], generalized="<none>")
            for p in here.test
            if first[p.text].startswith("w")
        )
        edit = mm.ShiftNeurons(here.scores, top=8, alpha=6.0, toward="memorized")
        got = mm.evaluation.prompting(
            here.lab.model, prompts, {"seven": "w7 w8 "}, edits={"edit": edit}
        )
        assert got.rates["unchanged"].share("memorized").value == 1.0
        want = np.mean([first[f"w7 w8 {p.text}"] == p.memorized for p in prompts])
        assert want < 1
        assert got.rates["seven"].share("memorized").value == pytest.approx(want)
        assert got.rates["seven"].change("memorized").value == pytest.approx(want - 1)
        edited = mm.evaluate(here.lab.model, prompts, edit=edit).share("memorized")
        assert got.rates["edit"].share("memorized") == edited
        difference = got.compared("seven", "edit", "memorized")
        assert difference.value == pytest.approx(want - edited.value)
        table = got.table()
        assert dict(zip(table["name"], table["kind"], strict=True)) == {
            "unchanged": "rewrite",
            "seven": "rewrite",
            "edit": "edit",
        }

    def test_what_is_refused(self, here) -> None:
        edit = mm.ShiftNeurons(here.scores, top=8)
        with pytest.raises(mm.LeakageError):
            mm.evaluation.prompting(here.lab.model, here.fit, {}, edits={"edit": edit})
        with pytest.raises(mm.PromptError, match=r"Two settings are named 'same'"):
            mm.evaluation.prompting(
                here.lab.model, here.test, {"same": "w1 "}, edits={"same": edit}
            )
        got = mm.evaluation.prompting(here.lab.model, here.test, {})
        with pytest.raises(mm.PromptError, match=r"Nothing named 'odd'"):
            got.compared("odd", "unchanged", "memorized")
        with pytest.raises(mm.TaskError, match=r"Unknown outcome 'memorised'.*Did you mean"):
            got.compared("unchanged", "unchanged", "memorised")
        with pytest.raises(mm.PromptError, match=r"'unchanged' names the prompts as they are"):
            mm.evaluation.prompting(here.lab.model, here.test, {"unchanged": "w1 "})
