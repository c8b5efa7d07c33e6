"""The study of two meanings of memorization, with small models that have learned little yet."""

from __future__ import annotations

import html

import numpy as np
import pytest
from pages import open_page
from scipy.stats import spearmanr

import mechmem as mm
from mechmem.reports.saved import load_study

ASKED = {"models": 2, "steps": 100, "prompts": 1, "draws": 3}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("small-models")


@pytest.fixture(scope="module")
def study(folder):
    return mm.run_memorization_study(mm.load_model("lab/recall-reasoning"), **ASKED, folder=folder)


def rank_correlation(items, score):
    """SciPy's, NaN where the score does not vary."""
    if items[score].nunique() == 1:
        return float("nan")
    return spearmanr(items["projection"], items[score]).statistic


def test_no_entity_that_fitted_the_direction_is_scored(study):
    scored = {name.split(".")[0] for name in study.table()["group"]}
    seen = study.counterfactual
    entities = {name.split(".")[0] for name in seen.groups}
    assert scored == entities
    assert 40 <= len(entities) <= 56  # half of the 96
    assert set(study.table()["kind"]) == {"fact", "computation", "disputed"}


def test_correlations_are_those_of_scipy_on_the_items(study):
    table = study.table()
    found = study.correlations().set_index("score")
    assert table["counterfactual"].nunique() > 1
    for score in ("perturbational", "counterfactual"):
        want = rank_correlation(table, score)
        got = found.loc[f"{score} score", "spearman"]
        assert got == pytest.approx(want, abs=1e-9, nan_ok=True)
    within = study.within_kinds().set_index(["kind", "score"])
    for kind, items in table.groupby("kind"):
        want = rank_correlation(items, "counterfactual")
        got = within.loc[(kind, "counterfactual"), "spearman"]
        assert got == pytest.approx(want, abs=1e-9, nan_ok=True)


def test_edits_are_named_alike_in_the_model_asked_and_in_the_small_ones(study):
    names = ["toward reasoning", "toward memory"]
    drawn = [f"random direction {k}" for k in (1, 2, 3)]
    assert set(study.perturbational) == {"", *names, *drawn}
    assert set(study.counterfactual.performance) == {"", *names, *drawn}
    changes = study.changes().set_index(["score", "edit", "kind"])
    assert set(changes.index.get_level_values("edit")) == {*names, "random direction"}
    assert set(changes["draws"]) == {3}
    plain, pushed = (study.perturbational[name].scores for name in ("", "toward memory"))
    want = np.mean([pushed[name] - plain[name] for name in plain])
    got = changes.loc[("perturbational", "toward memory", "all"), "change"]
    assert got == pytest.approx(want)


def test_edits_are_compared_with_every_random_direction_on_the_same_items(study):
    changes = study.changes().set_index(["score", "edit", "kind"])
    before, *under = (
        np.array(list(study.counterfactual.scores(name).values()))
        for name in ("", "toward memory", *(f"random direction {k}" for k in (1, 2, 3)))
    )
    own, *others = (scores.mean() - before.mean() for scores in under)
    row = changes.loc[("counterfactual", "toward memory", "all")]
    assert row["beyond"] == pytest.approx(own - np.mean(others))
    assert row["spread"] == pytest.approx(np.std(others, ddof=1))
    assert row["rank"] == 1 + sum(other >= own - 1e-12 for other in others)
    control = changes.loc[("counterfactual", "random direction", "all")]
    assert control["change"] == pytest.approx(np.mean(others))
    asked = changes.loc[("perturbational", "toward memory", "all")]
    assert asked["size"] == asked["control_size"] == pytest.approx(study.size)
    assert study.size > 0


def test_items_that_a_small_model_was_not_trained_on_are_not_in_its_training_rows():
    task = mm.get_task("recall-reasoning", seed=4)
    names = sorted(set(task.questions(192, seed=0).groups))[:5]
    from mechmem.tasks.lab.recall_reasoning import ATTRIBUTES, ENTITIES, RECALL_VOCABULARY

    rows = task.world.training_rows(4, 512, names)
    words = np.array(RECALL_VOCABULARY)[rows]
    asked = set()
    for row in words:
        (entity,), (attribute,) = set(row) & set(ENTITIES), set(row) & set(ATTRIBUTES)
        asked.add(f"{entity}.{attribute}")
    assert not asked & set(names)
    assert len(asked) > 100


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"alpha": 2.0}, "'settings', 'alpha'"),
        ({"steps": 50}, "'settings', 'steps'"),
        ({"task": mm.get_task("recall-reasoning", seed=4)}, "other .*'reading'"),
    ],
)
def test_small_models_of_other_settings_are_not_taken_from_the_folder(
    study, folder, change, words, monkeypatch
):
    monkeypatch.setattr(
        "mechmem.studies.memorization.run.recall_model",
        lambda *args, **options: pytest.fail("a model was trained"),
    )
    with pytest.raises(mm.ArtifactError, match=words):
        mm.run_memorization_study(
            mm.load_model("lab/recall-reasoning"), **{**ASKED, **change}, folder=folder
        )


def test_the_figure_is_drawn_from_the_study(study):
    fig = mm.plotting.memorization(study)
    drawn = sum(len(t.x) for t in fig.data if t.type == "scatter" and t.xaxis == "x")
    assert drawn == len(study.table())


def test_it_is_a_study_with_words_and_a_report(study, tmp_path, chromium):
    page = mm.write_report(study, tmp_path / "out")
    text = html.unescape(page.read_text(encoding="utf-8"))
    items = study.table()
    site = study.limem_along.spearman[study.site]
    assert f"On {len(items)} items" in study.answer()
    assert f"{site.value:.2f} [{site.low:.2f}, {site.high:.2f}]" in study.answer()
    for told in (study.headline(), study.answer(), *study.limits()):
        assert told in text
    assert len(study.notes()) == 3
    seen = open_page(chromium, page)
    assert seen.console == []
    assert 'data-drawn="1"' in seen.dom
    saved = load_study(tmp_path / "out")
    assert saved.kind == "memorization"
    assert set(saved.names) == {"summary", "items", "within_kinds", "changes"}
    before = page.read_bytes()
    assert mm.write_report(tmp_path / "out").read_bytes() == before
