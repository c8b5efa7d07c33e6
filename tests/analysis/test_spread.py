"""The compact covariance of states against NumPy, and random directions drawn from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import made_states

import mechmem as mm
from mechmem.analysis.spread import ROWS, Spread, spreads
from mechmem.caching.moments import Moments

CLASSES = ("generalized", "memorized")
SITE, LATER = mm.Site("resid_post", 0), mm.Site("resid_post", 1)


def scene(n: int, d: int = 12, seed: int = 0):
    """States whose coordinates vary and lie very differently, classes far apart."""
    rng = np.random.default_rng(seed)
    names = [CLASSES[k % 2] for k in range(n)]
    mixing = rng.standard_normal((d, d)) * np.logspace(0, -2, d)[:, None]
    states = rng.standard_normal((n, d)) @ mixing + 3 * rng.standard_normal(d)
    states[1::2] += 5 * rng.standard_normal(d)
    return states, names


def within(states: np.ndarray, names: list[str]) -> np.ndarray:
    """Pooled covariance within the classes, by NumPy."""
    parts = [states[[k for k, own in enumerate(names) if own == name]] for name in CLASSES]
    return sum(np.cov(part.T) * (len(part) - 1) for part in parts) / (len(states) - 2)


def found(states: np.ndarray, names: list[str], order=None):
    order = range(len(states)) if order is None else order
    acts = made_states({SITE: states[:, None], LATER: 2 * states[:, None]}, names)
    picked = acts.select(mm.PromptSet(acts.prompts[int(k)] for k in order))
    return spreads(picked, *CLASSES, "behavior")


def test_few_states_are_kept_exactly_and_moments_with_covariance_too() -> None:
    states, names = scene(40)
    spread = found(states, names)[SITE]
    want = within(states, names)
    np.testing.assert_allclose((spread.factor.T @ spread.factor).numpy(), want, rtol=1e-9)
    np.testing.assert_allclose(spread.center.numpy(), states.mean(0), rtol=1e-9)
    moments = Moments(
        made_states({SITE: states[:, None]}, names).provenance,
        ("last",),
        covariance=frozenset([SITE]),
    )
    moments.update({SITE: torch.from_numpy(states[:, None])}, names)
    other = spreads(moments, *CLASSES, "behavior")[SITE]
    np.testing.assert_allclose((other.factor.T @ other.factor).numpy(), want, rtol=1e-7)
    np.testing.assert_allclose(other.center.numpy(), states.mean(0), rtol=1e-9)


def test_draws_from_few_states_do_not_depend_on_their_order() -> None:
    states, names = scene(40)
    again = found(states, names, order=range(39, -1, -1))[SITE]
    assert torch.equal(again.factor, found(states, names)[SITE].factor)


def test_many_states_are_kept_without_bias_and_whatever_their_order() -> None:
    states, names = scene(400)
    want = within(states, names)
    spread = found(states, names)[SITE]
    assert spread.factor.shape == (ROWS, 12)
    got = (spread.factor.T @ spread.factor).numpy()
    # Every variance is a mean over 64 rows: 2.5 standard errors are 44 %.
    assert (np.abs(np.diag(got) / np.diag(want) - 1) < 0.6).all()
    assert np.trace(got) == pytest.approx(np.trace(want), rel=0.5)
    again = found(states, names, order=np.random.default_rng(1).permutation(400))[SITE]
    np.testing.assert_allclose(again.factor.numpy(), spread.factor.numpy(), atol=1e-9)


def test_draws_have_the_covariance_of_the_states_and_go_together_over_sites() -> None:
    states, names = scene(30)
    both = found(states, names)
    want = within(states, names)
    drawn = torch.stack([both[SITE].drawn(np.random.default_rng(k)) for k in range(4000)])
    got = np.cov(drawn.T.numpy())
    assert np.abs(got - want).max() < 0.12 * np.abs(want).max()
    later = both[LATER].drawn(np.random.default_rng(7))
    np.testing.assert_allclose(later.numpy(), 2 * drawn[7].numpy())


@pytest.mark.parametrize("about_zero", [True, False])
@pytest.mark.parametrize("n", [8, 40, 400])
def test_a_random_direction_is_turned_until_the_states_lie_on_it_alike(about_zero, n) -> None:
    states, names = scene(n)
    spread = found(states, names)[SITE]
    moments = spread.factor.T @ spread.factor
    if about_zero:
        moments = moments + torch.outer(spread.center, spread.center)
    rng = np.random.default_rng(3)
    for k in range(20):
        other, vector = (torch.from_numpy(rng.standard_normal(12)) for _ in range(2))
        other = other * 10.0 ** (k % 3)
        turned = spread.alike(vector, other, about_zero)
        assert float(turned.norm()) == pytest.approx(float(vector.norm()))
        sizes = [float(u @ moments @ u / (u @ u)) for u in (turned, other)]
        assert sizes[0] == pytest.approx(sizes[1], rel=1e-3)


@pytest.mark.parametrize(
    "rows", [torch.zeros(3, 5), torch.zeros(12), torch.zeros(0, 12), torch.full((2, 12), torch.nan)]
)
def test_rows_of_another_shape_are_not_taken_from_a_file(rows) -> None:
    with pytest.raises(mm.ArtifactError, match="finite rows of width 12"):
        Spread.unpacked(rows, 12)


def test_a_direction_brings_its_spread_and_keeps_it_on_disk(tmp_path) -> None:
    states, names = scene(40)
    acts = made_states({SITE: states[:, None]}, names)
    want = within(states, names)
    for method in ("difference_of_means", "mass_mean", "logistic"):
        fitted = mm.fit_directions(acts, method=method, toward="memorized")
        fitted.save(tmp_path / method)
        for one in (fitted[SITE], mm.Directions.load(tmp_path / method)[SITE]):
            got = one.spread.factor.double()
            np.testing.assert_allclose(got.T @ got, want, rtol=1e-4, atol=1e-6)
    scores = mm.neuron_mean_difference(acts)
    scores.save(tmp_path / "scores")
    for one in (scores, mm.NeuronScores.load(tmp_path / "scores")):
        got = one.spread[SITE].factor.double()
        np.testing.assert_allclose(got.T @ got, want, rtol=1e-4, atol=1e-6)
