"""The study on the shipped model: its numbers are recounted from generated text."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import helpers
import numpy as np
import pytest

import mechmem as mm
from mechmem.evaluation.controls import controls
from mechmem.studies.behavior.costs import dose_response
from mechmem.sweeps.sweep import two_way_gain
from mechmem.tasks.base import PromptAnswers


def test_no_group_is_on_two_sides_and_the_test_prompts_were_never_fitted(lab_study):
    groups = [set(part.groups) for part in lab_study.splits.values()]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    fitted = lab_study.scores.provenance.seen.groups
    assert fitted <= groups[0]
    assert not fitted & set(lab_study.sweep.before.prompts.groups)
    assert lab_study.sweep.seen.groups >= fitted | groups[1]


def test_the_share_under_the_edit_is_what_the_patched_model_writes(lab_study, lab_model):
    best = lab_study.sweep.best
    for toward, rates in best.rates.items():
        prompts = lab_study.splits["test"]
        with mm.patched(lab_model, replace(best.edit, toward=toward)) as view:
            words = view.generate(prompts, max_new_tokens=1)
        hits = [w.strip() == getattr(p, toward) for w, p in zip(words, prompts, strict=True)]
        assert rates.share(toward).value == pytest.approx(np.mean(hits))


def test_the_paired_difference_to_a_control_is_recounted_by_hand(lab_study, lab_model):
    best = lab_study.sweep.best
    for toward in best.rates:
        name = "random direction"
        draws = best.controls[toward][name]
        after = [np.array(draw.after.outcomes) == toward for draw in draws]
        own = np.array(best.rates[toward].after.outcomes) == toward
        expected = own.mean() - np.mean([hits.mean() for hits in after])
        assert best.beyond(toward, name).value == pytest.approx(expected)
        weakest = best.beyond_every_control(toward)
        assert weakest.low == min(best.beyond(toward, k).low for k in best.controls[toward])


def test_alpha_0_changes_nothing_at_all(lab_study):
    for tested in lab_study.sweep.tested:
        for toward in tested.rates:
            (draw,) = tested.controls[toward]["alpha 0"]
            assert draw.after.outcomes == lab_study.sweep.before.outcomes


def test_the_winner_has_the_best_score_of_its_family_on_validation(lab_study):
    for tested in lab_study.sweep.tested:
        cells = [cell for cell in lab_study.sweep.cells if cell.family == tested.family]
        assert max(cell.score for cell in cells) == two_way_gain(
            next(cell for cell in cells if cell.edit is tested.edit).rates
        )


def test_validation_prompts_cannot_be_the_test_prompts(lab_study, lab_model, lab_task):
    edit = lab_study.sweep.best.edit
    validation = lab_study.splits["validation"]
    with pytest.raises(mm.LeakageError, match="test the chosen edit"):
        mm.sweep(lab_model, [edit], task=lab_task, validation=validation, test=validation)
    with pytest.raises(mm.LeakageError, match="choose an edit"):
        mm.sweep(
            lab_model,
            [edit],
            task=lab_task,
            validation=lab_study.splits["train"],
            test=lab_study.splits["test"],
        )


def test_an_edit_without_a_class_to_steer_to_cannot_be_swept(lab_study, lab_model, lab_task):
    edit = mm.ProjectOut(lab_study.directions["resid_post", 1])
    parts = lab_study.splits
    with pytest.raises(mm.EditError, match="ProjectOut"):
        mm.sweep(
            lab_model, [edit], task=lab_task, validation=parts["validation"], test=parts["test"]
        )
    with pytest.raises(mm.EditError, match="no edit"):
        mm.sweep(lab_model, [], task=lab_task, validation=parts["validation"], test=parts["test"])


def test_a_study_is_the_same_twice(lab_study, lab_model, lab_task):
    again = mm.observe(lab_model, lab_task.pairs(200, seed=0), task=lab_task)
    wanted = dict(zip(again.prompts.ids, again.outcomes, strict=True))
    for seen in lab_study.observed.values():
        assert [wanted[name] for name in seen.prompts.ids] == list(seen.outcomes)


def test_an_edit_without_a_strength_has_no_dose_response(lab_study, lab_model, monkeypatch):
    best = SimpleNamespace(edit=mm.SetProjection(next(iter(lab_study.directions))))
    monkeypatch.setattr(type(lab_study.sweep), "best", property(lambda sweep: best))
    test = lab_study.observed["test"].prompts
    assert dose_response(lab_model, lab_study.sweep, test, None, 0, (0.5, 1.0)).empty


def test_the_dose_response_begins_at_the_unedited_model(lab_study):
    plain = lab_study.sweep.before
    start = lab_study.dose.query("alpha == 0 and kind == 'edit'")
    for _, row in start.iterrows():
        share = plain.outcomes.count(row["outcome"]) / len(plain)
        assert row["share"] == pytest.approx(share)


def test_too_few_flips_are_an_error_that_says_what_the_model_wrote_instead(lab_model):
    def pairs(group):
        return mm.PromptSet(
            mm.Prompt(
                f"{k}-{j}", f"1 + 2 + 3 + {k}", group=group(k, j), memorized="a", generalized="b"
            )
            for k in range(30)
            for j in range(2)
        )

    reader = PromptAnswers("behavior")
    with pytest.raises(mm.PromptError, match="Only 0 of 12 training pairs are flips") as caught:
        mm.run_study(lab_model, task=reader, prompts=pairs(lambda k, j: str(k)))
    assert "'other': 24" in str(caught.value)
    assert "where 'a' or 'b' was looked for" in str(caught.value)
    with pytest.raises(mm.PromptError, match="no two share a `group`"):
        mm.run_study(lab_model, prompts=pairs(lambda k, j: f"{k}-{j}"))
    with pytest.raises(mm.PromptError, match="needs a task"):
        mm.run_study(lab_model)


def test_names_where_objects_belong_are_refused_with_the_way_to_get_the_object(lab_model, lab_task):
    prompts = lab_task.pairs(4)
    with helpers.as_users_run_it():
        with pytest.raises(mm.ModelError, match=r"mm\.load_model"):
            mm.observe("lab/addition-cued", prompts, task=lab_task)
        with pytest.raises(mm.TaskError, match=r"mm\.get_task"):
            mm.observe(lab_model, prompts, task="addition-cued")
        with pytest.raises(mm.TaskError, match=r"mm\.get_task"):
            mm.run_study(lab_model, task="addition-cued")
        with pytest.raises(mm.PromptError, match="from_csv"):
            mm.run_study(lab_model, prompts="mine.csv")
        with pytest.raises(mm.PromptError, match=r"write \[text\]"):
            mm.PromptSet.from_texts("one text")
    same = mm.Prompt("twin", "1 + 2", memorized="3", generalized="3")
    with pytest.raises(mm.TaskError, match=r"'twin'.*same memorized and generalized"):
        mm.observe(lab_model, same)


def test_what_is_drawn_is_drawn_three_times_and_the_rest_runs_once(lab_study):
    for tested in lab_study.sweep.tested:
        for made in tested.controls.values():
            for name, draws in made.items():
                assert len(draws) == (1 if name in ("alpha 0", "low-rank neurons") else 3), name


def test_controls_have_the_length_and_the_sites_of_the_edit(lab_study, lab_model):
    edit = lab_study.sweep.best.edit
    own = edit.shift(lab_model) if hasattr(edit, "shift") else None
    if own is None:
        pytest.skip("the winner is a direction, whose control is tested with the edits")
    for name, control in controls(edit, lab_model, seed=1).items():
        shift = control.shift(lab_model)
        if name == "uniform noise":  # as the paper has it: of any length, at the edit's sites
            assert set(shift) <= set(own)
            continue
        for site, value in own.items():
            wanted = 0.0 if name == "alpha 0" else value.norm(dim=-1)
            got = shift[site].norm(dim=-1) if site in shift else 0.0
            assert np.allclose(got, wanted), name


def test_what_became_of_the_prompts_of_the_other_behavior_is_recounted(lab_study):
    table, before = lab_study.tables()["turned"], np.array(lab_study.sweep.before.outcomes)
    for tested in lab_study.sweep.tested:
        for toward, start in (("memorized", "generalized"), ("generalized", "memorized")):
            wanted = {"edit": [tested.rates[toward]], **tested.controls[toward]}
            for name, draws in wanted.items():
                mine = (table["family"] == tested.family) & (table["toward"] == toward)
                kind = ("edit", "") if name == "edit" else ("control", name)
                named = (table["kind"] == kind[0]) & (table["control"] == kind[1])
                rows = table[mine & named].set_index("outcome")
                assert set(rows["before"]) == {start}
                assert set(rows["n"]) == {int((before == start).sum())}
                for outcome in ("memorized", "generalized", "other"):
                    hits = [np.array(draw.after.outcomes) == outcome for draw in draws]
                    share = np.mean([hit[before == start].mean() for hit in hits])
                    assert rows.loc[outcome, "share"] == pytest.approx(share)
                    assert (
                        rows.loc[outcome, "share_low"] <= share <= rows.loc[outcome, "share_high"]
                    )
            assert tested.rates[toward].given(start, toward).value == pytest.approx(
                tested.turned(toward, start)[toward].value
            )
