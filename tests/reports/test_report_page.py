"""The report: words that follow the numbers, a page that opens anywhere, files whole or not."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from pages import open_page
from small_study import LAYER, small_study

import mechmem as mm
from mechmem.analysis.intervals import Estimate
from mechmem.errors import ArtifactError
from mechmem.evaluation.rates import Rates
from mechmem.studies import saving
from mechmem.studies.verdict import verdict_of

HOSTILE = '</script><script>document.title="stolen"</script><img src=x onerror=alert(1)>\x07{{css}}'
BOTH = ("memorized", "generalized")


def answering(study: mm.Study, outcomes: dict[str, list[str]]) -> mm.Study:
    """The study as it would be, had the chosen edit led to these outcomes, and neither its refits
    nor draws of a control to anything."""
    best = study.sweep.best

    def ending(rates: Mapping[str, Rates], found: Mapping[str, list[str]]) -> dict[str, Rates]:
        return {
            toward: replace(part, after=replace(part.after, outcomes=tuple(found[toward])))
            for toward, part in rates.items()
        }

    idle = ending(best.rates, dict.fromkeys(BOTH, same(study)))
    drawn = {
        toward: {**named, "covariance direction": [idle[toward]] * 30}
        for toward, named in best.controls.items()
    }
    mine = replace(best, rates=ending(best.rates, outcomes), controls=drawn)
    found = replace(
        study.sweep,
        tested=[mine, *study.sweep.tested[1:]],
        refits=[[replace(best, rates=idle, controls={})]] * 19,
    )
    return replace(study, sweep=found, verdict=verdict_of(found, 19))


def same(study: mm.Study) -> list[str]:
    return list(study.sweep.before.outcomes)


def hostile(study: mm.Study) -> mm.Study:
    """The study with markup in every place where text comes from outside."""

    def spoiled(seen: mm.Observations) -> mm.Observations:
        prompts = mm.PromptSet(
            replace(p, text=HOSTILE, memorized=HOSTILE, spans={}) for p in seen.prompts
        )
        return replace(seen, prompts=prompts, completions=(HOSTILE,) * len(seen))

    tested = [
        replace(
            part,
            family=f"{part.family}{HOSTILE}",
            rates={
                toward: replace(rates, after=spoiled(rates.after))
                for toward, rates in part.rates.items()
            },
        )
        for part in study.sweep.tested
    ]
    assert study.tokens is not None
    return replace(
        study,
        model=replace(study.model, name=HOSTILE),
        task=HOSTILE,
        card={"design": HOSTILE, "planted": True},
        tokens=replace(study.tokens, rows=study.tokens.rows.assign(token=HOSTILE)),
        sweep=replace(study.sweep, before=spoiled(study.sweep.before), tested=tested),
    )


class Elements(HTMLParser):
    """Every element of a page with its attributes, and the text outside of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._within = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._within = tag

    def handle_data(self, data: str) -> None:
        if self._within not in ("script", "style"):
            self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._within = ""

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "out"
    assert mm.write_report(small_study(), folder) == folder / "report.html"
    return folder


@pytest.fixture(scope="module")
def page(saved: Path) -> str:
    return (saved / "report.html").read_text(encoding="utf-8")


def test_an_edit_that_does_nothing_is_called_that() -> None:
    study = small_study()
    study = answering(study, dict.fromkeys(BOTH, same(study)))
    assert "changed no answer" in study.answer()
    assert "Not turned: +0.0 points toward memorized" in study.answer()
    assert "19 of 19 did as much, p = 1)" in study.answer()
    assert study.headline() == "Not turned beyond refits on exchanged labels"


def test_an_edit_that_turns_everything_is_said_to_turn_both_ways() -> None:
    study = small_study()
    n = len(same(study))
    study = answering(study, {name: [name] * n for name in BOTH})
    text = study.answer()
    assert "memorized answers to 100 % [" in text
    assert "generalized answers to 100 %" in text
    assert "Turned both ways: +" in text
    assert "none of 19 did as much, p = 0.05" in text
    assert study.headline() == "Turned both ways, beyond refits on exchanged labels"


def test_a_search_that_found_nothing_is_called_that() -> None:
    study = small_study()
    assert not any("gained both ways" in note for note in study.notes())
    cells = [replace(cell, score=min(cell.score, 0.0)) for cell in study.sweep.cells]
    idle = replace(study, sweep=replace(study.sweep, cells=cells))
    assert f"None of the {len(cells)} settings tried gained both ways" in idle.notes()[0]


def test_a_one_way_effect_is_named_one_way() -> None:
    study = small_study()
    n = len(same(study))
    study = answering(study, {"memorized": same(study), "generalized": ["generalized"] * n})
    assert "Turned toward generalized, not shown toward memorized" in study.answer()
    assert study.headline() == "Turned toward generalized only, beyond refits on exchanged labels"


def test_without_refits_the_sentence_says_that_nothing_was_tested() -> None:
    study = small_study()
    untested = replace(study, verdict=verdict_of(replace(study.sweep, refits=[]), 0))
    assert untested.answer().endswith("Nothing was tested: no refits on exchanged labels were run.")
    assert untested.headline() == "Nothing was tested"


def test_the_published_form_is_told_with_its_p_among_the_refits_and_never_as_a_claim() -> None:
    study = small_study()
    best, *_ = study.sweep.tested
    form = replace(best, family="P1 as published")
    found = replace(study.sweep, tested=[best, form])
    for shuffles, told in ((19, "p = 1 against the best family of every refit."),
                           (0, "no refits tested it.")):  # fmt: skip
        refits = [[best, form]] * shuffles
        whole = replace(found, refits=refits)
        own = replace(study, sweep=whole, verdict=verdict_of(whole, shuffles))
        (note,) = [n for n in own.notes() if "the paper (P1) published it" in n]
        assert note.endswith(f"beyond the control that it beats by least; {told}")
        assert "(beyond" not in note
    assert any("only as far as the verdict goes" in line for line in study.limits())


def test_the_first_table_says_draws_spread_and_both_sizes_wherever_a_control_stands() -> None:
    best, shown = small_study().sweep.best, small_study().summary()
    want = []
    for toward in reversed(list(best.rates)):
        for name in best.controls[toward]:
            gap = best.beyond(toward, name)
            spread = "" if gap.draws < 2 else f", {100 * gap.spread:.1f}"
            want.append([f"{gap.draws}{spread}", f"{gap.size:.3g}, {gap.control_size:.3g}"])
    rows = shown[shown["setting"].str.startswith("  control: ")]
    assert rows[["draws, spread in points", "moved by edit, control"]].values.tolist() == want


def test_broken_answers_are_counted() -> None:
    study = small_study()
    before = same(study)
    broken = ["other"] * (len(before) // 2) + before[len(before) // 2 :]
    study = answering(study, {"memorized": broken, "generalized": before})
    assert any("50 % of the answers into other (toward memorized)" in n for n in study.notes())
    # What was neither before the edit was not turned into it.
    best = study.sweep.best
    rates = {
        toward: replace(part, before=part.after, after=part.after)
        for toward, part in best.rates.items()
    }
    found = replace(study.sweep, tested=[replace(best, rates=rates), *study.sweep.tested[1:]])
    assert not any("into other" in note for note in replace(study, sweep=found).notes())


def test_the_answer_is_one_sentence_that_says_what_was_planted() -> None:
    study = small_study()
    text = study.answer()
    assert study.card["planted"]
    assert "planted in training" in text
    assert "planted" not in replace(study, card={}).answer()
    assert text.count(". ") == 1  # the verdict is a sentence of its own
    assert text.endswith(".")


def test_the_notes_name_the_cost_and_the_published_form() -> None:
    study = small_study()
    text = " ".join(study.notes())
    rows = study.clean.set_index("setting")["accuracy"]
    assert f"was {100 * rows['unedited']:.0f} % unedited" in text
    assert f"{100 * rows['toward memorized']:.0f} % toward memorized" in text
    assert "the paper (P1) published" in text


def test_probes_no_better_than_the_input_are_no_evidence() -> None:
    study = small_study()

    def with_input(value: float) -> mm.Study:
        read = Estimate(0.8, 0.75, 0.85, 40, 20)
        given = Estimate(value, value - 0.05, value + 0.05, 40, 20)
        return replace(study, probes=replace(study.probes, chosen=read, input_only=given))

    assert any("Probes show nothing here" in note for note in with_input(0.76).notes())
    assert any("input tokens" in line for line in with_input(0.76).limits())
    assert any("probe reads the behavior in 80 %" in note for note in with_input(0.6).notes())
    assert not any("input tokens" in line for line in with_input(0.6).limits())
    guessing = replace(study.probes, chosen=Estimate(0.55, 0.45, 0.65, 40, 20))
    blind = replace(study, probes=replace(guessing, input_only=Estimate(0.5, 0.4, 0.6, 40, 20)))
    assert any("No probe reads the behavior: 55 %" in note for note in blind.notes())


def test_a_negative_control_with_an_effect_raises_doubt() -> None:
    study = small_study()
    n = len(same(study))
    idle = answering(study, dict.fromkeys(BOTH, same(study)))
    assert "not turned: +0.0 points" in replace(study, negative=idle).negative_note()
    assert "doubt" not in replace(study, negative=idle).negative_note()
    turned = answering(study, {name: [name] * n for name in BOTH})
    assert "Read the main result with doubt" in replace(study, negative=turned).negative_note()
    assert replace(study, negative=None).negative_note() == ""


def test_the_summary_is_recounted_from_the_outcomes() -> None:
    study = small_study()
    table = study.summary().set_index("setting")
    best = study.sweep.best

    def share(cell: str) -> float:
        return float(cell.split()[0]) / 100

    for toward, rates in best.rates.items():
        for outcome, count in Counter(rates.after.outcomes).items():
            cell = table.loc[f"toward {toward}", f"{outcome} %"]
            assert share(cell) == pytest.approx(count / len(rates.after), abs=6e-4)
    rows = list(study.summary()["setting"])
    at = rows.index("toward generalized")
    assert rows[0] == "unedited"
    below = [
        name.removeprefix("  control: ") for name in rows[at + 1 : rows.index("toward memorized")]
    ]
    assert below == list(best.controls["generalized"])
    assert any(name.startswith("P1 as published") for name in rows)


def test_the_named_figures_are_there_and_drawn_from_the_tables() -> None:
    study = small_study()
    figures, tables = study.figures(), study.tables()
    assert list(figures)[:2] == ["behavior_mix", "margins"]
    wanted = "rates dose_response neuron_map layer_distribution separation probes sweep"
    assert set(wanted.split()) <= set(figures)
    line = next(t for t in figures["separation"].data if t.name == "difference of means")
    np.testing.assert_array_equal(line.y, tables["separation"]["auroc"])
    np.testing.assert_array_equal(
        figures["layer_distribution"].data[0].y, tables["layer_distribution"]["share"]
    )


def test_the_dose_is_explained_with_the_names_of_the_classes(saved: Path) -> None:
    page = (saved / "report.html").read_text(encoding="utf-8")
    assert "to the left toward memorized; alpha" in page
    assert "that of memorized to the left" in page


def test_everything_is_saved_and_read_back(saved: Path) -> None:
    study = small_study()
    for name, table in study.tables().items():
        read = pd.read_csv(saved / "tables" / f"{name}.csv")
        assert list(read.columns) == list(table.columns), name
        assert len(read) == len(table), name
    scores = mm.NeuronScores.load(saved / "artifacts" / "neurons")
    for site, values in study.scores.mean_difference.items():
        assert scores.mean_difference[site].equal(values)
    directions = mm.analysis.Directions.load(saved / "artifacts" / "directions")
    assert directions.sites == study.directions.sites
    asked = mm.PromptSet.from_jsonl(saved / "artifacts" / "prompts_test.jsonl")
    assert asked.ids == study.sweep.before.prompts.ids
    assert [p.behavior for p in asked] == list(study.observed["test"].outcomes)
    manifest = json.loads((saved / "manifest.json").read_text(encoding="utf-8"))
    assert manifest["answer"] == study.answer()
    on_disk = {path.relative_to(saved).as_posix() for path in saved.rglob("*") if path.is_file()}
    assert set(manifest["files"]) == on_disk


def state(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_second_report_replaces_the_first_and_nothing_else(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    shutil.copytree(saved, folder)
    (folder / "tables" / "mine.csv").write_text("a note of my own")
    assert (folder / "tables" / "negative_test.csv").exists()
    mm.write_report(replace(small_study(), negative=None), folder)
    assert not (folder / "tables" / "negative_test.csv").exists()
    assert "No negative control" in (folder / "report.html").read_text(encoding="utf-8")
    assert (folder / "tables" / "mine.csv").read_text() == "a note of my own"
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]


def test_a_report_that_is_interrupted_leaves_the_earlier_one(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    shutil.copytree(saved, folder)
    before = state(folder)

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(saving, "_move_in", interrupted)
    for place in (folder, tmp_path / "new"):
        with pytest.raises(KeyboardInterrupt):
            mm.write_report(small_study(), place)
    assert state(folder) == before
    assert not (tmp_path / "new").exists()


def test_files_that_cannot_all_be_put_in_place_are_put_back(tmp_path: Path) -> None:
    target, draft = tmp_path / "out", tmp_path / "out" / ".draft"
    draft.mkdir(parents=True)
    for name in "abc":
        (draft / name).write_text("new")
    (target / "a").write_text("old")
    (target / "c" / "mine").mkdir(parents=True)
    (target / "old").write_text("of an earlier report")
    (target / "manifest.json").write_text(json.dumps({"files": ["old", "../outside", "/etc/x"]}))
    with pytest.raises(OSError, match="folder of its own"):
        saving._move_in(draft, target)
    assert (target / "a").read_text() == "old"
    assert not (target / "b").exists()
    assert (target / "c" / "mine").is_dir()
    assert (target / "old").read_text() == "of an earlier report"


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match=r"Cannot write .*file/out.*Choose a folder"):
        mm.write_report(small_study(), tmp_path / "file" / "out")
    with pytest.raises(ArtifactError, match="Cannot write"):
        mm.write_report(small_study(), tmp_path / "file")
    assert (tmp_path / "file").read_text() == "in the way"


def test_prompts_are_shown_with_their_own_white_space(page: str) -> None:
    """Every line break of a prompt once, and said to be one; the text shown is the prompt."""
    study = small_study()
    shown = re.findall(r'<th scope="row">\s*<span class="prompt">(.*?)</span><br>', page, re.DOTALL)
    flips = [p for pair in list(study.sweep.before.flips().by_group().values())[:5] for p in pair]
    assert [text.replace("<span class=soft>↵</span>", "") for text in shown] == [
        prompt.text for prompt in flips
    ]
    assert all(text.count("↵") == text.count("\n") > 0 for text in shown)


def test_the_page_says_the_answer_and_the_limits(page: str) -> None:
    study = small_study()
    text = Elements(page).text
    verdict = study.verdict.sentence
    assert text.count(verdict) >= 1
    assert study.answer().removesuffix(verdict).strip() in text
    assert all(note in text for note in study.notes())
    assert study.negative_note() in text
    for line in study.limits():
        assert line in text
    for cell in study.summary().to_numpy().ravel():
        assert str(cell).strip() in text


def test_the_first_line_is_the_verdict_and_refits_are_drawn(page: str, tmp_path: Path) -> None:
    study = small_study()
    assert f'<p class="verdict">{study.verdict.sentence}</p>' in page
    assert "figure-refits" in page
    untested = replace(study, verdict=verdict_of(replace(study.sweep, refits=[]), 0))
    text = mm.write_report(untested, tmp_path / "out").read_text(encoding="utf-8")
    assert '<p class="verdict">Nothing was tested' in text
    assert "No refits on exchanged labels stand behind this study" in text
    assert "figure-refits" not in text
    assert not (tmp_path / "out" / "tables" / "refits.csv").exists()


def test_the_page_holds_everything_it_needs(page: str) -> None:
    elements = Elements(page)
    assert page.count("Plotly.react(") == 1
    assert 4_000_000 < len(page) < 12_000_000
    for tag, attributes in elements.found:
        assert tag not in ("iframe", "object", "embed", "base"), tag
        assert "src" not in attributes, attributes
        link = attributes.get("href") or ""
        assert link.startswith(("#", "tables/", "data:,")) or not link, link
    assert elements.count("script") == 3
    assert "default-src 'none'" in page


def test_the_page_can_be_read_with_a_keyboard_and_by_ear(page: str) -> None:
    elements = Elements(page)
    ids = [attributes["id"] for _, attributes in elements.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    targets = {
        str(a["href"])[1:] for _, a in elements.found if str(a.get("href") or "").startswith("#")
    }
    assert targets
    assert targets <= set(ids)
    for tag, attributes in elements.found:
        if attributes.get("class") == "wide":
            assert attributes["tabindex"] == "0"
            assert attributes["aria-label"]
        if (attributes.get("class") or "") == "plot":
            assert attributes["aria-label"]
        if tag == "html":
            assert attributes["lang"] == "en"
    assert elements.count("summary") == elements.count("details") > 3
    assert elements.count("caption") == elements.count("table")
    for name in small_study().figures():
        assert f"figure-{name}" in ids


def test_text_from_outside_is_shown_and_never_run(tmp_path: Path) -> None:
    text = mm.write_report(hostile(small_study()), tmp_path).read_text(encoding="utf-8")
    elements = Elements(text)
    assert elements.count("script") == 3
    assert elements.count("img") == 0
    assert "<img src=x" not in text
    assert "\x07" not in text
    assert 'document.title="stolen"</script><img src=x onerror=alert(1)>' in elements.text
    assert elements.text.count("{{css}}") > 5


def test_the_page_opens_without_a_network_and_draws_every_figure(
    saved: Path, chromium: str
) -> None:
    seen = open_page(chromium, saved / "report.html")
    assert seen.console == []
    assert seen.requests == []
    figures = small_study().figures()
    assert f'data-drawn="{len(figures)}"' in seen.dom
    assert len(re.findall(r'class="plot js-plotly-plot', seen.dom)) == len(figures)
    drawn = Elements(seen.dom)
    assert sum("main-svg" in (a.get("class") or "") for _, a in drawn.found) >= len(figures)
    # Marks, not only axes: bars and points as paths, maps as images.
    assert sum(a.get("class") == "point" for _, a in drawn.found) > 50
    titles = re.findall(r'class="gtitle"[^>]*>([^<]+)<', seen.dom)
    assert {str(fig.layout.title.text) for fig in figures.values()} <= set(titles)


def test_a_hostile_page_stays_itself_in_the_browser(tmp_path: Path, chromium: str) -> None:
    seen = open_page(chromium, mm.write_report(hostile(small_study()), tmp_path))
    assert seen.console == []
    assert seen.requests == []
    title = re.search(r"<title>(.*?)</title>", seen.dom, re.DOTALL)
    assert title is not None
    assert title.group(1) != "stolen"
    assert 'data-drawn="' in seen.dom


def test_dark_readers_get_dark_figures(saved: Path, chromium: str) -> None:
    light = open_page(chromium, saved / "report.html", "--blink-settings=preferredColorScheme=1")
    dark = open_page(chromium, saved / "report.html", "--blink-settings=preferredColorScheme=0")
    paper = "background: rgb(20, 23, 28)"
    assert paper in dark.dom
    assert paper not in light.dom


def test_the_eye_on_the_page_sees_what_goes_wrong(tmp_path: Path, chromium: str) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text(
        "<script>fetch('http://elsewhere.invalid/a'); throw new Error('broken')</script>"
    )
    seen = open_page(chromium, bad)
    assert any("broken" in line for line in seen.console)
    assert any("elsewhere.invalid" in url for url in seen.requests)


def test_a_study_without_doses_has_a_page_without_their_figure(page: str, tmp_path: Path) -> None:
    study = replace(small_study(), dose=pd.DataFrame())
    assert "dose_response" not in study.figures()
    assert "dose" not in study.tables()
    told = "To the right the model is steered toward generalized"
    assert told in page
    assert told not in mm.write_report(study, tmp_path / "out").read_text(encoding="utf-8")


def token_spans(elements: Elements) -> list[dict[str, str | None]]:
    """The tokens of the examples; those of the legend have no title."""
    spans = [attributes for tag, attributes in elements.found if tag == "span"]
    return [a for a in spans if "tok" in (a.get("class") or "").split() and "title" in a]


def test_the_page_shows_the_projection_of_every_token_of_the_examples(page: str) -> None:
    """Recomputed from TransformerLens's own cache of the model, without mechmem's engine."""
    study = small_study()
    model = mm.load_model("lab/addition-cued")
    (tried,) = [t.edit for t in study.sweep.tested if isinstance(t.edit, mm.AddDirection)]
    vector = tried.direction.vector.double().numpy()
    middle = (tried.direction.toward_mean + tried.direction.away_mean) / 2
    seen = study.sweep.before
    flips = [p for pair in list(seen.flips().by_group().values())[:5] for p in pair[:2]]
    titles = iter(token_spans(Elements(page)))
    for prompt in flips:
        head = model.token_ids(prompt)
        text = seen.completions[seen.prompts.ids.index(prompt.id)]
        ids = [*head, *model.tokens.tokenizer(text, add_special_tokens=False)["input_ids"]]
        name = f"blocks.{LAYER[1]}.hook_resid_post"
        _, cache = model.tl.run_with_cache(torch.tensor([ids]), names_filter=[name])
        wanted = cache[name][0].double().numpy() @ vector / np.linalg.norm(vector) - middle
        for place, value in enumerate(wanted):
            part = "prompt" if place < len(head) else "completion"
            side = "generalized" if value > 0 else "memorized"
            found = next(titles)
            assert found["title"] == f"token {place}, {part}: {value:+.3g}, {side} side"
            assert f"var(--{side})" in str(found["style"])
            assert ("read" in str(found["class"])) == (place == len(head) - 1)
    assert next(titles, None) is None
    assert "right of the bar: what the model wrote" in page


def test_colors_of_tokens_grow_with_the_distance_from_zero(page: str) -> None:
    values, shares = [], []
    for attributes in token_spans(Elements(page)):
        values.append(abs(float(str(attributes["title"]).split(": ")[1].split(",")[0])))
        shares.append(float(str(attributes["style"]).split("--s:")[1].rstrip("%")))
    limit = np.quantile(np.abs(small_study().tokens.rows["from_middle"]), 0.95)
    np.testing.assert_allclose(shares, 55 * np.minimum(1, np.array(values) / limit), atol=0.8)


def test_tokens_are_closed_until_asked_for_and_open_in_print(saved: Path, chromium: str) -> None:
    seen = open_page(chromium, saved / "report.html")
    assert '<details class="tokens"><summary>' in seen.dom
    before, after = (f"dispatchEvent(new Event('{name}print'))" for name in ("before", "after"))
    text = (saved / "report.html").read_text(encoding="utf-8")
    asked = saved.parent / "printed.html"
    asked.write_text(with_script(text, before), encoding="utf-8")
    printed = open_page(chromium, asked)
    assert printed.console == []
    assert '<details class="tokens" open=""><summary>' in printed.dom
    asked.write_text(with_script(with_script(text, before), after), encoding="utf-8")
    assert '<details class="tokens"><summary>' in open_page(chromium, asked).dom


def test_a_script_that_somebody_has_added_does_not_run(saved: Path, chromium: str) -> None:
    text = (saved / "report.html").read_text(encoding="utf-8")
    asked = saved.parent / "added.html"
    ran = "document.title='ran'"
    added = f'<script>{ran}</script><img src=x onerror="{ran}"></body>'
    asked.write_text(text.replace("</body>", added), encoding="utf-8")
    seen = open_page(chromium, asked)
    assert "<title>ran" not in seen.dom
    assert "data-drawn" in seen.dom


def with_script(page: str, script: str) -> str:
    """A page with one more script, which its policy allows."""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    return page.replace("</body>", f"<script>{script}</script></body>")


def test_a_study_without_token_projections_has_a_page_without_them(tmp_path: Path) -> None:
    study = replace(small_study(), tokens=None)
    assert "tokens" not in study.tables()
    text = mm.write_report(study, tmp_path / "out").read_text(encoding="utf-8")
    assert "token by token" not in text
