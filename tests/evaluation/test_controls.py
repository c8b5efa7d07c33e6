from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import as_users_run_it, bench, contrast_set, ragged

import mechmem as mm

MATCHED = (
    "permuted",
    "random neurons",
    "low-rank neurons",
    "random direction",
    "covariance direction",
)


@pytest.fixture(scope="module")
def lab():
    return bench("llama")


@pytest.fixture(scope="module")
def direction(lab):
    acts = mm.cache_activations(lab.model, contrast_set(seed=3))
    return mm.difference_of_means(acts, toward="generalized")["resid_post", 0]


@pytest.fixture(scope="module")
def scores(lab):
    acts = mm.cache_activations(lab.model, contrast_set(), positions=["cue", "last"])
    return mm.neuron_mean_difference(acts)


def _rows(edit, model):
    return {
        (site, k): row for site, value in edit.shift(model).items() for k, row in enumerate(value)
    }


class TestControls:
    def test_its_arguments_have_names(self, lab, direction) -> None:
        edit = mm.AddDirection(direction, alpha=2.0)
        named = mm.controls(edit=edit, model=lab.model, seed=1)
        plain = mm.controls(edit, lab.model, seed=1)
        assert list(named) == list(plain)
        for name, one in plain.items():
            assert torch.equal(named[name].direction.vector, one.direction.vector)

    def test_of_a_neuron_shift_match_it_per_site_and_position(self, lab, scores) -> None:
        edit = mm.ShiftNeurons(scores, top=30, alpha=2.0, toward="memorized")
        made = mm.controls(edit, lab.model, seed=0)
        assert set(made) == {"alpha 0", "uniform noise", *MATCHED}
        mine = _rows(edit, lab.model)
        for name in MATCHED:
            other = _rows(made[name], lab.model)
            assert other.keys() == mine.keys()
            for key, row in mine.items():
                assert float(other[key].norm()) == pytest.approx(float(row.norm()), rel=1e-9)
                if row.any():
                    assert not torch.equal(other[key], row) or (
                        name == "permuted" and (row != 0).sum() < 2
                    )
        for key, row in mine.items():
            permuted = _rows(made["permuted"], lab.model)[key]
            assert torch.equal(permuted != 0, row != 0)
            assert torch.equal(permuted.sort().values, row.sort().values)
            random = _rows(made["random neurons"], lab.model)[key]
            assert (random != 0).sum() == (row != 0).sum()
            assert torch.allclose(random.abs().sort().values, row.abs().sort().values)

    def test_low_rank_neurons_are_the_lowest_of_their_site_with_their_own_differences(
        self, lab, scores
    ) -> None:
        edit = mm.ShiftNeurons(scores, top=30, alpha=2.0, toward="memorized")
        chosen, low = (
            _rows(one, lab.model)
            for one in (edit, mm.controls(edit, lab.model)["low-rank neurons"])
        )
        for (site, k), row in chosen.items():
            free = [i for i in range(len(row)) if row[i] == 0]
            ranked = sorted(free, key=lambda i: abs(float(scores.correlation[site][k, i])))
            want = set(ranked[: int((row != 0).sum())])
            other = low[site, k]
            assert set(other.nonzero()[:, 0].tolist()) == want
            own = scores.mean_difference[site][k] * (other != 0)
            if want:
                assert torch.allclose(other / other.norm(), own / own.norm())

    def test_uniform_noise_is_the_papers_control(self, lab, scores) -> None:
        edit = mm.ShiftNeurons(scores, top=30, alpha=2.0, toward="memorized")
        largest = max(float(value.abs().max()) for value in edit.shift(lab.model).values())
        many = [
            torch.cat(
                [
                    value.flatten()
                    for value in mm.controls(edit, lab.model, seed=seed)["uniform noise"]
                    .shift(lab.model)
                    .values()
                ]
            )
            for seed in range(40)
        ]
        assert {int((values != 0).sum()) for values in many} == {30}
        drawn = torch.cat([values[values != 0] for values in many]) / largest
        assert float(drawn.abs().max()) <= 1
        # Uniform: each tenth of the range holds a tenth of 1,200 draws, give or take 4 sd.
        counts = torch.histc(drawn, 10, -1, 1)
        assert ((counts - 120).abs() < 42).all()

    def test_uniform_noise_falls_on_all_that_was_ranked_and_stays_where_the_edit_is(
        self, lab
    ) -> None:
        preset = mm.p1_preset("p1-code")
        scores = preset.scores(lab.model, contrast_set())
        made = mm.controls(preset.edit(scores, top=0.5), lab.model)["uniform noise"]
        assert set(made.shift(lab.model)) == {("resid_post", 0)}
        counts = [
            int((mm.controls(preset.edit(scores, top=0.5), lab.model, seed=seed)["uniform noise"]
                 .shift(lab.model)["resid_post", 0] != 0).sum())
            for seed in range(20)
        ]  # fmt: skip
        assert len(set(counts)) > 1  # 24 of 48, of which about 8 in one of three rows
        assert 5 < np.mean(counts) < 11

    def test_a_single_neuron_has_no_permutation_and_all_neurons_leave_none_lower(
        self, lab, scores
    ) -> None:
        single = mm.controls(mm.ShiftNeurons(scores, top=1), lab.model)
        assert set(single) == {"alpha 0", "uniform noise", *MATCHED} - {"permuted"}
        whole = mm.controls(mm.ShiftNeurons(scores, top=1.0), lab.model)
        assert set(whole) == {"alpha 0", "uniform noise", *MATCHED} - {"low-rank neurons"}

    def test_two_neurons_are_always_exchanged(self, lab, scores) -> None:
        edit = mm.ShiftNeurons(scores, top=2, at=("resid_post", 1), scope="global")
        mine = _rows(edit, lab.model)
        for seed in range(6):
            other = _rows(mm.controls(edit, lab.model, seed=seed)["permuted"], lab.model)
            for key, row in mine.items():
                assert torch.equal(other[key], row) == (len(row[row != 0].unique()) < 2)

    def test_alpha_zero_is_exact(self, lab, scores) -> None:
        prompts = contrast_set(4, seed=6)
        plain = lab.model.logits(prompts)
        zero = mm.controls(mm.ShiftNeurons(scores, top=30), lab.model)["alpha 0"]
        with mm.patched(lab.model, zero) as view:
            assert torch.equal(view.logits(prompts), plain)

    def test_all_of_them_run_and_none_is_the_edit(self, lab, scores) -> None:
        prompts = contrast_set(4, seed=6)
        edit = mm.ShiftNeurons(scores, top=30, alpha=2.0)
        with mm.patched(lab.model, edit) as view:
            real = view.logits(prompts)
        for control in mm.controls(edit, lab.model).values():
            with mm.patched(lab.model, control) as view:
                assert not torch.allclose(view.logits(prompts), real, rtol=1e-3)

    def test_the_seed_decides_and_the_order_does_not(self, lab, scores) -> None:
        edit = mm.ShiftNeurons(scores, top=30)
        for name in ("permuted", "random neurons", "random direction", "uniform noise"):
            one, same, other = (
                _rows(mm.controls(edit, lab.model, seed=seed)[name], lab.model)
                for seed in (0, 0, 1)
            )
            assert all(torch.equal(one[key], same[key]) for key in one)
            assert not all(torch.equal(one[key], other[key]) for key in one)
        # One site alone gets the draws that it gets among others.
        whole = mm.ShiftNeurons(scores, top=1.0)
        alone = mm.ShiftNeurons(scores, top=1.0, at=("resid_post", 1))
        for name in ("permuted", "random neurons", "random direction"):
            among = mm.controls(whole, lab.model, seed=4)[name].shift(lab.model)
            single = mm.controls(alone, lab.model, seed=4)[name].shift(lab.model)
            assert torch.equal(single["resid_post", 1], among["resid_post", 1])

    def test_they_do_not_touch_the_callers_random_state(self, lab, scores) -> None:
        state = torch.get_rng_state(), np.random.get_state()[1].tolist()
        mm.controls(mm.ShiftNeurons(scores, top=30), lab.model, seed=0)
        assert torch.equal(torch.get_rng_state(), state[0])
        assert np.random.get_state()[1].tolist() == state[1]

    def test_of_a_direction_have_its_length_and_another_way(self, lab, direction) -> None:
        for edit in (
            mm.AddDirection(direction, alpha=2.0),
            mm.ProjectOut(direction),
            mm.ScaleProjection(direction),
            mm.SetProjection(direction),
        ):
            made = mm.controls(edit, lab.model, seed=0)
            other = made["random direction"].direction
            assert other.norm == pytest.approx(direction.norm)
            assert abs(float(other.unit @ direction.unit)) < 0.9
            assert ("alpha 0" in made) == isinstance(edit, mm.AddDirection)
            with mm.patched(lab.model, made["random direction"]) as view:
                view.logits(ragged(2))

    def test_of_an_ablation_have_its_count_at_every_site(self, lab, scores) -> None:
        edit = mm.AblateNeurons(scores.top(20))
        made = mm.controls(edit, lab.model, seed=0)["random neurons"]
        assert made.neurons.per_site() == edit.neurons.per_site()
        for seed in range(20):
            drawn = mm.controls(edit, lab.model, seed=seed)["random neurons"].neurons
            for site, own in edit.neurons.index.items():
                assert not set(own.tolist()) & set(drawn.index[site].tolist())
        for index in made.neurons.index.values():
            assert len(set(index.tolist())) == len(index)

    def test_they_are_had_by_their_documented_names(self, lab, direction) -> None:
        made = mm.controls(edit=mm.AddDirection(direction), model=lab.model, seed=1)
        assert set(made) == {"alpha 0", "random direction", "covariance direction"}
        with as_users_run_it(), pytest.raises(mm.MechmemError, match="swapped with model"):
            mm.controls(lab.model, mm.AddDirection(direction))

    def test_no_neuron_is_left_when_more_than_half_are_ablated(self, lab) -> None:
        edit = mm.AblateNeurons({("mlp_post", 0): list(range(20))}, mode="zero")
        with pytest.raises(mm.EditError, match=r"needs 20 other neurons of mlp_post\[0\].*only 4"):
            mm.controls(edit, lab.model)

    def test_an_edit_without_registered_controls_is_named(self, lab) -> None:
        class Nothing(mm.Edit):
            force = False
            provenance = None

            def changes(self, model):
                return {}

        with pytest.raises(mm.EditError, match=r"No controls are defined for Nothing"):
            mm.controls(Nothing(), lab.model)


def moved(model, edit, prompts) -> float:
    """Mean length by which the edit moves a token's activation, by its own report."""
    with mm.patched(model, edit) as view:
        view.logits(prompts)
    fired = view.edit_report().fired
    return sum(one.distance * one.tokens for one in fired) / sum(one.tokens for one in fired)


class TestSizes:
    """Controls move the states that the edit was fitted to as far as the edit does."""

    @pytest.mark.parametrize("kind", ["llama", "gpt2"])
    @pytest.mark.parametrize("name", ["random direction", "covariance direction"])
    @pytest.mark.parametrize("which", ["set", "out", "scale", "add", "erase"])
    def test_along_a_direction(self, kind, name, which) -> None:
        model, prompts = bench(kind).model, contrast_set(30, seed=3)
        acts = mm.cache_activations(model, prompts)
        r = mm.fit_directions(
            acts, toward="generalized", method="leace" if which == "erase" else "mass_mean"
        )["resid_post", 1]
        edit = {
            "set": mm.SetProjection(r, toward="memorized", positions="last"),
            "out": mm.ProjectOut(r, positions="last"),
            "scale": mm.ScaleProjection(r, scale=0.5, positions="last"),
            "add": mm.AddDirection(r, alpha=2.0, positions="last"),
            "erase": mm.Erase(r, positions="last"),
        }[which]
        own = moved(model, edit, prompts)
        for seed in range(8):
            control = mm.controls(edit, model, seed=seed)[name]
            assert abs(float(control.direction.unit @ r.unit)) < 0.95
            # Mean squares are the same; the shape of the distribution still differs.
            assert 0.6 < moved(model, control, prompts) / own < 1.6

    def test_a_direction_without_known_states_keeps_an_isotropic_control(self, lab, direction):
        plain = replace(direction, spread=None)
        made = mm.controls(mm.ProjectOut(plain), lab.model, seed=2)
        assert set(made) == {"random direction"}
        assert made["random direction"].direction.norm == pytest.approx(direction.norm)

    def test_clamped_and_ablated_neurons_have_partners_that_move_alike(self, lab) -> None:
        prompts = contrast_set(40, seed=3)
        acts = mm.cache_activations(lab.model, prompts, sites="mlp_post")
        scores = mm.neuron_mean_difference(acts)
        for edit in (
            mm.ClampNeurons(scores.top(6, by="mean_difference"), maximum=0.0, positions="last"),
            mm.AblateNeurons(scores.top(6, by="mean_difference"), positions="last"),
        ):
            drawn = [mm.controls(edit, lab.model, seed=s)["random neurons"] for s in range(10)]
            ratios = [moved(lab.model, one, prompts) for one in drawn]
            own = moved(lab.model, edit, prompts)
            assert 0.5 < np.mean(ratios) / own < 1.5

    def test_what_a_clamp_moves_is_that_of_gaussian_values(self) -> None:
        rng = np.random.default_rng(0)
        means, sds = torch.tensor([0.0, 2.0, -1.0, 0.5]), torch.tensor([1.0, 0.5, 3.0, 0.0])
        edit = mm.ClampNeurons({("mlp_post", 0): [0]}, minimum=-0.5, maximum=1.0)
        values = rng.normal(means.numpy(), sds.numpy(), (400_000, 4))
        want = np.abs(np.clip(values, -0.5, 1.0) - values).mean(0)
        np.testing.assert_allclose(edit.moved(means, sds).numpy(), want, atol=0.02)
