"""Directions of every method against NumPy, scikit-learn and concept-erasure on stacked states."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from helpers import bench, close, contrast_set, made_states
from sklearn.covariance import OAS
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

import mechmem as mm
from mechmem.analysis.covariance import oas_shrinkage
from mechmem.analysis.direction_methods import METHODS, Fitted, register_method

SITE = ("resid_post", 0)
METHOD_NAMES = ("difference_of_means", "mass_mean", "lda", "logistic", "pca", "leace")


def case(n: int = 80, d: int = 6, seed: int = 0) -> tuple[np.ndarray, list[str], list[str]]:
    """Correlated states of two classes, one of each in every group."""
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d))
    names = ["memorized", "generalized"] * (n // 2)
    groups = [f"g{k // 2}" for k in range(n)]
    data = rng.normal(size=(n, d)) @ mixing + 4
    data += np.repeat(rng.normal(size=(n // 2, d)), 2, axis=0) * 2
    data[1::2] += rng.normal(size=d)
    return data, names, groups


def states(data: np.ndarray, names, groups=None) -> mm.Activations:
    return made_states({SITE: data[:, None]}, list(names), groups)


def fitted(data, names, groups=None, toward="generalized", **options) -> mm.Direction:
    return mm.fit_directions(states(data, names, groups), toward=toward, **options)[SITE]


def parts(data: np.ndarray, names) -> tuple[np.ndarray, np.ndarray]:
    one = np.array([name == "generalized" for name in names])
    return data[one], data[~one]


def unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.linalg.norm(vector)


class TestEveryMethod:
    @pytest.mark.parametrize("method", METHOD_NAMES)
    def test_the_sign_and_the_length_are_those_of_the_class_means_along_it(self, method) -> None:
        data, names, groups = case()
        high, low = parts(data, names)
        for toward, sign in (("generalized", 1), ("memorized", -1)):
            r = fitted(data, names, groups, toward, method=method)
            along = np.asarray(r.unit)
            distance = sign * (high.mean(0) - low.mean(0)) @ along
            assert distance > 0
            assert r.norm == pytest.approx(distance)
            assert r.toward_mean - r.away_mean == pytest.approx(distance)
            assert (r.toward, r.method) == (toward, method)

    @pytest.mark.parametrize("method", METHOD_NAMES)
    def test_it_remembers_what_it_saw_and_survives_saving(self, method, tmp_path) -> None:
        data, names, groups = case()
        acts = states(data, names, groups)
        found = mm.fit_directions(acts, method=method, toward="memorized")
        assert found.provenance.seen == acts.provenance.seen
        assert found.provenance.seen.ids == set(acts.prompts.ids)
        back = mm.Directions.load(found.save(tmp_path / "r"))[SITE]
        r = found[SITE]
        for name in ("vector", "reader", "center"):
            one, other = getattr(r, name), getattr(back, name)
            assert (one is None and other is None) or torch.equal(one, other)
        assert (back.boundary, back.method, dict(back.settings)) == (
            r.boundary,
            r.method,
            dict(r.settings),
        )

    @pytest.mark.parametrize("method", ["difference_of_means", "mass_mean", "leace"])
    def test_moments_and_stored_states_agree_on_a_model(self, method) -> None:
        lab, prompts = bench(), contrast_set(16)
        acts = mm.cache_activations(lab.model, prompts, sites="resid_post")
        mom = mm.cache_moments(
            lab.model, prompts, sites="resid_post", by="behavior", covariance="resid_post"
        )
        stored = mm.fit_directions(acts, method=method, toward="generalized")
        streamed = mm.fit_directions(mom, method=method, toward="generalized")
        for r in stored:
            close(streamed[r.site], r, 1e-4)


class TestAgainstOthers:
    def test_difference_of_means_is_numpys(self) -> None:
        data, names, groups = case()
        high, low = parts(data, names)
        close(fitted(data, names, groups), high.mean(0) - low.mean(0), 1e-12)

    @pytest.mark.parametrize("shrinkage", [0.0, 0.3, 1.0])
    def test_mass_mean_is_numpys_inverse_of_the_pooled_covariance(self, shrinkage) -> None:
        data, names, groups = case()
        high, low = parts(data, names)
        pooled = (np.cov(high.T) * (len(high) - 1) + np.cov(low.T) * (len(low) - 1)) / 78
        level = np.trace(pooled) / 6 * np.eye(6)
        mixed = (1 - shrinkage) * pooled + shrinkage * level
        want = np.linalg.solve(mixed, high.mean(0) - low.mean(0))
        r = fitted(data, names, groups, method="mass_mean", shrinkage=shrinkage)
        close(r.unit, unit(want), 1e-9)

    def test_the_estimated_shrinkage_is_scikit_learns(self) -> None:
        data, _, _ = case(n=20, d=12)
        oas = OAS().fit(data)
        covariance = np.cov(data.T, bias=True)
        assert oas_shrinkage(covariance, len(data)) == pytest.approx(oas.shrinkage_, rel=1e-9)

    @pytest.mark.parametrize("shrinkage", ["auto", 0.2])
    def test_lda_is_scikit_learns_with_its_boundary(self, shrinkage) -> None:
        data, names, groups = case()
        lda = LinearDiscriminantAnalysis("lsqr", shrinkage=shrinkage).fit(data, names)
        r = fitted(data, names, groups, "memorized", method="lda", shrinkage=shrinkage)
        close(r.unit, unit(lda.coef_[0]), 1e-9)
        says = np.where(data @ np.asarray(r.unit) > r.threshold, "memorized", "generalized")
        assert (says == lda.predict(data)).all()

    @pytest.mark.parametrize("toward", ["memorized", "generalized"])
    def test_logistic_is_scikit_learns_with_its_boundary(self, toward) -> None:
        data, names, groups = case()
        data[:, 2] *= 100  # scales differ, so standardizing matters
        pipeline = make_pipeline(
            StandardScaler(), LogisticRegression(C=0.1, class_weight="balanced", tol=1e-8)
        ).fit(data, names)
        r = fitted(data, names, groups, toward, method="logistic", C=0.1)
        # The pipeline's second class is "memorized".
        want = pipeline[1].coef_[0] / pipeline[0].scale_
        close(r.unit, unit(want) * (1 if toward == "memorized" else -1), 1e-4)
        other = "generalized" if toward == "memorized" else "memorized"
        says = np.where(data @ np.asarray(r.unit) > r.threshold, toward, other)
        assert (says == pipeline.predict(data)).mean() > 0.98

    def test_pca_is_scikit_learns_of_the_differences_in_both_orders(self) -> None:
        data, names, groups = case()
        differences = data[1::2] - data[0::2]
        axis = PCA(1).fit(np.concatenate([differences, -differences]))
        r = fitted(data, names, groups, method="pca")
        sign = np.sign(differences.mean(0) @ axis.components_[0])
        close(r.unit, sign * axis.components_[0], 1e-9)
        assert r.settings["explained"] == pytest.approx(axis.explained_variance_ratio_[0])

    def test_leace_is_concept_erasures(self) -> None:
        concept_erasure = pytest.importorskip("concept_erasure")
        data, names, groups = case()
        z = torch.tensor([[name == "generalized"] for name in names], dtype=torch.float64)
        fitter = concept_erasure.LeaceFitter.fit(
            torch.tensor(data), z, shrinkage=False, constrain_cov_trace=False, svd_tol=1e-9
        )
        r = fitted(data, names, groups, method="leace")
        fresh = torch.tensor(np.random.default_rng(5).normal(size=(30, 6)) * 5)
        close(_erased(fresh.numpy(), r), fitter.eraser(fresh), 1e-8)

    @pytest.mark.parametrize("n", [80, 6])
    def test_leace_leaves_no_class_means_and_moves_states_less_than_projecting(self, n) -> None:
        """Also with fewer states than coordinates, over the directions in which they vary."""
        data, names, groups = case(n, d=10)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", mm.MechmemWarning)
            r = fitted(data, names, groups, method="leace")
        erased = _erased(data, r)
        high, low = parts(erased, names)
        close(high.mean(0) - low.mean(0) + 1, np.ones(10), 1e-9)
        close(erased.mean(0), data.mean(0), 1e-9)
        # The covariance-weighted move is the least of all that remove the class means (theorem).
        plain = data - np.outer((data - data.mean(0)) @ np.asarray(r.unit), np.asarray(r.unit))
        inverse = np.linalg.pinv(np.cov(data.T))
        sizes = [np.einsum("nd,de,ne->", m, inverse, m) for m in (data - erased, data - plain)]
        assert sizes[0] <= sizes[1] * (1 + 1e-9)


def _erased(data: np.ndarray, r: mm.Direction) -> np.ndarray:
    assert r.reader is not None
    assert r.center is not None
    amount = (data - r.center.numpy()) @ r.reader.numpy()
    return data - np.outer(amount, r.vector.numpy())


class TestPlanted:
    @pytest.mark.parametrize("seed", range(5))
    def test_difference_of_means_finds_what_was_planted(self, seed) -> None:
        """200 per class in 512 dimensions, a shift of three times its standard error's norm."""
        rng = np.random.default_rng(seed)
        n, d = 200, 512
        axis = unit(rng.normal(size=d))
        error = np.sqrt(d * 2 / n)
        data = rng.normal(size=(2 * n, d))
        data[n:] += 3 * error * axis
        r = fitted(data, ["memorized"] * n + ["generalized"] * n)
        assert float(np.asarray(r.unit) @ axis) >= 0.94

    @pytest.mark.parametrize("seed", range(5))
    def test_mass_mean_reads_better_where_the_noise_is_correlated(self, seed) -> None:
        rng = np.random.default_rng(seed)
        n, d = 200, 64
        basis, _ = np.linalg.qr(rng.normal(size=(d, d)))
        noise = basis * np.sqrt(np.geomspace(30, 0.03, d))
        shift = rng.normal(size=d) * 0.15
        names = ["memorized"] * n + ["generalized"] * n

        def draw() -> np.ndarray:
            data = rng.normal(size=(2 * n, d)) @ noise.T
            data[n:] += shift
            return data

        data, held = draw(), draw()
        found = {m: np.asarray(fitted(data, names, method=m)) for m in METHOD_NAMES[:2]}
        target = np.repeat([0, 1], n)
        auc = {m: roc_auc_score(target, held @ r) for m, r in found.items()}
        assert auc["mass_mean"] > auc["difference_of_means"] + 0.05
        best = unit(np.linalg.solve(noise @ noise.T, shift))
        cosines = {m: float(unit(r) @ best) for m, r in found.items()}
        assert cosines["mass_mean"] > cosines["difference_of_means"] + 0.2


class TestDegenerate:
    @pytest.mark.parametrize("method", METHOD_NAMES)
    def test_one_class_only(self, method) -> None:
        data, _, groups = case(8)
        with pytest.raises(mm.PromptError, match=r"needs 2 classes"):
            fitted(data, ["generalized"] * 8, groups, method=method)

    @pytest.mark.parametrize("method", METHOD_NAMES)
    def test_a_coordinate_that_never_changes_gets_no_weight(self, method) -> None:
        data, names, groups = case()
        data[:, 3] = 7.0
        r = fitted(data, names, groups, method=method)
        assert abs(float(r.unit[3])) < 1e-9
        assert np.isfinite(np.asarray(r)).all()

    @pytest.mark.parametrize("method", METHOD_NAMES)
    def test_states_that_are_not_finite(self, method) -> None:
        data, names, groups = case()
        data[5, 1] = np.nan
        with pytest.raises(mm.PromptError, match="not finite"):
            fitted(data, names, groups, method=method)

    @pytest.mark.parametrize("method", ["mass_mean", "lda", "logistic", "leace"])
    def test_fewer_examples_than_coordinates_is_regularized_and_said(self, method) -> None:
        data, names, groups = case(12, d=30)
        with pytest.warns(mm.MechmemWarning, match=r"12 examples in more coordinates.*resid_post"):
            r = fitted(data, names, groups, method=method)
        assert np.isfinite(np.asarray(r)).all()
        assert r.norm > 0

    @pytest.mark.parametrize("method", ["mass_mean", "lda"])
    def test_a_singular_covariance_without_shrinkage_is_refused(self, method) -> None:
        data, names, groups = case(12, d=30)
        with pytest.raises(mm.PromptError, match=r"12 examples.*30 coordinates.*singular"):
            fitted(data, names, groups, method=method, shrinkage=0.0)

    @pytest.mark.parametrize("method", METHOD_NAMES)
    def test_where_all_states_are_the_same_the_direction_points_nowhere(self, method) -> None:
        r = fitted(np.ones((8, 4)), ["memorized", "generalized"] * 4, method=method)
        assert r.norm == 0
        with pytest.raises(mm.SiteError, match="is zero"):
            r.unit  # noqa: B018

    def test_pca_needs_pairs(self) -> None:
        data, names, _ = case(8)
        alone = [f"g{k}" for k in range(8)]
        with pytest.raises(mm.PromptError, match=r"no group.*same Prompt\.group"):
            fitted(data, names, alone, method="pca")

    @pytest.mark.parametrize("method", ["lda", "logistic", "pca"])
    def test_moments_have_no_single_states(self, method) -> None:
        lab, prompts = bench(), contrast_set(6)
        mom = mm.cache_moments(lab.model, prompts, sites="resid_post", by="behavior")
        with pytest.raises(mm.PromptError, match=r"single states.*cache_activations"):
            mm.fit_directions(mom, method=method, toward="memorized")

    @pytest.mark.parametrize("method", ["mass_mean", "leace"])
    def test_moments_without_a_covariance(self, method) -> None:
        lab, prompts = bench(), contrast_set(6)
        mom = mm.cache_moments(lab.model, prompts, sites="resid_post", by="behavior")
        with pytest.raises(
            mm.PromptError, match=r"covariance at resid_post\[0\].*covariance=sites"
        ):
            mm.fit_directions(mom, method=method, toward="memorized")

    def test_unknown_names(self) -> None:
        data, names, groups = case(8)
        with pytest.raises(mm.MechmemError, match=r"'mass_maen'.*Did you mean 'mass_mean'"):
            fitted(data, names, groups, method="mass_maen")
        with pytest.raises(mm.MechmemError, match=r"no option 'c'.*'C'"):
            fitted(data, names, groups, method="logistic", c=1.0)
        with pytest.raises(mm.MechmemError, match=r"'oas' or 0 to 1, got 2"):
            fitted(data, names, groups, method="mass_mean", shrinkage=2)
        with pytest.raises(mm.MechmemError, match=r"above 0, got 0"):
            fitted(data, names, groups, method="logistic", C=0)


def test_a_method_of_your_own_is_one_function() -> None:
    @register_method("first_coordinate", weight=1.0)
    def _(contrast, options) -> Fitted:
        axis = np.zeros(len(contrast.scatter.high))
        axis[0] = options["weight"]
        return Fitted(axis)

    try:
        data, names, groups = case()
        high, low = parts(data, names)
        r = fitted(data, names, groups, method="first_coordinate", weight=-3.0)
        close(np.abs(np.asarray(r)), np.eye(6)[0] * abs(high.mean(0) - low.mean(0))[0], 1e-12)
    finally:
        del METHODS["first_coordinate"]
