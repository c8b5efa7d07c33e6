"""Many edits at once are rated against the unedited model, which runs beside them."""

from __future__ import annotations

import numpy as np
import pytest
from first_word import PAIRS, TASK
from helpers import HOOKED, bench, contrast_set

import mechmem as mm
from mechmem.evaluation import many_edits


@pytest.fixture(scope="module")
def lab():
    return bench("llama")


@pytest.fixture(scope="module")
def direction(lab):
    acts = mm.cache_activations(lab.model, contrast_set(seed=3))
    return mm.difference_of_means(acts, toward="generalized")["resid_post", 0]


@pytest.fixture(scope="module")
def edits(direction):
    return [mm.AddDirection(direction, alpha=alpha, positions="last") for alpha in (4.0, 8.0)]


class TestTheUneditedModel:
    def test_is_what_observing_it_gives(self, lab, edits) -> None:
        want = mm.observe(lab.model, PAIRS, task=TASK)
        for rates in mm.evaluate_each(lab.model, PAIRS, edits, task=TASK):
            assert rates.before.outcomes == want.outcomes
            assert rates.before.completions == want.completions
            np.testing.assert_allclose(rates.before.margins, want.margins, atol=1e-4)
            assert rates.before.model == want.model
            assert rates.after.outcomes != want.outcomes

    def test_inside_a_block_is_the_model_of_that_block(self, lab, direction, edits) -> None:
        outer = mm.AddDirection(direction, alpha=6.0)
        with mm.patched(lab.model, outer) as view:
            want = mm.observe(view, PAIRS, task=TASK)
            (rates,) = mm.evaluate_each(view, PAIRS, edits[:1], task=TASK)
        assert rates.before.outcomes == want.outcomes
        assert want.outcomes != mm.observe(lab.model, PAIRS, task=TASK).outcomes

    def test_equals_an_edit_by_nothing_to_the_bit(self, lab, direction, edits) -> None:
        nothing = mm.AddDirection(direction, alpha=0.0)
        first, still = mm.evaluate_each(lab.model, PAIRS, [edits[0], nothing], task=TASK)
        assert np.array_equal(still.after.margins, still.before.margins)
        assert np.array_equal(first.before.margins, still.before.margins)

    @pytest.mark.skipif(HOOKED, reason="cells share what comes before an edit on bridges only")
    def test_is_not_run_by_itself(self, lab, edits, monkeypatch) -> None:
        monkeypatch.setattr(many_edits, "observe", lambda *a, **k: pytest.fail("ran by itself"))
        fed = []
        own = type(lab.model.backend).forward

        def forward(self, ids, mask, **options):
            fed.append(ids.numel())
            return own(self, ids, mask, **options)

        monkeypatch.setattr(type(lab.model.backend), "forward", forward)
        mm.evaluate_each(lab.model, PAIRS, edits, task=TASK, margins=False)
        three = sum(fed)
        seen = mm.evaluate_each(lab.model, PAIRS, edits, task=TASK, margins=False)[0].before
        fed.clear()
        mm.evaluate_each(lab.model, PAIRS, edits, task=TASK, margins=False, before=seen)
        assert sum(fed) < three <= sum(fed) * 3 / 2  # no more than one more edit
