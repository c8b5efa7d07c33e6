"""The page of what holds says what the pages that it quotes say, and links where they are."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

DOCS = Path(__file__).parent.parent.parent / "docs"


@pytest.fixture
def p2(monkeypatch):
    monkeypatch.syspath_prepend(str(DOCS))
    import reproduction_p2

    yield reproduction_p2
    sys.modules.pop("reproduction_p2", None)


def test_its_part_on_the_second_paper_is_what_the_pages_say_today(p2) -> None:
    assert p2.p2(DOCS) in (DOCS / "reproduction.md").read_text(encoding="utf-8")


def test_a_table_is_read_cell_by_cell(p2) -> None:
    page = "## One\n\n| a | b |\n|---|---|\n| 1 | x - y |\n| 2 | z |\n\n## Two\n\n| a |\n|---|\n"
    assert p2.tables_of(page, "One") == [[{"a": "1", "b": "x - y"}, {"a": "2", "b": "z"}]]
    assert p2.tables_of(page, "Two") == [[]]
    assert p2.tables_of(page, "Three") == []


def test_every_claim_of_the_overview_has_its_section() -> None:
    page = (DOCS / "reproduction.md").read_text(encoding="utf-8")
    glance = page.partition("## P1 at a glance")[2].partition("\n## ")[0]
    claims = re.findall(r"^\| (.+?) \|", glance, flags=re.M)[2:]
    sections = re.findall(r"^### (.+)$", page, flags=re.M)
    unmeasured = [claim for claim in claims if claim not in sections]
    assert len(sections) >= 9
    assert len(unmeasured) == 1  # it says itself that it was not measured
    assert "**not measured**" in next(row for row in glance.splitlines() if unmeasured[0] in row)
