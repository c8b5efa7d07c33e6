"""A sort of study from outside the package: one class and one template."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import plotly.graph_objects as go
import pytest
from pages import open_page
from small_study import small_study

import mechmem as mm
from mechmem.reports.saved import load_study
from mechmem.studies.base import STUDIES

TEMPLATE = """
{% extends "study.html" %}
{% set title, question = "fair?", "Is this coin fair?" %}
{% set sections = {"throws": "The throws", "limits": "Limits", "methods": "Methods"} %}
{% set methods = {"Coin": manifest["coin"]} %}
{% block throws %}
{% call parts.figure("heads", parts.table(tables["throws"], "Every throw", folded="Numbers")) %}
How often heads came.
{% endcall %}
{% endblock %}
"""


@pytest.fixture
def coin(tmp_path: Path):
    (tmp_path / "coin.html").write_text(TEMPLATE)

    @dataclass(frozen=True)
    class CoinStudy(mm.Study):
        kind = "coin"
        template = tmp_path / "coin.html"

        heads: int
        throws: int

        def headline(self):
            return "Fair" if 2 * self.heads == self.throws else "Not shown to be fair"

        def answer(self):
            return f"Heads came {self.heads} of {self.throws} times."

        def tables(self):
            throws = ["heads"] * self.heads + ["<b>tails</b>"] * (self.throws - self.heads)
            return {"throws": pd.DataFrame({"throw": throws, "n": range(self.throws)})}

        def figures(self):
            return {"heads": go.Figure(go.Bar(x=["heads"], y=[self.heads]))}

        def details(self):
            return {"coin": "a <i>penny</i>"}

    model = replace(small_study().model, name="no model")
    yield CoinStudy(model, {}, "throwing", 0, 3, 6)
    del STUDIES["coin"]


def test_one_class_and_one_template_make_a_report(coin, tmp_path, chromium):
    page = mm.write_report(coin, tmp_path / "out")
    text = page.read_text(encoding="utf-8")
    for shown in (
        "Is this coin fair?",
        "Fair",
        "Heads came 3 of 6 times.",
        "How often heads came.",
    ):
        assert shown in text
    assert '<a href="#throws">The throws</a>' in text
    assert "a &lt;i&gt;penny&lt;/i&gt;" in text
    assert "&lt;b&gt;tails&lt;/b&gt;" in text
    assert "<title>no model, throwing: fair?</title>" in text
    seen = open_page(chromium, page)
    assert seen.console == []
    assert seen.requests == []
    assert 'data-drawn="1"' in seen.dom
    pd.testing.assert_frame_equal(coin.summary(), coin.tables()["throws"])


def test_it_is_read_back_and_its_page_written_again(coin, tmp_path):
    page = mm.write_report(coin, tmp_path / "out").read_bytes()
    saved = load_study(tmp_path / "out")
    assert (saved.kind, saved.verdict, saved.names) == ("coin", "Fair.", ["throws"])
    assert saved.figures()["heads"].data[0].y[0] == 3
    (tmp_path / "out" / "report.html").unlink()
    assert mm.write_report(tmp_path / "out").read_bytes() == page


def test_a_page_that_fails_leaves_a_saved_study(coin, tmp_path):
    coin.template.write_text(TEMPLATE.replace('manifest["coin"]', 'manifest["medal"]'))
    with pytest.raises(mm.ArtifactError, match="medal"):
        mm.write_report(coin, tmp_path / "out")
    assert load_study(tmp_path / "out").names == ["throws"]
    assert not (tmp_path / "out" / "report.html").exists()
