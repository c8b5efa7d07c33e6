"""Classifiers against NumPy and scikit-learn, and the learning curve that they are fitted along."""

from __future__ import annotations

import io

import numpy as np
import pandas as pd
import pytest
from helpers import close, made_states
from scipy.optimize import minimize
from sklearn.covariance import ledoit_wolf_shrinkage
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mechmem as mm
from mechmem import plotting
from mechmem.analysis import fit_classifier
from mechmem.analysis.classifiers import REGULARIZATION, input_only_scores

SITE = mm.Site("resid_post", 0)
CLASSES = ["memorized", "generalized"]
KINDS = ["logistic", "lda", "mean_difference"]


def _data(n: int = 90, d: int = 12, seed: int = 0, gap: float = 0.8):
    rng = np.random.default_rng(seed)
    target = (rng.random(n) < 0.4).astype(int)
    target[:4] = [0, 1, 0, 1]
    x = rng.normal(size=(n, d)) @ rng.normal(size=(d, d)) + 30
    x[target == 1, :3] += gap
    return x, target, np.array([f"g{k // 2}" for k in range(n)])


class TestTokens:
    def test_they_are_scored_as_scikit_learn_does_on_indicators(self) -> None:
        rng = np.random.default_rng(1)
        lengths = rng.integers(3, 20, size=49)
        made = [tuple(rng.integers(0, 6, size=n).tolist()) for n in lengths]
        train, test = made[:40], made[40:]
        target = np.array([3 in ids for ids in train])

        def seen(ids: tuple[int, ...]) -> list[float]:
            there = [token in ids for token in range(6)]
            placed = [
                len(ids) >= back and ids[-back] == token
                for back in range(1, 13)
                for token in range(6)
            ]
            return [float(x) for x in there + placed]

        model = LogisticRegression(C=0.3, max_iter=2000).fit([seen(ids) for ids in train], target)
        want = model.decision_function([seen(ids) for ids in test])
        close(input_only_scores(train, target, test), want, 1e-3)

    def test_a_place_that_all_prompts_reach_counts_and_a_short_one_hides_nothing(self) -> None:
        rng = np.random.default_rng(0)
        target = np.arange(60) % 2 == 0
        body = [tuple(rng.permutation(20).tolist()) for _ in target]
        first = [
            (30, 31, *ids) if one else (31, 30, *ids) for ids, one in zip(body, target, strict=True)
        ]
        assert ((input_only_scores(first[:40], target[:40], first[40:]) > 0) == target[40:]).all()
        told = [(*ids, 40) if one else ids for ids, one in zip(body, target, strict=True)]
        told[0], target[0] = (5,), False
        assert ((input_only_scores(told[:40], target[:40], told[40:]) > 0) == target[40:]).all()

    def test_fewer_groups_than_inner_folds(self) -> None:
        rng = np.random.default_rng(0)
        target = np.array([0, 0, 1, 1] * 2)
        x = rng.normal(size=(8, 4)) + 3 * target[:, None]
        fitted = fit_classifier(x, target, np.repeat(["a", "b"], 4))
        assert np.isfinite(fitted.weight).all()


class TestAgainstByHand:
    def test_mean_difference(self) -> None:
        x, target, groups = _data()
        one, zero = x[target == 1].mean(0), x[target == 0].mean(0)
        fitted = fit_classifier(x, target, groups, "mean_difference")
        close(fitted.weight, one - zero, 1e-9)
        nearer = ((x - one) ** 2).sum(1) < ((x - zero) ** 2).sum(1)
        assert (fitted.predict(x) == nearer).all()

    def test_lda_is_the_inverse_pooled_covariance_times_the_mean_difference(self) -> None:
        x, target, groups = _data()
        cov = np.zeros((x.shape[1],) * 2)
        for label in (0, 1):  # Ledoit and Wolf shrink each class's standardized covariance
            part = x[target == label]
            scale = part.std(0)
            z = (part - part.mean(0)) / scale
            empirical = z.T @ z / len(z)
            shrink = ledoit_wolf_shrinkage(z)
            mixed = (1 - shrink) * empirical + shrink * np.trace(empirical) / len(cov) * np.eye(
                len(cov)
            )
            cov += (target == label).mean() * scale[:, None] * mixed * scale[None]
        one, zero = x[target == 1].mean(0), x[target == 0].mean(0)
        weight = np.linalg.solve(cov, one - zero)
        prior = np.log(target.mean() / (1 - target.mean()))
        fitted = fit_classifier(x, target, groups, "lda")
        close(fitted.weight, weight, 1e-9)
        close(fitted.bias, prior - weight @ (one + zero) / 2, 1e-9)

    def test_logistic_minimizes_its_loss_on_standardized_features(self) -> None:
        x, target, groups = _data()
        fitted = fit_classifier(x, target, groups, "logistic")
        z, sign = (x - x.mean(0)) / x.std(0), 2 * target - 1
        strength = _searched(x, target, groups).best_params_["logisticregression__C"]

        def loss(w: np.ndarray) -> float:
            margin = sign * (z @ w[:-1] + w[-1])
            return strength * np.logaddexp(0, -margin).sum() + 0.5 * w[:-1] @ w[:-1]

        best = minimize(loss, np.zeros(x.shape[1] + 1), tol=1e-12)
        close(fitted.score(x), z @ best.x[:-1] + best.x[-1], 1e-3)

    @pytest.mark.parametrize("seed", range(4))
    def test_the_penalty_is_that_of_a_grid_search(self, seed) -> None:
        x, target, groups = _data(60, 20, seed, 1.0)
        search = _searched(x, target, groups)
        fitted = fit_classifier(x, target, groups, "logistic")
        close(fitted.score(x), search.decision_function(x), 1e-9)


def _searched(x, target, groups):
    folds = StratifiedGroupKFold(3).split(x, target, groups)
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    grid = {"logisticregression__C": REGULARIZATION}
    return GridSearchCV(pipeline, grid, cv=list(folds)).fit(x, target)


class TestEveryKind:
    @pytest.mark.parametrize("kind", KINDS)
    def test_finds_a_planted_signal_and_not_an_absent_one(self, kind) -> None:
        rng = np.random.default_rng(1)
        planted, absent = rng.normal(size=(2, 120, 1, 10))
        planted[::2, 0, 4] += 4
        sites = {("resid_post", 0): planted, ("resid_post", 1): absent}
        probes = mm.fit_probes(made_states(sites, CLASSES * 60), classifier=kind)
        assert probes.accuracy["resid_post", 0].value > 0.9
        assert 0.3 < probes.accuracy["resid_post", 1].value < 0.7
        assert set(probes.table()["classifier"]) == {kind}

    @pytest.mark.parametrize("kind", KINDS)
    def test_constant_states_say_nothing_and_break_nothing(self, kind) -> None:
        acts = made_states({SITE: np.ones((20, 1, 3))}, CLASSES * 10)
        assert mm.fit_probes(acts, classifier=kind).accuracy[SITE].value <= 0.5

    def test_a_length_that_gives_the_class_away_is_found_by_the_length_alone(self) -> None:
        rng = np.random.default_rng(0)
        ids = [(0,) * (3 + k % 2) + (int(rng.integers(4, 40)),) for k in range(60)]
        acts = made_states({SITE: rng.normal(size=(60, 1, 4))}, CLASSES * 30, token_ids=ids)
        probes = mm.fit_probes(acts)
        assert probes.length_only.value == 1.0
        assert 0.8 < probes.table()["length_only_low"].item() < 1.0
        same = made_states({SITE: rng.normal(size=(60, 1, 4))}, CLASSES * 30)
        assert mm.fit_probes(same).length_only.value <= 0.5

    def test_an_unknown_kind_is_named(self) -> None:
        acts = made_states({SITE: np.zeros((20, 1, 3))}, CLASSES * 10)
        for call in (mm.fit_probes, mm.learning_curve):
            with pytest.raises(mm.MechmemError, match=r"'svm'.*'logistic', 'lda'"):
                call(acts, classifier="svm")


@pytest.fixture(scope="module")
def states() -> mm.Activations:
    rng = np.random.default_rng(2)
    data = np.repeat(rng.normal(size=(40, 1, 16)), 2, axis=0) + rng.normal(size=(80, 1, 16))
    data[::2, 0, :4] += 1.4
    return made_states({SITE: data}, CLASSES * 40)


@pytest.fixture(scope="module")
def curve(states) -> mm.analysis.LearningCurve:
    return mm.learning_curve(states, repeats=1)


class TestLearningCurve:
    def test_more_pairs_read_more_and_the_last_point_is_that_of_the_probes(
        self, states, curve
    ) -> None:
        sizes = list(curve.accuracy[SITE])
        assert sizes == [4, 8, 16, 32]
        values = [held.value for held in curve.accuracy[SITE].values()]
        assert values[-1] > values[0] + 0.05
        probes = mm.fit_probes(states)
        for site in states.sites:
            assert curve.accuracy[site][32] == probes.accuracy[site]
            assert curve.shuffled[site][32] == probes.shuffled[site]
        assert curve.input_only[32] == probes.input_only
        assert curve.length_only[32] == probes.length_only

    def test_training_sides_hold_as_many_groups_as_said_and_none_of_the_test_side(
        self, states, monkeypatch
    ) -> None:
        from mechmem.analysis.probes import ProbeData

        seen = []
        plain = ProbeData.right

        def watched(self, features, target, train, test, classifier="logistic"):
            groups = set(self.groups[train]), set(self.groups[test])
            seen.append((len(groups[0]), groups[0] & groups[1]))
            return plain(self, features, target, train, test, classifier)

        monkeypatch.setattr(ProbeData, "right", watched)
        mm.learning_curve(states, sizes=[5, 20], repeats=1, classifier="mean_difference")
        assert {size for size, _ in seen} == {5, 20}
        assert not any(shared for _, shared in seen)

    def test_the_seed_decides(self, states) -> None:
        one, same, other = (
            mm.learning_curve(
                states, sizes=[6], seed=seed, repeats=1, classifier="mean_difference"
            ).table()
            for seed in (0, 0, 1)
        )
        assert one.equals(same)
        assert not one.equals(other)

    @pytest.mark.parametrize(
        ("options", "says"),
        [
            ({"sizes": [1]}, "every number of sizes must be an integer from 2, got 1"),
            ({"sizes": [4, 33]}, r"numbers of training groups from 2 to 32, got \[33\]"),
            ({"sizes": []}, "sizes must be a sequence of numbers"),
            ({"repeats": 0}, "repeats must be an integer from 1"),
        ],
    )
    def test_impossible_sizes(self, states, options, says) -> None:
        with pytest.raises(mm.PromptError, match=says):
            mm.learning_curve(states, **options)

    def test_the_figure_draws_what_was_measured_also_from_the_saved_table(self, curve) -> None:
        table = curve.table()
        back = pd.read_csv(io.StringIO(table.to_csv(index=False)))
        fig, again = plotting.learning_curve(curve), plotting.learning_curve(back)
        assert [trace.name for trace in fig.data] == [trace.name for trace in again.data]
        (line,) = [trace for trace in fig.data if trace.name == "resid_post 0"]
        held = curve.accuracy[SITE]
        assert list(line.x) == list(held)
        assert list(line.y) == [one.value for one in held.values()]
        ends = np.asarray(line.y) + np.asarray(line.error_y.array)
        assert ends == pytest.approx([one.high for one in held.values()])
        names = {trace.name for trace in fig.data}
        assert {"input tokens only", "prompt length only", "shuffled labels (resid_post 0)"} < names
