"""Several studies on one page: nothing of any of them is lost, nothing is claimed of all."""

from __future__ import annotations

import pytest
from pages import open_page
from small_study import small_study

import mechmem as mm
from mechmem.reports.saved import load_study
from mechmem.studies import Together


@pytest.fixture(scope="module")
def both() -> Together:
    one = small_study()
    return Together(one.model, one.card, "both", 0, {"first": one, "second": one})


def test_each_keeps_its_tables_figures_and_words(both, tmp_path) -> None:
    one = small_study()
    mm.write_report(both, tmp_path)
    saved = load_study(tmp_path)
    for name in ("first", "second"):
        for key, table in one.tables().items():
            assert saved.table(f"{name}_{key}").shape == table.shape
        assert {f"{name}_{key}" for key in one.figures()} <= set(saved.figures())
        assert saved.manifest["parts"][name]["answer"] == one.answer()
        for line in (*one.notes(), *one.limits()):
            assert any(line in said for said in (*both.notes(), *both.limits()))
            assert f"{name}: {line}" in (*both.notes(), *both.limits())
    assert list(saved.summary().columns) == list(both.summary().columns)
    assert len(saved.summary()) == len(both.summary()) > 0
    assert (tmp_path / "artifacts" / "second" / "directions.json").exists()
    named = "First. {0} Second. {0}"
    assert saved.verdict == named.format(one.verdict.sentence)
    assert both.answer() == named.format(one.answer())


@pytest.mark.browser
def test_the_page_shows_every_figure_of_both(both, chromium, tmp_path) -> None:
    seen = open_page(chromium, mm.write_report(both, tmp_path))
    assert seen.console == []
    assert f'data-drawn="{2 * len(small_study().figures())}"' in seen.dom
