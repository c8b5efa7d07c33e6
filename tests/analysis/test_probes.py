from __future__ import annotations

import warnings

import numpy as np
import pytest
from helpers import made_states

import mechmem as mm
from mechmem.analysis import classifiers as room
from mechmem.analysis.probes import probe_data

SITES = [("resid_post", 0), ("resid_post", 1)]


def _states(n_groups: int = 30, planted: float = 4.0, seed: int = 0, token: bool = False):
    """Two examples a group, one of each class; the class stands in one coordinate of one site."""
    rng = np.random.default_rng(seed)
    names = ["memorized", "generalized"] * n_groups
    signal = np.array([1.0, -1.0] * n_groups)
    group_noise = np.repeat(rng.normal(size=(n_groups, 8)), 2, axis=0)
    planted_site = group_noise + rng.normal(size=(2 * n_groups, 8))
    planted_site[:, 3] += planted * signal
    noise_site = group_noise + rng.normal(size=(2 * n_groups, 8))
    ids = [
        (0, int(rng.integers(4, 30)), 30 + (k % 2 if token else int(rng.integers(0, 5))))
        for k in range(2 * n_groups)
    ]
    return made_states(
        {SITES[0]: planted_site[:, None], SITES[1]: noise_site[:, None]}, names, token_ids=ids
    )


@pytest.fixture(scope="module")
def found() -> mm.analysis.Probes:
    return mm.fit_probes(_states(), seed=0)


class TestWhatIsFound:
    def test_a_planted_signal_is_found_where_it_is_and_only_there(self, found) -> None:
        assert found.accuracy[mm.Site(*SITES[0])].value > 0.9
        noise = found.accuracy[mm.Site(*SITES[1])]
        assert 0.3 < noise.value < 0.7

    def test_shuffled_classes_and_random_tokens_are_at_chance(self, found) -> None:
        for held in (*found.shuffled.values(), found.input_only):
            assert 0.25 < held.value < 0.75
        assert found.majority == 0.5
        assert found.classes == ("generalized", "memorized")

    def test_a_planted_token_is_found_by_the_input_alone(self) -> None:
        probes = mm.fit_probes(_states(20, token=True), seed=0)
        assert probes.input_only.value == 1.0

    def test_intervals_are_over_groups(self, found) -> None:
        for held in found.accuracy.values():
            assert (held.n, held.groups) == (60, 30)
            assert held.low <= held.value <= held.high

    def test_the_seed_decides(self) -> None:
        acts = _states(8, planted=0.7)
        one, same, other = (mm.fit_probes(acts, seed=seed).table() for seed in (0, 0, 1))
        assert one.equals(same)
        assert not one.equals(other)

    def test_the_table_has_every_baseline(self, found) -> None:
        table = found.table()
        assert list(zip(table.stream, table.layer, strict=True)) == SITES
        for column in (
            "accuracy",
            "accuracy_low",
            "accuracy_high",
            "shuffled",
            "input_only",
            "majority",
            "groups",
        ):
            assert table[column].notna().all()


class TestGroupsNeverStraddle:
    def test_in_no_fold_outer_or_inner(self, monkeypatch) -> None:
        seen = []
        plain = room.StratifiedGroupKFold.split

        def watched(self, X, y=None, groups=None):
            for train, test in plain(self, X, y, groups):
                groups_of = np.asarray(groups)
                seen.append((set(groups_of[train]), set(groups_of[test])))
                yield train, test

        monkeypatch.setattr(room.StratifiedGroupKFold, "split", watched)
        mm.fit_probes(_states(10), seed=0)
        assert len(seen) > 5  # the outer folds and the inner ones
        assert all(not train & test for train, test in seen)

    def test_a_signature_of_the_group_alone_is_worth_nothing(self) -> None:
        """One-hot group names separate the training data perfectly, and no held-out group."""
        groups = [f"g{k // 4}" for k in range(80)]
        names = [("memorized", "generalized")[(k // 4) % 2] for k in range(80)]
        one_hot = np.eye(20)[[k // 4 for k in range(80)]][:, None] * 10
        acts = made_states({SITES[0]: one_hot}, names, groups)
        assert mm.fit_probes(acts, seed=0).accuracy[mm.Site(*SITES[0])].value < 0.7


class TestHarshData:
    def test_few_and_unbalanced_groups_work_without_a_warning(self) -> None:
        names = ["memorized"] * 18 + ["generalized"] * 2 + ["memorized", "generalized"] * 2
        groups = [f"g{k // 2}" for k in range(24)]
        rng = np.random.default_rng(0)
        acts = made_states({SITES[0]: rng.normal(size=(24, 1, 4))}, names, groups)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            probes = mm.fit_probes(acts, seed=0)
        assert probes.majority == pytest.approx(20 / 24)

    def test_constant_states_and_a_constant_input(self) -> None:
        ids = [(0, 5)] * 20
        acts = made_states(
            {SITES[0]: np.ones((20, 1, 3))}, ["memorized", "generalized"] * 10, token_ids=ids
        )
        probes = mm.fit_probes(acts, seed=0)
        assert probes.accuracy[mm.Site(*SITES[0])].value <= 0.5

    def test_prompts_without_a_class_are_left_out(self) -> None:
        acts = _states(12)
        some = mm.PromptSet(
            mm.Prompt(id=p.id, text=p.text, group=p.group, behavior=p.behavior if k < 16 else None)
            for k, p in enumerate(acts.prompts)
        )
        assert mm.fit_probes(acts.select(some), seed=0).input_only.n == 16


class TestRefusals:
    def test_one_class_three_classes_or_too_few_groups(self) -> None:
        data = {SITES[0]: np.zeros((6, 1, 2))}
        with pytest.raises(mm.PromptError, match=r"needs 2 classes.*'memorized'"):
            mm.fit_probes(made_states(data, ["memorized"] * 6))
        with pytest.raises(
            mm.PromptError, match=r"two classes.*'generalized', 'memorized', 'other'"
        ):
            mm.fit_probes(made_states(data, ["memorized", "generalized", "other"] * 2))
        with pytest.raises(mm.PromptError, match=r"5 folds need at least 5 groups, there are 3"):
            mm.fit_probes(made_states(data, ["memorized", "generalized"] * 3))

    @pytest.mark.parametrize("folds", [0, 1, -2])
    def test_impossible_folds(self, folds) -> None:
        with pytest.raises(mm.MechmemError, match=rf"folds.*2.*got {folds}"):
            mm.fit_probes(_states(6), folds=folds)

    def test_states_that_are_not_finite(self) -> None:
        data = np.zeros((12, 1, 2))
        data[3] = np.nan
        with pytest.raises(mm.PromptError, match=r"resid_post\[0\].*not finite"):
            mm.fit_probes(made_states({SITES[0]: data}, ["memorized", "generalized"] * 6))


class TestNothingToFind:
    """Behaviors exchanged inside the pairs: what is found is what the method makes of nothing."""

    def null(self, seed: int) -> mm.analysis.Probes:
        rng = np.random.default_rng(seed)
        groups = np.repeat(rng.normal(size=(24, 8)), 2, axis=0)
        state = groups + 0.7 * rng.normal(size=(48, 8))
        sites = {}
        for layer in range(5):
            state = state + 0.5 * rng.normal(size=state.shape)
            sites["resid_post", layer] = state[:, None].copy()
        names = [n for _ in range(24) for n in rng.permutation(["memorized", "generalized"])]
        return mm.fit_probes(made_states(sites, names), classifier="mean_difference", seed=seed)

    def test_the_layer_is_chosen_inside_and_the_shuffled_classes_are_at_one_half(self) -> None:
        found = [self.null(seed) for seed in range(80)]
        shuffled = [np.mean([e.value for e in one.shuffled.values()]) for one in found]
        assert abs(np.mean(shuffled) - 0.5) < 0.015  # .42 when whole data are shuffled
        assert abs(np.mean([one.chosen.value for one in found]) - 0.5) < 0.025
        claims = np.mean([one.reads for one in found])
        best = np.mean([max(e.low for e in one.accuracy.values()) > 0.5 for one in found])
        assert claims <= 0.0625  # 3 of 80 more than the 2.5 % that are meant
        assert best > claims, "the best layer was chosen by what is held out"

    def test_a_signal_is_read_at_the_site_where_it_is(self) -> None:
        found = mm.fit_probes(_states(), seed=0)
        assert found.reads
        assert found.site == mm.Site(*SITES[0])
        assert sum(found.sites.values()) == 5
        assert found.chosen.value == pytest.approx(found.accuracy[found.site].value)

    @pytest.mark.parametrize("classifier", ["logistic", "lda", "mean_difference"])
    def test_the_choice_is_that_of_the_inner_folds(self, classifier) -> None:
        data = probe_data(_states(16, planted=0.6), "behavior", 0, 5)
        got = data.over_sites(data.target, classifier)
        right = np.zeros(len(data.target))
        for train, test in data.parts:
            fitted = [
                room.fit_classifier(x[train], data.target[train], data.groups[train], classifier)
                for x in data.states.values()
            ]
            k = int(np.argmax([one.inner for one in fitted]))
            states = list(data.states.values())[k]
            right[test] = fitted[k].predict(states[test]) == data.target[test]
        assert got.chosen.value == right.mean()
