"""Rows of answers by label, with intervals that respect groups."""

from __future__ import annotations

import numpy as np

from mechmem.analysis.intervals import Estimate, IntervalKind, group_mean
from mechmem.evaluation.behavior import Observations, hits


def correct(seen: Observations) -> np.ndarray:
    """1 where the answer was right."""
    return hits(seen, "correct")


def of_label(seen: Observations, label: str) -> np.ndarray:
    """Rows of the questions with this label."""
    return np.flatnonzero([prompt.label == label for prompt in seen.prompts])


def mean_of(
    values: np.ndarray, rows: np.ndarray, seen: Observations, kind: IntervalKind
) -> Estimate:
    """Share or paired change over some rows, with an interval over groups."""
    return group_mean(values[rows], [seen.prompts[int(k)].group for k in rows], kind=kind)
