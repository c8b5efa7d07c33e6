"""The figure of two kinds of memorization, from the study and from its saved tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from figure_scenes import CHANGES, ITEMS

import mechmem as mm


def test_every_item_is_drawn_with_both_scores(tmp_path):
    ITEMS.to_csv(tmp_path / "items.csv", index=False)
    fig = mm.plotting.memorization(pd.read_csv(tmp_path / "items.csv"), CHANGES)
    points = [trace for trace in fig.data if trace.type == "scatter"]
    drawn = {
        axis: sorted(
            (x, y) for t in points if t.xaxis == axis for x, y in zip(t.x, t.y, strict=True)
        )
        for axis in ("x", "x2")
    }
    for axis, score in (("x", "perturbational"), ("x2", "counterfactual")):
        assert drawn[axis] == sorted(zip(ITEMS["projection"], ITEMS[score], strict=True))
    bars = {trace.name: trace for trace in fig.data if trace.type == "bar"}
    np.testing.assert_allclose(bars["change of counterfactual"].y, [-0.3, -0.3])
    np.testing.assert_allclose(bars["change of perturbational"].error_y.array, [0.1, 0.1])


def test_a_table_without_its_columns_is_refused():
    with pytest.raises(mm.MechmemError, match="'counterfactual'"):
        mm.plotting.memorization(ITEMS.drop(columns="counterfactual"))
