"""The figure of two kinds of memorization, from the study and from its saved tables."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

import mechmem as mm

ITEMS = pd.DataFrame(
    {
        "group": ["a", "b", "c", "d"],
        "kind": ["fact", "fact", "computation", "disputed"],
        "projection": [-1.0, -2.0, 3.0, 0.5],
        "perturbational": [0.0, 0.1, 0.2, 0.3],
        "counterfactual": [1.0, 0.9, 0.0, 0.4],
        "low": [0.8, 0.7, -0.1, 0.2],
        "high": [1.0, 1.0, 0.1, 0.6],
    }
)
CHANGES = pd.DataFrame(
    [
        {"score": score, "edit": edit, "kind": kind, "change": change, "low": change - 0.1,
         "high": change + 0.1, "n": 4, "groups": 4}
        for score, change in (("perturbational", 0.2), ("counterfactual", -0.3))
        for edit in ("toward reasoning", "random direction")
        for kind in ("all", "fact")
    ]
)  # fmt: skip


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
