"""What a study tries edits on, what it takes from its sweep, and where its settings come from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_study import small_grid

import mechmem as mm
import mechmem.studies.behavior.run as study_module
from mechmem.cli import studies
from mechmem.cli.asking import Asked

ASKED = {"validation": 20, "test": 60}


@pytest.fixture(scope="module")
def small(lab_model, lab_task):
    return mm.run_study(
        lab_model,
        task=lab_task,
        n=100,
        grid=small_grid,
        steered=ASKED,
        doses=(0.0, 1.0, 2.0),
        refine={},
        shuffles=2,
        draws=3,
    )


def test_edits_are_tried_on_as_many_prompts_as_asked_and_nothing_else_is_cut(small) -> None:
    (cells,) = {len(rates.after) for cell in small.sweep.cells for rates in cell.rates.values()}
    assert cells == ASKED["validation"]
    assert len(small.sweep.before) == ASKED["test"]
    assert set(small.dose["n"]) == {ASKED["test"]}
    assert len(small.observed["test"]) == len(small.splits["test"]) > ASKED["test"]
    assert set(small.sweep.before.prompts.groups) <= set(small.splits["test"].groups)


@pytest.mark.parametrize("dose", [0.0, 1.0, 2.0])
def test_every_dose_is_what_the_edited_model_does(small, lab_model, lab_task, dose) -> None:
    """Strength 0 and the chosen one are taken from the sweep, the others run: all are recounted."""
    chosen, test = small.sweep.best.edit, small.sweep.before.prompts

    def done(edit: mm.Edit) -> mm.Observations:
        with mm.patched(lab_model, edit) as view:
            return mm.observe(view, test, task=lab_task)

    for toward in ("memorized", "generalized"):
        edit = replace(chosen, toward=toward, alpha=chosen.alpha * dose)
        own = done(edit)
        draws = [own] if not dose else [
            done(mm.controls(edit, lab_model, seed=k)["random direction"]) for k in range(3)
        ]  # fmt: skip
        rows = small.dose[
            (small.dose["toward"] == toward) & np.isclose(small.dose["alpha"], edit.alpha)
        ].set_index(["kind", "outcome"])
        assert len(rows) == 6
        for name in own.allowed:
            counts = [one.outcomes.count(name) / 60 for one in draws]
            edited = rows.loc["edit", name]
            assert edited["share"] == pytest.approx(own.outcomes.count(name) / 60)
            assert rows.loc["control", name]["share"] == pytest.approx(np.mean(counts))
            assert edited["beyond"] == pytest.approx(edited["share"] - np.mean(counts))
            assert edited["margin"] == pytest.approx(np.mean(own.margins), abs=1e-4)
            assert edited["draws"] == len(draws)
            if dose:
                assert edited["spread"] == pytest.approx(np.std(counts, ddof=1))
                assert edited["size"] == pytest.approx(own.moved)
                moved = np.mean([one.moved for one in draws])
                assert edited["control_size"] == pytest.approx(moved)


def test_margins_are_those_of_the_test_part(small) -> None:
    finite = {name: np.isfinite(seen.margins).all() for name, seen in small.observed.items()}
    assert finite == {"train": False, "validation": False, "test": True}


@pytest.mark.parametrize(
    "wrong", [{"test": 40}, {"validation": 40, "test": 2}, {"validation": 40, "test": 40.0}, {}]
)
def test_a_part_that_is_missing_or_too_small_is_refused(lab_model, lab_task, wrong) -> None:
    with pytest.raises(mm.MechmemError, match=r"'validation', 'test'.*at least 20"):
        mm.run_study(lab_model, task=lab_task, steered=wrong)


@pytest.mark.parametrize(
    ("model", "typed", "expected"),
    [
        ("lab/addition", {}, {"validation": 120, "test": 240}),
        ("lab/addition", {"test": 60}, {"validation": 120, "test": 60}),
        ("lab/colors", {"validation": None, "test": None}, {"validation": 240, "test": 480}),
    ],
)
def test_the_command_asks_what_is_typed_then_what_the_lab_model_says(
    monkeypatch, model, typed, expected
) -> None:
    def record(model, **options):
        return model.info, options

    monkeypatch.setattr(study_module, "run_study", record)
    asked = Asked(model, None, None, None)
    info, options = studies._run(asked, Path("out"), None, 3, 5, typed, None)
    assert options["steered"] == expected
    assert info.d_model <= 256
    assert options["token_budget"] == 8 * 8192
    assert options["seed"] == 3
    assert options["shuffles"] == 5
