"""P1's grid: chosen on validation, written once on test; and shifts by neurons of no meaning."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import numpy as np
import pytest

import mechmem as mm

TASK = mm.get_task("addition-cued")
PAIRS = 160
LAYER = ("resid_post", 1)


@lru_cache
def _scene():
    model = mm.load_model("lab/addition-cued")
    parts = TASK.pairs(PAIRS, 0).split(train=0.5, validation=0.2, test=0.3, seed=0)
    return model, parts, mm.observe(model, parts.train, task=TASK, margins=False).flips()


@pytest.mark.parametrize("name", ["p1-paper", "p1-code"])
class TestGrid:
    def test_the_grid_never_chooses_and_reports_on_the_same_items(self, name) -> None:
        model, parts, flips = _scene()
        preset = mm.p1_preset(name)
        scores = preset.scores(model, flips)
        grid = preset.grid(scores)
        tried = [grid[0], grid[4]]
        if name == "p1-code":
            # The prompts end in one token: constant coordinates take every slot of the published
            # shares, as in the released code, and nothing would be edited.
            assert preset.slots(scores, top=0.1)["edited"] == 0
            with pytest.raises(mm.EditError, match="None of the top 16 neurons"):
                mm.sweep(model, tried, task=TASK, validation=parts.validation, test=parts.test)
            tried = [preset.edit(scores, top=0.5, alpha=alpha) for alpha in (1.0, 3.0)]
        found = mm.sweep(
            model,
            tried,
            task=TASK,
            validation=parts.validation,
            test=parts.test,
            draws=1,
        )
        chosen_on, tested_on, fitted_on = (
            set(part.groups) for part in (parts.validation, parts.test, flips)
        )
        assert not chosen_on & tested_on
        assert not fitted_on & (chosen_on | tested_on)
        assert len(found.cells) == 2
        for cell in found.cells:
            for rates in cell.rates.values():
                assert set(rates.after.prompts.groups) == chosen_on
        assert len(found.tested) == 1  # the winner, and nothing else
        for toward, rates in found.best.rates.items():
            assert set(rates.after.prompts.groups) == tested_on
            kinds = found.best.controls[toward]
            assert {"uniform noise", "low-rank neurons", "random neurons"} <= set(kinds)
            for draws in kinds.values():
                assert all(set(rate.after.prompts.groups) == tested_on for rate in draws)
        assert fitted_on | chosen_on <= set(found.seen.groups)

    def test_items_of_another_part_are_refused(self, name) -> None:
        model, parts, flips = _scene()
        preset = mm.p1_preset(name)
        grid = preset.grid(preset.scores(model, flips))[:1]
        for validation, test in (
            (parts.validation, parts.validation),
            (parts.train, parts.test),
            (parts.validation, parts.train),
        ):
            with pytest.raises(mm.LeakageError):
                mm.sweep(model, grid, task=TASK, validation=validation, test=test)


def _exchanged(flips: mm.PromptSet, seed: int) -> mm.PromptSet:
    """The two behaviors of a pair exchanged at random: nothing is left to be found."""
    rng = np.random.default_rng(seed)
    swap = {group: bool(rng.integers(2)) for group in sorted(set(flips.groups))}
    other = {"memorized": "generalized", "generalized": "memorized"}
    return mm.PromptSet(
        replace(p, behavior=other[p.behavior] if swap[p.group] else p.behavior) for p in flips
    )


def test_steering_by_neurons_of_no_meaning_is_no_better_than_its_control() -> None:
    """One layer, every position its own shift: what steers this model when the behaviors are real
    (P1 as published does not). With the behaviors of the pairs exchanged at random, nothing is
    left of it beyond the norm-matched control."""
    model, parts, flips = _scene()
    before = mm.observe(model, parts.test, task=TASK, margins=False)

    def beyond_control(prompts: mm.PromptSet) -> float:
        """Gain of the edit less that of its control, the smaller of both ways."""
        acts = mm.cache_activations(model, prompts, sites=[LAYER], positions=list(TASK.read_spans))
        edit = mm.ShiftNeurons(mm.neuron_mean_difference(acts), top=1.0, alpha=1.5)
        gains = []
        for toward in ("memorized", "generalized"):
            one = replace(edit, toward=toward)
            control = mm.controls(one, model, seed=0)["random neurons"]
            rates = [
                mm.evaluate(model, parts.test, task=TASK, edit=e, before=before, margins=False)
                for e in (one, control)
            ]
            hits = [[outcome == toward for outcome in rate.after.outcomes] for rate in rates]
            gains.append(float(np.mean(hits[0]) - np.mean(hits[1])))
        return min(gains)

    null = [beyond_control(_exchanged(flips, seed)) for seed in range(5)]
    assert beyond_control(flips) > 0.2
    assert max(null) < 0.15
    assert np.mean(null) < 0.05
