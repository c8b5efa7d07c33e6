"""LiMem against its definition, recomputed from what a model answered."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import contrast_set, fresh_bench, ragged

import mechmem as mm
from mechmem.evaluation.perturbation import perturbational_memorization
from mechmem.tasks.questions.perturb import perturbed


class Known(mm.Task):
    """Correct is what the set names, whatever the model writes."""

    name = "known"
    outcomes = ("correct", "wrong", "unparsed")
    max_new_tokens = 1

    def __init__(self, right):
        self.right = set(right)

    def pairs(self, n, seed=0):
        raise NotImplementedError

    def classify(self, prompt, completion):
        return "correct" if prompt.id in self.right else "wrong"


@pytest.fixture(scope="module")
def lab():
    return fresh_bench()


def items_with_variants(n=8, each=3):
    items = mm.PromptSet(
        replace(p, group=f"g{k // 2}", meta={"item": "even" if k % 2 == 0 else "odd"})
        for k, p in enumerate(ragged(n))
    )
    variants = mm.PromptSet(
        perturbed(item, f"v{k}", text=f"{item.text} w{k}")
        for item in items
        for k in range(each - (item.id == "p0"))  # one item has a variant less
    )
    return items, variants


def test_accuracy_consistency_and_limem_follow_their_definitions(lab):
    items, variants = items_with_variants()
    rng = np.random.default_rng(0)
    right = [p.id for p in items + variants if rng.random() < 0.6]
    got = perturbational_memorization(lab.model, items, variants, task=Known(right))
    solved = np.array([name in right for name in items.ids])
    kept = np.array(
        [
            np.mean([v.id in right for v in variants if v.meta["perturbs"] == name])
            for name in items.ids
        ]
    )
    accuracy, consistency = solved.mean(), kept[solved].mean()
    assert got.accuracy.value == pytest.approx(accuracy)
    assert got.consistency.value == pytest.approx(consistency)
    assert (got.consistency.n, got.accuracy.n) == (solved.sum(), len(items))
    assert got.limem.value == pytest.approx(accuracy * (1 - consistency))
    assert got.limem.low <= got.limem.value <= got.limem.high
    assert list(got.scores.values()) == pytest.approx(np.where(solved, 1 - kept, 0))
    assert got.table()["variants"].tolist() == [2, *[3] * 7]
    even = got.of("item", "even")
    assert even.accuracy.value == pytest.approx(solved[::2].mean())
    assert even.limem.value == pytest.approx(np.where(solved, 1 - kept, 0)[::2].mean())


def test_nothing_solved_has_no_consistency_and_no_memorization(lab):
    items, variants = items_with_variants()
    got = perturbational_memorization(lab.model, items, variants, task=Known([]))
    assert (got.accuracy.value, got.limem.value) == (0, 0)
    assert np.isnan(got.consistency.value)


def test_items_and_perturbations_must_belong_together(lab):
    items, variants = items_with_variants()
    task = Known([])
    with pytest.raises(mm.PromptError, match=r"Items 'p7' have no perturbation"):
        perturbational_memorization(
            lab.model, items, variants.filter(lambda p: p.meta["perturbs"] != "p7"), task=task
        )
    with pytest.raises(mm.PromptError, match=r"'p0~v0'.*belong to none"):
        perturbational_memorization(lab.model, items[1:], variants, task=task)
    with pytest.raises(mm.PromptError, match="there are 'even', 'odd'"):
        perturbational_memorization(lab.model, items, variants, task=task).of("item", "third")


def test_an_edit_that_saw_a_perturbed_question_is_refused(lab):
    fit = contrast_set()
    r = mm.difference_of_means(mm.cache_activations(lab.model, fit), toward="generalized")
    edit = mm.AddDirection(r["resid_post", 0])
    item = replace(fit[0], id="again", group="fresh", behavior=None)
    variants = mm.PromptSet([perturbed(item, "v", text=f"{item.text} w1")])
    with pytest.raises(mm.LeakageError):
        perturbational_memorization(
            lab.model, mm.PromptSet([item]), variants, task=Known([]), edit=edit
        )
