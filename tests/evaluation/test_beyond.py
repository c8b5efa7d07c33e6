"""Wherever an edit stands beside a control, the draws are a sample and both sizes are said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import as_users_run_it
from question_scene import scene
from small_study import small_study

import mechmem as mm
from mechmem.analysis.draws import beyond_draws
from mechmem.evaluation.controls import control_draws, draws_of_one

COLUMNS = {"draws", "spread", "rank", "size", "control_size"}


@pytest.fixture(scope="module")
def here():
    return scene()


@pytest.fixture(scope="module")
def edit(here):
    return mm.ShiftNeurons(here.scores, top=8, alpha=3.0)


def hits(model, edit, prompts, outcome) -> np.ndarray:
    """1 where the edited model gives the outcome; by `evaluate`, one edit at a time."""
    seen = mm.evaluate(model, prompts, edit=edit, margins=False).after
    return np.array([name == outcome for name in seen.outcomes], dtype=float)


def test_a_sweep_compares_with_draws_one_by_one(here, edit) -> None:
    model, half = here.lab.model, len(here.test) // 2
    parts = here.test[:half], here.test[half:]
    found = mm.sweep(model, [edit], validation=parts[0], test=parts[1], draws=4, seed=3)
    table = found.test_table()
    assert set(table.columns) >= COLUMNS
    for toward in ("memorized", "generalized"):
        aimed = replace(edit, toward=toward)
        own = hits(model, aimed, parts[1], toward)
        for name, many in control_draws(aimed, model, draws=4, seed=3).items():
            others = np.stack([hits(model, one, parts[1], toward) for one in many])
            want = beyond_draws(
                own, others, parts[1].groups, drawn=name not in ("alpha 0", "low-rank neurons")
            )
            got = found.best.beyond(toward, name)
            for field in ("value", "low", "high", "draws", "spread", "rank"):
                np.testing.assert_allclose(getattr(got, field), getattr(want, field), atol=1e-9)
            if name not in ("alpha 0", "uniform noise"):
                assert got.size == pytest.approx(got.control_size, rel=1e-4)


def test_what_became_of_the_other_behavior_says_what_it_was_judged_by() -> None:
    found = small_study().sweep
    table = found.turned_table()
    table = table[table["family"] == found.best.family]
    control = table[table["kind"] == "control"]
    assert control[["draws", "size", "control_size", "edit_minus_control"]].notna().all().all()
    assert table.loc[table["kind"] == "edit", "size"].notna().all()
    for row in control[control["draws"] > 1].to_dict("records"):
        rows = np.flatnonzero([name == row["before"] for name in found.before.outcomes])
        many = found.best.controls[row["toward"]][row["control"]]
        shares = [np.mean([one.after.outcomes[k] == row["outcome"] for k in rows]) for one in many]
        assert row["draws"] == len(many)
        assert row["spread"] == pytest.approx(np.std(shares, ddof=1))
        own = found.best.rates[row["toward"]].after.outcomes
        share = np.mean([own[k] == row["outcome"] for k in rows])
        assert row["edit_minus_control"] == pytest.approx(share - np.mean(shares))


def test_transfer_and_models_compared_say_what_they_compare_with(here, edit) -> None:
    model = here.lab.model
    found = mm.evaluation.edit_transfer(model, {"a": edit}, {"b": here.test}, draws=3, seed=1)
    row = found.table().set_index("toward").loc["memorized"]
    aimed = replace(edit, toward="memorized")
    _, many = draws_of_one(aimed, model, draws=3, seed=1)
    others = np.stack([hits(model, one, here.test, "memorized") for one in many])
    want = beyond_draws(hits(model, aimed, here.test, "memorized"), others, here.test.groups)
    assert row["beyond"] == pytest.approx(want.value)
    assert row["beyond_low"] == pytest.approx(want.low)
    assert (row["draws"], row["rank"]) == (3, want.rank)
    assert row["size"] == pytest.approx(row["control_size"], rel=1e-4)


def test_a_margin_is_compared_at_every_strength(here, edit) -> None:
    found = mm.evaluation.margin_response(
        here.lab.model, edit, here.test, doses=[0.5, 1.0], draws=5
    )
    table = found.table().query("kind == 'edit'")
    assert set(table.columns) >= COLUMNS
    assert (table["draws"] == 5).all()
    assert (table.query("alpha == 0")["size"] == 0).all()
    strong = table.query("alpha > 0")
    np.testing.assert_allclose(strong["size"], strong["control_size"], rtol=1e-4)
    assert strong.groupby("toward")["size"].is_monotonic_increasing.all()
    for toward, kinds in found.change.items():
        for k, gap in enumerate(found.beyond[toward]):
            gained = kinds["edit"][k].value - kinds["control"][k].value
            assert gap.value == pytest.approx(gained)


@pytest.mark.parametrize("draws", [0, -1, 1.5, True])
def test_no_draw_is_no_control(here, edit, draws) -> None:
    with (
        as_users_run_it(),
        pytest.raises(mm.EditError, match="draws must be an integer from 1"),
    ):
        control_draws(edit, here.lab.model, draws=draws)
