"""A saved study without its model: tables, page, and several side by side."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from helpers import close
from pages import open_page
from small_study import small_study

import mechmem as mm
from mechmem.reports.compare import compare_studies
from mechmem.reports.saved import load_study
from mechmem.studies.saving import write_manifest
from mechmem.studies.table_files import read_table, write_tables


def sealed_again(folder: Path, **changed: object) -> None:
    """By somebody who knows how: the digests fit what lies there now."""
    write_manifest({**json.loads((folder / "manifest.json").read_text()), **changed}, folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The study, and the same as if another model and seed had been asked, half as strongly."""
    root = tmp_path_factory.mktemp("studies")
    study = small_study()
    mm.write_report(study, root / "one")
    mm.write_report(study, root / "two")
    file = root / "two" / "tables" / "beyond_controls.csv"
    frame = pd.read_csv(file)
    columns = ["beyond_every_control", "beyond_every_control_low", "beyond_every_control_high"]
    frame[columns] = frame[columns] - frame["beyond_every_control_low"].max() - 0.01
    frame.to_csv(file, index=False)
    model = {**study.model.as_dict(), "name": "another <b>model</b>"}
    sealed_again(root / "two", model=model, seed=7)
    return root / "one", root / "two"


def test_a_saved_study_gives_its_tables_and_answer_back(folders):
    study, saved = small_study(), load_study(folders[0])
    assert (saved.model, saved.task, saved.seed) == ("lab/addition-cued", "addition-cued", 0)
    assert saved.answer() == study.answer()
    assert saved.kind == "behavior"
    tables = study.tables()
    assert set(saved.names) == set(tables)
    for name in ("test", "beyond_controls", "probes", "separation", "validation"):
        for column in tables[name].select_dtypes("number"):
            back, want = saved.table(name)[column], tables[name][column]
            np.testing.assert_allclose(back.astype(float), want.astype(float), rtol=1e-12)


def test_text_comes_back_as_text_and_numbers_as_numbers(folders, tmp_path):
    folder = shutil.copytree(folders[0], tmp_path / "study")
    shutil.rmtree(folder / "tables")
    texts = ["None", "NA", "null", "nan", "", " ", "007", "1.50", "True", 'a "b",\nc']
    number = [0.1, float("nan"), -1e-300, float("inf"), 1 / 3, 2.0, 3.0, 4.0, 5.0, 1e17]
    table = pd.DataFrame(
        {"id": [f"{k:03d}" for k in range(10)], "completion": texts, "share": number,
         "n": range(10), "right": [True, False] * 5, "label": ["NA", None, *["7"] * 8],
         "mixed": ["", None, *["7"] * 8]}
    )  # fmt: skip
    write_tables({"mine": table, "other": table[["n"]]}, folder / "tables")
    sealed_again(folder)
    saved = load_study(folder)
    assert saved.names == ["mine", "other"]
    back = saved.table("mine")
    for name in ("id", "completion", "share", "n", "right", "label"):
        both = zip(back[name], table[name], strict=True)
        assert all(a == b or (pd.isna(a) and pd.isna(b)) for a, b in both), name
    assert back["mixed"].tolist() == ["", "", *["7"] * 8]
    assert (back["share"].dtype, back["n"].dtype) == (np.dtype(float), np.dtype(int))
    for said in ("[]", '{"mine": "text"}', '{"mine": []}'):
        (folder / "tables" / "columns.json").write_text(said)
        with pytest.raises(mm.ArtifactError, match=r"columns\.json was changed"):
            load_study(folder).table("mine")
        sealed_again(folder)
        with pytest.raises(mm.ArtifactError, match="Save the study again"):
            load_study(folder).table("mine")
    (folder / "tables" / "columns.json").unlink()
    with pytest.raises(mm.ArtifactError, match=r"columns\.json cannot be read"):
        load_study(folder).table("mine")


def test_what_was_changed_after_it_was_saved_is_refused(folders, tmp_path):
    folder = shutil.copytree(folders[0], tmp_path / "study")
    for name, read in (
        ("tables/test.csv", lambda: load_study(folder).table("test")),
        ("figures/rates.json", lambda: load_study(folder).figures()),
        ("manifest.json", lambda: load_study(folder)),
    ):
        whole = (folder / name).read_text()
        (folder / name).write_text(whole.replace("0", "1", 1))
        with pytest.raises(mm.ArtifactError, match="was changed after it was"):
            read()
        (folder / name).write_text(whole)
        read()
    (folder / "tables" / "more.csv").write_text("a\n1\n")
    assert "more" not in load_study(folder).names


def test_every_text_of_a_study_comes_back(folders):
    for name, table in small_study().tables().items():
        back = load_study(folders[0]).table(name)
        for column in table:
            if any(isinstance(value, str) for value in table[column]):
                want = ["" if pd.isna(v) else str(v) for v in table[column]]
                assert ["" if pd.isna(v) else v for v in back[column]] == want, (name, column)


def test_the_report_is_put_together_again_as_it_was(folders, tmp_path):
    folder = shutil.copytree(folders[0], tmp_path / "study")
    page = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert mm.write_report(folder) == folder / "report.html"
    assert (folder / "report.html").read_bytes() == page
    small_study().save(folder)  # without a page, which takes the old one away
    assert not (folder / "report.html").exists()
    mm.write_report(load_study(folder))
    assert (folder / "report.html").read_bytes() == page
    small_study().save(folder)  # the page that was written later is known to be the study's own
    assert not (folder / "report.html").exists()


def test_two_studies_lie_side_by_side(folders):
    found = compare_studies(folders[::-1])
    assert found.labels == ["another <b>model</b>, seed 7", "lab/addition-cued, seed 0"]
    table = found.table()
    best = small_study().sweep.best
    mine = table[table["study"] == found.labels[1]].set_index("toward")
    for toward in best.rates:
        gap = best.beyond_every_control(toward)
        row = mine.loc[toward]
        close(
            [row["beyond"], row["beyond_low"], row["beyond_high"]],
            [gap.value, gap.low, gap.high],
            1e-12,
        )
        assert (row["n"], row["groups"]) == (gap.n, gap.groups)
        judged = ("draws", "spread", "rank", "size", "control_size")
        close(row[list(judged)].astype(float), [getattr(gap, name) for name in judged], 1e-9)
    turned = int((mine["beyond_low"] > 0).sum())
    text = found._count()
    assert f"{turned} of 2 went beyond every control toward" in text or turned == 2
    assert "0 of 2 studies with refits turned the model toward memorized" in text
    note = folders[0] / "manifest.json"
    kept = note.read_text()
    found_p = {"any": 0.05, "both": 0.3, "memorized": 0.05, "generalized": 0.3}
    refits = {"shuffles": 19, "turned": ["memorized"], "p": found_p}
    sealed_again(folders[0], refits=refits)
    text = compare_studies(folders)._count()
    note.write_text(kept)
    assert "1 of 2 studies with refits turned the model toward memorized" in text
    assert "0 of 2 studies with refits turned the model toward generalized" in text
    mix = found.mix()
    plain = small_study().observed["test"]
    shares = mix[mix["study"] == found.labels[1]].set_index("outcome")["share"]
    close(shares["memorized"], plain.outcomes.count("memorized") / len(plain), 1e-12)


def test_studies_that_differ_in_nothing_are_told_apart_by_folder(folders, tmp_path):
    folder = shutil.copytree(folders[0], tmp_path / "again")
    labels = compare_studies([folders[0], folder]).labels
    assert labels == ["lab/addition-cued (one)", "lab/addition-cued (again)"]


def test_the_page_of_a_comparison_opens_offline_and_shows_every_figure(folders, tmp_path, chromium):
    found = compare_studies(folders)
    page = found.save(tmp_path / "compare.html")
    assert "another <b>model" not in page.read_text()
    seen = open_page(chromium, page)
    assert seen.console == []
    assert seen.requests == []
    drawn = found.figures()
    assert set(drawn) == {"effects", "mix", "separation", "probes"}
    assert f'data-drawn="{len(drawn)}"' in seen.dom
    titles = re.findall(r'class="gtitle"[^>]*>([^<]+)<', seen.dom)
    assert {str(fig.layout.title.text) for fig in drawn.values()} <= set(titles)


def test_what_is_no_study_is_refused_in_words(folders, tmp_path):
    for make, words in [
        (lambda place: None, "manifest.json is missing"),
        (lambda place: (place / "manifest.json").write_text("{}"), "model"),
        (lambda place: (place / "manifest.json").write_text("{"), "as the manifest of a study"),
    ]:
        make(tmp_path)
        with pytest.raises(mm.ArtifactError, match=words):
            load_study(tmp_path)
    with pytest.raises(mm.ArtifactError, match="at least two"):
        compare_studies(folders[:1])
    with pytest.raises(mm.ArtifactError, match="Did you mean 'probes'"):
        load_study(folders[0]).table("probe")


def test_a_folder_that_lacks_what_the_page_shows_is_refused_and_keeps_its_page(folders, tmp_path):
    def spoiled(name, change):
        folder = shutil.copytree(folders[0], tmp_path / name)
        change(folder)
        with pytest.raises(mm.ArtifactError) as caught:
            mm.write_report(folder)
        assert (folder / "report.html").read_bytes() == (folders[0] / "report.html").read_bytes()
        return str(caught.value)

    def manifest(**changed):
        def write(folder):
            sealed_again(folder, **changed)

        return write

    def figure(text):
        def write(folder):
            (folder / "figures/rates.json").write_text(text)
            sealed_again(folder)

        return write

    others = ("{", "[]", "3", '{"data": []}', '{"data": [{"type": "x"}], "layout": {}}')
    for k, text in enumerate(others):
        assert "not a plotly figure" in spoiled(f"other {k}", figure(text))
    assert "rates" in spoiled("figure", lambda f: (f / "figures/rates.json").unlink())
    assert "summary" in spoiled("table", lambda f: (f / "tables/summary.csv").unlink())
    assert "run the study again" in spoiled("older", manifest(chosen=[]))
    assert "run the study again" in spoiled("words", manifest(splits="none", steered=3))
    assert "of the kind 'page'" in spoiled("kind", manifest(study="page"))
    assert "of the kind '../x'" in spoiled("path", manifest(study="../x"))
    with pytest.raises(mm.MechmemError, match="needs a folder"):
        mm.write_report(small_study())
    with pytest.raises(mm.MechmemError, match="lies beside its tables"):
        mm.write_report(folders[0], tmp_path / "elsewhere")


HOSTILE = '</script><script>document.title="stolen"</script><img src=x onerror=alert(1)>\x07{{7*7}}'


def test_the_folder_of_a_stranger_is_data(folders, tmp_path, chromium):
    """Markup in every text of every table, of the manifest and of every figure."""

    def hostile(value):
        if isinstance(value, dict):
            return {name: hostile(part) for name, part in value.items()}
        if isinstance(value, list):
            return [hostile(part) for part in value]
        return f"{value}{HOSTILE}" if isinstance(value, str) else value

    folder = shutil.copytree(folders[0], tmp_path / "study")
    kept = {"study", "seed", "files", "digest", "digests", "steered", "splits", "classes"}
    note = json.loads((folder / "manifest.json").read_text())
    note = {name: part if name in kept else hostile(part) for name, part in note.items()}
    sealed_again(folder, **note)
    study = load_study(folder)
    keys = {"id", "setting", "toward", "part", "stream", "flip", "group"}
    write_tables(
        {
            name: table.apply(lambda column: column if column.name in keys else column.map(hostile))
            for name, table in study.tables().items()
        },
        folder / "tables",
    )
    for file in (folder / "figures").glob("*.json"):
        spec = json.loads(file.read_text())
        spec["layout"]["title"]["text"] = HOSTILE
        spec["layout"]["template"] = {}
        for trace in spec["data"]:
            trace["name"] = HOSTILE
            if isinstance(trace.get("hovertext"), list):
                trace["hovertext"] = [HOSTILE] * len(trace["hovertext"])
        file.write_text(json.dumps(spec))
    (folder / "figures" / "more.json").write_text('{"data": [], "layout": {}}')
    sealed_again(folder)
    page = mm.write_report(folder).read_text(encoding="utf-8")
    assert page.count("<script") == 3
    assert "<img" not in page
    assert "\x07" not in page
    assert page.count("{{7*7}}") > 20
    seen = open_page(chromium, folder / "report.html")
    assert seen.requests == []
    assert "<title>stolen" not in seen.dom
    assert f'data-drawn="{len(load_study(folder).figures()) - 1}"' in seen.dom


def test_a_study_of_reasoning_stands_beside_others(folders, tmp_path):
    folder = tmp_path / "reasoning"
    (folder / "tables").mkdir(parents=True)
    manifest = {"study": "reasoning", "model": {"name": "m"}, "task": "t", "seed": 0}
    manifest |= {"verdict": "v", "answer": "a"}
    frame = pd.DataFrame(
        {"family": ["unedited", "addition"], "label": ["memory"] * 2, "accuracy": [0.5, 0.7],
         "accuracy_low": [0.4, 0.6], "accuracy_high": [0.6, 0.8], "n": [20, 20], "groups": [20, 20],
         "sign": [None, "toward memory"], "beyond_random": [None, 0.2],
         "beyond_random_low": [None, 0.1], "beyond_random_high": [None, 0.3]}
    )  # fmt: skip
    write_tables({"accuracy": frame}, folder / "tables")
    write_manifest(manifest, folder)
    found = compare_studies([folders[0], folder])
    row = found.table().set_index("kind").loc["reasoning"]
    assert (row["beyond"], row["beyond_low"], row["beyond_high"], row["n"]) == (0.2, 0.1, 0.3, 20)
    assert row["toward"] == "memory, toward memory"
    assert "1 of 1 changes of accuracy" in found._count()
    assert found._count().endswith("random directions, which alone proves nothing")
    assert replace(load_study(folder)).kind == "reasoning"
    assert "correct, memory" in set(found.mix()["outcome"])


def test_a_carriage_return_in_a_text_tears_no_row(tmp_path: Path) -> None:
    table = pd.DataFrame(
        {"id": ["a", "b", "c"], "completion": ["x\ry", "z\r\n", ""], "margin": [1.0, np.nan, 2.0],
         "truncated": [True, False, True]}
    )  # fmt: skip
    write_tables({"one": table}, tmp_path)
    pd.testing.assert_frame_equal(read_table(tmp_path / "one.csv"), table)
