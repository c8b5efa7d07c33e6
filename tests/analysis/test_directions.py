from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import as_users_run_it, bench, close, contrast_set, made_states

import mechmem as mm

SITES = [("resid_post", 0), ("mlp_post", 1)]


def _case(n: int = 31, positions: int = 1, seed: int = 0, classes=("memorized", "generalized")):
    rng = np.random.default_rng(seed)
    names = [classes[k] for k in rng.integers(0, len(classes), n)]
    arrays = {
        SITES[0]: rng.normal(size=(n, positions, 6)) * 3 + 1,
        SITES[1]: rng.normal(size=(n, positions, 4)),
    }
    for array in arrays.values():
        array[[name == classes[0] for name in names]] += rng.normal(size=array.shape[1:])
    return arrays, names


class TestDifferenceOfMeans:
    def test_it_is_the_numpy_difference_at_every_site(self) -> None:
        arrays, names = _case()
        found = mm.difference_of_means(made_states(arrays, names), toward="generalized")
        one = np.array([name == "generalized" for name in names])
        for site in SITES:
            data = arrays[site][:, 0]
            want = data[one].mean(0) - data[~one].mean(0)
            close(found[site], want, 1e-12)
            assert np.asarray(found[site]).dtype == np.float64
            unit = want / np.linalg.norm(want)
            close(found[site].unit, unit, 1e-12)
            close(found[site].norm, np.linalg.norm(want), 1e-12)
            close(found[site].toward_mean, (data[one] @ unit).mean(), 1e-12)
            close(found[site].away_mean, (data[~one] @ unit).mean(), 1e-12)
            close(found[site].project(torch.tensor(data)), data @ unit, 1e-12)

    def test_toward_the_other_class_is_the_opposite(self) -> None:
        acts = made_states(*_case())
        one = mm.difference_of_means(acts, toward="generalized")
        other = mm.difference_of_means(acts, toward="memorized")
        for site in SITES:
            assert torch.equal(one[site].vector, -other[site].vector)
            assert (one[site].toward, one[site].away) == ("generalized", "memorized")

    def test_of_three_classes_the_two_named_are_compared(self) -> None:
        arrays, names = _case(60, classes=("memorized", "generalized", "other"))
        acts = made_states(arrays, names)
        found = mm.difference_of_means(acts, toward="memorized", away="other")
        data = arrays[SITES[0]][:, 0]
        pick = {name: np.array([other == name for other in names]) for name in set(names)}
        close(found[SITES[0]], data[pick["memorized"]].mean(0) - data[pick["other"]].mean(0), 1e-12)
        with pytest.raises(mm.PromptError, match=r"say away="):
            mm.difference_of_means(acts, toward="memorized")

    def test_moments_and_stored_states_agree_on_a_model(self) -> None:
        lab, prompts = bench(), contrast_set()
        acts = mm.cache_activations(lab.model, prompts)
        mom = mm.cache_moments(lab.model, prompts, by="label")
        stored = mm.difference_of_means(acts, toward="reasoning", by="label")
        streamed = mm.difference_of_means(mom, toward="reasoning")
        for direction in stored:
            close(streamed[direction.site], direction, 1e-5)

    def test_it_remembers_what_it_saw(self) -> None:
        arrays, names = _case(8)
        acts = made_states(arrays, names)
        direction = mm.difference_of_means(acts, toward="memorized")[SITES[0]]
        assert direction.provenance.seen == acts.provenance.seen
        assert dict(direction.provenance.counts) == {
            name: names.count(name) for name in ("memorized", "generalized")
        }

    def test_save_and_load(self, tmp_path) -> None:
        found = mm.difference_of_means(made_states(*_case()), toward="memorized")
        back = mm.Directions.load(found.save(tmp_path / "r"))
        assert back.sites == found.sites
        for one, other in zip(found, back, strict=True):
            assert torch.equal(one.vector, other.vector)
            assert (one.toward, one.away, one.toward_mean, one.away_mean, one.provenance) == (
                other.toward,
                other.away,
                other.toward_mean,
                other.away_mean,
                other.provenance,
            )


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"toward_mean": float("inf")}, "toward_mean of the direction"),
            ({"away_mean": torch.tensor(1.0)}, "away_mean of the direction"),
            ({"boundary": float("nan")}, "boundary of the direction"),
            ({"reader": torch.zeros(3)}, "reader and center"),
            ({"reader": torch.zeros(3), "center": torch.zeros(3)}, "reader and center"),
        ],
    )
    def test_numbers_that_are_none(self, changes, message) -> None:
        first = next(iter(mm.difference_of_means(made_states(*_case()), toward="memorized")))
        with as_users_run_it(), pytest.raises(mm.SiteError, match=message):
            replace(first, **changes)

    def test_what_does_not_belong_together(self) -> None:
        acts = made_states(*_case())
        there, back = (mm.difference_of_means(acts, toward=t) for t in ("memorized", "generalized"))
        one, other = there.sites[:2]
        with pytest.raises(mm.SiteError, match="one class from one other"):
            mm.Directions({one: there[one], other: back[other]})
        with pytest.raises(mm.SiteError, match="one method"):
            mm.Directions({one: there[one], other: replace(there[other], method="mine")})
        with pytest.raises(mm.SiteError, match="is that of"):
            mm.Directions({one: there[other]})

    def test_settings_that_no_file_holds(self, tmp_path) -> None:
        first = next(iter(mm.difference_of_means(made_states(*_case()), toward="memorized")))
        for value in (float("nan"), torch.zeros(1)):
            odd = mm.Directions({first.site: replace(first, settings={"a": value})})
            with pytest.raises(mm.ArtifactError, match="cannot be written"):
                odd.save(tmp_path / "r")
        assert list(tmp_path.iterdir()) == []
        same = replace(first, reader=first.vector, center=first.vector)
        kept = mm.Directions({first.site: same}).save(tmp_path / "r")
        assert torch.equal(mm.Directions.load(kept)[first.site].center, first.vector)

    def test_a_class_that_nobody_showed(self) -> None:
        acts = made_states(*_case())
        with pytest.raises(mm.PromptError, match=r"'reasoning'; the classes are 'generalized'"):
            mm.difference_of_means(acts, toward="reasoning")

    def test_several_positions(self) -> None:
        arrays, names = _case(positions=2)
        acts = made_states(arrays, names, columns=("cue[0]", "last"), positions=["cue", "last"])
        with pytest.raises(mm.PositionError, match=r"'cue\[0\]', 'last'.*acts\.at\('last'\)"):
            mm.difference_of_means(acts, toward="memorized")
        at_last = mm.difference_of_means(acts.at("last"), toward="memorized")
        one = np.array([name == "memorized" for name in names])
        data = arrays[SITES[0]][:, 1]
        close(at_last[SITES[0]], data[one].mean(0) - data[~one].mean(0), 1e-12)

    def test_states_that_are_not_finite(self) -> None:
        arrays, names = _case()
        arrays[SITES[1]][3, 0, 2] = np.nan
        with pytest.raises(mm.PromptError, match=r"mlp_post\[1\].*not finite"):
            mm.difference_of_means(made_states(arrays, names), toward="memorized")

    def test_no_examples_at_all(self) -> None:
        with pytest.raises(mm.PromptError, match=r"set is empty"):
            mm.difference_of_means(made_states({SITES[0]: np.zeros((0, 1, 2))}, []), toward="x")

    def test_a_zero_direction_points_nowhere(self) -> None:
        acts = made_states({SITES[0]: np.ones((4, 1, 3))}, ["memorized", "generalized"] * 2)
        direction = mm.difference_of_means(acts, toward="memorized")[SITES[0]]
        with pytest.raises(mm.SiteError, match=r"resid_post\[0\] is zero.*coincide"):
            direction.unit  # noqa: B018

    def test_the_wrong_width_or_site(self) -> None:
        found = mm.difference_of_means(made_states(*_case()), toward="memorized")
        with pytest.raises(mm.SiteError, match=r"width 5.*resid_post\[0\].*width 6"):
            found[SITES[0]].project(torch.zeros(2, 5))
        with pytest.raises(mm.SiteError, match=r"No direction at \('resid_post', 7\)"):
            found["resid_post", 7]
