from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from first_word import TASK
from helpers import bench, close, fresh_bench, hf_greedy, hf_logits
from question_scene import scene

import mechmem as mm


@pytest.fixture(scope="module")
def two():
    return {"one": bench("llama"), "other": fresh_bench("llama", seed=4)}


class TestCompareModels:
    def test_accuracy_and_surprise_are_those_of_plain_transformers(self, two) -> None:
        texts = [p.text for p in scene().test]
        lab = two["one"]
        right = [lab.tokenizer.decode(hf_greedy(lab.hf, lab.ids(text), 1)) for text in texts]
        prompts = mm.PromptSet(
            replace(p, answer=word if word and k % 4 else "w0 w0")
            for k, (p, word) in enumerate(zip(scene().test, right, strict=True))
        )
        prompts = prompts.filter(lambda p: " " not in p.answer and p.answer.startswith("w"))
        got = mm.evaluation.compare_models({name: b.model for name, b in two.items()}, prompts)
        hit, loss = {}, {}
        for name, b in two.items():
            words, nats = [], []
            for p in prompts:
                ids = b.ids(p.text)
                words.append(b.tokenizer.decode(hf_greedy(b.hf, ids, 1)) == p.answer)
                last = hf_logits(b.hf, ids)[-1].double().log_softmax(-1)
                nats.append(-float(last[b.tokenizer.convert_tokens_to_ids(p.answer)]))
            hit[name], loss[name] = np.array(words, float), np.array(nats)
            assert got.accuracy[name].value == pytest.approx(hit[name].mean())
            close(got.surprise[name].value, loss[name].mean(), 1e-4)
        assert hit["one"].mean() == 1.0 > hit["other"].mean()
        change = got.accuracy_change["other"]
        assert change.value == pytest.approx((hit["other"] - hit["one"]).mean())
        close(got.surprise_change["other"].value, (loss["other"] - loss["one"]).mean(), 1e-4)
        assert got.accuracy_change["one"].value == 0
        assert list(got.table()["model"]) == ["one", "other"]

    def test_what_is_refused(self, two) -> None:
        models = {name: b.model for name, b in two.items()}
        with pytest.raises(mm.ModelError, match=r"No model named 'third'"):
            mm.evaluation.compare_models(models, scene().test, reference="third")
        with pytest.raises(mm.ModelError, match=r"at least one model"):
            mm.evaluation.compare_models({}, scene().test)
        bare = mm.PromptSet(replace(p, answer=None) for p in scene().test)
        with pytest.raises(mm.PromptError, match=r"needs an `answer`"):
            mm.evaluation.compare_models(models, bare)


@pytest.fixture(scope="module")
def found(two):
    models = {name: (b.model, TASK) for name, b in two.items()}
    return mm.evaluation.effect_by_model(models, shift_of, n=60)


def shift_of(model: mm.Model, flips: mm.PromptSet) -> mm.Edit:
    scores = mm.neuron_mean_difference(mm.cache_activations(model, flips))
    return mm.ShiftNeurons(scores, top=8, alpha=6.0)


class TestEffectByModel:
    def test_a_row_is_a_fit_and_an_evaluation_on_other_groups(self, two, found) -> None:
        got = found
        for name, b in two.items():
            parts = TASK.pairs(60, 0).split(train=0.6, test=0.4, seed=0)
            turned = mm.observe(b.model, parts.train, task=TASK).flips()
            assert got.flips[name] == len(turned) // 2
            if not got.rates[name]:
                assert got.flips[name] < 10
                continue
            edit = replace(shift_of(b.model, turned), toward="memorized")
            want = mm.evaluate(b.model, parts.test, task=TASK, edit=edit)
            assert got.rates[name]["memorized"].share("memorized") == want.share("memorized")
            assert got.parameters[name] >= sum(p.numel() for p in b.hf.parameters())
        assert any(got.rates.values())

    def test_the_table_has_the_sizes(self, found) -> None:
        table = found.table()
        assert set(table["width"]) == {16}
        assert set(table["layers"]) == {2}
        assert {"change", "control", "beyond", "beyond_low"} <= set(table.columns)
