"""The lab recipe at other sizes, and without its special prompts."""

from __future__ import annotations

import json

import numpy as np
import pytest

import mechmem as mm
from mechmem.models.shipped import LAB_FOLDER


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    folder = tmp_path_factory.mktemp("small")
    return mm.train_lab_model("addition-cued", folder, steps=2, width=8, layers=1, special=False)


def test_a_model_of_another_size_is_trained_and_described(small) -> None:
    model = mm.load_model(small)
    assert (model.info.n_layers, model.info.d_model) == (1, 8)
    manifest = json.loads((small / "manifest.json").read_text())
    assert manifest["training"]["batch"] == 64
    assert manifest["planted"] is False
    shipped = json.loads((LAB_FOLDER / "addition-cued" / "manifest.json").read_text())
    assert shipped["training"]["batch"] == 128


def test_the_ordinary_half_of_every_batch_is_what_is_left() -> None:
    world = mm.get_task("addition-cued").world
    rows = world.training_rows(3, 128).reshape(3, 2, 64, -1)
    special = {tuple(sorted(row)) for row in world.special.tolist()}

    def operands(row: np.ndarray) -> tuple[int, ...]:
        return tuple(sorted(int(k) - 2 for k in row[1:8:2]))

    assert all(operands(row) in special for row in rows[:, 0].reshape(-1, rows.shape[-1]))
    assert not any(operands(row) in special for row in rows[:, 1].reshape(-1, rows.shape[-1]))


@pytest.mark.parametrize("options", [{"width": 18}, {"width": 0}, {"layers": 0}])
def test_impossible_sizes_are_refused(options, tmp_path) -> None:
    with pytest.raises(mm.MechmemError, match=r"width|layers"):
        mm.train_lab_model("addition-cued", tmp_path, steps=1, **options)
