"""Intervals without keeping rows, full covariances, areas under the curve: all of it added up."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import bench, close, contrast_set, made_states
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

import mechmem as mm
from mechmem.caching.bootstrap import group_weights

SITE, HEADS = mm.Site("resid_post", 0), mm.Site("z", 1)
CLASSES = ["memorized", "generalized", None]


def rows_of(n: int, seed: int):
    rng = np.random.default_rng(seed)
    names = [CLASSES[k] for k in rng.integers(0, 3, n)]
    groups = [f"g{k}" for k in rng.integers(0, max(1, n // 2), n)]
    arrays = {
        SITE: rng.normal(size=(n, 2, 3)) * 100 + 1000,
        HEADS: rng.normal(size=(n, 2, 2, 2)) + 0.1 * np.arange(n)[:, None, None, None],
    }
    return names, groups, arrays


def empty(bootstrap: int = 20, seed: int = 0) -> mm.Moments:
    acts = made_states({SITE: np.zeros((2, 1, 1))}, ["memorized", "generalized"])
    return mm.Moments(
        replace(acts.provenance, by="behavior"), ("0", "1"), {}, frozenset([SITE, HEADS]),
        mm.caching.Bootstrap(bootstrap, seed),
    )  # fmt: skip


def add(moments: mm.Moments, rows, names, groups, arrays) -> mm.Moments:
    if len(rows):
        states = {site: torch.tensor(array[rows]) for site, array in arrays.items()}
        moments.update(states, [names[r] for r in rows], [groups[r] for r in rows])
    return moments


def check(moments: mm.Moments, names, groups, arrays, replicates: int = 20, seed: int = 0) -> None:
    """Everything against NumPy on the stacked data."""
    weights = np.asarray(group_weights(groups, replicates, seed))
    for name in {name for name in names if name is not None}:
        rows = [k for k, other in enumerate(names) if other == name]
        for site, array in arrays.items():
            data = array[rows].reshape(len(rows), 2, -1)
            found = moments.classes[name][site]
            if len(rows) > 1:
                want = np.stack([np.cov(data[:, p], rowvar=False) for p in range(2)])
                close(found.covariance, want, 1e-11)
                close(
                    torch.diagonal(found.covariance, dim1=1, dim2=2),
                    found.variance.flatten(1), 1e-12,
                )  # fmt: skip
            drawn = moments.bootstrap.classes[name][site]
            close(drawn.weight, weights[rows].sum(0), 0)
            for replicate in range(replicates):
                weight = weights[rows, replicate]
                if weight.sum():
                    want = np.average(array[rows], axis=0, weights=weight)
                    close(drawn.mean[replicate], want, 1e-12)


@st.composite
def splits(draw: st.DrawFn):
    n, seed = draw(st.integers(1, 25)), draw(st.integers(0, 50))
    order = draw(st.permutations(range(n)))
    cuts = sorted(draw(st.lists(st.integers(0, n), max_size=4)))
    return n, seed, [list(order[a:b]) for a, b in zip([0, *cuts], [*cuts, n], strict=True)]


class TestAddingUp:
    @settings(deadline=None, max_examples=40)
    @given(splits())
    def test_any_batches_in_any_order(self, split) -> None:
        n, seed, batches = split
        data = rows_of(n, seed)
        moments = empty()
        for rows in batches:
            add(moments, rows, *data)
        check(moments, *data)

    @settings(deadline=None, max_examples=40)
    @given(splits(), st.randoms(use_true_random=False))
    def test_any_shards_merged_in_any_order(self, split, mixer) -> None:
        n, seed, batches = split
        data = rows_of(n, seed)
        shards = [add(empty(), rows, *data) for rows in batches]
        mixer.shuffle(shards)
        whole = shards[0]
        for shard in shards[1:]:
            whole = whole.merge(shard)
        check(whole, *data)

    def test_saved_and_loaded(self, tmp_path) -> None:
        data = rows_of(20, 3)
        moments = add(empty(), range(20), *data)
        back = mm.Moments.load(moments.save(tmp_path / "deep" / "moments"))
        check(back, *data)
        assert back.provenance == moments.provenance
        assert (back.columns, back.covariance) == (moments.columns, moments.covariance)
        assert torch.equal(
            back.classes["memorized"][HEADS].mean, moments.classes["memorized"][HEADS].mean
        )


class TestWeights:
    def test_they_are_keyed_by_seed_and_group_alone(self) -> None:
        one = group_weights(["a", "b", "a"], 50, 0)
        assert torch.equal(one[0], one[2])
        assert torch.equal(group_weights(["b"], 50, 0)[0], one[1])
        assert not torch.equal(one[0], one[1])
        assert not torch.equal(group_weights(["a"], 50, 1)[0], one[0])

    def test_they_are_poisson_with_mean_one(self) -> None:
        weights = group_weights([f"g{k}" for k in range(2000)], 50, 0)
        assert abs(float(weights.mean()) - 1) < 0.01
        assert abs(float(weights.var()) - 1) < 0.03
        share = [(weights == k).double().mean().item() for k in range(3)]
        assert np.allclose(share, [np.exp(-1), np.exp(-1), np.exp(-1) / 2], atol=0.01)


class TestIntervals:
    def test_they_are_as_wide_as_resampling_whole_groups_makes_them(self) -> None:
        rng = np.random.default_rng(0)
        n_groups, d = 150, 4
        common = rng.normal(size=(n_groups, d)) * 2
        names = ["memorized", "generalized"] * n_groups
        groups = [f"g{k // 2}" for k in range(2 * n_groups)]
        array = np.repeat(common, 2, axis=0) + rng.normal(size=(2 * n_groups, d))
        array[::2] += 0.5
        moments = empty(bootstrap=2000)
        moments.covariance = frozenset()
        moments.update({SITE: torch.tensor(array)[:, None]}, names, groups)
        low, high = moments.bootstrap.interval(SITE, "memorized", "generalized")
        pairs = array[::2] - array[1::2]
        again = [pairs[rng.integers(0, n_groups, n_groups)].mean(0) for _ in range(4000)]
        want = np.quantile(again, [0.025, 0.975], axis=0)
        width = want[1] - want[0]
        assert np.abs(low[0].numpy() - want[0]).max() < 0.12 * width.max()
        assert np.abs(high[0].numpy() - want[1]).max() < 0.12 * width.max()
        rows = np.quantile(  # resampling rows as if they were independent is far wider here
            [
                array[::2][rng.integers(0, n_groups, n_groups)].mean(0)
                - array[1::2][rng.integers(0, n_groups, n_groups)].mean(0)
                for _ in range(1000)
            ],
            [0.025, 0.975], axis=0,
        )  # fmt: skip
        assert (rows[1] - rows[0]).min() > 1.5 * width.max()

    def test_a_replicate_that_drew_none_of_a_class_is_left_out(self) -> None:
        moments = empty(bootstrap=200)
        add(moments, range(3), ["memorized", "generalized", "memorized"], ["a", "b", "c"],
            {site: array[:3] for site, array in rows_of(3, 0)[2].items()})  # fmt: skip
        found = moments.bootstrap.difference(SITE, "memorized", "generalized")
        zero = (group_weights(["b"], 200, 0)[0] == 0) | (
            group_weights(["a", "c"], 200, 0).sum(0) == 0
        )
        assert 0 < len(found) == 200 - int(zero.sum())
        assert torch.isfinite(found).all()


class TestFromAModel:
    def test_streamed_is_stacked_whatever_the_batches(self) -> None:
        lab, prompts = bench(), contrast_set()
        options = {"by": "behavior", "bootstrap": 30, "covariance": ("resid_post", 1), "seed": 4}
        small = mm.cache_moments(lab.model, prompts, token_budget=20, **options)
        acts = mm.cache_activations(lab.model, prompts)
        weights = np.asarray(group_weights(prompts.groups, 30, 4))
        data = acts["resid_post", 1][:, 0].double().numpy()
        one, other = (
            [k for k, p in enumerate(prompts) if p.behavior == name]
            for name in ("memorized", "generalized")
        )
        want = np.stack([
            np.average(data[one], axis=0, weights=weights[one, b])
            - np.average(data[other], axis=0, weights=weights[other, b])
            for b in range(30) if weights[one, b].sum() and weights[other, b].sum()
        ])  # fmt: skip
        got = small.bootstrap.difference(("resid_post", 1), "memorized", "generalized")
        close(got[:, 0], want, 1e-5)
        cov = small.classes["memorized"]["resid_post", 1].covariance[0]
        close(cov, np.cov(data[one], rowvar=False), 1e-5)
        with pytest.raises(mm.MechmemError, match=r"No covariance.*covariance=sites"):
            _ = small.classes["memorized"]["resid_post", 0].covariance

    def test_a_generator_of_prompts_is_taken_in_windows(self, monkeypatch) -> None:
        from mechmem.caching import extract

        lab, prompts = bench(), contrast_set()
        whole = mm.cache_moments(lab.model, prompts, by="label", bootstrap=5)
        own = extract._windows
        sizes: list[int] = []

        def windows(given):
            for window in own(given, 7):
                sizes.append(len(window))
                yield window

        monkeypatch.setattr(extract, "_windows", windows)
        streamed = mm.cache_moments(lab.model, iter(prompts), by="label", bootstrap=5)
        assert sizes == [7, 7, 7, 3]
        assert streamed.provenance == whole.provenance
        for name in ("memory", "reasoning"):
            for site in whole.sites:
                close(streamed.classes[name][site].mean, whole.classes[name][site].mean, 1e-5)
                close(streamed.classes[name][site].m2, whole.classes[name][site].m2, 1e-5)

    def test_a_covariance_of_a_site_that_is_not_read(self) -> None:
        with pytest.raises(mm.SiteError, match=r"covariance= asks for 'mlp_post\[0\]'"):
            mm.cache_moments(bench().model, contrast_set(), by="label", covariance=("mlp_post", 0))


class TestHistograms:
    def data(self):
        rng = np.random.default_rng(2)
        names = [CLASSES[k] for k in rng.integers(0, 3, 400)]
        array = rng.normal(size=(400, 1, 6)) * 10.0 ** np.arange(-2, 4)
        array[[n == "memorized" for n in names], 0, ::2] += 10.0 ** np.arange(-2, 4, 2)
        array[0] = 1e9  # an outlier has a bin of its own
        return names, array

    def test_the_area_is_that_of_the_rows_within_what_it_says(self) -> None:
        names, array = self.data()
        moments = empty(2)
        moments.covariance, moments.bootstrap = frozenset(), None
        moments.update({SITE: torch.tensor(array[1:])}, names[1:])
        parts = []
        for rows in (slice(0, 100), slice(100, 250), slice(250, 400)):
            part = mm.Histograms.around(moments, {SITE: [5, 0, 3, 2]}, bins=256)
            part.update({SITE: torch.tensor(array[rows])}, names[rows])
            parts.append(part)
        found, off = parts[2].merge(parts[0]).merge(parts[1]).auc(SITE, "memorized", "generalized")
        keep = [k for k, name in enumerate(names) if name is not None]
        truth = [names[k] == "memorized" for k in keep]
        for k, unit in enumerate([5, 0, 3, 2]):
            want = roc_auc_score(truth, array[keep, 0, unit])
            assert abs(float(found[k]) - want) <= float(off[k]) + 1e-12
            assert float(off[k]) < 0.02
        back, _ = parts[2].merge(parts[0]).merge(parts[1]).auc(SITE, "generalized", "memorized")
        close(found + back, np.ones(4), 1e-12)

    def test_a_coordinate_that_never_varies_tells_nothing_apart(self) -> None:
        names = ["memorized", "generalized"] * 4
        for value in (0.0, 1.5, -3e4, 1e-30):
            values = torch.full((8, 1, 1), value)
            moments = empty(2)
            moments.covariance, moments.bootstrap = frozenset(), None
            moments.update({SITE: values}, names)
            found = mm.Histograms.around(moments, {SITE: [0]})
            found.update({SITE: values}, names)
            close(found.auc(SITE, "memorized", "generalized")[0], [0.5], 1e-12)

    def test_values_that_are_equal_count_half(self) -> None:
        names = ["memorized", "memorized", "generalized", "generalized"]
        values = torch.tensor([[[1.0]], [[2.0]], [[1.0]], [[1.0]]])
        moments = empty(2)
        moments.covariance, moments.bootstrap = frozenset(), None
        moments.update({SITE: values}, names)
        found = mm.Histograms.around(moments, {SITE: [0]})
        found.update({SITE: values}, names)
        close(found.auc(SITE, "memorized", "generalized")[0], [0.75], 1e-12)


class TestRefusals:
    def test_bootstraps_drawn_differently_do_not_merge(self) -> None:
        data = rows_of(6, 0)
        with pytest.raises(mm.MechmemError, match=r"20 replicates, seed 0.*20, seed 1"):
            add(empty(), range(6), *data).merge(add(empty(seed=1), range(6), *data))
        plain = empty()
        plain.bootstrap = None
        with pytest.raises(mm.MechmemError, match=r"only one side keeps"):
            plain.merge(empty())

    def test_too_few_replicates_or_no_groups(self) -> None:
        with pytest.raises(mm.MechmemError, match=r"got 1; 200 is usual"):
            mm.caching.Bootstrap(1)
        with pytest.raises(mm.PromptError, match=r"pass groups="):
            empty().update({SITE: torch.ones(1, 2, 3)}, ["memorized"])

    def test_a_class_or_level_that_is_not_there(self) -> None:
        moments = add(empty(), range(20), *rows_of(20, 1))
        with pytest.raises(mm.PromptError, match=r"No means of class 'x'.*'generalized'"):
            moments.bootstrap.interval(SITE, "x", "memorized")
        with pytest.raises(mm.MechmemError, match=r"between 0 and 1, got 95"):
            moments.bootstrap.interval(SITE, "memorized", "generalized", 95)
        found = mm.Histograms.around(moments, {SITE: [0]})
        with pytest.raises(mm.PromptError, match=r"No histogram of class 'memorized'"):
            found.auc(SITE, "memorized", "generalized")
        with pytest.raises(mm.SiteError, match=r"coordinates 0 to 5, got \[6\]"):
            mm.Histograms.around(moments, {SITE: [6]})
        with pytest.raises(mm.MechmemError, match=r"different units or bins"):
            found.merge(mm.Histograms.around(moments, {SITE: [1]}))
