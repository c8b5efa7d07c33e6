"""What can be read off the states: separation on held-out questions beside its baselines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from mechmem.analysis.association import auroc, group_auroc
from mechmem.analysis.classifiers import input_only_scores
from mechmem.analysis.directions import Directions, difference_of_means
from mechmem.analysis.fitting import fit_directions
from mechmem.analysis.geometry import Separation, separation
from mechmem.analysis.intervals import Estimate
from mechmem.caching.activations import Activations
from mechmem.models.sites import Site
from mechmem.seeding import keyed_rng
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.labels import LABELS

SHUFFLED_FITS = 20
"""Directions of labels that were dealt out again, beside the real one."""
COMPARED_METHODS = ("difference_of_means", "mass_mean", "lda", "logistic")
POSITIVE = LABELS[0]


@dataclass(frozen=True)
class HeldOutReading:
    """How well the direction tells the labels apart on questions it has not seen.

    Attributes:
        chosen: The site with the highest AUROC on the validation questions.
        separation: AUROC of the projection by site, with random directions beside it.
        shuffled: By site, the range (2.5 to 97.5 %) of the AUROC of directions fitted on labels
            dealt out again among the training groups.
        input_only: AUROC of a logistic classifier that sees only the tokens: which words occur,
            and which token stands at which place from the end.
        parts: The separation at every site of parts of the test questions; see `subsets_of`.
        methods: The separation at the chosen site of directions fitted by other methods.
    """

    chosen: Site
    separation: Separation
    shuffled: Mapping[str, tuple[float, float]]
    input_only: Estimate
    parts: pd.DataFrame
    methods: pd.DataFrame

    def table(self) -> pd.DataFrame:
        """One row per site."""
        frame = self.separation.table()
        keys = [f"{row.stream}.{row.layer}" for row in frame.itertuples()]
        frame["shuffled_low"] = [self.shuffled[key][0] for key in keys]
        frame["shuffled_high"] = [self.shuffled[key][1] for key in keys]
        return frame.assign(**self.input_only.row("input_only", counted=False))


def held_out_reading(
    directions: Directions,
    train: Activations,
    validation: Activations,
    test: Activations,
    parts: Mapping[str, PromptSet],
    seed: int,
) -> HeldOutReading:
    """Separation of the labels on ``test`` along directions fitted on ``train``.

    Args:
        directions: Fitted on ``train``.
        train, validation, test: States with labels, at one position; no group in two of them.
        parts: Parts of the test questions to measure by themselves, by name.
        seed: Keys resampling, random directions and shuffles.
    """
    rows = []
    for name, prompts in parts.items():
        found = separation(directions, test.select(prompts), by="label", seed=seed).table()
        found.insert(0, "part", name)
        rows.append(found)
    tried = separation(directions, validation, by="label", seed=seed).auroc
    chosen = max(tried, key=lambda site: tried[site].value)
    return HeldOutReading(
        chosen,
        separation(directions, test, by="label", seed=seed),
        _shuffled(train, test, seed),
        _input_only(train, test),
        pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(),
        _by_method(train, test, chosen, seed),
    )


def _by_method(train: Activations, test: Activations, site: Site, seed: int) -> pd.DataFrame:
    """Methods that estimate a covariance or a classifier need more questions than coordinates."""
    one = replace(train, states={site: train[site]})
    enough = len(train) > train[site].flatten(1).shape[1]
    rows = []
    for method in COMPARED_METHODS if enough else COMPARED_METHODS[:1]:
        found = fit_directions(one, method=method, toward=POSITIVE, by="label")
        frame = separation(found, test, by="label", seed=seed).table()
        frame.insert(0, "method", method.replace("_", " "))
        rows.append(frame)
    return pd.concat(rows, ignore_index=True)


def subsets_of(prompts: PromptSet, key: str, smallest: int = 8) -> dict[str, PromptSet]:
    """Pairs of one memory item kind and one reasoning item kind, by ``meta[key]``.

    Only kinds of one label with ``smallest`` questions or more are paired.
    """
    kinds: dict[str, list[str]] = {label: [] for label in LABELS}
    names = dict.fromkeys(_kind(p.meta.get(key), p.label) for p in prompts if p.meta.get(key))
    for name in names:
        members = [p for p in prompts if _kind(p.meta.get(key), p.label) == name]
        if len(members) >= smallest and members[0].label in kinds:
            kinds[str(members[0].label)].append(name)
    return {
        f"{low} against {high}": prompts.filter(
            lambda p, low=low, high=high: _kind(p.meta.get(key), p.label) in (low, high)  # type: ignore[misc]
        )
        for low in kinds[LABELS[1]]
        for high in kinds[LABELS[0]]
    }


def _kind(value: object, label: str | None) -> str:
    return f"{value} ({label})"


def _shuffled(train: Activations, test: Activations, seed: int) -> dict[str, tuple[float, float]]:
    groups = np.array(train.prompts.groups)
    names, index = np.unique(groups, return_inverse=True)
    truth = np.array([prompt.label == POSITIVE for prompt in train.prompts])
    of_group = np.zeros(len(names), dtype=bool)
    of_group[index] = truth
    positive = np.array([prompt.label == POSITIVE for prompt in test.prompts])
    out = {}
    for site in train.sites:
        fitted, held = (acts[site].flatten(1).double().numpy() for acts in (train, test))
        values = []
        for k in range(SHUFFLED_FITS):
            mixed = keyed_rng(seed, "shuffled labels", k).permutation(of_group)[index]
            vector = fitted[mixed].mean(0) - fitted[~mixed].mean(0)
            values.append(auroc(held @ vector, positive))
        low, high = np.quantile(values, [0.025, 0.975])
        out[site.key] = (float(low), float(high))
    return out


def input_scores(train: Activations, test: Activations) -> np.ndarray:
    """How much the test questions' tokens alone speak for `POSITIVE`."""
    positive = np.array([prompt.label == POSITIVE for prompt in train.prompts])
    return input_only_scores(train.token_ids, positive, test.token_ids)


def _input_only(train: Activations, test: Activations) -> Estimate:
    positive = np.array([prompt.label == POSITIVE for prompt in test.prompts])
    return group_auroc(input_scores(train, test), positive, test.prompts.groups)


def split_half_cosines(train: Activations, seed: int, draws: int = 20) -> pd.DataFrame:
    """Cosine of the directions of two random halves of the training groups, by site."""
    rows = []
    for k in range(draws):
        parts = train.prompts.split(train=0.5, validation=0.5, seed=seed * draws + k)
        one, other = (
            difference_of_means(train.select(part), toward=POSITIVE, by="label")
            for part in parts[:2]
        )
        for site in train.sites:
            a, b = one[site], other[site]
            if a.norm and b.norm:
                rows.append((site.stream, site.layer, float(a.unit @ b.unit)))
    frame = pd.DataFrame(rows, columns=["stream", "layer", "cosine"])
    grouped = frame.groupby(["stream", "layer"], sort=False)["cosine"]
    return grouped.agg(["mean", "min", "max"]).reset_index()
