from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import made_states

import mechmem as mm
from mechmem.seeding import keyed_order

SITE, OTHER = ("resid_post", 0), ("resid_post", 1)
PAIRS = 100


def planted(seed: int = 0) -> mm.Activations:
    """Neurons 0 to 2 share one source, 3 and 4 (one at each site) another; the rest vary alone.
    All of them follow the class."""
    rng = np.random.default_rng(seed)
    source = rng.standard_normal((2 * PAIRS, 2))
    early, late = (0.5 * rng.standard_normal((2 * PAIRS, 1, 6)) for _ in range(2))
    early[:, 0, :3] += source[:, :1] * np.array([1.0, -1.0, 1.0])
    early[:, 0, 3] += source[:, 1]
    late[:, 0, 4] -= source[:, 1]
    for values in (early, late):
        values[::2] += 2.0
    return made_states({SITE: early, OTHER: late}, ["memorized", "generalized"] * PAIRS)


def everything(acts: mm.Activations) -> object:
    return mm.neuron_mean_difference(acts).top(1.0)


@pytest.fixture(scope="module")
def found():
    acts = planted()
    return mm.neuron_clusters(acts, everything(acts))


class TestClusters:
    def test_the_two_planted_ones_are_found_and_nothing_else(self, found) -> None:
        early, late = mm.Site(*SITE), mm.Site(*OTHER)
        assert found.sizes[:2] == [3, 2]
        assert set(found.sizes[2:]) == {1}
        assert found.members(0) == {early: [0, 1, 2]}
        assert found.members(1) == {early: [3], late: [4]}

    def test_numbers_are_those_of_numpy_on_the_other_half(self, found) -> None:
        acts = planted()
        order = keyed_order([p.group for p in acts.prompts], 0, "clusters")
        rows = [k for k, p in enumerate(acts.prompts) if p.group not in order[: PAIRS // 2]]
        x = torch.cat([acts[SITE][rows, 0], acts[OTHER][rows, 0]], dim=1).numpy()
        x[::2] -= x[::2].mean(0)
        x[1::2] -= x[1::2].mean(0)
        r = np.corrcoef(x.T)
        np.testing.assert_allclose(found.held_out, r, atol=1e-9)
        same = [(0, 1), (0, 2), (1, 2), (3, 10)]
        assert found.within.value == pytest.approx(np.mean([abs(r[pair]) for pair in same]))
        eigenvalues = np.linalg.eigvalsh(r)
        want = eigenvalues.sum() ** 2 / (eigenvalues**2).sum()
        assert found.dimensions.value == pytest.approx(want)
        assert found.within.low < found.within.value < found.within.high
        assert found.within.groups == PAIRS // 2

    def test_the_control_has_neither_clusters_nor_correlation(self, found) -> None:
        assert found.shuffled["clusters"][0] < 0.5
        assert found.shuffled["within"][2] < found.within.low
        assert found.shuffled["dimensions"][1] > found.dimensions.high

    def test_following_the_class_alone_makes_no_cluster(self) -> None:
        rng = np.random.default_rng(1)
        values = 0.3 * rng.standard_normal((2 * PAIRS, 1, 5))
        values[::2] += 5.0
        acts = made_states({SITE: values}, ["memorized", "generalized"] * PAIRS)
        assert abs(np.corrcoef(values[:, 0].T)).min() > 0.9
        got = mm.neuron_clusters(acts, everything(acts))
        assert got.sizes == [1] * 5
        assert np.isnan(got.within.value)

    def test_tables(self, found) -> None:
        table = found.table()
        assert len(table) == 12
        assert table["cluster"].is_monotonic_increasing
        assert found.summary().set_index("statistic").loc["clusters", "value"] == 2


class TestRefusals:
    def test_what_cannot_be_clustered(self) -> None:
        acts = planted()
        scores = mm.neuron_mean_difference(acts)
        with pytest.raises(mm.MechmemError, match=r"threshold.*1.5"):
            mm.neuron_clusters(acts, scores.top(5), threshold=1.5)
        with pytest.raises(mm.MechmemError, match=r"at least two neurons, got 1"):
            mm.neuron_clusters(acts, scores.top(1))
        with pytest.raises(mm.PromptError, match=r"at least eight groups, there are 5"):
            mm.neuron_clusters(acts.take(range(10)), scores.top(5))
        with pytest.raises(mm.MechmemError, match=r"No cluster 99"):
            mm.neuron_clusters(acts, scores.top(5)).members(99)
