"""Long calls show where they are, on stderr only; one switch silences all of them."""

from __future__ import annotations

import re

import pytest
from helpers import bench, contrast_set

import mechmem as mm
from mechmem import progress
from mechmem.cli.app import progress_bar
from mechmem.sweeps import cells


@pytest.fixture
def at_once(monkeypatch):
    monkeypatch.setattr(progress, "DELAY", 0.0)
    monkeypatch.setattr(progress, "LOGGED", 0.0)
    monkeypatch.delenv(progress.SWITCH, raising=False)


@pytest.fixture(scope="module")
def lab():
    return bench("llama")


def edits(lab):
    acts = mm.cache_activations(lab.model, contrast_set(seed=3))
    r = mm.difference_of_means(acts, toward="generalized")
    return acts, [mm.AddDirection(r["resid_post", 0], alpha=a) for a in (1.0, 2.0)]


def test_every_long_call_says_what_it_does_and_how_long_it_will_take(lab, at_once, capsys) -> None:
    calls = {
        "writing": lambda: mm.observe(lab.model, contrast_set(), margins=False),
        "reading": lambda: mm.cache_activations(lab.model, contrast_set()),
        "logits": lambda: mm.observe(lab.model, contrast_set(), reading="choice"),
        "fitting probes": lambda: mm.fit_probes(mm.cache_activations(lab.model, contrast_set())),
    }
    for what, call in calls.items():
        call()
        shown = capsys.readouterr()
        assert shown.out == ""
        assert re.search(rf"{what}: +\d+%.*\d+/\d+ \[\d\d:\d\d<", shown.err), what


def test_a_sweep_has_one_bar_for_all_its_edits(lab, at_once, capsys) -> None:
    _, tried = edits(lab)
    capsys.readouterr()
    run = cells.CellRun(lab.model, None)
    run.run([cells.Setting(edit) for edit in tried], contrast_set(seed=9))
    shown = capsys.readouterr().err
    assert "trying edits" in shown
    assert "writing" not in shown


def test_one_switch_silences_all_of_it(lab, at_once, capsys, monkeypatch) -> None:
    monkeypatch.setenv(progress.SWITCH, "0")
    mm.observe(lab.model, contrast_set())
    mm.fit_probes(mm.cache_activations(lab.model, contrast_set(), progress=True))
    assert capsys.readouterr().err == ""
    with progress_bar("loading") as bar:
        bar.set_description_str("reading")
    assert capsys.readouterr().err == ""


def test_what_is_done_in_two_seconds_shows_nothing(lab, capsys, monkeypatch) -> None:
    monkeypatch.delenv(progress.SWITCH, raising=False)
    monkeypatch.setattr(progress, "DELAY", 60.0)
    mm.observe(lab.model, contrast_set())
    assert capsys.readouterr().err == ""


def test_a_bar_that_was_left_by_an_error_hides_none_that_follow(at_once, capsys) -> None:
    with pytest.raises(KeyError), progress.tracked(2, "broken"):
        raise KeyError
    capsys.readouterr()
    with progress.tracked(1, "whole") as more:
        more(1)
    assert "whole" in capsys.readouterr().err
