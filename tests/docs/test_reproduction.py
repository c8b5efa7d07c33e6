"""The page of what holds says what the pages that it quotes say, and links where they are."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture
def p2(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS / "pages"))
    import reproduction_p2

    yield reproduction_p2
    for name in ("reproduction_p2", "helper"):
        sys.modules.pop(name, None)


def test_its_part_on_the_second_paper_is_what_the_pages_say_today(p2) -> None:
    assert p2.p2(DOCS) in (DOCS / "reproduction.md").read_text(encoding="utf-8")


def test_a_table_is_read_cell_by_cell(p2) -> None:
    page = "## One\n\n| a | b |\n|---|---|\n| 1 | x - y |\n| 2 | z |\n\n## Two\n\n| a |\n|---|\n"
    assert p2.tables_of(page, "One") == [[{"a": "1", "b": "x - y"}, {"a": "2", "b": "z"}]]
    assert p2.tables_of(page, "Two") == [[]]
    assert p2.tables_of(page, "Three") == []


def test_a_long_table_goes_to_a_file_as_it_stands_and_a_short_one_stays(p2, tmp_path) -> None:
    import helper

    rows = [f"| {k}, a | {k} % [0.0, -1.5] |" for k in range(helper.LONG)]
    long = "\n".join(["| name | x, y |", "|---|---|", *rows])
    short = "\n".join(["| name |", "|---|", "| 1 |"])
    page = tmp_path / "a-page.md"
    text = f"# A page\n\n## One two\n\n{long}\n\nsaid\n\n{long}\n\n## Kept\n\n{long}\n\n{short}\n"
    helper.write_page(page, text, keep=("Kept",))
    written = page.read_text(encoding="utf-8")
    assert written.count(long) == 1
    assert f"## Kept\n\n{long}\n\n{short}\n" in written
    assert re.findall(r"\((a-page/.+?)\)", written) == ["a-page/one-two.csv", "a-page/one-two2.csv"]
    (expected,) = p2.tables_of(text, "Kept")[:1]
    for name in ("one-two.csv", "one-two2.csv"):
        assert helper.read_csv(tmp_path / "a-page" / name) == expected
    helper.write_page(page, written, keep=("Kept",))
    assert page.read_text(encoding="utf-8") == written


def test_every_claim_of_the_overview_has_its_section() -> None:
    page = (DOCS / "reproduction.md").read_text(encoding="utf-8")
    glance = page.partition("## P1 at a glance")[2].partition("\n## ")[0]
    claims = re.findall(r"^\| (.+?) \|", glance, flags=re.M)[2:]
    sections = re.findall(r"^### (.+)$", page, flags=re.M)
    unmeasured = [claim for claim in claims if claim not in sections]
    assert len(sections) >= 9
    assert len(unmeasured) == 1  # it says itself that it was not measured
    assert "**not measured**" in next(row for row in glance.splitlines() if unmeasured[0] in row)
