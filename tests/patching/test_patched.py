from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from helpers import (
    HOOKED,
    as_users_run_it,
    bench,
    close,
    contrast_set,
    differs,
    fresh_bench,
    hf_logits,
    hook_count,
    ragged,
    weights_of,
)

import mechmem as mm

PROMPTS = ragged(4)


@pytest.fixture(scope="module")
def lab():
    return bench("gpt2")


@pytest.fixture(scope="module")
def directions(lab):
    acts = mm.cache_activations(lab.model, contrast_set(), sites=["resid_post", "mlp_post"])
    return mm.difference_of_means(acts, toward="generalized")


@pytest.fixture(scope="module")
def scores(lab):
    return mm.neuron_mean_difference(mm.cache_activations(lab.model, contrast_set()))


class TestNothingStays:
    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
    def test_after_an_exception_in_the_block(self, lab, directions, error) -> None:
        plain, hooks = lab.model.logits(PROMPTS), hook_count(lab.model)
        with (
            pytest.raises(error),
            mm.patched(lab.model, mm.AddDirection(directions["resid_post", 0])) as m,
        ):
            raise error(m.logits(PROMPTS))
        assert hook_count(lab.model) == hooks
        assert torch.equal(lab.model.logits(PROMPTS), plain)

    @pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
    def test_after_an_exception_inside_the_forward_pass(self, lab, directions, error) -> None:
        plain, hooks = lab.model.logits(PROMPTS), hook_count(lab.model)

        def interrupt(tensor, hook):
            raise error

        name = "blocks.1.hook_attn_out"
        with (
            pytest.raises(error),
            lab.model.tl.hooks(fwd_hooks=[(name, interrupt)]),
            mm.patched(lab.model, mm.AddDirection(directions["resid_post", 2])) as view,
        ):
            view.generate(PROMPTS, 3)
        assert hook_count(lab.model) == hooks
        assert torch.equal(lab.model.logits(PROMPTS), plain)

    def test_the_model_itself_is_unedited_inside_the_block_too(self, lab, directions) -> None:
        plain = lab.model.logits(PROMPTS)
        with mm.patched(lab.model, mm.AddDirection(directions["resid_post", 0])) as view:
            differs(view.logits(PROMPTS), plain)
            assert torch.equal(lab.model.logits(PROMPTS), plain)

    def test_the_view_is_dead_after_its_block(self, lab, directions) -> None:
        with mm.patched(lab.model, mm.AddDirection(directions["resid_post", 0])) as view:
            view.logits(PROMPTS)
        for run in (
            lambda: view.logits(PROMPTS),
            lambda: view.generate(PROMPTS, 2),
            lambda: mm.cache_activations(view, PROMPTS),
        ):
            with pytest.raises(mm.EditError, match=r"after its `with` block ended"):
                run()

    def test_weights_random_states_grad_mode_and_tokenizer(self, directions, scores) -> None:
        own = fresh_bench("gpt2")
        own.tokenizer.padding_side = "right"
        own.model.logits("w1")
        before = weights_of(own.model.tl)
        states = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
        edits = [
            mm.AddDirection(directions["resid_post", 0]),
            mm.ShiftNeurons(scores, top=5),
            mm.AblateNeurons(scores.top(3)),
            mm.ScaleProjection(directions["resid_post", 1], at="everywhere"),
        ]
        with torch.enable_grad():
            with mm.patched(own.model, edits) as view:
                logits = view.logits(PROMPTS)
                view.generate(PROMPTS, 3)
            assert torch.is_grad_enabled()
        assert not logits.requires_grad
        assert random.getstate() == states[0]
        assert np.random.get_state()[1].tolist() == states[1]
        assert torch.equal(torch.get_rng_state(), states[2])
        assert own.tokenizer.padding_side == "right"
        assert all(torch.equal(v, before[k]) for k, v in weights_of(own.model.tl).items())

    def test_scores_and_directions_are_not_changed_by_use(self, lab, directions, scores) -> None:
        vector = directions["resid_post", 0].vector.clone()
        means = {site: value.clone() for site, value in scores.mean_difference.items()}
        edits = [mm.AddDirection(directions["resid_post", 0]), mm.ShiftNeurons(scores, top=5)]
        with mm.patched(lab.model, edits) as view:
            view.generate(PROMPTS, 2)
        assert torch.equal(directions["resid_post", 0].vector, vector)
        assert all(torch.equal(scores.mean_difference[site], means[site]) for site in means)


class TestTheUsersOwnHooks:
    def test_they_keep_working_and_are_not_removed(self, lab, directions) -> None:
        own = fresh_bench("gpt2")
        shift = torch.linspace(-1, 1, 16)
        seen = []

        def look(tensor, hook):
            seen.append(tensor.shape)

        own.model.tl.add_hook("blocks.0.hook_resid_post", lambda tensor, hook: tensor + shift)
        own.model.tl.add_hook("blocks.2.hook_mlp_out", look)
        vector = directions["resid_post", 0].vector.float()
        with mm.patched(own.model, mm.AddDirection(directions["resid_post", 0])) as view:
            got = view.logits(PROMPTS)
        site = ("resid_post", 0)
        want = [
            hf_logits(own.hf, own.ids(p.text), {site: [lambda h, at: h + shift + vector]})[-1]
            for p in PROMPTS
        ]
        close(got, torch.stack(want))
        assert seen
        after = [
            hf_logits(own.hf, own.ids(p.text), {site: [lambda h, at: h + shift]})[-1]
            for p in PROMPTS
        ]
        close(own.model.logits(PROMPTS), torch.stack(after))
        own.model.tl.reset_hooks()
        close(own.model.logits(PROMPTS), lab.model.logits(PROMPTS))


class TestRefusals:
    def test_a_direction_of_another_model(self, directions) -> None:
        other = fresh_bench("gpt2", seed=9)
        edit = mm.AddDirection(directions["resid_post", 0])
        with (
            pytest.raises(mm.MechmemError, match=r"made on model.*fingerprint.*force=True"),
            mm.patched(other.model, edit),
        ):
            pass
        forced = mm.AddDirection(directions["resid_post", 0], force=True)
        with mm.patched(other.model, forced) as view:
            differs(view.logits(PROMPTS), other.model.logits(PROMPTS))

    def test_a_direction_of_another_width(self, lab, directions) -> None:
        edit = mm.AddDirection(directions["mlp_post", 0], at=("resid_post", 0))
        with (
            pytest.raises(mm.EditError, match=r"mlp_post\[0\].*width 64.*width 16.*'resid_post'"),
            mm.patched(lab.model, edit) as view,
        ):
            view.logits(PROMPTS)

    def test_a_site_the_model_does_not_have(self, lab, directions) -> None:
        for at in (("resid_post", 7), "resid_pst"):
            edit = mm.AddDirection(directions["resid_post", 0], at=at)
            with (
                pytest.raises(mm.SiteError, match=r"out of range|Did you mean"),
                mm.patched(lab.model, edit),
            ):
                pass

    def test_an_edit_whose_hook_never_met_its_positions(self, lab, directions) -> None:
        edit = mm.AddDirection(directions["resid_post", 0], positions="generated")
        with (
            pytest.raises(
                mm.EditError, match=r"AddDirection at resid_post\[0\] never met.*unedited"
            ),
            mm.patched(lab.model, edit) as view,
        ):
            view.logits(PROMPTS)

    @pytest.mark.skipif(HOOKED, reason="swaps a module that only a bridge has")
    def test_a_hook_point_that_the_network_passes_by(self, directions) -> None:
        own = fresh_bench("gpt2")
        direction = directions["resid_post", 0]
        edits = [
            mm.AddDirection(direction, force=True),
            mm.AddDirection(direction, at=("mlp_out", 1), force=True),
        ]
        late = fresh_bench("gpt2")
        with mm.patched(late.model, edits) as view:
            view.logits(PROMPTS)  # holds so far
        for bench_ in (own, late):  # block 1 runs a plain MLP from here on
            bench_.model.tl.blocks[1].original_component.mlp = bench_.hf.transformer.h[1].mlp
        with (
            pytest.raises(mm.SiteError, match=r"mlp_out\[1\].*never called.*another stream"),
            mm.patched(own.model, edits) as view,
        ):
            view.logits(PROMPTS)
        with (
            pytest.raises(mm.EditError, match=r"AddDirection at mlp_out\[1\] was never called"),
            mm.patched(late.model, edits) as view,
        ):
            view.logits(PROMPTS)

    def test_a_block_in_which_nothing_ran_is_fine(self, lab, directions) -> None:
        with mm.patched(lab.model, mm.AddDirection(directions["resid_post", 0])):
            pass

    @pytest.mark.parametrize("alpha", [float("nan"), float("inf"), "3", True, None])
    @pytest.mark.parametrize("kind", ["AddDirection", "ShiftNeurons", "ScaleProjection"])
    def test_a_strength_that_is_not_a_number(self, directions, scores, kind, alpha) -> None:
        made_of = scores if kind == "ShiftNeurons" else directions["resid_post", 0]
        setting = {"scale" if kind == "ScaleProjection" else "alpha": alpha}
        with as_users_run_it(), pytest.raises(mm.EditError, match="must be a finite number, got"):
            getattr(mm, kind)(made_of, **setting)

    def test_a_class_that_is_neither(self, lab, directions, scores) -> None:
        for edit in (
            mm.AddDirection(directions["resid_post", 0], toward="reasoning"),
            mm.SetProjection(directions["resid_post", 0], toward="reasoning"),
            mm.ShiftNeurons(scores, toward="reasoning"),
        ):
            with (
                pytest.raises(
                    mm.EditError, match=r"'reasoning'.*'memorized'|'reasoning'.*'generalized'"
                ),
                mm.patched(lab.model, edit),
            ):
                pass

    def test_positions_that_an_edit_cannot_have(self, lab, directions, scores) -> None:
        for edit in (
            mm.AddDirection(directions["resid_post", 0], positions="mean"),
            mm.ShiftNeurons(scores, positions="mean"),
        ):
            with (
                pytest.raises(mm.EditError, match=r"'mean' is for reading"),
                mm.patched(lab.model, edit),
            ):
                pass
        edit = mm.AddDirection(directions["resid_post", 0], positions="cue")
        with (
            pytest.raises(mm.PositionError, match=r"Unknown position 'cue' for prompt 'p"),
            mm.patched(lab.model, edit) as view,
        ):
            view.logits(PROMPTS)

    def test_neurons_at_sites_that_were_not_scored(self, lab, scores) -> None:
        edit = mm.ShiftNeurons(scores, at="mlp_post")
        with (
            pytest.raises(mm.EditError, match=r"No neuron scores at mlp_post\[0\].*Cache"),
            mm.patched(lab.model, edit),
        ):
            pass

    def test_an_unknown_mode(self, lab, scores) -> None:
        edit = mm.AblateNeurons(scores.top(2), mode="median")
        with (
            pytest.raises(mm.EditError, match=r"'zero'.*'mean'.*got 'median'"),
            mm.patched(lab.model, edit),
        ):
            pass

    @pytest.mark.parametrize("odd", [None, "shift", [], [3]])
    def test_something_that_is_no_edit(self, lab, odd) -> None:
        with (
            as_users_run_it(),
            pytest.raises(mm.EditError, match=r"Expected an edit.*got"),
            mm.patched(lab.model, odd),
        ):
            pass

    def test_a_model_in_train_mode(self, directions) -> None:
        own = fresh_bench("gpt2")
        own.model.tl.train()
        with (
            pytest.raises(mm.ModelError, match=r"train mode"),
            mm.patched(own.model, mm.AddDirection(directions["resid_post", 0])) as view,
        ):
            view.logits(PROMPTS)

    def test_a_zero_direction_cannot_be_projected_out(self, lab, directions) -> None:
        from dataclasses import replace

        zero = replace(directions["resid_post", 0], vector=torch.zeros(16, dtype=torch.float64))
        with (
            pytest.raises(mm.MechmemError, match=r"zero: the two class means coincide"),
            mm.patched(lab.model, mm.ProjectOut(zero)),
        ):
            pass


class TestBatching:
    def test_edits_do_not_depend_on_batching_or_order(self, lab, directions, scores) -> None:
        prompts = ragged(9)
        edits = [mm.AddDirection(directions["resid_post", 0]), mm.ShiftNeurons(scores, alpha=2.0)]
        with mm.patched(lab.model, edits) as view:
            want, texts = view.logits(prompts), view.generate(prompts, 5)
            for budget in (1, 40):
                close(view.logits(prompts, token_budget=budget), want)
                assert view.generate(prompts, 5, token_budget=budget) == texts
            back = mm.PromptSet(reversed(list(prompts)))
            close(view.logits(back).flip(0), want)


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.int64, int])
def test_numbers_of_numpy_are_strengths_and_can_be_saved(kind) -> None:
    acts = mm.cache_activations(bench().model, contrast_set(8))
    direction = mm.difference_of_means(acts, toward="generalized")["resid_post", 1]
    with as_users_run_it():
        edit = mm.AddDirection(direction, alpha=kind(2))
    described = mm.AddDirection(direction, alpha=2.0).describe()
    assert json.loads(json.dumps(edit.describe())) == json.loads(json.dumps(described))
