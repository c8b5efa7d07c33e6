from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import close
from question_scene import hand_margins, scene

import mechmem as mm
from mechmem.evaluation.margin_response import _largest_step, _linearity

DOSES = (0.5, 1.0, 2.0)


@pytest.fixture(scope="module")
def here():
    return scene()


@pytest.fixture(scope="module")
def edit(here):
    return mm.ShiftNeurons(here.scores, top=8, alpha=2.0, positions="last")


@pytest.fixture(scope="module")
def found(here, edit):
    return mm.evaluation.margin_response(here.lab.model, edit, here.test, doses=DOSES)


class TestResponse:
    def test_changes_are_those_of_plain_transformers(self, here, edit, found) -> None:
        before = hand_margins(here, here.test)
        assert found.alphas == (0.0, 1.0, 2.0, 4.0)
        for toward, sign in (("memorized", 1), ("generalized", -1)):
            way = []
            for alpha in found.alphas:
                shift = replace(edit, toward=toward, alpha=alpha).shift(here.lab.model)
                way.append(sign * (hand_margins(here, here.test, shift) - before))
            got = [estimate.value for estimate in found.change[toward]["edit"]]
            close(got, np.mean(way, axis=1), 1e-4)
            close(found.spread[toward]["edit"][2], np.quantile(way[2], [0.1, 0.9]), 1e-4)
            steps = np.abs(np.diff(way, axis=0))
            close(found.largest_step[toward].value, (steps.max(0) / steps.sum(0)).mean(), 1e-4)
            r = [np.corrcoef(found.alphas, column)[0, 1] ** 2 for column in np.array(way).T]
            close(found.linearity[toward].value, np.mean(r), 1e-4)

    def test_shares_are_those_of_the_patched_model(self, here, edit, found) -> None:
        strongest = replace(edit, toward="memorized", alpha=4.0)
        rates = mm.evaluate(here.lab.model, here.test, edit=strongest)
        assert found.share["memorized"]["edit"][-1] == rates.share("memorized")

    def test_a_task_may_have_its_own_names(self, here, found) -> None:
        class Own(mm.tasks.PromptAnswers):
            outcomes, behaviors = ("known", "context", "other"), ("known", "context")

        called = {"memorized": "known", "generalized": "context"}
        fit = here.fit.with_behaviors({p.id: called[p.behavior] for p in here.fit})
        scores = mm.neuron_mean_difference(
            mm.cache_activations(here.lab.model, fit), first="known", second="context"
        )
        own = mm.ShiftNeurons(scores, top=8, alpha=2.0, positions="last", toward="known")
        got = mm.evaluation.margin_response(
            here.lab.model, own, here.test, doses=DOSES, task=Own("behavior"), draws=2
        )
        for name, other in called.items():
            ours, theirs = ([e.value for e in side["edit"]] for side in (
                got.change[other], found.change[name]))  # fmt: skip
            close(ours, theirs, 1e-4)

    def test_strength_0_changes_nothing(self, found) -> None:
        for kinds in found.change.values():
            for changes in kinds.values():
                assert (changes[0].low, changes[0].value, changes[0].high) == (0, 0, 0)

    def test_a_switch_and_a_dial(self) -> None:
        switch = np.array([[0.0], [0.0], [5.0], [5.0]])
        dial = np.array([[0.0], [1.0], [2.0], [3.0]])
        assert _largest_step(switch)[0] == 1.0
        assert _largest_step(dial)[0] == pytest.approx(1 / 3)
        assert _largest_step(np.zeros((4, 1)))[0] == 0.0
        assert _linearity(dial, np.arange(4.0))[0] == pytest.approx(1.0)
        assert _linearity(switch, np.arange(4.0))[0] == pytest.approx(0.8)

    def test_tables(self, found) -> None:
        assert len(found.table()) == 2 * 2 * 4
        assert found.control == "random neurons"
        assert found.steady_step == pytest.approx(1.0 / 2.0)
        assert list(found.summary()["toward"]) == ["memorized", "generalized"]


class TestRefusals:
    def test_edits_and_strengths(self, here, edit) -> None:
        with pytest.raises(mm.LeakageError, match=r"response to an edit"):
            mm.evaluation.margin_response(here.lab.model, edit, here.fit)
        with pytest.raises(mm.EditError, match=r"needs an alpha other than 0"):
            mm.evaluation.margin_response(here.lab.model, replace(edit, alpha=0.0), here.test)
        with pytest.raises(mm.EditError, match=r"positive multiples"):
            mm.evaluation.margin_response(here.lab.model, edit, here.test, doses=[-1.0])
        with pytest.raises(mm.EditError, match=r"no control 'placebo'.*'random neurons'"):
            mm.evaluation.margin_response(here.lab.model, edit, here.test, control="placebo")
        r = mm.difference_of_means(here.acts, toward="generalized")["resid_post", 0]
        with pytest.raises(mm.EditError, match=r"needs an alpha"):
            mm.evaluation.margin_response(here.lab.model, mm.ProjectOut(r), here.test)
