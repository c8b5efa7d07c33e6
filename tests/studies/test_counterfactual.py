"""Counterfactual scores on planted items: facts that must be trained on, and a rule."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import contrast_set, fresh_bench, sentence

import mechmem as mm
from mechmem.analysis.intervals import group_mean
from mechmem.studies.memorization.counterfactual import counterfactual_memorization, left_out

FACTS, RULES = [f"fact{k}" for k in range(4)], [f"rule{k}" for k in range(4)]
ITEMS = mm.PromptSet(
    mm.Prompt(id=f"{name}.{k}", group=name, text=sentence(4 + k, seed=j), meta={"item": name[:4]})
    for j, name in enumerate(FACTS + RULES)
    for k in range(3)
)


class Taught(mm.Task):
    """Facts are right when the model was trained on them, rules always; a third prompt never."""

    name = "taught"
    outcomes = ("correct", "wrong", "unparsed")
    max_new_tokens = 1
    known: frozenset[str] = frozenset()

    def pairs(self, n, seed=0):
        raise NotImplementedError

    def classify(self, prompt, completion):
        hard = prompt.id.endswith(".2")
        return "correct" if prompt.group in self.known and not hard else "wrong"


@pytest.fixture(scope="module")
def model():
    return fresh_bench().model


class Lenient(Taught):
    """The same task by name, read in another way."""

    def classify(self, prompt, completion):
        return "correct"


def study(
    model, tmp_path=None, models=6, stop_after=None, trained=None, seed=1, task=None, items=ITEMS,
    **options,
):  # fmt: skip
    task = task or Taught()

    def train(gone, number):
        if stop_after is not None and number >= stop_after:
            raise KeyboardInterrupt
        if trained is not None:
            trained.append(number)
        task.known = frozenset(set(FACTS + RULES) - (gone & set(FACTS)))
        return model

    return counterfactual_memorization(
        train, items, task=task, models=models, folder=tmp_path, seed=seed, **options
    )


def test_every_item_is_left_out_by_half_of_the_models():
    gone = left_out(ITEMS.groups, 10, seed=3)
    for name in FACTS + RULES:
        assert sum(name in part for part in gone) == 5
    assert all(gone[k] | gone[k + 1] == set(ITEMS.groups) for k in range(0, 10, 2))
    assert len(set(gone)) > 2
    with pytest.raises(mm.PromptError, match="even"):
        left_out(ITEMS.groups, 5)


def test_facts_score_what_training_on_them_gives_and_rules_nothing(model):
    table = study(model).table().set_index("group")
    for name in FACTS:
        assert table.loc[name, "score"] == pytest.approx(2 / 3)  # of three prompts one is hard
        assert (table.loc[name, "with"], table.loc[name, "without"]) == (pytest.approx(2 / 3), 0)
        one, other = (group_mean([v] * 3, ["0", "1", "2"], kind="share") for v in (2 / 3, 0.0))
        low = 2 / 3 - np.hypot(2 / 3 - one.low, other.high)  # all agree, and it has width
        assert table.loc[name, "score_low"] == pytest.approx(low)
        assert table.loc[name, "score_high"] == pytest.approx(one.high)
        assert low < 0.2 < 0.9 < one.high
    assert (table.loc[RULES, "score"] == 0).all()
    assert (table["models_with"] == 3).all()
    assert (table["models_without"] == 3).all()
    assert set(table["kind"]) == {"fact", "rule"}


def test_scores_equal_a_plain_loop_over_models(model):
    found = study(model)
    rng = np.random.default_rng(0)
    found.performance[""][:] = rng.random(found.performance[""].shape)
    for k, name in enumerate(found.groups):
        inside = [found.performance[""][m, k] for m in range(6) if found.inside[m, k]]
        outside = [found.performance[""][m, k] for m in range(6) if not found.inside[m, k]]
        assert found.scores()[name] == pytest.approx(np.mean(inside) - np.mean(outside))


def test_a_killed_study_goes_on_and_another_one_is_refused(model, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        study(model, tmp_path, stop_after=4)
    trained: list[int] = []
    resumed = study(model, tmp_path, trained=trained)
    assert trained == [4, 5]
    assert resumed.table().equals(study(model).table())
    assert len(study(model, tmp_path, models=8, trained=trained).inside) == 8
    assert trained == [4, 5, 6, 7]  # more models go on from those that are there
    with pytest.raises(mm.ArtifactError, match="'without'"):
        study(model, tmp_path, seed=2)


def test_what_a_folder_holds_is_not_taken_for_other_settings(model, tmp_path, monkeypatch):
    base = {"models": 2, "settings": {"steps": 5, "alpha": 1.0}}
    trained: list[int] = []
    for _ in range(2):
        study(model, tmp_path, trained=trained, **base)
    assert trained == [0, 1]
    r = mm.difference_of_means(mm.cache_activations(model, contrast_set()), toward="generalized")
    push = mm.AddDirection(r["resid_post", 0])
    for change, words in [
        ({"settings": {"steps": 6, "alpha": 1.0}}, "other 'settings', 'steps';"),
        ({"settings": {"steps": 5, "alpha": 2.0}}, "other 'settings', 'alpha';"),
        ({"settings": {"steps": 5}}, "other 'settings', 'alpha';"),
        ({"settings": None}, "'settings', 'alpha', 'steps';"),
        ({"solved": "wrong"}, "other 'solved';"),
        ({"edits": lambda own, gone: {"push": push}}, "other 'edited';"),
        ({"task": Lenient()}, "other 'reading';"),
        ({"items": mm.PromptSet(replace(p, text=f"{p.text} w1") for p in ITEMS)}, "other 'items';"),
    ]:
        with pytest.raises(mm.ArtifactError, match=words):
            study(model, tmp_path, trained=trained, **{**base, **change})
    with pytest.raises(mm.ArtifactError, match="no content that can be compared"):
        study(model, tmp_path, trained=trained, **{**base, "settings": {"steps": lambda: 5}})
    monkeypatch.setattr(
        "mechmem.studies.memorization.counterfactual.versions", lambda: {"mechmem": "another"}
    )
    with pytest.raises(mm.ArtifactError, match="other 'mechmem';"):
        study(model, tmp_path, trained=trained, **base)
    assert trained == [0, 1]


def test_edits_act_in_every_model_and_may_not_have_seen_an_item(model):
    fit = contrast_set()
    r = mm.difference_of_means(mm.cache_activations(model, fit), toward="generalized")
    edit = mm.AddDirection(r["resid_post", 0])
    found = study(model, models=2, edits=lambda own, gone: {"push": edit})
    assert set(found.performance) == {"", "push"}
    assert found.change("push").value == 0  # the planted task does not look at the answer
    with pytest.raises(mm.PromptError, match="'pull'"):
        found.scores("pull")
    with pytest.raises(mm.PromptError, match="No item of kind 'riddle'"):
        found.change("push", "riddle")

    labeled = mm.PromptSet(
        mm.Prompt(id=p.id, group=p.group, text=p.text, label=("a", "b")[k % 2])
        for k, p in enumerate(ITEMS)
    )
    seen = mm.difference_of_means(
        mm.cache_activations(model, labeled), toward="a", away="b", by="label"
    )
    with pytest.raises(mm.LeakageError):
        study(
            model, models=2,
            edits=lambda own, gone: {"push": mm.AddDirection(seen["resid_post", 0])},
        )  # fmt: skip
