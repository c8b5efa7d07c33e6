"""Each part of the open page without a browser: its numbers, its words, its refusals."""

from __future__ import annotations

import io
import json
import re
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from app_scene import names_of, page, saved, text_of
from small_study import LAYER

import mechmem as mm
from mechmem.app import show
from mechmem.app.callbacks import step
from mechmem.app.downloads import report
from mechmem.app.downloads import saved as kept
from mechmem.app.layout import layout
from mechmem.app.lines import python
from mechmem.app.live import Live
from mechmem.app.loading import load_live
from mechmem.app.source import Source
from mechmem.app.view import EDITS, View
from mechmem.errors import ArtifactError, MechmemError, ModelError
from mechmem.reports.saved import load_study
from mechmem.studies.saving import write_manifest

LONG = 300.0
HOSTILE = [
    "<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "{{7*7}}", "${7*7}", "%s%n",
    "'; DROP TABLE x; --", "\"><svg/onload=alert(1)>", "javascript:alert(1)", "\x00", "\x1b[31m",
    "\u202egnitirw", "\ud800", "a" * 3000, "[x](javascript:1)", "&lt;b&gt;", "\\", "\n\n\n",
    "😀", "../../etc/passwd", "</title></style></textarea>",
]  # fmt: skip


@pytest.fixture(scope="module")
def view() -> View:
    first = page().source.first_view()
    return replace(first, live=True, site=f"{LAYER[0]}.{LAYER[1]}", texts=first.texts[:4])


def result(panel: str, view: View):
    job = page().job(panel, view, "test", LONG)
    assert job.done.is_set()
    return job


def value(panel: str, view: View):
    job = result(panel, view)
    assert not job.error, job.error
    return job.value


def test_a_saved_study_shows_its_verdict_and_what_it_observed_without_a_model() -> None:
    source = Source(load_study(saved()))
    first = source.first_view()
    whole = text_of(layout(source))
    assert source.study.verdict in whole
    assert "Planted mode" in whole
    assert all(line in whole for line in source.study.manifest["limits"])
    table = source.study.table("observations_test").set_index("prompt")
    said, below = page().words(first, "w")
    for text, one in zip(first.texts, said, strict=False):
        row = table.loc[text]
        assert row["completion"].strip() in text_of(one)
        assert row["behavior"] in text_of(one)
        assert f"{abs(row['margin']):.2f} nats toward" in text_of(one)
    assert "the model is not loaded" in text_of(below.parts)
    assert page()._live is None or first.live is False


def test_words_are_those_of_the_api(view) -> None:
    seen, words, table = value("ask", view)
    live = page().live()
    prompts = live.prompts(view)
    own = mm.observe(mm.load_model("lab/addition-cued"), prompts, task=live.task)
    assert seen.completions == own.completions
    np.testing.assert_allclose(seen.margins, own.margins, atol=1e-5)
    flips = mm.PromptSet.from_jsonl(saved() / "artifacts" / "flips.jsonl")
    fitted = mm.analysis.fit_input_words(live.model, flips)
    pd.testing.assert_frame_equal(words, fitted.predict(live.model, prompts))
    said, below = page().words(view, "test")
    for k, one in enumerate(said[: len(seen)]):
        assert f"input words alone predict: {words['predicted'][k]}" in text_of(one)
        assert show.nats(own.margins[k], seen.behaviors) in text_of(one)
    for row in table.itertuples():
        assert show.share_with_interval(row) in text_of(below.parts)
        assert row.share == seen.outcomes.count(row.outcome) / len(seen)


def test_the_map_is_the_api_s_and_says_where_it_shows(view) -> None:
    live = page().live()
    one = live.prompts(view)[:1]
    found = value("map", view)
    own = mm.evaluation.projection_map(live.model, live.directions, one)
    pd.testing.assert_frame_equal(found.rows, own.rows)
    figure, neurons, below = page().map(view, "test", "dark")
    z = np.array(figure.data[0].z, dtype=float)
    inside = (own.rows["value"] >= own.rows["band_low"]) & (
        own.rows["value"] <= own.rows["band_high"]
    )
    assert (z.ravel() == 0).sum() == inside.sum()  # the band of chance is blank
    np.testing.assert_allclose(
        np.abs(z.ravel())[~inside.to_numpy()], np.abs(own.rows["value"][~inside])
    )
    last = own.rows[own.rows["position"] == own.rows["position"].max()]
    out = last[(last["value"] < last["band_low"]) | (last["value"] > last["band_high"])]
    assert all(f"{row.stream} {row.layer}" in text_of(below.parts) for row in out.itertuples())
    scores = mm.NeuronScores.load(saved() / "artifacts" / "neurons").table()
    ranks = scores["correlation"].abs().rank(ascending=False, method="min")
    mine = scores.assign(rank=ranks)[scores["layer"] == LAYER[1]].nsmallest(10, "rank")
    table = live.neurons(view)
    assert list(table["rank"]) == list(mine["rank"].astype(int))
    assert str(table["neuron"].iloc[0]) in text_of(neurons)
    margin = value("map", replace(view, map="margin"))
    assert margin.rows["value"].iloc[-1] == pytest.approx(
        value("ask", view)[0].margins[0], abs=1e-4
    )


@pytest.mark.parametrize("kind", EDITS)
def test_the_lines_that_are_shown_give_what_is_shown(kind, view) -> None:
    view = replace(view, kind=kind, strength=-1.5, texts=view.texts[:2])
    turned = value("turn", view)
    names: dict[str, object] = {}
    exec(turned.lines, names)
    for own, seen in (
        (names["unedited"], turned.before),
        (names["edited"], turned.edit),
        (names["controlled"], turned.control),
    ):
        assert own.completions == seen.completions
        assert own.outcomes == seen.outcomes
        np.testing.assert_allclose(own.margins, seen.margins, atol=1e-5)
    assert names["edited"].moved == pytest.approx(turned.reports[0].moved, rel=1e-5)


def test_the_control_moves_the_states_as_far_as_the_edit(view) -> None:
    edit, control = value("turn", view).reports
    assert control.moved == pytest.approx(edit.moved, rel=1e-4)
    r = page().live().directions[LAYER]
    assert edit.moved == pytest.approx(abs(view.strength) * r.norm, rel=1e-4)


def test_strength_0_is_the_unedited_model(view) -> None:
    turned = value("turn", replace(view, strength=0.0))
    np.testing.assert_array_equal(turned.edit.margins, turned.before.margins)
    np.testing.assert_array_equal(turned.control.margins, turned.before.margins)


def test_a_conditional_edit_says_where_it_stayed_closed(view) -> None:
    turned = value("turn", replace(view, kind="add where"))
    (fired,) = turned.reports[0].fired
    assert fired.closed > 0
    assert f"stayed closed at {fired.closed} tokens" in text_of(show.fired(turned.reports[0]))


def test_the_columns_stand_together_and_changed_words_are_marked(view) -> None:
    turned = value("turn", replace(view, strength=3.0))
    cost = value("cost", replace(view, strength=3.0))
    parts = show.columns(turned, cost, "")
    text = text_of(parts)
    heads = text_of(parts.children[1])
    assert heads.index("Unedited") < heads.index("Edited") < heads.index("Control: ")
    moved = sum(
        show.changed(a, b) != [False] * len(b.split())
        for one in (turned.edit, turned.control)
        for a, b in zip(turned.before.completions, one.completions, strict=True)
    )
    assert names_of(parts).count("Mark") == moved
    for k in (1, 2):
        assert f"{cost['value'].iloc[k]:.3f} nats" in text
    assert show.changed("a b c", "a x c d") == [False, True, False, True]


def test_kl_is_that_of_the_next_token_on_neutral_prompts(view) -> None:
    cost, live = value("cost", view), page().live()
    edit, _ = live.edit(view)
    plain = live.model.logits(live.neutral).double().log_softmax(-1)
    with mm.patched(live.model, edit) as edited:
        now = edited.logits(live.neutral).double().log_softmax(-1)
    wanted = float((plain.exp() * (plain - now)).sum(1).mean())
    assert cost["value"].iloc[1] == pytest.approx(wanted, rel=1e-4)
    assert cost["value"].iloc[0] == 0.0


def test_the_dose_response_is_recomputed_one_by_one(view) -> None:
    view = replace(view, texts=view.texts[:2])
    table, live = value("dose", view), page().live()
    prompts = live.prompts(view)
    for strength in (-3.0, 0.5):
        edit, _ = live.edit(replace(view, strength=strength))
        own = mm.evaluate(live.model, prompts, task=live.task, edit=edit).after
        row = table[(table["strength"] == strength) & (table["kind"] == "edit")].iloc[0]
        assert row["margin"] == pytest.approx(own.margins.mean(), abs=1e-4)
        assert row["share"] == own.outcomes.count(view.toward) / 2
        draws = [
            mm.evaluate(
                live.model, prompts, task=live.task,
                edit=mm.controls(edit, live.model, seed=k)[table["control"][0]],
            ).after.margins.mean()
            for k in range(10)
        ]  # fmt: skip
        band = table[(table["strength"] == strength) & (table["kind"] == "control")].iloc[0]
        np.testing.assert_allclose(
            [band["margin_low"], band["margin_high"]], np.quantile(draws, (0.025, 0.975)), atol=1e-4
        )
    figure = show.dose(table, 1.0, page().source.classes, "memorized", "light")
    assert list(figure.data[2].y) == list(table[table["kind"] == "edit"]["margin"])


def test_own_prompts_are_asked_and_a_prompt_that_was_fitted_on_is_refused(view) -> None:
    typed = replace(
        view, texts=("1 + 2 + 3 + 4 \n Now Alice says Target:",), memorized="9", generalized="10"
    )
    seen, _, _ = value("ask", typed)
    assert seen.prompts[0].group == "typed"
    flips = mm.PromptSet.from_jsonl(saved() / "artifacts" / "flips.jsonl")
    fitted = replace(
        view, texts=(flips[0].text,), memorized=flips[0].memorized, generalized=flips[0].generalized
    )
    refused = result("turn", fitted)
    assert "fitting or choosing has seen" in refused.error
    below, _ = page().turn(fitted, "test")
    assert refused.error in text_of(below.parts)
    nothing = result("ask", replace(view, texts=()))
    assert "There is no prompt yet" in nothing.error


@pytest.mark.parametrize("text", HOSTILE)
def test_prompt_text_is_data_everywhere(text, view) -> None:
    odd = replace(view, texts=(text, "1 + 2"), memorized=text or "x", generalized="3")
    assert View.from_link(odd.link()) == odd
    job = result("ask", odd)
    said, below = page().words(odd, "test")
    for part in (*said, below.parts):
        shown = text_of(part)
        assert all(ch.isprintable() or ch == "\n" for ch in shown)
        assert not {"Script", "Iframe", "ObjectEl"} & set(names_of(part))
    json.dumps(
        [one.to_plotly_json() if hasattr(one, "to_plotly_json") else one for one in said],
        default=lambda o: o.to_plotly_json(),
    ).encode("utf-8")
    if not job.error:
        turned = result("turn", odd)
        if not turned.error:
            names: dict[str, object] = {}
            exec(turned.value.lines, names)
            assert names["prompts"][0].text == text
            written = report(page(), odd)
            assert "<script>alert" not in written
            assert "<img src=x" not in written


def test_what_is_kept_can_be_read_again(view) -> None:
    for panel in ("ask", "map", "everywhere", "turn", "cost", "beyond", "dose"):
        value(panel, view)
    name, packed = kept(page(), "save-csv", view, "test")
    assert name.endswith(".zip")
    with zipfile.ZipFile(io.BytesIO(packed)) as files:
        tables = {n: pd.read_csv(files.open(n)) for n in files.namelist() if n.endswith(".csv")}
        assert View.from_dict(json.loads(files.read("view.json"))) == view
        assert files.read("this.py").decode() == value("turn", view).lines + "\n"
    np.testing.assert_allclose(tables["dose.csv"]["margin"], value("dose", view)["margin"])
    np.testing.assert_allclose(tables["edited.csv"]["margin"], value("turn", view).edit.margins)
    name, packed = kept(page(), "save-report", view, "test")
    written = packed.decode()
    sentences = [*page().map_found(view), page().turn_found(view)]
    assert len(sentences) == 3
    assert re.search("its control: |The wrong way: ", sentences[-1])
    mapped, turned = page().map(view, "test", "light")[2], page().turn(view, "test")[0]
    for sentence in sentences:
        assert sentence in written
        assert sentence in text_of([mapped.parts, turned.parts])
    assert page().source.verdict in written
    assert re.search(r"http-equiv=.Content-Security-Policy", written)
    r = page().live().directions[LAYER]
    sign = 1 if view.toward == r.toward else -1
    name, packed = kept(page(), "save-vector1", view, "test")
    assert name == f"{LAYER[0]}.{LAYER[1]}.pt"
    vector = torch.load(io.BytesIO(packed), weights_only=True)["layer_activations"][LAYER[1]]
    torch.testing.assert_close(vector, (r.vector * sign * view.strength).float())
    for button in ("save-vector0", "save-vector2"):
        assert kept(page(), button, view, "test")[1]
    with pytest.raises(MechmemError, match="block 0"):
        kept(page(), "save-vector0", replace(view, site="resid_post.0"), "test")
    with pytest.raises(MechmemError, match="Nothing has been computed yet"):
        kept(page(), "save-csv", replace(view, texts=("other",)), "test")


def test_every_control_leads_to_a_view(view) -> None:
    source = page().source
    set_ = {
        "wordings": ["a", "", "b"], "memorized": "m", "generalized": None, "toward": "memorized",
        "strength": "2.5", "kind": "set", "site": "resid_post.2", "positions": "all",
        "map": "margin", "shown": "1",
        "click": {"points": [{"x": 3, "y": "resid_post 2"}]}, "question": source.groups()[1],
    }  # fmt: skip
    asked = step(source, view, "ask", set_)
    assert (asked.texts, asked.memorized, asked.generalized) == (("a", "b"), "m", "")
    clicked = step(source, view, "map-figure", set_)
    assert (clicked.site, clicked.where) == ("resid_post.2", 3)
    assert step(source, view, "strength", set_).strength == 2.5
    for name in ("toward", "kind", "site", "positions", "map"):
        assert getattr(step(source, view, name, set_), name) == set_[name]
    other = step(source, view, "question", set_)
    assert other.texts == tuple(p["text"] for p in source.wordings(set_["question"]))
    link = step(source, view, "address", {"address": clicked.link()})
    assert link == clicked


def test_a_position_that_is_no_number_is_refused_in_words(view) -> None:
    assert "Unknown position '--3'" in result("turn", replace(view, positions="--3")).error


def test_a_wording_of_a_study_in_chats_is_asked_in_the_same_chat(view) -> None:
    chat = mm.Chat(system="Be brief.")
    one = mm.Prompt("a", "1 + 2", memorized="3", generalized="4", chat=chat)
    head = {"model": "model", "task": "task", "vector": "r"}
    live = Live(page().live().model, None, None, None, None, mm.PromptSet([one]), head)
    asked = replace(view, texts=("1 + 2", "2 + 1"), memorized="3", generalized="4")
    prompts = live.prompts(asked)
    assert [prompt.chat for prompt in prompts] == [chat, chat]
    names: dict[str, object] = {"model": None, "task": None, "r": None}
    made = python(head, prompts, "r", "c").partition("prompts = ")[2].partition("\n\n")[0]
    exec(f"import mechmem as mm\nprompts = {made}", names)
    assert names["prompts"] == prompts


def test_a_study_of_a_model_that_is_not_here_says_so_and_fetches_nothing(tmp_path) -> None:
    study = load_study(saved())
    manifest = {**study.manifest, "model": {**study.manifest["model"], "name": "some/where"}}
    with pytest.raises(ModelError, match="a page fetches nothing"):
        load_live(Source(replace(study, manifest=manifest)))
    with pytest.raises(ArtifactError, match="holds no study"):
        mm.open(tmp_path)
    with pytest.raises(MechmemError, match="nothing to open"):
        mm.open()


def test_wordings_of_the_study_keep_answers_of_their_own(view) -> None:
    one, two = (
        mm.Prompt(f"q{k}", f"w{k} w1", group="entity", memorized=f"{k}", generalized=f"{k + 1}")
        for k in (3, 7)
    )
    live = Live(page().live().model, None, None, None, None, mm.PromptSet([one, two]), {})
    asked = replace(view, texts=(one.text, two.text), memorized="3", generalized="4")
    assert live.prompts(asked) == mm.PromptSet([one, two])
    typed = live.prompts(replace(asked, memorized="9"))  # the fields were changed
    assert {p.memorized for p in typed} == {"9"}


def test_a_study_by_choice_is_read_by_choice(tmp_path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(saved(), folder)
    held = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    rule = {"within": 0.5, "length": "mean"}
    write_manifest({**held, "reading": "choice", "choice": rule}, folder)
    live = load_live(Source(load_study(folder)))
    assert live.task.choice == mm.Choice(**rule)
    assert "with_reading" in live.head["task"]
    assert "mm.Choice(within=0.5, length='mean')" in live.head["task"]
    own = Live(live.model, None, None, None, None, None, {}, live.task.choice)
    prompts = live.prompts(replace(page().source.first_view(), live=True))
    assert own.reader(prompts).choice == live.task.choice
