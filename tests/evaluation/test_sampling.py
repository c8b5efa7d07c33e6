from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import as_users_run_it, hf_greedy, hf_logits
from question_scene import scene

import mechmem as mm
from mechmem.models.engine.generation import Sampler, greedy
from mechmem.seeding import keyed_rng


class Word(mm.Task):
    """The outcome is the first word's number, modulo three."""

    name = "word-mod-3"
    max_new_tokens = 1

    def pairs(self, n: int, seed: int = 0) -> mm.PromptSet:
        raise NotImplementedError

    def classify(self, prompt: mm.Prompt, completion: str) -> str:
        number = completion.strip().removeprefix("w")
        return self.outcomes[int(number) % 3] if number.isdigit() else "other"


class Three(Word):
    name = "three-words"
    max_new_tokens = 3

    def classify(self, prompt: mm.Prompt, completion: str) -> str:
        texts.append((prompt.id, completion))
        return super().classify(prompt, completion.split()[0] if completion.split() else "")


texts: list[tuple[str, str]] = []


class TestSampler:
    def test_draws_follow_the_softmax(self) -> None:
        logits = torch.tensor([[0.0, 1.0, 2.0, -1.0]])
        want = (logits / 0.7).double().softmax(-1)[0].numpy()
        n = 4000
        drawn = Sampler(0.7, 0, [str(k) for k in range(n)])(logits.expand(n, -1), range(n), 0)
        got = np.bincount(drawn.numpy(), minlength=4) / n
        assert np.abs(got - want).max() < 4 * np.sqrt(0.25 / n)

    def test_a_draw_depends_on_key_and_step_alone(self) -> None:
        logits = torch.randn(3, 20)
        draw = Sampler(1.0, 5, ["a", "b", "c"])
        assert (
            draw(logits[[2, 0]], [2, 0], 1).tolist() == draw(logits, [0, 1, 2], 1)[[2, 0]].tolist()
        )
        noise = keyed_rng(5, "sample", "b", 1).gumbel(size=20)
        want = int((logits[1].double().numpy() + noise).argmax())
        assert int(draw(logits[1:2], [1], 1)) == want

    def test_near_0_it_is_greedy(self) -> None:
        logits = torch.randn(5, 30)
        cold = Sampler(1e-6, 0, list("abcde"))(logits, range(5), 0)
        assert cold.tolist() == greedy(logits, range(5), 0).tolist()

    def test_impossible_temperatures(self) -> None:
        for value in (0, -1.0, float("nan"), float("inf"), "hot"):
            with as_users_run_it(), pytest.raises(mm.ModelError, match=r"temperature must be"):
                Sampler(value, 0, [])


class TestSampling:
    def test_shares_follow_the_models_own_probabilities(self) -> None:
        here = scene()
        got = mm.evaluation.sampling(
            here.lab.model, here.test[:4], task=Word(), temperatures=[1.0], draws=400
        )
        for k, prompt in enumerate(here.test[:4]):
            p = hf_logits(here.lab.hf, here.lab.ids(prompt.text))[-1].double().softmax(-1)
            words = [here.lab.tokenizer.decode([t]) for t in range(48)]
            for outcome in Word.outcomes:
                want = sum(
                    float(p[t])
                    for t, word in enumerate(words)
                    if Word().classify(prompt, word) == outcome
                )
                share = got.outcomes[1.0][k].count(outcome) / 400
                assert abs(share - want) < 0.1

    def test_cold_sampling_is_greedy_and_counts_are_by_hand(self) -> None:
        here = scene()
        got = mm.evaluation.sampling(
            here.lab.model, here.test, task=Word(), temperatures=[1e-5, 3.0], draws=4
        )
        assert got.as_greedy(1e-5).value == got.agreement(1e-5).value == 1.0
        assert got.both(1e-5).value == 0.0
        pairs = []
        for draws in got.outcomes[3.0]:
            alike = [draws[i] == draws[j] for i in range(4) for j in range(4) if i != j]
            pairs.append(np.mean(alike))
        assert got.agreement(3.0).value == pytest.approx(np.mean(pairs))
        assert got.agreement(3.0).value < 1
        with pytest.raises(mm.MechmemError, match=r"Nothing was drawn at temperature 0.7"):
            got.agreement(0.7)
        with pytest.raises(mm.TaskError, match=r"Unknown outcome 'memorised'"):
            got.share(3.0, "memorised")
        table = got.table()
        np.testing.assert_allclose(table[["memorized", "generalized", "other"]].sum(axis=1), 1.0)

    def test_the_order_and_the_batch_do_not_matter(self) -> None:
        here = scene()
        there = mm.PromptSet(list(here.test)[::-1])
        options = {"task": Three(), "temperatures": [1.0], "draws": 3}
        texts.clear()
        mm.evaluation.sampling(here.lab.model, here.test, **options)
        one = sorted(texts)
        texts.clear()
        mm.evaluation.sampling(here.lab.model, there, token_budget=40, **options)
        assert one == sorted(texts)
        assert len({text for _, text in one}) > len(here.test)

    def test_later_tokens_follow_the_drawn_ones_under_an_edit_too(self) -> None:
        """Every later token is the likeliest after the drawn text, when it is drawn cold."""
        here = scene()
        edit = mm.ShiftNeurons(here.scores, top=8, alpha=4.0)
        with mm.patched(here.lab.model, edit) as view:
            texts.clear()
            mm.evaluation.sampling(view, here.test, task=Three(), temperatures=[1e-6], draws=2)
            want = dict(zip(here.test.ids, view.generate(here.test, 3), strict=True))
        assert all(text == want[name] for name, text in texts)
        plain = [
            here.lab.tokenizer.decode(hf_greedy(here.lab.hf, here.lab.ids(p.text), 3))
            for p in here.test
        ]
        assert list(want.values()) != plain

    def test_a_task_with_its_own_names_is_read_as_text(self) -> None:
        class Own(Word):
            outcomes, behaviors = ("known", "context", "other"), ("known", "context")

        here = scene()
        asked = {"temperatures": [1.0], "draws": 30}
        usual = mm.evaluation.sampling(here.lab.model, here.test, task=Word(), **asked)
        chosen = Own()
        chosen.choice = mm.Choice()  # a choice reads no drawn text
        got = mm.evaluation.sampling(here.lab.model, here.test, task=chosen, **asked)
        assert got.greedy.reading == "text"
        assert got.both(1.0).value == usual.both(1.0).value > 0
        assert got.as_greedy(1.0).value == usual.as_greedy(1.0).value

    def test_one_draw_is_refused(self) -> None:
        with pytest.raises(mm.MechmemError, match=r"draws must be an integer from 2 .*got 1"):
            mm.evaluation.sampling(scene().lab.model, scene().test, draws=1)
