from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from helpers import bench, close, contrast_set, made_states, ragged
from hypothesis import given, settings
from hypothesis import strategies as st

import mechmem as mm

SITE = mm.Site("resid_post", 0)
OTHER = mm.Site("mlp_post", 1)
CLASSES = ["memorized", "generalized", "other", None]


def _moments() -> mm.Moments:
    acts = made_states({SITE: np.zeros((2, 1, 1))}, ["memorized", "generalized"])
    return mm.Moments(replace(acts.provenance, by="behavior"), ("last",))


def _numpy_check(moments: mm.Moments, arrays, names, tolerance: float = 1e-12) -> None:
    for name in {name for name in names if name is not None}:
        rows = [k for k, other in enumerate(names) if other == name]
        for site, array in arrays.items():
            data = np.asarray(array, dtype=np.float64)[rows]
            found = moments.classes[name][site]
            assert found.count == len(rows)
            assert found.mean.dtype is torch.float64
            close(found.mean, data.mean(0), tolerance)
            if len(rows) > 1:
                close(found.variance, data.var(0, ddof=1), tolerance)


@st.composite
def streams(draw: st.DrawFn):
    n = draw(st.integers(1, 40))
    names = draw(st.lists(st.sampled_from(CLASSES), min_size=n, max_size=n))
    if not any(names):
        names[0] = "memorized"
    seed = draw(st.integers(0, 99))
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=5)))
    return names, seed, [0, *cuts, n]


def _data(names, seed):
    rng = np.random.default_rng(seed)
    scale = 10.0 ** rng.integers(-3, 4, (1, 2, 3))
    return {
        SITE: rng.normal(size=(len(names), 2, 3)) * scale + rng.normal(size=(1, 2, 3)) * scale,
        OTHER: rng.normal(size=(len(names), 2, 5)),
    }


class TestUpdateAndMerge:
    @settings(deadline=None, max_examples=60)
    @given(streams())
    def test_updates_in_any_batches_are_the_statistics_of_all(self, stream) -> None:
        names, seed, cuts = stream
        arrays, moments = _data(names, seed), _moments()
        for low, high in pairwise(cuts):
            moments.update(
                {site: torch.tensor(array[low:high]) for site, array in arrays.items()},
                names[low:high],
            )
        _numpy_check(moments, arrays, names)

    @settings(deadline=None, max_examples=60)
    @given(streams(), st.randoms(use_true_random=False))
    def test_shards_merge_in_any_order(self, stream, mixer) -> None:
        names, seed, cuts = stream
        arrays = _data(names, seed)
        shards = []
        for low, high in pairwise(cuts):
            shard = _moments()
            shard.update(
                {site: torch.tensor(array[low:high]) for site, array in arrays.items()},
                names[low:high],
            )
            shards.append(shard)
        mixer.shuffle(shards)
        whole = shards[0]
        for shard in shards[1:]:
            whole = whole.merge(shard)
        _numpy_check(whole, arrays, names)

    def test_merging_leaves_both_sides_as_they_were(self) -> None:
        one, other = _moments(), _moments()
        values = torch.arange(8.0).reshape(4, 1, 2)
        one.update({SITE: values}, ["memorized"] * 4)
        other.update({SITE: values + 1}, ["memorized"] * 4)
        before = one.classes["memorized"][SITE].mean.clone()
        assert one.merge(other).counts == {"memorized": 8}
        assert torch.equal(one.classes["memorized"][SITE].mean, before)
        assert one.counts == other.counts == {"memorized": 4}

    def test_variance_near_a_large_mean(self) -> None:
        rng = np.random.default_rng(0)
        data = (300 + 0.628 * rng.normal(size=(4096, 1, 4))).astype(np.float32)
        moments = _moments()
        for start in range(0, 4096, 100):
            part = torch.tensor(data[start : start + 100])
            moments.update({SITE: part}, ["memorized"] * len(part))
        truth = data.astype(np.float64).var(0, ddof=1)
        naive = (data**2).mean(0) - data.mean(0) ** 2
        assert np.abs(naive / truth - 1).max() > 1e-3  # the trap is real
        close(moments.classes["memorized"][SITE].variance, truth, 1e-12)

    def test_half_precision_states_are_summed_in_float64(self) -> None:
        rng = np.random.default_rng(0)
        values = torch.tensor(rng.normal(size=(4096, 1, 64)) + 0.05).bfloat16()
        values[:, :, :2] = 1000.0
        moments = _moments()
        for part in values.split(64):
            moments.update({SITE: part}, ["memorized"] * len(part))
        _numpy_check(moments, {SITE: values.double().numpy()}, ["memorized"] * 4096)
        assert torch.equal(
            moments.classes["memorized"][SITE].mean[:, :2], torch.full((1, 2), 1000.0).double()
        )

    @pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
    def test_what_is_not_finite_is_refused_by_site_and_leaves_nothing_behind(self, bad) -> None:
        moments = _moments()
        moments.update({SITE: torch.ones(2, 1, 2)}, ["memorized", "generalized"])
        values = torch.ones(3, 1, 2)
        values[1, 0, 1] = bad
        with pytest.raises(mm.PromptError, match=r"resid_post\[0\].*not finite.*'generalized'"):
            moments.update({SITE: values}, ["memorized", "generalized", "memorized"])
        assert moments.counts == {"memorized": 1, "generalized": 1}

    def test_a_single_example_has_no_variance(self) -> None:
        moments = _moments()
        moments.update({SITE: torch.ones(1, 1, 2)}, ["memorized"])
        assert torch.isnan(moments.classes["memorized"][SITE].variance).all()


class TestRefusals:
    def _filled(self, sites=(SITE,), positions="last", by="behavior", info=None, width=2):
        empty = _moments()
        provenance = replace(empty.provenance, positions=positions, by=by)
        if info is not None:
            provenance = replace(provenance, model=info)
        moments = mm.Moments(provenance, ("last",))
        moments.update(dict.fromkeys(sites, torch.ones(2, 1, width)), ["memorized", "generalized"])
        return moments

    def test_other_positions_contrasts_or_models_do_not_merge(self) -> None:
        base = self._filled()
        with pytest.raises(mm.MechmemError, match=r"positions 'last' and 'mean'"):
            base.merge(self._filled(positions="mean"))
        with pytest.raises(mm.MechmemError, match=r"by 'behavior' and 'label'"):
            base.merge(self._filled(by="label"))
        with pytest.raises(mm.MechmemError, match=r"two models.*llama|two models"):
            base.merge(self._filled(info=bench("llama").model.info))

    def test_other_sites_or_shapes_do_not_merge(self) -> None:
        base = self._filled()
        with pytest.raises(mm.MechmemError, match=r"sites.*mlp_post\[1\]"):
            base.merge(self._filled(sites=(SITE, OTHER)))
        with pytest.raises(mm.MechmemError, match=r"shapes \(1, 2\) and \(1, 3\)"):
            base.merge(self._filled(width=3))

    def test_a_contrast_needs_its_two_classes(self) -> None:
        moments = self._filled()
        assert moments.pair("memorized", None) == ("memorized", "generalized")
        with pytest.raises(mm.PromptError, match=r"No examples of class 'reasoning'.*memorized"):
            moments.pair("reasoning", None)
        moments.update({SITE: torch.ones(1, 1, 2)}, ["other"])
        with pytest.raises(mm.PromptError, match=r"'generalized', 'other'.*say away="):
            moments.pair("memorized", None)
        assert moments.pair("memorized", "other") == ("memorized", "other")


class TestStreamedEqualsStored:
    @pytest.mark.parametrize("positions", ["last", "mean", ["cue", "last"]])
    def test_at_every_site(self, positions) -> None:
        lab, prompts = bench(), contrast_set()
        sites = ["resid_post", ("z", 1), ("resid_mid", 0)]
        stored = mm.Moments.from_activations(
            mm.cache_activations(lab.model, prompts, sites=sites, positions=positions), "behavior"
        )
        streamed = mm.cache_moments(
            lab.model, prompts, sites=sites, positions=positions, by="behavior", token_budget=30
        )
        assert streamed.sites == stored.sites
        assert streamed.columns == stored.columns
        assert streamed.counts == stored.counts
        assert streamed.provenance == stored.provenance
        for name in ("memorized", "generalized"):
            for site in stored.sites:
                close(streamed.classes[name][site].mean, stored.classes[name][site].mean, 1e-6)
                close(streamed.classes[name][site].m2, stored.classes[name][site].m2, 1e-5)

    def test_prompts_without_a_class_are_refused(self) -> None:
        with pytest.raises(
            mm.PromptError, match=r"None of 3 prompts carries a label.*Prompt\.label"
        ):
            mm.cache_moments(bench().model, ragged(3), by="label")
        with pytest.raises(mm.PromptError, match=r"got 'grp'"):
            mm.cache_moments(bench().model, ragged(3), by="grp")
