"""Variants of the neuron shift against plain hooks: standard deviations, caps, ranges of layers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import at_positions, bench, close, contrast_set, differs, hf_logits, hf_states, ragged

import mechmem as mm

PROMPTS = ragged(5)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def lab(request):
    return bench(request.param)


@pytest.fixture(scope="module")
def scores(lab):
    return mm.neuron_mean_difference(mm.cache_activations(lab.model, contrast_set()))


def _agrees(lab, edit: mm.Edit, hooks) -> None:
    plain = lab.model.logits(PROMPTS)
    with mm.patched(lab.model, edit) as view:
        got = view.logits(PROMPTS)
    want = [hf_logits(lab.hf, lab.ids(p.text), hooks(len(lab.ids(p.text))))[-1] for p in PROMPTS]
    close(got, torch.stack(want))
    differs(plain, torch.stack(want))


def _last(change):
    return lambda length: {
        site: [at_positions(one, lambda at: at >= length - 1)] for site, one in change.items()
    }


class TestStandardDeviations:
    def test_every_neuron_moves_by_its_own_spread(self, lab, scores) -> None:
        site = ("resid_post", 1)
        prompts = contrast_set()
        states = np.stack(
            [hf_states(lab.hf, lab.ids(p.text), [site])[site][-1].double() for p in prompts]
        )
        one = np.array([p.behavior == "memorized" for p in prompts])
        within = ((states[one] - states[one].mean(0)) ** 2).sum(0)
        within += ((states[~one] - states[~one].mean(0)) ** 2).sum(0)
        spread = np.sqrt(within / (len(states) - 2))
        toward = -np.sign(states[one].mean(0) - states[~one].mean(0))
        chosen = scores.top(6, sites=[site]).mask(mm.Site(*site))[0].numpy()
        value = torch.tensor(2 * toward * spread * chosen, dtype=torch.float32)
        edit = mm.ShiftNeurons(scores, top=6, alpha=2.0, at=site, units="sd")
        _agrees(lab, edit, _last({site: lambda h: h + value}))
        assert edit.describe()["units"] == "sd"

    def test_other_units_are_refused(self, lab, scores) -> None:
        with pytest.raises(mm.EditError, match=r"'difference' or 'sd', got 'norm'"):
            mm.ShiftNeurons(scores, units="norm").shift(lab.model)


class TestCap:
    @pytest.mark.parametrize("cap", [0.05, 0.4])
    def test_a_shift_is_no_longer_than_its_share_of_the_state(self, lab, scores, cap) -> None:
        plain = mm.ShiftNeurons(scores, top=0.5, alpha=3.0).shift(lab.model)

        def capped(value):
            def add(h):
                limit = cap * h.norm(dim=-1, keepdim=True) / value.norm()
                return h + value * limit.clamp(max=1)

            return add

        hooks = {tuple(site): capped(value[0].float()) for site, value in plain.items()}
        edit = mm.ShiftNeurons(scores, top=0.5, alpha=3.0, cap=cap)
        _agrees(lab, edit, _last(hooks))
        with mm.patched(lab.model, edit) as view:
            view.logits(PROMPTS)
            moved = view.edit_report().table()["relative"]
        assert (moved <= cap * (1 + 1e-5)).all()
        assert moved.max() > 0.9 * cap if cap < 0.1 else True

    def test_a_wide_cap_changes_nothing(self, lab, scores) -> None:
        with mm.patched(lab.model, mm.ShiftNeurons(scores, top=0.2)) as view:
            plain = view.logits(PROMPTS)
        with mm.patched(lab.model, mm.ShiftNeurons(scores, top=0.2, cap=1e6)) as view:
            close(view.logits(PROMPTS), plain, 1e-6)

    @pytest.mark.parametrize("cap", [0.0, -1.0, float("nan")])
    def test_an_impossible_cap(self, lab, scores, cap) -> None:
        with pytest.raises(mm.EditError, match=r"cap.*got"):
            mm.ShiftNeurons(scores, cap=cap).changes(lab.model)


class TestRangeOfLayers:
    def test_edited_layers_may_be_ranked_alone_or_among_all(self, lab, scores) -> None:
        site = mm.Site("resid_post", 0)
        alone = mm.ShiftNeurons(scores, top=6, at=[site]).shift(lab.model)
        among = mm.ShiftNeurons(scores, top=24, at=[site], among="scored").shift(lab.model)
        everywhere = mm.ShiftNeurons(scores, top=24).shift(lab.model)
        assert set(alone) == set(among) == {site}
        assert (alone[site] != 0).sum() == 6
        assert torch.equal(among[site], everywhere[site])
        assert 0 < int((among[site] != 0).sum()) < 24
        value = among[site][0].float()
        edit = mm.ShiftNeurons(scores, top=24, at=[site], among="scored")
        _agrees(lab, edit, _last({tuple(site): lambda h: h + value}))

    def test_among_may_name_sites(self, lab, scores) -> None:
        first, second = (mm.Site("resid_post", layer) for layer in (0, 1))
        edit = mm.ShiftNeurons(scores, top=12, at=[first], among=[first, second])
        want = scores.top(12, sites=[first, second]).mask(first)
        assert torch.equal(edit.shift(lab.model)[first] != 0, want)

    def test_where_nothing_was_chosen_the_way_out_is_said(self, lab, scores) -> None:
        last = scores.top(1).per_site()
        empty = next(site for site, count in last.items() if not count)
        edit = mm.ShiftNeurons(scores, top=1, at=[empty], among="scored")
        with pytest.raises(mm.EditError, match=r"None of the top 1 neurons.*among=None"):
            edit.shift(lab.model)
