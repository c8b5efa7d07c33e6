"""What a study says before it starts, how a budget shrinks it, and that a saved plan repeats it."""

from __future__ import annotations

import json

import pytest

import mechmem as mm
import mechmem.cli
from mechmem.studies.behavior import run as study_module
from mechmem.studies.behavior.pace import Pace, fitting_plan, seconds_of
from mechmem.studies.behavior.plan import ADD, PUBLISHED, Plan

PARTS = {"train": 200, "validation": 97, "test": 194}
SMALLEST = Plan(layers=2, families=(ADD,), draws=19, validation=40, test=60)


@pytest.fixture(scope="module")
def planned(lab_model, lab_task):
    lines: list[str] = []
    plan = Plan(layers=2, families=(ADD,), draws=2, validation=40, test=60)
    options = {"n": 100, "shuffles": 2, "doses": (1.0,), "plan": plan}
    study = mm.run_study(lab_model, task=lab_task, progress=lines.append, **options)
    return study, lines, options


def test_the_work_said_is_the_work_done(planned) -> None:
    study, lines, _ = planned
    (said,) = [line for line in lines if line.startswith("plan: ")]
    both = 2 * 40
    tried = 3 * (2 * 2 + 2)  # two layers, two strengths, two more around the best; two refits
    tested = 3 + 2 * 2  # the winner of every grid, two draws of two controls
    assert len(study.sweep.cells) == 6
    assert f" {tried * both + tested * 2 * 60:,} answers" in said
    assert "2 layers" in said
    assert said.endswith((" s", " min"))


def test_all_that_was_tried_and_asked_obeys_the_plan(planned) -> None:
    study, *_ = planned
    assert {cell.family for cell in study.sweep.cells} == {ADD}
    assert len({cell.edit.direction.site for cell in study.sweep.cells}) == 2
    assert len(study.sweep.before) == 60
    assert {len(drawn) for drawn in study.sweep.best.controls["memorized"].values()} == {1, 2}


def test_a_saved_plan_gives_the_same_numbers(planned, lab_model, lab_task, tmp_path) -> None:
    study, _, options = planned
    folder = study.save(tmp_path / "one")
    again = mm.run_study(
        lab_model, task=lab_task,
        **{**options, "plan": Plan.load(folder / "artifacts" / "plan.json")},
    )  # fmt: skip
    assert again.verdict.as_dict() == study.verdict.as_dict()
    assert again.summary().equals(study.summary())
    held = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    assert held["plan"]["layers"] == 2
    (line,) = [line for line in held["limits"] if "shrunk" in line]
    for gone in (PUBLISHED, "2 of 4 layers", "28 of 30 draws", "test prompts beyond 60 (of 80)"):
        assert gone in line
    assert "validation" not in line  # there are no more than 40


def test_what_a_model_and_its_prompts_do_not_have_was_not_left_out() -> None:
    few = {"validation": 30, "test": 900}
    assert Plan(layers=4, validation=40).left_out(few, 4) == []
    assert Plan(validation=400, test=600).left_out(few, 30) == []
    assert Plan(layers=4, test=480, validation=20).left_out(few, 12) == [
        "2 of 6 layers", "validation prompts beyond 20 (of 30)",
    ]  # fmt: skip


def test_the_largest_plan_that_fits_is_taken() -> None:
    pace = Pace(prompt=0.1, edit=0.004)
    took = [pace.seconds(plan, PARTS, 30, 19) for plan in Plan().smaller()]
    assert took == sorted(took, reverse=True)
    alone = 0.1 * sum(PARTS.values())
    for budget in (took[0] + 1, took[4] + 1, took[-1]):
        plan, seconds = fitting_plan(Plan(), pace, budget, PARTS, 30, 19)
        assert seconds <= budget
        assert seconds == pytest.approx(alone + 0.004 * plan.work(PARTS, 30, 19))
        assert seconds == max(t for t in took if t <= budget)
    assert fitting_plan(Plan(), pace, None, PARTS, 30, 19)[0] == Plan()
    assert list(Plan().smaller())[-1] == SMALLEST
    with pytest.raises(mm.MechmemError, match=r"10 s is too little: the smallest plan takes about"):
        fitting_plan(Plan(), pace, 10.0, PARTS, 30, 19)


def test_only_a_budget_shrinks(lab_model, lab_task, monkeypatch) -> None:
    class Stop(Exception):
        pass

    def stop(*_, **__):
        raise Stop

    found: list[Plan] = []
    monkeypatch.setattr(study_module, "measure_pace", lambda *_, **__: Pace(0.0, 1.0))
    monkeypatch.setattr(study_module, "_first_groups", stop)
    monkeypatch.setattr(
        study_module,
        "_planned",
        lambda plan, *_: found.append(plan) or "",
    )
    smallest = SMALLEST.work({"train": 80, "validation": 40, "test": 80}, 4, 19)
    for budget in (None, float(smallest)):
        with pytest.raises(Stop):
            mm.run_study(lab_model, task=lab_task, n=100, budget=budget, progress=lambda _: None)
    assert found == [Plan(), SMALLEST]
    with pytest.raises(mm.MechmemError, match=r"leave out plan= and budget="):
        mm.run_study(lab_model, task=lab_task, grid=Plan().grid, budget=9.0)


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("10m", 600), ("1.5h", 5400)])
def test_a_budget_is_read(text, seconds) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["10", "m", "0m", "ten minutes", "-1m"])
def test_what_is_no_budget_is_refused(text) -> None:
    asked = ["study", "addition-cued", f"--budget={text}"]
    with pytest.raises(mm.MechmemError, match=r"number with s, m or h, such as 10m"):
        mechmem.cli.app(asked, standalone_mode=False)


def test_a_file_that_is_no_plan_is_refused(tmp_path) -> None:
    for text in ("{}", "[", '{"families": ["x"]}', '{"families": [], "more": 1}'):
        (tmp_path / "plan.json").write_text(text, encoding="utf-8")
        with pytest.raises(mm.ArtifactError, match=r"holds no plan of a study"):
            Plan.load(tmp_path / "plan.json")
