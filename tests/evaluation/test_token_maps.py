"""Maps of layers and tokens: as plain transformers and NumPy compute them."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from helpers import bench, contrast_set, hf_states, ragged

import mechmem as mm
from mechmem.errors import EditError, PromptError, SiteError
from mechmem.evaluation import margin_map, projection_map
from mechmem.evaluation.token_maps import BAND_DRAWS, _frame


def directions(kind: str) -> mm.Directions:
    acts = mm.cache_activations(bench(kind).model, contrast_set(), sites="resid_post")
    return mm.difference_of_means(acts, toward="generalized")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_every_cell_is_the_projection_of_a_hidden_state(kind: str) -> None:
    lab, (asked, *_) = bench(kind), ragged(1, seed=3)
    r = directions(kind)
    found = projection_map(lab.model, r, asked, draws=4)
    states = hf_states(lab.hf, lab.ids(asked.text), r.sites)
    for site in r.sites:
        along = r[site]
        length = np.linalg.norm(along.vector.numpy())
        middle = (along.toward_mean + along.away_mean) / 2
        wanted = (states[site].double().numpy() @ along.vector.numpy() / length - middle) / length
        rows = found.rows[(found.rows["layer"] == site.layer)]
        np.testing.assert_allclose(rows["value"], wanted, atol=1e-4 * np.abs(wanted).max())
    assert (found.toward, found.away) == ("generalized", "memorized")
    assert list(found.rows["position"][:3]) == [0, 1, 2]


def test_the_class_means_lie_half_a_distance_from_0() -> None:
    lab, r = bench(), directions("gpt2")
    last = {"memorized": [], "generalized": []}
    for prompt in contrast_set():
        rows = projection_map(lab.model, r, mm.PromptSet([prompt]), draws=1).rows
        last[prompt.behavior] += [rows[rows["position"] == rows["position"].max()]["value"].values]
    np.testing.assert_allclose(np.mean(last["generalized"], 0), 0.5, atol=1e-4)
    np.testing.assert_allclose(np.mean(last["memorized"], 0), -0.5, atol=1e-4)


def test_the_band_is_of_the_controls_that_the_edit_has() -> None:
    lab, r, asked = bench(), directions("gpt2"), ragged(1)
    site = r.sites[1]
    acts = mm.cache_activations(lab.model, asked, sites=[site], positions="all")
    for name in ("random direction", "covariance direction"):
        found = projection_map(lab.model, r, asked, control=name, draws=7, seed=2)
        values = []
        for k in range(7):
            other = mm.controls(mm.AddDirection(r[site]), lab.model, seed=2 + k)[name].direction
            values.append((other.project(acts[site][0]).numpy() - other.threshold) / other.norm)
        rows = found.rows[found.rows["layer"] == site.layer]
        # Seven are too few for the middle 95 % of one more: the band is all that they reach.
        np.testing.assert_allclose(rows["band_low"], np.min(values, axis=0))
        np.testing.assert_allclose(rows["band_high"], np.max(values, axis=0))
        assert found.control == name


@pytest.mark.parametrize("method", ["lda", "logistic"])
def test_a_classifier_and_its_draws_are_counted_from_their_own_middles(method) -> None:
    lab, asked = bench(), ragged(1)
    fit = mm.cache_activations(lab.model, contrast_set(), sites="resid_post")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mm.MechmemWarning)
        r = mm.fit_directions(fit, method=method, toward="generalized")
    site = r.sites[1]
    rows = projection_map(lab.model, r, asked, draws=5).rows
    rows = rows[rows["layer"] == site.layer]
    states = mm.cache_activations(lab.model, asked, sites=[site], positions="all")[site][0]
    others = [
        mm.controls(mm.AddDirection(r[site]), lab.model, seed=k)["random direction"].direction
        for k in range(5)
    ]
    found = [
        (states.double().numpy() @ one.vector.numpy() / one.norm
         - (one.toward_mean + one.away_mean) / 2) / one.norm
        for one in (r[site], *others)
    ]  # fmt: skip
    np.testing.assert_allclose(rows["value"], found[0], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(rows["band_low"], np.min(found[1:], axis=0), rtol=1e-4)


def test_one_more_random_direction_lies_outside_the_band_once_in_twenty_times() -> None:
    """As the page says; 20,000 at 5 % have a standard deviation of 0.0015."""
    own, *others = np.random.default_rng(0).standard_normal((BAND_DRAWS + 1, 20_000))
    rows = _frame(("resid_post", 0), own, np.array(others))
    outside = (rows["value"] < rows["band_low"]) | (rows["value"] > rows["band_high"])
    assert abs(outside.mean() - 0.05) < 0.007


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_margin_after_a_layer_is_that_of_its_state_through_norm_and_unembedding(
    kind: str,
) -> None:
    lab, asked = bench(kind), contrast_set()[:1]
    found = margin_map(lab.model, asked)
    ids = lab.ids(asked[0].text)
    first, second = (
        lab.tokenizer(f" {answer}", add_special_tokens=False)["input_ids"][0]
        for answer in (asked[0].memorized, asked[0].generalized)
    )
    body = lab.hf.transformer if kind == "gpt2" else lab.hf.model
    norm = body.ln_f if kind == "gpt2" else body.norm
    sites = sorted({mm.Site("resid_post", int(layer)) for layer in found.rows["layer"]})
    states = hf_states(lab.hf, ids, sites)
    for site in sites:
        with torch.no_grad():
            logits = lab.hf.lm_head(norm(states[site])).double()
        wanted = (logits[:, first] - logits[:, second]).numpy()
        rows = found.rows[found.rows["layer"] == site.layer]
        np.testing.assert_allclose(rows["value"], wanted, atol=1e-4 * np.abs(wanted).max())
        assert (rows["band_low"] < rows["band_high"]).all()
    own = mm.observe(lab.model, asked).margins[0]
    assert found.rows["value"].iloc[-1] == pytest.approx(own, abs=1e-4)


def test_what_cannot_be_mapped_is_refused() -> None:
    lab, r = bench(), directions("gpt2")
    with pytest.raises(PromptError, match="A map is of one prompt, got 2"):
        projection_map(lab.model, r, ragged(2))
    same = mm.PromptSet([mm.Prompt("a", "w1 w2", memorized="w3 w4", generalized="w3 w5")])
    with pytest.raises(PromptError, match="begin with the same token"):
        margin_map(lab.model, same)
    with pytest.raises(EditError, match="no control 'noise'"):
        projection_map(lab.model, r, ragged(1), control="noise")


def test_a_site_at_which_the_classes_coincide_is_left_out() -> None:
    lab = bench()
    ends = mm.PromptSet(
        mm.Prompt(str(k), f"w{k + 1} w9", behavior=("memorized", "generalized")[k % 2])
        for k in range(8)
    )
    acts = mm.cache_activations(lab.model, ends, sites=[("resid_pre", 0), ("resid_post", 1)])
    r = mm.difference_of_means(acts, toward="generalized")
    assert set(projection_map(lab.model, r, ragged(1)).rows["stream"]) == {"resid_post"}
    nothing = mm.Directions({s: one for s, one in r.by_site.items() if s.stream == "resid_pre"})
    with pytest.raises(SiteError, match="The classes coincide"):
        projection_map(lab.model, nothing, ragged(1))
