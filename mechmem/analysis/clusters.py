"""`neuron_clusters`: which of the chosen neurons vary together, beyond what the class explains."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from mechmem.analysis.intervals import Estimate, group_counts
from mechmem.analysis.neurons import NeuronSet
from mechmem.caching.activations import Activations
from mechmem.errors import MechmemError, PromptError
from mechmem.models.sites import Site
from mechmem.seeding import keyed_order, keyed_rng

RESAMPLES = 200
"""Shuffles of the classes, and as many resamples of the groups."""


@dataclass(frozen=True)
class NeuronClusters:
    """Groups of chosen neurons that vary together within the classes.

    Attributes:
        neurons: The chosen neurons, ``(site, coordinate)`` with positions flattened.
        labels: Cluster of every neuron, 0 the largest.
        correlation: ``[neuron, neuron]`` within-class Pearson r on the fitting half.
        held_out: The same on the other half.
        within: Mean |r| between members of one cluster on the held-out half.
        between: Mean |r| between members of different clusters there.
        dimensions: Participation ratio of the held-out correlation matrix: how many independent
            axes would spread the variance alike. The number of neurons when all vary alone.
        shuffled: ``clusters`` (of at least two neurons), ``within`` and ``dimensions`` when every
            neuron's values are exchanged among the examples of a class, so that none varies with
            another; mean and middle 95 %. ``within`` is over the observed clusters.
        threshold: Mean |r| above which clusters were joined.
        n, groups: Held-out examples and groups.
    """

    neurons: tuple[tuple[Site, int], ...]
    labels: np.ndarray
    correlation: Float[np.ndarray, "neuron neuron"]
    held_out: Float[np.ndarray, "neuron neuron"]
    within: Estimate
    between: Estimate
    dimensions: Estimate
    shuffled: dict[str, tuple[float, float, float]]
    threshold: float
    n: int
    groups: int

    @property
    def sizes(self) -> list[int]:
        """Neurons per cluster, largest first."""
        return [int(size) for size in np.bincount(self.labels)]

    def members(self, cluster: int) -> dict[Site, list[int]]:
        """Coordinates of one cluster by site, positions flattened."""
        out: dict[Site, list[int]] = {}
        for (site, index), label in zip(self.neurons, self.labels, strict=True):
            if label == cluster:
                out.setdefault(site, []).append(index)
        if not out:
            raise MechmemError(f"No cluster {cluster}; there are 0 to {len(self.sizes) - 1}.")
        return out

    def table(self) -> pd.DataFrame:
        """One row per neuron, ordered by cluster."""
        frame = pd.DataFrame(
            {
                "cluster": self.labels,
                "stream": [site.stream for site, _ in self.neurons],
                "layer": [site.layer for site, _ in self.neurons],
                "neuron": [index for _, index in self.neurons],
                "cluster_size": [self.sizes[label] for label in self.labels],
            }
        )
        return frame.sort_values("cluster", kind="stable").reset_index(drop=True)

    def correlations(self) -> pd.DataFrame:
        """One row per pair of neurons, each with itself included, ordered by cluster: ``r`` on the
        held-out half and ``r_fitting`` on the half that made the clusters, beside the means."""
        order = np.argsort(self.labels, kind="stable")
        one, other = (order[k] for k in np.triu_indices(len(order)))
        columns: dict[str, Any] = {}
        for prefix, rows in (("", one), ("other_", other)):
            columns |= {
                f"{prefix}cluster": self.labels[rows],
                f"{prefix}stream": [self.neurons[k][0].stream for k in rows],
                f"{prefix}layer": [self.neurons[k][0].layer for k in rows],
                f"{prefix}neuron": [self.neurons[k][1] for k in rows],
            }
        return pd.DataFrame(columns).assign(
            r=self.held_out[one, other],
            r_fitting=self.correlation[one, other],
            within=self.within.value,
            between=self.between.value,
            within_shuffled=self.shuffled["within"][0],
            n=self.n,
            groups=self.groups,
        )

    def summary(self) -> pd.DataFrame:
        """One row per statistic, beside its control."""
        several = float(sum(size > 1 for size in self.sizes))
        count = Estimate(several, np.nan, np.nan, self.n, self.groups)
        rows = []
        for name, value in (
            ("clusters", count),
            ("within", self.within),
            ("between", self.between),
            ("dimensions", self.dimensions),
        ):
            mean, low, high = self.shuffled.get(name, (np.nan, np.nan, np.nan))
            rows.append(
                {
                    "statistic": name,
                    **value.row("value", counted=False),
                    "shuffled": mean,
                    "shuffled_low": low,
                    "shuffled_high": high,
                    "n": self.n,
                    "groups": self.groups,
                }
            )
        return pd.DataFrame(rows)


def neuron_clusters(
    acts: Activations,
    neurons: NeuronSet,
    *,
    threshold: float = 0.5,
    by: str = "behavior",
    seed: int = 0,
) -> NeuronClusters:
    """Cluster the chosen neurons by how they vary together within the classes.

    The class means are taken away first: neurons that both follow the class correlate for that
    reason alone. Average linkage on ``1 - |r|``, joined while the mean |r| stays above the
    threshold. Clusters are found on half of the groups and measured on the other half.

    A residual coordinate is handed on from layer to layer, so the same coordinate of neighboring
    layers forms a cluster by construction; choose at one site to see clusters that are not.

    What it does not prove: that neurons which vary together act together; shift them singly and
    jointly for that (`mechmem.evaluation.interaction`).

    Args:
        acts: States at the sites and positions that the neurons were chosen at.
        neurons: From `NeuronScores.top`, two at least.
        threshold: In (0, 1).
        by: ``"behavior"`` or ``"label"``: the class whose mean is taken away.
        seed: Keys the division, the resampling and the shuffles.

    Raises:
        MechmemError: For a threshold outside (0, 1) or fewer than two neurons.
        PromptError: With fewer than eight groups.
    """
    if not 0 < threshold < 1:
        raise MechmemError(f"threshold must lie between 0 and 1, got {threshold!r}; 0.5 is usual.")
    chosen = [(site, int(k)) for site, index in neurons.index.items() for k in index]
    if len(chosen) < 2:
        raise MechmemError(f"Clusters need at least two neurons, got {len(chosen)}; choose more.")
    if neurons.scores.columns != acts.columns:
        raise MechmemError(
            f"The neurons were chosen at positions {list(neurons.scores.columns)}, the states are "
            f"at {list(acts.columns)}; cache the same ones."
        )
    names = acts.classes(by)
    rows = [k for k, name in enumerate(names) if name is not None]
    groups = np.array([acts.prompts[k].group for k in rows])
    order = keyed_order(groups.tolist(), seed, "clusters")
    if len(order) < 8:
        raise PromptError(f"Clusters need at least eight groups, there are {len(order)}.")
    columns = [acts[site][rows].flatten(1)[:, k].double().numpy() for site, k in chosen]
    values, classes = np.stack(columns, axis=1), np.array([names[k] for k in rows])
    side = np.isin(groups, order[: len(order) // 2])
    fitting = _within_class(values[side], classes[side])
    testing = _within_class(values[~side], classes[~side])
    correlation, held_out = _correlation(fitting), _correlation(testing)
    labels = _clusters(correlation, threshold)
    draws = _resampled(testing, groups[~side], labels, seed)
    shuffled = [
        _null(fitting, testing, classes[side], classes[~side], labels, threshold, seed, draw)
        for draw in range(RESAMPLES)
    ]
    n, total = len(testing), len(order) - len(order) // 2
    within, between, dimensions = (
        # A mean of |r| is larger in every resample, so the draws are moved back to the value.
        Estimate(value, *_range(_moved(draws[:, k], value)), n, total)
        for k, value in enumerate(_measures(held_out, labels))
    )
    null = np.array(shuffled)
    ranges = {
        name: (float(null[:, k].mean()), *_range(null[:, k]))
        for k, name in enumerate(("clusters", "within", "dimensions"))
    }
    return NeuronClusters(
        tuple(chosen), labels, correlation, held_out, within, between, dimensions, ranges,
        threshold, n, total,
    )  # fmt: skip


def _within_class(values: np.ndarray, classes: np.ndarray) -> np.ndarray:
    out = values.copy()
    for name in np.unique(classes):
        out[classes == name] -= values[classes == name].mean(0)
    return out


def _correlation(values: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Pearson r of columns whose class means are 0; 0 for a column that never varies."""
    each = np.ones(len(values)) if weights is None else weights
    products = (values * each[:, None]).T @ values
    spread = np.sqrt(np.diag(products))
    scale = np.where(spread > 0, spread, np.inf)
    out: np.ndarray = products / scale[:, None] / scale[None, :]
    np.fill_diagonal(out, 1.0)
    return out


def _clusters(correlation: np.ndarray, threshold: float) -> np.ndarray:
    distance = np.clip(1 - np.abs(correlation), 0, 1)
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "average")
    raw = fcluster(tree, 1 - threshold, "distance") - 1
    largest = np.argsort(-np.bincount(raw), kind="stable")
    rank = np.empty_like(largest)
    rank[largest] = np.arange(len(largest))
    labels: np.ndarray = rank[raw]
    return labels


def _measures(correlation: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """Mean |r| within and between clusters (NaN where there is no such pair), dimensions."""
    upper = np.triu(np.ones_like(correlation, dtype=bool), 1)
    together = labels[:, None] == labels[None, :]
    size = np.abs(correlation)
    inside, outside = size[upper & together], size[upper & ~together]
    ratio = len(correlation) ** 2 / float((correlation**2).sum())
    return (
        float(inside.mean()) if inside.size else float("nan"),
        float(outside.mean()) if outside.size else float("nan"),
        ratio,
    )


def _resampled(values: np.ndarray, groups: np.ndarray, labels: np.ndarray, seed: int) -> np.ndarray:
    _, index = np.unique(groups, return_inverse=True)
    number = int(index.max()) + 1
    drawn = group_counts(number, RESAMPLES, seed, "clusters-bootstrap", number)[:, index]
    return np.array([_measures(_correlation(values, row.astype(float)), labels) for row in drawn])


def _null(
    fitting: np.ndarray,
    testing: np.ndarray,
    classes: np.ndarray,
    test_classes: np.ndarray,
    labels: np.ndarray,
    threshold: float,
    seed: int,
    draw: int,
) -> tuple[float, float, float]:
    rng = keyed_rng(seed, "clusters-shuffle", draw)
    found = _clusters(_correlation(_mixed(fitting, classes, rng)), threshold)
    within, _, dimensions = _measures(_correlation(_mixed(testing, test_classes, rng)), labels)
    return float((np.bincount(found) > 1).sum()), within, dimensions


def _mixed(values: np.ndarray, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    out = values.copy()
    for name in np.unique(classes):
        rows = np.flatnonzero(classes == name)
        out[rows] = rng.permuted(values[rows], axis=0)
    return out


def _moved(draws: np.ndarray, value: float) -> np.ndarray:
    known = draws[~np.isnan(draws)]
    return draws - known.mean() + value if len(known) else draws


def _range(values: np.ndarray) -> tuple[float, float]:
    if np.isnan(values).all():  # no pair inside, or none across, clusters
        return float("nan"), float("nan")
    low, high = np.nanquantile(values, [0.025, 0.975])
    return float(low), float(high)
