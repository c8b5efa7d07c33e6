"""Probes: how well the behavior can be read off a state, beside what the input alone gives away."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from threadpoolctl import threadpool_limits

from mechmem.analysis.classifiers import (
    CLASSIFIERS,
    fit_classifier,
    folds_of,
    input_only_scores,
)
from mechmem.analysis.exchange import Exchange
from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.caching.activations import Activations, class_names
from mechmem.errors import MechmemError, PromptError, listed
from mechmem.models.sites import Site
from mechmem.numeric import MOST, whole_number
from mechmem.progress import tracked
from mechmem.seeding import keyed_seed
from mechmem.tasks.prompts import PromptSet


@dataclass(frozen=True)
class Probes:
    """Held-out accuracy of a classifier per site.

    Attributes:
        accuracy: On groups that the classifier has not seen, per site.
        shuffled: The same with exchanged classes (`mechmem.analysis.exchange.Exchange`: within the
            groups that show both, whole groups otherwise): what the method finds where there is
            nothing.
        input_only: A logistic classifier on the input tokens alone (which token stands at which
            position from the end). Where it is as good as the states, the probe shows nothing about
            them.
        majority: Share of the larger class.
        classes: The two classes.
        by: ``"behavior"`` or ``"label"``.
        length_only: A logistic classifier on the number of tokens of the prompt alone.
        classifier: What was fitted to the states.
        chosen: Accuracy where the training groups of every fold choose the site as well, by their
            inner folds. The best of ``accuracy`` was chosen by looking at what is held out, and is
            above chance where there is nothing; this is not.
        chosen_shuffled: The same with exchanged classes.
        sites: In how many folds each site was chosen.
    """

    accuracy: Mapping[Site, Estimate]
    shuffled: Mapping[Site, Estimate]
    input_only: Estimate
    majority: float
    classes: tuple[str, str]
    by: str
    length_only: Estimate
    classifier: str
    chosen: Estimate
    chosen_shuffled: Estimate
    sites: Mapping[Site, int]

    @property
    def site(self) -> Site:
        """The site chosen most often."""
        return max(self.sites, key=lambda site: self.sites[site])

    @property
    def reads(self) -> bool:
        """Whether the classes can be read off the states: the interval of ``chosen`` lies above
        guessing and above what the input tokens alone give away."""
        return self.chosen.low > max(self.majority, self.input_only.value)

    def table(self) -> pd.DataFrame:
        """One row per site with accuracy, interval and the baselines."""
        rows = [
            {
                "stream": site.stream,
                "layer": site.layer,
                "classifier": self.classifier,
                **held.row("accuracy", counted=False),
                **self.shuffled[site].row("shuffled", counted=False),
                **self.input_only.row("input_only", counted=False),
                **self.length_only.row("length_only", counted=False),
                "majority": self.majority,
                "folds_chosen": self.sites[site],
                **self.chosen.row("chosen", counted=False),
                **self.chosen_shuffled.row("chosen_shuffled", counted=False),
                "n": held.n,
                "groups": held.groups,
            }
            for site, held in self.accuracy.items()
        ]
        return pd.DataFrame(rows)


def fit_probes(
    acts: Activations,
    *,
    by: str = "behavior",
    classifier: str = "logistic",
    seed: int = 0,
    folds: int = 5,
) -> Probes:
    """Linear classifiers per site, tested on held-out groups.

    All positions of a site are read together. Whatever a classifier chooses (the strength of the
    logistic one's L2 penalty) it chooses inside the training groups.

    Args:
        acts: States with exactly two classes; ``positions="last"`` is the state from which the
            first new token is written.
        by: ``"behavior"`` or ``"label"``.
        classifier: ``"logistic"``, ``"lda"`` or ``"mean_difference"``; see
            `mechmem.analysis.fit_classifier`.
        seed: Keys folds and shuffles.
        folds: Outer folds; every group is held out once.

    Raises:
        PromptError: Unless there are two classes and at least ``folds`` groups, or when states
            are not finite.
        MechmemError: For an unknown classifier.
    """
    if classifier not in CLASSIFIERS:
        raise MechmemError(f"Unknown classifier {classifier!r}; allowed are {listed(CLASSIFIERS)}.")
    data = probe_data(acts, by, seed, folds)
    with tracked(2 * len(data.states), "fitting probes", "site") as more:
        real, shuffled = (
            data.over_sites(target, classifier, more) for target in (data.target, data.shuffled)
        )
    return Probes(
        real.each,
        shuffled.each,
        data.held_out(data.tokens, data.target, INPUT_ONLY),
        float(max(data.target.mean(), 1 - data.target.mean())),
        data.classes,
        by,
        data.held_out(data.lengths, data.target),
        classifier,
        real.chosen,
        shuffled.chosen,
        real.sites,
    )


INPUT_ONLY = "input only"
"""What stands for the kind of classifier where `input_only_scores` reads token ids."""


@dataclass(frozen=True)
class OverSites:
    """Accuracy per site, and with the site chosen inside the training groups."""

    each: Mapping[Site, Estimate]
    chosen: Estimate
    sites: Mapping[Site, int]


@dataclass(frozen=True)
class ProbeData:
    """What classifiers of a contrast read, and the folds that they are tested in.

    Attributes:
        states: ``[example, d]`` float64 per site, positions side by side.
        tokens: ``[example]`` tuples of token ids: the input alone.
        lengths: ``[example, 1]``: the number of its tokens alone.
        target: 1 for the second class.
        shuffled: The same after an exchange of classes.
        groups: Group per example.
        parts: Training and test rows of every fold.
        classes: The two classes.
        seed: Keys folds, shuffle and resampling.
    """

    states: Mapping[Site, np.ndarray]
    tokens: np.ndarray
    lengths: np.ndarray
    target: np.ndarray
    shuffled: np.ndarray
    groups: np.ndarray
    parts: list[tuple[np.ndarray, np.ndarray]]
    classes: tuple[str, str]
    seed: int

    def held_out(
        self, features: np.ndarray, target: np.ndarray, classifier: str = "logistic"
    ) -> Estimate:
        """Accuracy over all folds."""
        right = np.zeros(len(target))
        with one_thread(features):
            for train, test in self.parts:
                right[test] = self.right(features, target, train, test, classifier)
        return self.mean(right)

    def over_sites(
        self,
        target: np.ndarray,
        classifier: str,
        more: Callable[[int], None] = lambda done: None,
    ) -> OverSites:
        """All sites, and the one that the training groups of every fold choose; of equal ones the
        first."""
        sites = list(self.states)
        right = np.zeros((len(sites), len(target)))
        inner = np.full((len(sites), len(self.parts)), -np.inf)
        for k, x in enumerate(self.states.values()):
            with one_thread(x):
                for fold, (train, test) in enumerate(self.parts):
                    right[k, test], found = self._tested(x, target, train, test, classifier)
                    inner[k, fold] = -np.inf if np.isnan(found) else found
            more(1)
        best = inner.argmax(0)
        chosen = np.zeros(len(target))
        for fold, (_, test) in enumerate(self.parts):
            chosen[test] = right[best[fold], test]
        each = {site: self.mean(right[k]) for k, site in enumerate(sites)}
        counts = {site: int((best == k).sum()) for k, site in enumerate(sites)}
        return OverSites(each, self.mean(chosen), counts)

    def right(
        self,
        features: np.ndarray,
        target: np.ndarray,
        train: np.ndarray,
        test: np.ndarray,
        classifier: str = "logistic",
    ) -> np.ndarray:
        """1 where the prediction of a test row is right, after fitting the training rows."""
        return self._tested(features, target, train, test, classifier)[0]

    def _tested(
        self,
        features: np.ndarray,
        target: np.ndarray,
        train: np.ndarray,
        test: np.ndarray,
        classifier: str,
    ) -> tuple[np.ndarray, float]:
        known = target[train]
        if len(set(known.tolist())) < 2:
            return np.asarray(target[test] == known[0], dtype=float), float("nan")
        if classifier == INPUT_ONLY:
            ids = features[train].tolist(), features[test].tolist()
            scores = input_only_scores(ids[0], known, ids[1])
            return np.asarray((scores > 0) == target[test], dtype=float), float("nan")
        fitted = fit_classifier(features[train], known, self.groups[train], classifier)
        right = np.asarray(fitted.predict(features[test]) == target[test], dtype=float)
        return right, fitted.inner

    def mean(self, right: np.ndarray) -> Estimate:
        """Mean over examples, with an interval over groups."""
        return group_mean(right, self.groups.tolist(), kind="share")


def one_thread(features: np.ndarray) -> threadpool_limits:
    """Many small fits: more than one thread only makes them wait for each other."""
    return threadpool_limits(1 if features.size < 1_000_000 else None)


def probe_data(acts: Activations, by: str, seed: int, folds: int) -> ProbeData:
    """Check and lay out what classifiers read; see `fit_probes`."""
    whole_number(folds, "folds", 2, most=MOST, error=PromptError)
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
            "prompts of two: acts.select(prompts.filter(...))."
        )
    prompts = PromptSet(acts.prompts[k] for k in rows)
    groups = np.array(prompts.groups)
    if len(set(groups.tolist())) < folds:
        raise PromptError(
            f"{folds} folds need at least {folds} groups, there are {len(set(groups.tolist()))}; "
            "observe more instances or pass fewer folds."
        )
    target = (labels == classes[1]).astype(int)
    exchanged = np.array(class_names(Exchange(prompts, by).draw(seed, 0), by))
    ids = np.empty(len(rows), dtype=object)
    ids[:] = [acts.token_ids[k] for k in rows]
    return ProbeData(
        {site: state[rows].flatten(1).double().numpy() for site, state in acts.states.items()},
        ids,
        np.array([[float(len(one))] for one in ids]),
        target,
        (exchanged == classes[1]).astype(int),
        groups,
        folds_of(folds, target, groups, keyed_seed(seed, "probe-folds") % 2**32),
        (classes[0], classes[1]),
        seed,
    )
