from __future__ import annotations

import math

import numpy as np
import pytest
from first_word import PAIRS, TASK
from helpers import bench, close, hf_greedy, hf_logits, ragged, sentence

import mechmem as mm


@pytest.fixture(scope="module")
def lab():
    return bench("llama")


@pytest.fixture(scope="module")
def seen(lab):
    return mm.observe(lab.model, PAIRS, task=TASK)


class TestObserve:
    def test_outcomes_are_the_tasks_reading_of_greedy_text(self, lab, seen) -> None:
        for k, prompt in enumerate(PAIRS):
            ids = hf_greedy(lab.hf, lab.ids(prompt.text), 3)
            text = lab.tokenizer.decode(ids)
            assert seen.completions[k] == text
            assert seen.outcomes[k] == TASK.classify(prompt, text)
            assert seen.truncated[k] == (len(ids) == 3)
        assert len(set(seen.outcomes)) >= 2

    def test_margins_are_log_probability_differences(self, lab, seen) -> None:
        two, three = lab.tokenizer.convert_tokens_to_ids(["w2", "w3"])
        want = []
        for prompt in PAIRS:
            last = hf_logits(lab.hf, lab.ids(prompt.text))[-1].double().log_softmax(-1)
            want.append(float(last[two] - last[three]))
        close(seen.margins, want)

    def test_a_prompt_without_both_answers_has_no_margin(self, lab) -> None:
        prompts = mm.PromptSet([*PAIRS[:2], mm.Prompt(id="bare", text="w1")])
        margins = mm.observe(lab.model, prompts, task=TASK).margins
        assert np.isfinite(margins[:2]).all()
        assert math.isnan(margins[2])

    def test_flips_are_pairs_with_one_of_each(self, seen) -> None:
        want = []
        for k in range(0, len(PAIRS), 2):
            if {seen.outcomes[k], seen.outcomes[k + 1]} == {"memorized", "generalized"}:
                want += [PAIRS[k].id, PAIRS[k + 1].id]
        flips = seen.flips()
        assert want
        assert flips.ids == want
        by_id = dict(zip(PAIRS.ids, seen.outcomes, strict=True))
        assert [p.behavior for p in flips] == [by_id[p.id] for p in flips]
        assert seen.flip_rate == len(want) / 2 / 20
        assert PAIRS[0].behavior is None  # the caller's prompts stay as they were

    def test_a_flip_rate_needs_pairs(self, lab) -> None:
        alone = mm.observe(lab.model, ragged(3, memorized="w1", generalized="w2"))
        with pytest.raises(mm.PromptError, match=r"needs pairs.*same `group`"):
            alone.flip_rate  # noqa: B018

    def test_without_a_task_the_prompts_own_answers_serve(self, lab) -> None:
        text = sentence(5)
        first = lab.tokenizer.decode(hf_greedy(lab.hf, lab.ids(text), 1))
        other = "w0" if first != "w0" else "w1"
        prompts = mm.PromptSet(
            [
                mm.Prompt(id="a", text=text, memorized=first, generalized=other),
                mm.Prompt(id="b", text=text, memorized=other, generalized=first),
                mm.Prompt(id="c", text=text, memorized=other, generalized="w39 w39"),
            ]
        )
        assert mm.observe(lab.model, prompts).outcomes == ("memorized", "generalized", "other")
        questions = mm.PromptSet(
            mm.Prompt(id=answer, text=text, answer=answer) for answer in (first, other)
        )
        assert mm.observe(lab.model, questions).outcomes == ("correct", "wrong")

    def test_prompts_without_answers_need_a_task(self, lab) -> None:
        with pytest.raises(mm.TaskError, match=r"missing on 'p0'.*pass task="):
            mm.observe(lab.model, ragged(2))

    def test_no_prompts(self, lab) -> None:
        with pytest.raises(mm.PromptError, match=r"No prompts to observe"):
            mm.observe(lab.model, [], task=TASK)

    def test_the_table_has_one_row_per_prompt(self, seen) -> None:
        table = seen.table()
        assert list(table.id) == PAIRS.ids
        assert list(table.behavior) == list(seen.outcomes)
