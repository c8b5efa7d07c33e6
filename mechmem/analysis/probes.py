"""Probes: how well the behavior can be read off a state, beside what the input alone gives away."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.caching.activations import Activations
from mechmem.errors import PromptError, listed
from mechmem.models.sites import Site
from mechmem.seeding import keyed_rng, keyed_seed

__all__ = ["Probes", "fit_probes"]

REGULARIZATION = (0.003, 0.03, 0.3)


@dataclass(frozen=True)
class Probes:
    """Held-out accuracy of a classifier per site.

    Attributes:
        accuracy: On groups that the classifier has not seen, per site.
        shuffled: The same with the two classes exchanged at random within the data: what the
            method finds where there is nothing.
        input_only: A classifier on the input tokens alone (which token stands at which position
            from the end). Where it is as good as the states, the probe shows nothing about them.
        majority: Share of the larger class.
        classes: The two classes.
        by: ``"behavior"`` or ``"label"``.
    """

    accuracy: Mapping[Site, Estimate]
    shuffled: Mapping[Site, Estimate]
    input_only: Estimate
    majority: float
    classes: tuple[str, str]
    by: str

    def table(self) -> pd.DataFrame:
        """One row per site with accuracy, interval and the baselines."""
        rows = [
            {
                "stream": site.stream,
                "layer": site.layer,
                "accuracy": held.value,
                "low": held.low,
                "high": held.high,
                "shuffled": self.shuffled[site].value,
                "shuffled_low": self.shuffled[site].low,
                "shuffled_high": self.shuffled[site].high,
                "input_only": self.input_only.value,
                "input_only_low": self.input_only.low,
                "input_only_high": self.input_only.high,
                "majority": self.majority,
                "n": held.n,
                "groups": held.groups,
            }
            for site, held in self.accuracy.items()
        ]
        return pd.DataFrame(rows)


def fit_probes(acts: Activations, *, by: str = "behavior", seed: int = 0, folds: int = 5) -> Probes:
    """Logistic classifiers per site, tested on held-out groups.

    The strength of the L2 penalty is chosen by an inner cross-validation inside the training
    groups. All positions of a site are read together.

    Args:
        acts: States with exactly two classes.
        by: ``"behavior"`` or ``"label"``.
        seed: Keys folds and shuffles.
        folds: Outer folds; every group is held out once.

    Raises:
        PromptError: Unless there are two classes and at least ``folds`` groups, or when states
            are not finite.
    """
    if folds < 2:
        raise PromptError(f"folds must be at least 2, so that something is held out; got {folds}.")
    for site, state in acts.states.items():
        if not torch.isfinite(state).all():
            raise PromptError(
                f"States at {site} are not finite (NaN or infinity), so no classifier can read "
                "them. Is the dtype too small?"
            )
    names = acts.classes(by)
    rows = [k for k, name in enumerate(names) if name is not None]
    labels = np.array([names[k] for k in rows])
    classes = sorted(set(labels.tolist()))
    if len(classes) != 2:
        raise PromptError(
            f"A probe separates two classes, these prompts show {listed(classes)}. Keep the "
            "prompts of "
            "two: acts.select(prompts.filter(...))."
        )
    groups = np.array([acts.prompts[k].group for k in rows])
    if len(set(groups.tolist())) < folds:
        raise PromptError(
            f"{folds} folds need at least {folds} groups, there are {len(set(groups.tolist()))}; "
            "observe more instances or pass fewer folds."
        )
    y = (labels == classes[1]).astype(int)
    parts = _folds(folds, y, groups, keyed_seed(seed, "probe-folds") % 2**32)
    mixed = keyed_rng(seed, "probe-shuffle").permutation(y)

    def held_out(features: np.ndarray, target: np.ndarray) -> Estimate:
        # Many small fits: more than one thread only makes them wait for each other.
        with threadpool_limits(1 if features.size < 1_000_000 else None):
            right = _held_out(features, target, groups, parts)
        return group_mean(right, groups.tolist(), seed=seed)

    states = {site: state[rows].flatten(1).double().numpy() for site, state in acts.states.items()}
    return Probes(
        {site: held_out(features, y) for site, features in states.items()},
        {site: held_out(features, mixed) for site, features in states.items()},
        held_out(_token_features([acts.token_ids[k] for k in rows]), y),
        float(max(y.mean(), 1 - y.mean())),
        (classes[0], classes[1]),
        by,
    )


def _held_out(
    features: np.ndarray,
    target: np.ndarray,
    groups: np.ndarray,
    parts: list[tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """1 where the held-out prediction is right."""
    right = np.zeros(len(target))
    for train, test in parts:
        if len(set(target[train].tolist())) < 2:
            right[test] = target[test] == target[train][0]
            continue
        right[test] = (
            _classifier(features[train], target[train], groups[train]).predict(features[test])
            == target[test]
        )
    return right


def _classifier(features: np.ndarray, target: np.ndarray, groups: np.ndarray) -> Any:
    """The fitted classifier, its penalty chosen inside these data where they allow it."""
    pipeline = make_pipeline(
        StandardScaler(), LogisticRegression(C=REGULARIZATION[1], max_iter=2000)
    )
    inner = [
        (train, test)
        for train, test in _folds(min(3, int(np.bincount(target).min())), target, groups)
        if len(set(target[train].tolist())) == 2
    ]
    if not inner:  # too few of one class to choose anything by
        return pipeline.fit(features, target)
    search = GridSearchCV(
        pipeline, {"logisticregression__C": REGULARIZATION}, cv=inner, error_score="raise"
    )
    return search.fit(features, target)


def _folds(
    n: int, target: np.ndarray, groups: np.ndarray, seed: int | None = None
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows of every fold's training and test side; no group is on both."""
    if n < 2:
        return []
    splitter = StratifiedGroupKFold(n, shuffle=seed is not None, random_state=seed)
    with warnings.catch_warnings():
        # A class with fewer examples than folds is missing from some test sides: no matter.
        warnings.filterwarnings("ignore", message="The least populated class")
        return list(splitter.split(np.zeros((len(target), 1)), target, groups))


def _token_features(token_ids: list[tuple[int, ...]]) -> np.ndarray:
    """One-hot of the token at every position counted from the end, as far back as all reach."""
    depth = min(len(ids) for ids in token_ids)
    columns = []
    for back in range(1, depth + 1):
        here = np.array([ids[-back] for ids in token_ids])
        for token in np.unique(here)[1:]:
            columns.append(here == token)
    return np.stack(columns, axis=1).astype(float) if columns else np.zeros((len(token_ids), 1))
