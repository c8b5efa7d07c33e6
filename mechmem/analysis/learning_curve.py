"""`learning_curve`: how the held-out accuracy of a classifier grows with the number of pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechmem.analysis.classifiers import CLASSIFIERS
from mechmem.analysis.intervals import Estimate
from mechmem.analysis.probes import INPUT_ONLY, ProbeData, one_thread, probe_data
from mechmem.caching.activations import Activations
from mechmem.errors import MechmemError, PromptError, listed, shown
from mechmem.models.sites import Site
from mechmem.numeric import MOST, several, whole_number
from mechmem.seeding import keyed_order

SMALLEST_SIZE = 4


@dataclass(frozen=True)
class LearningCurve:
    """Held-out accuracy by number of training groups (pairs).

    Attributes:
        accuracy: ``accuracy[site][size]``, with a 95 % interval over the held-out
            groups. It does not hold how much another draw of training groups would change.
        shuffled: The same with the two classes exchanged at random within the data.
        input_only: A logistic classifier on the input tokens alone, by size.
        length_only: A logistic classifier on the number of tokens alone, by size.
        majority: Share of the larger class.
        classes: The two classes.
        by: ``"behavior"`` or ``"label"``.
        classifier: What was fitted to the states.
        repeats: Draws of training groups that were averaged.
    """

    accuracy: Mapping[Site, Mapping[int, Estimate]]
    shuffled: Mapping[Site, Mapping[int, Estimate]]
    input_only: Mapping[int, Estimate]
    length_only: Mapping[int, Estimate]
    majority: float
    classes: tuple[str, str]
    by: str
    classifier: str
    repeats: int

    def table(self) -> pd.DataFrame:
        """One row per site and size, with the baselines of that size."""
        rows = []
        for site, curve in self.accuracy.items():
            for size, held in curve.items():
                row: dict[str, object] = {
                    "stream": site.stream,
                    "layer": site.layer,
                    "classifier": self.classifier,
                    "pairs": size,
                    **held.row("accuracy", counted=False),
                }
                for name, other in (
                    ("shuffled", self.shuffled[site][size]),
                    ("input_only", self.input_only[size]),
                    ("length_only", self.length_only[size]),
                ):
                    row |= other.row(name, counted=False)
                rows.append({**row, "majority": self.majority, "n": held.n, "groups": held.groups})
        return pd.DataFrame(rows)


def learning_curve(
    acts: Activations,
    *,
    sizes: Sequence[int] | None = None,
    by: str = "behavior",
    classifier: str = "logistic",
    seed: int = 0,
    folds: int = 5,
    repeats: int = 3,
) -> LearningCurve:
    """Fit on more and more groups, always test on the same held-out ones.

    The outer folds are those of `mechmem.fit_probes` with the same seed, so that the last point is
    its accuracy. Within a fold the training groups of a smaller size are part of those of a larger
    one. A state that holds the behavior plainly is read from few pairs; an accuracy that still
    climbs at the largest size says that more pairs are needed, not that the states hold no more.

    Args:
        acts: States with exactly two classes. Every site is fitted at every size: choose few
            sites.
        sizes: Numbers of training groups; default 4, 8, 16, ... and all of a fold's.
        by: ``"behavior"`` or ``"label"``.
        classifier: ``"logistic"``, ``"lda"`` or ``"mean_difference"``.
        seed: Keys folds, draws and shuffles.
        folds: Outer folds; every group is held out once.
        repeats: Draws of training groups per size, averaged; all groups are drawn once.

    Raises:
        PromptError: As `mechmem.fit_probes`, or for a size that no fold has and repeats below 1.
        MechmemError: For an unknown classifier.
    """
    if classifier not in CLASSIFIERS:
        raise MechmemError(f"Unknown classifier {classifier!r}; allowed are {listed(CLASSIFIERS)}.")
    whole_number(repeats, "repeats", most=MOST, error=PromptError)
    given = None if sizes is None else several(sizes, "sizes", error=PromptError)
    for size in given or ():
        whole_number(size, "every number of sizes", 2, error=PromptError)
    data = probe_data(acts, by, seed, folds)
    most = max(len(set(data.groups[train].tolist())) for train, _ in data.parts)
    asked = _sizes(most) if given is None else sorted(set(given))
    wrong = [size for size in asked if size > most]
    if wrong:
        raise PromptError(
            f"sizes must be numbers of training groups from 2 to {most}, got {shown(wrong, 80)}."
        )
    draws = {size: _drawn(data, size, 1 if size == most else repeats) for size in asked}

    def curve(x: np.ndarray, target: np.ndarray, kind: str = "logistic") -> dict[int, Estimate]:
        with one_thread(x):
            return {size: _accuracy(data, x, target, kind, draws[size]) for size in asked}

    return LearningCurve(
        {site: curve(x, data.target, classifier) for site, x in data.states.items()},
        {site: curve(x, data.shuffled, classifier) for site, x in data.states.items()},
        curve(data.tokens, data.target, INPUT_ONLY),
        curve(data.lengths, data.target),
        float(max(data.target.mean(), 1 - data.target.mean())),
        data.classes,
        by,
        classifier,
        repeats,
    )


Split = tuple[np.ndarray, np.ndarray]


def _sizes(most: int) -> list[int]:
    sizes = [most]
    size = SMALLEST_SIZE
    while size < most:
        sizes.append(size)
        size *= 2
    return sorted(sizes)


def _drawn(data: ProbeData, size: int, repeats: int) -> list[list[Split]]:
    """Per repeat and fold, the rows of the training groups drawn, and the test rows."""
    out = []
    for repeat in range(repeats):
        splits = []
        for fold, (train, test) in enumerate(data.parts):
            names = data.groups[train].tolist()
            order = keyed_order(names, data.seed, "learning-curve", fold, repeat)
            splits.append((train[np.isin(data.groups[train], order[:size])], test))
        out.append(splits)
    return out


def _accuracy(
    data: ProbeData, x: np.ndarray, target: np.ndarray, kind: str, draws: list[list[Split]]
) -> Estimate:
    right = np.zeros((len(draws), len(target)))
    for k, splits in enumerate(draws):
        for train, test in splits:
            right[k, test] = data.right(x, target, train, test, kind)
    return data.mean(right.mean(0))
