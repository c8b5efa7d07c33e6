"""The callbacks of the open page, run by its own server: what a click brings and what it spares."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import plotly.graph_objects as go
import pytest
from app_scene import page, saved
from window import Window

import mechmem as mm
from mechmem.app import layout, open_page, show
from mechmem.app.page import Page
from mechmem.app.source import Source
from mechmem.app.view import View
from mechmem.patching import exporting
from mechmem.reports.saved import load_study

OWN = "3 + 4 + 5 + 6 \n Now Alice says Target:"


@pytest.fixture
def window() -> Window:
    opened = Window(page())
    opened.click("own")
    opened.type(wording_0=OWN, memorized="17", generalized="18")
    opened.click("ask")
    opened.settle()
    return opened


def kinds(asked: list[str]) -> list[str]:
    """Which parts of the page were computed again."""
    known = {
        "said-0.children": "words", "map-figure.figure": "map", "columns.children": "turn",
        "dose.children": "dose",
    }  # fmt: skip
    return [part for one in asked for name, part in known.items() if name in one]


def test_a_window_opens_on_the_edit_that_the_study_chose() -> None:
    manifest = load_study(saved()).manifest
    (chosen,) = [one for one in manifest["chosen"] if one["edit"] == "AddDirection"]
    first = page().source.first_view()
    assert first.strength == chosen["alpha"]
    assert (first.site, first.toward) == (chosen["direction"], chosen["toward"])
    opened = Window(page())
    assert float(opened.get("strength")) == chosen["alpha"]
    assert opened.text("strength-said") == f"{chosen['alpha']:g}"


def test_a_slide_computes_the_columns_alone_and_does_not_move_the_slider(window: Window) -> None:
    window.asked.clear()
    window.told.clear()
    window.set("strength", 2.4)
    assert "strength" not in {name for told in window.told for name in told}
    assert kinds(window.asked) == ["turn"]
    assert len(window.asked) <= 2
    window.asked.clear()
    window.settle()
    assert not {"words", "map"} & set(kinds(window.asked))
    window.asked.clear()
    window.set("tick", 10_000, "n_intervals")
    assert len(window.asked) == 1  # the look at the line
    assert View.from_dict(window.get("view", "data")).strength == 2.4


def test_two_controls_that_change_at_once_both_count(window: Window) -> None:
    window.props |= {("site", "value"): "resid_post.2", ("kind", "value"): "remove"}
    window._follow(["site.value", "kind.value"])
    view = View.from_dict(window.get("view", "data"))
    assert (view.site, view.kind) == ("resid_post.2", "remove")


def test_the_unedited_model_is_asked_once(window: Window, monkeypatch: Any) -> None:
    from mechmem.app import live as module

    asked = []
    real = module.observe
    monkeypatch.setattr(module, "observe", lambda *a, **k: asked.append(a[0]) or real(*a, **k))
    window.set("strength", -1.9)
    window.settle()
    plain = [model for model in asked if not getattr(model, "interventions", ())]
    assert len(asked) == 2
    assert plain == []


def test_a_map_of_another_prompt_is_dimmed_until_the_new_one_is_there(window: Window) -> None:
    assert window.get("map-all", "className") == ""
    before = window.text("map-found")
    window.told.clear()
    window.type(wording_0="9 + 9 + 9 + 9 \n Now Alice says Target:", memorized="35")
    window.click("ask")
    assert window.told[0]["map-all"]["className"] == "stale"
    assert window.told[0]["dose"]["className"] == "stale"
    window.settle()
    assert window.get("map-all", "className") == window.get("dose", "className") == ""
    assert window.text("map-found") != before or window.get("map-figure", "figure")


def test_every_token_can_be_chosen_without_the_map(window: Window) -> None:
    live = page().live()
    tokens = live.model.tokens.pieces(live.model.encode([mm.Prompt("x", OWN)]).rows[0].ids)
    options = window.get("positions", "options")
    assert [one["value"] for one in options[4:]] == [str(k) for k in range(len(tokens))]
    assert options[5]["label"] == f"token 1: {show.visible(tokens[1])}"
    window.set("positions", "5")
    window.settle()
    assert "positions=5" in window.text("lines")


def test_my_own_prompt_empties_the_fields_and_computes_nothing(window: Window) -> None:
    opened = Window(page())
    assert opened.get("wording-1")
    opened.asked.clear()
    opened.click("own")
    assert [opened.get(f"wording-{k}") for k in range(8)] == [""] * 8
    assert [opened.get(f"row-{k}", "hidden") for k in range(8)] == [False, *[True] * 7]
    assert opened.get("memorized") == opened.get("generalized") == ""
    assert opened.get("question") is None
    assert kinds(opened.asked) == []
    assert "begins with neither answer" not in window.text("shares")
    window.type(memorized="a", generalized="b")
    window.click("ask")
    window.settle()
    assert "begins with neither answer" in window.text("shares")


def test_an_empty_prompt_is_refused_once(window: Window) -> None:
    window.click("own")
    window.click("ask")
    window.settle()
    said = [window.text(name) for name in ("shares", "map-found", "columns", "dose")]
    assert [text.count("There is no prompt yet") for text in said] == [1, 0, 0, 0]


def test_one_answer_says_why_there_is_no_dose(window: Window) -> None:
    window.type(memorized="")
    window.click("ask")
    window.settle()
    assert window.text("dose") == "no margin: two answers are needed"


def test_it_says_whether_the_push_did_more_than_all_draws_of_its_control(window: Window) -> None:
    for strength in (1.7, 3.0):
        window.set("strength", strength)
        window.settle()
        view, live = View.from_dict(window.get("view", "data")), page().live()
        edit, _ = live.edit(view)
        prompts, name = live.prompts(view), live.control(view)

        def margin(one: Any, prompts: Any = prompts, live: Any = live) -> float:
            done = mm.evaluate(live.model, prompts, task=live.task, edit=one)
            return float(done.after.margins.mean())

        drawn = [margin(mm.controls(edit, live.model, seed=k)[name]) for k in range(39)]
        among = min(drawn) <= margin(edit) <= max(drawn)
        said = (
            f"at strength {strength:g} the edit lies {'among' if among else 'beyond all'} 39 draws"
        )
        assert said in window.text("columns")


def test_what_was_stopped_is_done_when_it_is_asked_for_again(window: Window) -> None:
    window.set("strength", 0.3)
    page().worker.stop(window.get("window", "data"))
    window.settle()
    window.set("strength", 0.4)
    window.settle()
    assert "Stopped." not in window.text("columns") + window.text("dose")
    view = View.from_dict(window.get("view", "data"))
    key = page().key("turn", view)
    with page().worker._changed:
        page().worker._results[key].error = "Stopped."
    window.click("ask")
    window.settle()
    assert "Stopped." not in window.text("columns")


def test_a_layer_is_counted_over_all_wordings() -> None:
    opened = Window(page())
    opened.click("ask")
    opened.settle()
    view, live = View.from_dict(opened.get("view", "data")), page().live()
    counts: dict[str, int] = {}
    for prompt in live.prompts(view):
        rows = mm.evaluation.projection_map(live.model, live.directions, [prompt]).rows
        for row in rows[rows["position"] == rows["position"].max()].itertuples():
            name = f"{row.stream} {row.layer}"
            out = row.value < row.band_low or row.value > row.band_high
            counts[name] = counts.get(name, 0) + out
    said = opened.text("map-found")
    assert f"of {len(view.texts)}" in said
    assert all((f"{name} in {count}" in said) == (count > 0) for name, count in counts.items())
    opened.set("map", "margin")
    opened.settle()
    margin = live.ask(view).margins[0]
    assert f"After the last layer it is {abs(margin):.2f} nats toward" in opened.text("map-found")
    assert "shows neither side" not in opened.text("map-found")


def test_no_figure_offers_to_be_shared(tmp_path: Path) -> None:
    opened = Window(page())
    (config,) = [value for (_, prop), value in opened.props.items() if prop == "config"]
    assert config == show.graph(go.Figure(), "x", "y").children.config
    (buttons,) = config["modeBarButtons"]
    assert set(buttons) == {"toImage", "zoom2d", "pan2d", "resetScale2d"}
    written = mm.plotting.save_figure(go.Figure(), tmp_path / "x.html").read_text(encoding="utf-8")
    assert '"modeBarButtons"' in written.rsplit("Plotly.newPlot", 1)[1]


def test_an_own_question_is_read_for_no_longer_than_its_answers_take() -> None:
    held = page().live()
    alone = Page(Source(load_study(saved())))
    live = alone.live()
    live.task = None
    view = replace(
        alone.source.first_view(), texts=(OWN,), memorized="17", generalized="18", live=True
    )
    reader = live.reader(live.prompts(view))
    assert reader.max_new_tokens == 3  # an answer of the lab model is one token
    assert held.reader(held.prompts(view)).max_new_tokens == held.task.max_new_tokens
    turned = live.turn(view)
    names: dict[str, object] = {}
    exec(turned.lines, names)
    assert names["edited"].completions == turned.edit.completions
    alone.worker.close()


def test_a_page_on_a_study_of_this_process_leaves_no_folder() -> None:
    from small_study import small_study

    opened = open_page(small_study(), port=0)
    folder = Path(opened.page.source.study.folder)
    assert folder.exists()
    opened.close()
    assert not folder.exists()


def test_every_format_of_a_vector_can_be_saved() -> None:
    assert layout.VECTOR_SUFFIXES == exporting.VECTOR_SUFFIXES


def test_small_words() -> None:
    rows = pd.DataFrame(
        {
            "strength": 1.5, "kind": ["edit", "control"], "margin": [4.0, 0.0],
            "margin_least": [4.0, -1.0], "margin_most": [4.0, 1.0], "draws": [1, 39],
        }
    )  # fmt: skip
    classes = ("memorized", "generalized")
    said = "at strength 1.5 the edit lies beyond all 39 draws"
    assert show.beyond_words(rows, classes, "memorized") == (
        f"More than its control: {said}, on the memorized side (1 in 40 by chance)."
    )
    assert "(2 in 40 by chance)" in show.beyond_words(rows, classes)
    assert show.beyond_words(rows, classes, "generalized") == (
        f"The wrong way: {said} on the memorized side."
    )
    inside = rows.assign(margin=[0.5, 0.0])
    assert show.beyond_words(inside, classes, "memorized").startswith("No more than its control: ")
    assert show.beyond_words(rows.assign(draws=1), ("a", "b")) == ""
    assert (show.plural(1, "token"), show.plural(2, "token")) == ("1 token", "2 tokens")


def test_on_nothing_a_push_does_more_than_its_control_once_in_forty_times() -> None:
    """The edit is one more draw; 2,000 at 1 in 40: 25 or fewer, or 80 or more, 1 in 20,000."""
    rng, hits = np.random.default_rng(0), 0
    for own, *drawn in rng.standard_normal((2000, 40)):
        rows = pd.DataFrame(
            {
                "strength": 1.0, "kind": ["edit", "control"], "margin": [own, np.mean(drawn)],
                "margin_least": min(drawn), "margin_most": max(drawn), "draws": [1, 39],
            }
        )  # fmt: skip
        said = show.beyond_words(rows, ("memorized", "generalized"), "generalized")
        hits += said.startswith("More than its control")
    assert 25 < hits < 80


def test_what_lies_on_the_other_side_is_said() -> None:
    view = replace(page().source.first_view(), live=True, strength=1.0)
    turned = page().job("turn", view, "sides", 120.0).value
    gap = float((turned.edit.margins - turned.before.margins).mean())
    classes = turned.before.behaviors
    went, other = classes[int(gap < 0)], classes[int(gap > 0)]
    assert f"nats toward {went}, away from {other}; " not in show.moved_words(turned, went)
    assert f"nats toward {went}, away from {other}. " in show.moved_words(turned, other)
    found = page().job("map", view, "sides", 120.0).value
    last = found.rows[found.rows["position"] == found.rows["position"].max()]
    one_side = last.assign(value=abs(last["value"]) + 1, band_low=-0.1, band_high=0.1)
    shown = replace(found, rows=one_side)
    assert "which this does not explain" not in show.map_words(shown, found.toward)
    assert f"Its answer is {found.away} all the same" in show.map_words(shown, found.away)


def test_a_push_that_moves_nothing_says_so() -> None:
    view = replace(page().source.first_view(), live=True, strength=0.0)
    job = page().job("turn", view, "still", 120.0)
    assert "nats toward" not in show.moved_words(job.value)
    assert "margin unchanged" in show.moved_words(job.value)
