from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from question_scene import scene

import mechmem as mm


class TestDeterminism:
    def test_greedy_answers_repeat(self) -> None:
        here = scene()
        got = mm.evaluation.determinism(here.lab.model, here.test)
        assert list(got.same) == ["again", "another order", "one at a time"]
        for share in got.same.values():
            assert 0.5 < share.low < share.value == share.high == 1
            assert share.n == len(here.test)
        gap, largest = got.logits["one at a time"]
        assert gap <= 1e-5 * largest
        assert got.logits["again"][0] == 0
        want = float(here.lab.model.logits(here.test).abs().max())
        assert largest == pytest.approx(want)
        assert list(got.table()["run"]) == list(got.same)

    def test_a_model_that_answers_differently_each_time_is_found_out(self) -> None:
        class Moody(mm.Model):
            def logits(self, prompts, **options):
                calls[0] += 1
                return super().logits(prompts, **options) + calls[0]

            def complete(self, prompts, *args, **options):
                done = super().complete(prompts, *args, **options)
                calls[1] += 1
                for item in done[: 5 if calls[1] == 2 else 0]:
                    item.text += " again"
                return done

        calls = [0, 0]
        plain = scene().lab.model
        model = Moody(plain.backend, plain.tokens, plain.name)
        got = mm.evaluation.determinism(model, scene().test)
        assert got.same["again"].value == pytest.approx(1 - 5 / len(scene().test))
        assert got.same["another order"].value == 1.0
        assert got.logits["again"][0] == pytest.approx(1.0, rel=1e-5)

    def test_it_leaves_the_callers_random_state(self) -> None:
        before = torch.get_rng_state(), np.random.get_state()[1].tolist()
        mm.evaluation.determinism(scene().lab.model, replace_ids(scene().test[:4]))
        assert torch.equal(torch.get_rng_state(), before[0])
        assert np.random.get_state()[1].tolist() == before[1]


def replace_ids(prompts: mm.PromptSet) -> mm.PromptSet:
    return mm.PromptSet(replace(p, id=f"r{p.id}") for p in prompts)
