"""The open page on a model without a study: what is fitted there, and what where nothing can be."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import Any

import numpy as np
from window import Window

import mechmem as mm
from mechmem.app import open_page
from mechmem.app.page import Page
from mechmem.app.source import Source
from mechmem.app.view import View

LONG = 300.0
OWN = "3 + 4 + 5 + 6 \n Now Alice says Target:"


def test_a_model_alone_is_asked_but_has_nothing_to_turn_with() -> None:
    alone = Page(Source(None, mm.load_model("lab/addition-cued"), mm.get_task("addition-cued")))
    alone.source.task = None
    alone.source.model = replace(alone.source.model, card={})
    first = replace(
        alone.source.first_view(), texts=("1 + 2 + 3 + 4 \n Now Alice says Target:",),
        memorized="9", generalized="10", map="margin",
    )  # fmt: skip
    assert first.live
    assert alone.job("ask", first, "w", LONG).value[1] is None
    assert not alone.job("map", first, "w", LONG).error
    assert "needs a direction" in alone.job("turn", first, "w", LONG).error
    alone.worker.close()


def test_a_model_without_a_study_offers_its_sites_and_questions() -> None:
    alone = Page(Source(None, mm.load_model("lab/addition-cued")))
    shown = threading.Event()  # nothing is fitted before the page was seen
    alone.worker.ask("gate", "no window", "gate", "a gate", lambda _: shown.wait())
    opened = Window(alone)
    assert opened.get("question-field", "hidden")
    shown.set()
    opened.settle()
    fitted = [site.key for site in alone.live().directions.sites]
    assert [one["value"] for one in opened.get("site", "options")] == fitted
    assert opened.get("site") == fitted[len(fitted) // 2]
    assert not opened.get("question-field", "hidden")
    assert opened.get("question") == opened.get("question", "options")[0]
    assert "Unedited" in opened.text("columns")
    assert alone.source.prompts[0]["text"] in alone.live().known
    view = replace(View.from_dict(opened.get("view", "data")), site="")
    edit, _ = alone.live().edit(view)
    assert edit.direction.site.key == fitted[len(fitted) // 2]
    alone.worker.close()


def test_labeled_questions_are_fitted_by_their_label_as_a_study_does() -> None:
    opened = open_page(model="lab/recall-reasoning", port=0)
    try:
        one = Window(opened.page)
        one.settle()
        assert opened.page.source.classes == ("memory", "reasoning")
        assert one.get("question")
        one.click("ask")
        one.settle()
        turned = opened.page.done("turn", View.from_dict(one.get("view", "data")))
        names: dict[str, Any] = {}
        exec(one.text("lines"), names)
        np.testing.assert_allclose(names["edited"].margins, turned.edit.margins, atol=1e-5)
        assert "input words alone predict: " in one.text("said-0")
        assert {p.label for p in names["fit"]} == {"memory", "reasoning"}
    finally:
        opened.close()


def test_where_nothing_can_be_fitted_prompts_can_still_be_asked() -> None:
    task = mm.get_task("addition-cued")
    task.contrast = lambda prompts: prompts[:0]  # type: ignore[method-assign]
    opened = open_page(model="lab/addition-cued", task=task, port=0)
    try:
        one = Window(opened.page)
        one.type(wording_0=OWN, memorized="17", generalized="18")
        one.click("ask")
        one.settle()
        assert "nats toward" in one.text("said-0")
        assert "An edit needs a direction, and too few contrasted" in one.text("columns")
    finally:
        opened.close()
