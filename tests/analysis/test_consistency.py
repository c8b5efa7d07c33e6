from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import made_states
from scipy import stats

import mechmem as mm
from mechmem.seeding import keyed_rng

SITES = [("resid_post", 0), ("resid_post", 1)]
PAIRS, WIDTH = 40, 50


def states(seed: int = 0, shift: float = 2.0, planted: int = 5) -> mm.Activations:
    rng = np.random.default_rng(seed)
    classes = ["memorized", "generalized"] * PAIRS
    arrays = {site: rng.standard_normal((2 * PAIRS, 1, WIDTH)) for site in SITES}
    signs = np.where(np.arange(planted) % 2 == 0, 1.0, -1.0)
    arrays[SITES[0]][::2, 0, :planted] += shift * signs
    return made_states(arrays, classes)


def scored(*strengths: list[float]) -> mm.NeuronScores:
    """Scores whose correlations are given, one list per site."""
    scores = mm.neuron_mean_difference(states())
    values = {
        mm.Site(*site): torch.tensor([row], dtype=torch.float64)
        for site, row in zip(SITES, strengths, strict=True)
    }
    return replace(scores, correlation=values, mean_difference=values)


class TestOverlap:
    ONE = scored([0.9, -0.8, 0.1, 0.0], [0.7, 0.2, -0.3, 0.05])
    OTHER = scored([0.9, 0.8, 0.1, 0.3], [0.0, 0.2, -0.95, 0.05])

    def test_a_known_overlap(self) -> None:
        # Top three: {0.0, 0.1, 1.0} and {0.0, 0.1, 1.2}. In either: four, of which neuron 0.1
        # differs the other way, and 1.0 not at all in the second.
        got = mm.neuron_overlap(self.ONE, self.OTHER, top=3)
        assert (got.shared, got.top, got.total) == (2, 3, 8)
        assert got.overlap == pytest.approx(2 / 3)
        assert got.signs == (4, 2)
        assert got.sign_agreement == 0.5
        ways = {k: math.comb(3, k) * math.comb(5, 3 - k) / math.comb(8, 3) for k in range(4)}
        assert got.p == pytest.approx(ways[2] + ways[3])
        assert got.chance[0] == pytest.approx(3 * 3 / 8)
        flat = [[0.9, 0.8, 0.1, 0.0, 0.7, 0.2, 0.3, 0.05], [0.9, 0.8, 0.1, 0.3, 0, 0.2, 0.95, 0.05]]
        assert got.rank_correlation == pytest.approx(stats.spearmanr(*flat).statistic)
        assert got.table()["overlap"].item() == got.overlap

    def test_a_contrast_turned_round_has_its_signs_turned_round(self) -> None:
        turned = replace(self.ONE, first="generalized", second="memorized")
        assert mm.neuron_overlap(self.ONE, turned, top=3).sign_agreement == 0.0
        assert mm.neuron_overlap(self.ONE, self.ONE, top=3).sign_agreement == 1.0

    def test_areas_count_from_one_half(self) -> None:
        # An area of 0.1 tells the classes apart as well as 0.9, the other way round.
        scores = mm.neuron_mean_difference(states(), auc=True)
        opposite = states()
        opposite = replace(opposite, states={s: -v for s, v in opposite.states.items()})
        opposite = mm.neuron_mean_difference(opposite, auc=True)
        same, against = (
            mm.neuron_overlap(scores, found, top=5, by="auc") for found in (scores, opposite)
        )
        assert (same.sign_agreement, against.sign_agreement) == (1.0, 0.0)
        assert against.rank_correlation == pytest.approx(1.0, abs=1e-3)

    def test_neurons_of_two_models_are_not_compared(self) -> None:
        info = replace(self.ONE.provenance.model, fingerprint="another")
        other = replace(self.OTHER, provenance=replace(self.OTHER.provenance, model=info))
        with pytest.raises(mm.ModelError, match=r"two models.*not aligned.*force=True"):
            mm.neuron_overlap(self.ONE, other)
        assert mm.neuron_overlap(self.ONE, other, top=3, force=True).shared == 2

    def test_other_sites_are_refused(self) -> None:
        with pytest.raises(mm.MechmemError, match=r"one by one.*same sites"):
            mm.neuron_overlap(self.ONE, scored([0.1] * 4, [0.1] * 5))


class TestSplitHalves:
    def test_planted_neurons_hold_and_exchanged_classes_do_not(self) -> None:
        got = mm.split_halves(states(shift=3.0), top=5, splits=40)
        assert got.overlap.min() == 1.0
        assert got.sign_agreement.min() == 1.0
        assert got.shuffled["overlap"].mean() == pytest.approx(5 / 100, abs=0.06)
        assert got.shuffled["sign_agreement"].mean() == pytest.approx(0.5, abs=0.1)
        assert abs(got.shuffled["rank_correlation"].mean()) < 0.1

    def test_without_a_contrast_it_is_at_chance(self) -> None:
        got = mm.split_halves(states(1, shift=0.0), top=0.1, splits=60)
        row = got.table().set_index("statistic").loc["overlap"]
        assert row["mean"] == pytest.approx(row["chance"], abs=0.06)
        assert row["mean_low"] <= row["shuffled"] <= row["mean_high"]

    def test_few_groups_of_one_class_leave_no_nan_behind(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.standard_normal((8, 1, 40))
        classes = ["memorized"] * 2 + ["generalized"] * 6
        acts = made_states({("resid_post", 0): values}, classes, groups=list("abcdefgh"))
        got = mm.split_halves(acts, top=5, splits=60)
        for null in got.shuffled.values():
            assert np.isfinite(null).all()
        assert got.shuffled["sign_agreement"].mean() > 0.35  # chance is 0.5; NaN counted as 0

    @pytest.mark.parametrize("scope", ["global", "site"])
    def test_a_split_is_two_rankings_of_neuron_scores(self, scope: str) -> None:
        acts = states(2, shift=0.5)
        got = mm.split_halves(acts, top=0.2, splits=3, scope=scope)
        groups = sorted({prompt.group for prompt in acts.prompts})
        for split in range(3):
            order = keyed_rng(0, "split-halves", split).permutation(PAIRS)
            one = {groups[k] for k in order[: PAIRS // 2]}
            rows = [k for k, prompt in enumerate(acts.prompts) if prompt.group in one]
            rest = [k for k in range(len(acts)) if k not in rows]
            scores = [mm.neuron_mean_difference(acts.take(half)) for half in (rows, rest)]
            want = mm.neuron_overlap(*scores, top=0.2, scope=scope)
            assert got.overlap[split] == pytest.approx(want.overlap)
            assert got.sign_agreement[split] == pytest.approx(want.sign_agreement)
            assert got.rank_correlation[split] == pytest.approx(want.rank_correlation)

    def test_what_is_refused(self) -> None:
        with pytest.raises(mm.MechmemError, match=r"Unknown ranking 'nmd'"):
            mm.split_halves(states(), ranking="nmd")
        with pytest.raises(mm.MechmemError, match=r"scope must be"):
            mm.split_halves(states(), scope="layer")
        with pytest.raises(mm.PromptError, match=r"at least four groups, there are 2"):
            mm.split_halves(states().take(range(4)))
        names = ["generalized"] * 24
        names[0] = "memorized"
        arrays = {site: np.random.default_rng(0).standard_normal((24, 1, 3)) for site in SITES}
        lone = made_states(arrays, names)
        with pytest.raises(mm.PromptError, match=r"No split into halves of 12 groups"):
            mm.split_halves(lone)
