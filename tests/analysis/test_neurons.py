from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import bench, close, contrast_set, made_states
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import mechmem as mm

SITES = [("resid_post", 0), ("mlp_post", 1), ("resid_post", 1)]


def _case(n: int = 41, positions: int = 1, seed: int = 0):
    rng = np.random.default_rng(seed)
    names = ["memorized", "memorized", "generalized", "generalized"]
    names += [["memorized", "generalized", "other", None][k] for k in rng.integers(0, 4, n - 4)]
    arrays = {}
    for site, width in zip(SITES, (6, 9, 6), strict=True):
        data = rng.normal(size=(n, positions, width)) * rng.uniform(0.1, 20, width) + 5
        data[[name == "memorized" for name in names]] += rng.normal(size=(positions, width)) * 2
        arrays[site] = data
    return arrays, names


def _split(array, names):
    memorized = np.array([name == "memorized" for name in names])
    generalized = np.array([name == "generalized" for name in names])
    return array[memorized], array[generalized]


class TestAgainstScipy:
    @settings(deadline=None, max_examples=25)
    @given(st.integers(6, 60), st.integers(1, 3), st.integers(0, 50))
    def test_every_statistic_of_every_neuron(self, n, positions, seed) -> None:
        arrays, names = _case(n, positions, seed)
        columns = tuple(f"cue[{k}]" for k in range(positions))
        acts = made_states(arrays, names, columns=columns, positions="cue")
        scores = mm.neuron_mean_difference(acts)
        all_p = []
        for site in scores.sites:
            one, zero = _split(arrays[site], names)
            close(scores.mean_difference[site], one.mean(0) - zero.mean(0), 1e-9)
            both = np.concatenate([one, zero])
            label = np.r_[np.ones(len(one)), np.zeros(len(zero))]
            r = np.empty(both.shape[1:])
            for index in np.ndindex(*r.shape):
                r[index] = stats.pointbiserialr(label, both[(slice(None), *index)]).statistic
            close(scores.correlation[site], r, 1e-9)
            n1, n0 = len(one), len(zero)
            pooled = np.sqrt(
                ((n1 - 1) * one.var(0, ddof=1) + (n0 - 1) * zero.var(0, ddof=1)) / (n1 + n0 - 2)
            )
            close(scores.effect_size[site], (one.mean(0) - zero.mean(0)) / pooled, 1e-9)
            close(scores.std[site], pooled, 1e-9)
            close(scores.mean[site], (one.mean(0) + zero.mean(0)) / 2, 1e-9)
            p = stats.ttest_ind(one, zero, equal_var=False).pvalue
            close(scores.p[site], p, 1e-9)
            all_p.append(p.ravel())
        q = _benjamini_hochberg(np.concatenate(all_p))
        close(np.concatenate([scores.q[site].numpy().ravel() for site in scores.sites]), q, 1e-9)

    def test_moments_give_the_same(self) -> None:
        lab, prompts = bench(), contrast_set()
        stored = mm.neuron_mean_difference(mm.cache_activations(lab.model, prompts))
        streamed = mm.neuron_mean_difference(mm.cache_moments(lab.model, prompts, by="behavior"))
        for site in stored.sites:
            close(streamed.mean_difference[site], stored.mean_difference[site], 1e-5)
            close(streamed.correlation[site], stored.correlation[site], 1e-5)

    def test_a_constant_neuron_says_nothing_and_a_perfect_one_says_all(self) -> None:
        data = np.zeros((8, 1, 3), dtype=np.float32)
        data[:, 0, 0] = 0.1
        data[::2, 0, 1] = 0.3  # the class, and nothing else
        data[:, 0, 2] = np.arange(8)
        names = ["memorized", "generalized"] * 4
        scores = mm.neuron_mean_difference(made_states({SITES[0]: data}, names))
        site = mm.Site(*SITES[0])
        assert scores.correlation[site][0].tolist()[:2] == [0.0, pytest.approx(1.0)]
        assert scores.effect_size[site][0].tolist()[:2] == [0.0, float("inf")]
        assert scores.p[site][0].tolist()[:2] == [1.0, 0.0]
        assert torch.isfinite(scores.q[site]).all()


def _benjamini_hochberg(p: np.ndarray) -> np.ndarray:
    order = np.argsort(p)
    q, running = np.empty(len(p)), 1.0
    for rank in range(len(p), 0, -1):
        running = min(running, p[order[rank - 1]] * len(p) / rank)
        q[order[rank - 1]] = running
    return q


class TestTop:
    def _scores(self, positions: int = 1):
        columns = ("cue[0]", "cue[1]")[:positions]
        return mm.neuron_mean_difference(
            made_states(*_case(positions=positions), columns=columns, positions="cue")
        )

    @pytest.mark.parametrize("by", ["correlation", "mean_difference", "effect_size"])
    @pytest.mark.parametrize("positions", [1, 2])
    @pytest.mark.parametrize("k", [1, 5, 0.1, 0.5, 1.0])
    def test_global_top_is_the_largest_of_all_sites(self, by, positions, k) -> None:
        scores = self._scores(positions)
        ranked = sorted(
            (
                (-abs(float(value)), site, index)
                for site in scores.sites
                for index, value in enumerate(getattr(scores, by)[site].flatten())
            ),
            key=lambda entry: entry[0],
        )
        count = k if isinstance(k, int) else round(k * 21 * positions)
        want = {(site, index) for _, site, index in ranked[:count]}
        chosen = scores.top(k, by=by)
        got = {(site, int(i)) for site, index in chosen.index.items() for i in index}
        assert got == want
        assert len(chosen) == count
        assert sum(chosen.per_site().values()) == count
        assert sum(int(chosen.mask(site).sum()) for site in scores.sites) == count

    def test_site_top_takes_the_same_share_of_each(self) -> None:
        scores = self._scores()
        assert scores.top(0.5, scope="site").per_site() == dict(
            zip(scores.sites, (3, 4, 3), strict=True)
        )
        chosen = scores.top(2, scope="site")
        for site in scores.sites:
            want = scores.correlation[site].abs().flatten().argsort(descending=True)[:2]
            assert set(chosen.index[site].tolist()) == set(want.tolist())

    def test_only_the_sites_asked_for(self) -> None:
        scores = self._scores()
        chosen = scores.top(1.0, sites=[("resid_post", 1)])
        assert {site for site, count in chosen.per_site().items() if count} == {("resid_post", 1)}

    def test_ties_go_to_the_first_and_never_change(self) -> None:
        data = np.zeros((4, 1, 6))
        data[::2] = 1.0
        data += np.arange(4)[:, None, None] * 0.1
        scores = mm.neuron_mean_difference(
            made_states({SITES[0]: data, SITES[2]: data}, ["memorized", "generalized"] * 2)
        )
        for _ in range(3):
            index = scores.top(3).index
            assert index[mm.Site(*SITES[0])].tolist() == [0, 1, 2]
            assert index[mm.Site(*SITES[2])].tolist() == []

    @pytest.mark.parametrize("bad", [0, -1, 0.0, 1.5, -0.1, float("nan"), True])
    def test_an_impossible_number_is_refused(self, bad) -> None:
        with pytest.raises(mm.MechmemError, match=r"top must be a number.*share.*got"):
            self._scores().top(bad)

    def test_more_than_there_are(self) -> None:
        with pytest.raises(mm.MechmemError, match=r"top=22 neurons.*only 21"):
            self._scores().top(22)

    def test_unknown_words(self) -> None:
        with pytest.raises(mm.MechmemError, match=r"Unknown ranking 'size'.*'correlation'"):
            self._scores().top(1, by="size")
        with pytest.raises(mm.MechmemError, match=r"'global' or 'site', got 'layer'"):
            self._scores().top(1, scope="layer")
        with pytest.raises(mm.SiteError, match=r"resid_post\[7\].*scored.*resid_post\[0\]"):
            self._scores().top(1, sites=[("resid_post", 7)])


class TestTheObject:
    def test_the_table_has_one_row_per_neuron_in_its_place(self) -> None:
        arrays, names = _case(positions=2)
        scores = mm.neuron_mean_difference(
            made_states(arrays, names, columns=("cue[0]", "cue[1]"), positions="cue")
        )
        table = scores.table()
        assert len(table) == 2 * (6 + 9 + 6)
        row = table[
            (table.stream == "mlp_post")
            & (table.layer == 1)
            & (table.position == "cue[1]")
            & (table.neuron == 7)
        ]
        one, zero = _split(arrays["mlp_post", 1][:, 1, 7], names)
        assert row.mean_difference.item() == pytest.approx(one.mean() - zero.mean(), rel=1e-9)
        assert row.p.item() == pytest.approx(
            stats.ttest_ind(one, zero, equal_var=False).pvalue, rel=1e-9
        )

    def test_save_and_load(self, tmp_path) -> None:
        scores = mm.neuron_mean_difference(made_states(*_case()))
        back = mm.NeuronScores.load(scores.save(tmp_path / "nmd"))
        assert back.sites == scores.sites
        assert back.provenance == scores.provenance
        assert (back.first, back.second, back.columns) == ("memorized", "generalized", ("last",))
        for site in scores.sites:
            assert torch.equal(back.q[site], scores.q[site])
            assert torch.equal(back.mean[site], scores.mean[site])

    def test_one_example_of_a_class_is_too_few(self) -> None:
        acts = made_states(
            {SITES[0]: np.ones((3, 1, 2))}, ["memorized", "generalized", "memorized"]
        )
        with pytest.raises(mm.MechmemError, match=r"two examples.*memorized: 2, generalized: 1"):
            mm.neuron_mean_difference(acts)

    def test_a_missing_class_is_named(self) -> None:
        acts = made_states({SITES[0]: np.ones((3, 1, 2))}, ["memorized", "other", "memorized"])
        with pytest.raises(mm.PromptError, match=r"No examples of class 'generalized'"):
            mm.neuron_mean_difference(acts)
