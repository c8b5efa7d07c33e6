"""What a study tries edits on, what it takes from its sweep, and where its settings come from."""

from __future__ import annotations

from dataclasses import replace

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
    for toward in ("memorized", "generalized"):
        edit = replace(chosen, toward=toward, alpha=chosen.alpha * dose)
        placebo = mm.controls(replace(edit, alpha=edit.alpha or 1.0), lab_model, seed=0)
        tried = {"edit": edit, "control": edit if not dose else placebo["random direction"]}
        for kind, own in tried.items():
            with mm.patched(lab_model, own) as view:
                seen = mm.observe(view, test, task=lab_task)
            rows = small.dose[
                (small.dose["toward"] == toward)
                & np.isclose(small.dose["alpha"], edit.alpha)
                & (small.dose["kind"] == kind)
            ].set_index("outcome")
            assert len(rows) == 3
            for name in seen.allowed:
                assert rows.loc[name, "share"] == pytest.approx(seen.outcomes.count(name) / 60)
            if kind == "edit":
                assert rows["margin"].iloc[0] == pytest.approx(np.mean(seen.margins), abs=1e-4)


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
    info, options = studies._run(asked, None, 3, 5, typed, None)
    assert options["steered"] == expected
    assert info.d_model <= 256
    assert options["token_budget"] == 8 * 8192
    assert options["seed"] == 3
    assert options["shuffles"] == 5
