from __future__ import annotations

import warnings

import numpy as np
import pytest
from helpers import made_states

import mechmem as mm
from mechmem.analysis import classifiers as room

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
def found() -> mm.Probes:
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
        for column in ("accuracy", "low", "high", "shuffled", "input_only", "majority", "groups"):
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
