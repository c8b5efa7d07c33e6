"""The scripts that write pages read what a study saves today, and count claims by its verdict."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from small_study import small_study

from mechmem.studies.saving import seal_manifest

PAGES = Path(__file__).parent.parent.parent / "docs" / "pages"


@pytest.fixture
def pages(monkeypatch):
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(PAGES))
    import paper_lab
    import paper_studies
    import reproduction_p1

    yield paper_lab, paper_studies, reproduction_p1
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == PAGES:
            sys.modules.pop(name)


@pytest.fixture
def entries(pages, tmp_path) -> list:
    """The small study under the names of the paper's tasks."""
    study = replace(small_study(), negative=None)
    made = [pages[0].Entry(task, None, tmp_path) for task in pages[0].TASKS]
    for entry in made:
        study.save(entry.results / "study")
    return made


def test_every_section_is_written_from_saved_tables(pages, entries) -> None:
    _, studies, claims = pages
    for section in (studies.depth, studies.steering, studies.controls, studies.probing):
        text = section(entries)
        assert text.startswith("## ")
        assert text.count("| lab/") >= len(entries)
        assert "nan" not in text
    found = [(entry, entry.study()) for entry in entries]
    for claim in (claims.early, claims.last, claims.classifier, claims.intervention, claims.ways):
        (name, _, here), text = claim(found)
        assert name in text
        assert here
        assert here not in text  # said once, in the overview


def test_a_family_counts_only_by_its_rank_among_enough_refits(pages, entries) -> None:
    lab, studies, claims = pages
    own = small_study().verdict.family_p[claims.OWN]
    assert entries[0].verdict()["family_p"][claims.OWN] == pytest.approx(own)
    few = {"shuffles": 3, "family_p": {"a": 0.01}}
    assert not lab.claims(few, "a")
    assert lab.claims({**few, "shuffles": 19}, "a")
    assert not lab.claims({**few, "shuffles": 19}, "b")
    assert not lab.claims({"shuffles": 19, "family_p": {"a": 0.1}}, "a")
    assert "0 of 1" in studies.steering(entries)  # three refits can claim nothing
    file = entries[0].results / "study" / "manifest.json"
    manifest = json.loads(file.read_text(encoding="utf-8"))
    manifest["refits"] |= {"shuffles": 19, "family_p": {claims.OWN: 0.05}}
    seal_manifest(manifest, file.parent)
    (_, _, here), _ = claims.intervention([(entry, entry.study()) for entry in entries])
    assert "`cipher` 1 of 1" in here
    assert "`colors` 0 of 1" in here


def test_the_numbers_are_those_of_the_study(pages, entries) -> None:
    text = pages[1].steering(entries)
    for tested in small_study().sweep.tested:
        for toward, rates in tested.rates.items():
            change = rates.change(tested.goal(toward))
            assert pages[0].points((change.value, change.low, change.high)) in text
