"""Neurons: single coordinates of a declared site, scored by how they differ between behaviors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy import stats
from torch import Tensor

from mechmem.analysis.ranking import (
    CONSTANTS_FIRST,
    RANKINGS,
    areas,
    how_many,
    largest,
    ranking_score,
    safe_ratio,
    welch_p,
)
from mechmem.analysis.spread import Spread, spreads
from mechmem.artifacts import load_artifact, save_artifact
from mechmem.caching.activations import Activations
from mechmem.caching.histograms import Histograms
from mechmem.caching.moments import Moments
from mechmem.caching.provenance import PROVENANCE, Provenance
from mechmem.errors import ArtifactError, MechmemError, SiteError, listed
from mechmem.models.sites import Site, as_site


@dataclass(frozen=True)
class NeuronSet:
    """Chosen neurons of some sites.

    Attributes:
        scores: Where they were chosen from.
        index: Chosen coordinates (flattened over positions and features) per site.
    """

    scores: NeuronScores
    index: Mapping[Site, Tensor]

    def __len__(self) -> int:
        return sum(len(rows) for rows in self.index.values())

    def mask(self, site: Site) -> Tensor:
        """``[position, d]`` True at the chosen coordinates of a site."""
        shape = self.scores.mean_difference[site].shape
        out = torch.zeros(shape.numel(), dtype=torch.bool)
        out[self.index.get(site, torch.empty(0, dtype=torch.long))] = True
        return out.reshape(shape)

    def per_site(self) -> dict[Site, int]:
        """How many neurons were chosen at every scored site, zeros included."""
        return {site: len(self.index.get(site, ())) for site in self.scores.mean_difference}


@dataclass(frozen=True)
class NeuronScores:
    """Per-neuron statistics of a contrast; every tensor is ``[position, d]`` float64 per site.

    Attributes:
        mean_difference: First class minus second (P1's NMD: memorized minus generalized).
        correlation: Pearson r between the activation and being of the first class.
        effect_size: Cohen's d, the mean difference in pooled standard deviations.
        p, q: Two-sided p value of Welch's t test and its Benjamini-Hochberg q over all neurons.
            They treat examples as independent; rephrasings are not, so read them as a ranking.
        mean: Mean over both classes, each weighted equally (the value of mean ablation).
        std: Pooled standard deviation.
        first, second: The two classes.
        columns: Names of the positions.
        provenance: Model, positions, counts and what was seen.
        auc: Chance that a random example of the first class has the larger activation, ties half;
            NaN where no histogram was kept; ``None`` when it was not asked for.
        spread: How the states lie and vary, positions side by side, for controls.
    """

    mean_difference: Mapping[Site, Tensor]
    correlation: Mapping[Site, Tensor]
    effect_size: Mapping[Site, Tensor]
    p: Mapping[Site, Tensor]
    q: Mapping[Site, Tensor]
    mean: Mapping[Site, Tensor]
    std: Mapping[Site, Tensor]
    first: str
    second: str
    columns: tuple[str, ...]
    provenance: Provenance
    auc: Mapping[Site, Tensor] | None = None
    spread: Mapping[Site, Spread] = field(default_factory=dict)

    def __repr__(self) -> str:
        return (
            f"NeuronScores({self.first} - {self.second}: {self.total} neurons at "
            f"{len(self.sites)} sites, positions {list(self.columns)})"
        )

    @property
    def sites(self) -> list[Site]:
        """Sites in depth order."""
        return list(self.mean_difference)

    @property
    def total(self) -> int:
        """Number of neurons scored."""
        return sum(values.numel() for values in self.mean_difference.values())

    def top(
        self,
        k: float,
        *,
        by: str = "correlation",
        scope: str = "global",
        sites: Iterable[tuple[str, int]] | None = None,
    ) -> NeuronSet:
        """The highest-ranking neurons.

        Args:
            k: A number of neurons (integer), or a share of them (float in (0, 1]).
            by: ``"correlation"`` (|r|, P1), ``"mean_difference"`` (|NMD|), ``"effect_size"`` (|d|)
                or ``"auc"`` (its distance from one half); for `mechmem.p1_preset` also
                ``"correlation_constants_first"``. |r| and |d| rank alike inside one
                contrast; |NMD| can differ completely when neurons have different scales.
            scope: ``"global"`` ranks all sites together (P1), ``"site"`` takes the same share
                of each.
            sites: Only these, default all.

        Raises:
            MechmemError: For an impossible ``k``, ranking, scope or site.
        """
        if scope not in ("global", "site"):
            raise MechmemError(f"scope must be 'global' or 'site', got {scope!r}.")
        wanted = self.sites if sites is None else [as_site(site) for site in sites]
        missing = [str(site) for site in wanted if site not in self.mean_difference]
        if missing:
            raise SiteError(
                f"No neuron scores at {', '.join(missing)}; scored were "
                f"{listed(map(str, self.sites))}. Cache those sites first."
            )
        score = self.ranking(by)
        parts = {site: score[site].flatten() for site in wanted}
        if scope == "site":
            index = {
                site: largest(values, how_many(k, len(values))) for site, values in parts.items()
            }
            return NeuronSet(self, index)
        joined = torch.cat(list(parts.values()))
        chosen = largest(joined, how_many(k, len(joined)))
        index, start = {}, 0
        for site, values in parts.items():
            mine = chosen[(chosen >= start) & (chosen < start + len(values))] - start
            index[site] = mine
            start += len(values)
        return NeuronSet(self, index)

    def ranking(self, by: str = "correlation") -> dict[Site, Tensor]:
        """``[position, d]`` per site: what `top` ranks by, from 0 (says nothing) upwards.

        Raises:
            MechmemError: For an unknown ranking, or ``"auc"`` where no areas were asked for.
        """
        if by == CONSTANTS_FIRST:
            known = self.ranking("correlation")
            return {
                site: known[site].masked_fill(self.constant(site), torch.inf) for site in self.sites
            }
        if by not in RANKINGS:
            raise MechmemError(f"Unknown ranking {by!r}; allowed are {listed(RANKINGS)}.")
        if by == "auc" and (
            self.auc is None or any(bool(area.isnan().any()) for area in self.auc.values())
        ):
            raise MechmemError(
                "by='auc' needs the area of every neuron, which mean and variance do not give: "
                "neuron_mean_difference(acts, auc=True) with stored activations, or "
                "auc=Histograms over all of them."
            )
        values: Mapping[Site, Tensor] = getattr(self, by)
        return {site: ranking_score(by, values[site]) for site in self.sites}

    def constant(self, site: Site) -> Tensor:
        """``[position, d]`` True where a neuron had one and the same value in all examples."""
        never: Tensor = (self.std[site] == 0) & (self.mean_difference[site] == 0)
        return never

    def table(self) -> pd.DataFrame:
        """One row per neuron: all scores (``first`` minus ``second`` class) and the counts."""
        counts = dict(self.provenance.counts)
        frames = []
        for site, difference in self.mean_difference.items():
            positions, width = difference.shape
            frames.append(
                pd.DataFrame(
                    {
                        "stream": site.stream,
                        "layer": site.layer,
                        "position": np.repeat(self.columns, width),
                        "neuron": np.tile(np.arange(width), positions),
                        "mean_difference": difference.flatten().numpy(),
                        "correlation": self.correlation[site].flatten().numpy(),
                        "effect_size": self.effect_size[site].flatten().numpy(),
                        "p": self.p[site].flatten().numpy(),
                        "q": self.q[site].flatten().numpy(),
                        **({} if self.auc is None else {"auc": self.auc[site].flatten().numpy()}),
                        "first": self.first,
                        "second": self.second,
                        "n_first": counts.get(self.first, 0),
                        "n_second": counts.get(self.second, 0),
                    }
                )
            )
        return pd.concat(frames, ignore_index=True)

    def save(self, path: str | Path) -> Path:
        """Write ``path.safetensors`` and ``path.json``."""
        tensors = {
            f"{name}/{site.key}": getattr(self, name)[site]
            for name in (*_TENSORS, *(() if self.auc is None else ("auc",)))
            for site in self.sites
        }
        tensors |= {f"spread/{site.key}": spread.packed() for site, spread in self.spread.items()}
        about = {
            "first": self.first,
            "second": self.second,
            "columns": list(self.columns),
            "provenance": self.provenance.as_dict(),
        }
        return save_artifact(path, "neuron-scores", tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> NeuronScores:
        """Read what `save` wrote."""
        tensors, about = load_artifact(path, "neuron-scores", _SHAPE)
        keys = {key.partition("/")[2] for key in tensors}
        sites = sorted((Site.from_key(key) for key in keys), key=lambda site: site.depth)
        names = ({key.partition("/")[0] for key in tensors} | set(_TENSORS)) - {"spread"}
        found = {name: {site: tensors[f"{name}/{site.key}"] for site in sites} for name in names}
        for site in sites:
            shapes = {tuple(found[name][site].shape) for name in names}
            if len(shapes) > 1 or len(next(iter(shapes))) != 2 or names - {"auc", *_TENSORS}:
                raise ArtifactError(
                    f"{path} holds scores {listed(sorted(names))} of shapes {sorted(shapes)} at "
                    f"{site}; each must be [position, d]. Save it again."
                )
        return cls(
            **found,
            first=about["first"],
            second=about["second"],
            columns=tuple(about["columns"]),
            provenance=Provenance.from_dict(about["provenance"]),
            spread={
                site: Spread.unpacked(
                    tensors[f"spread/{site.key}"], tensors[f"mean/{site.key}"].numel()
                )
                for site in sites
                if f"spread/{site.key}" in tensors
            },
        )


_SHAPE = {"first": str, "second": str, "columns": [str], "provenance": PROVENANCE}
_TENSORS = ("mean_difference", "correlation", "effect_size", "p", "q", "mean", "std")


def neuron_mean_difference(
    states: Activations | Moments,
    *,
    first: str = "memorized",
    second: str = "generalized",
    by: str = "behavior",
    auc: bool | Histograms = False,
) -> NeuronScores:
    """P1's neuron-wise mean difference, first class minus second, with its ranking statistics.

    ``NMD[l, i] = mean(h[l, i] | first) - mean(h[l, i] | second)``. The ranking of P1 is by |Pearson
    r| with the class; for two classes r follows from means and variances, so streamed moments are
    enough. A neuron is a coordinate of the site that was cached: a residual coordinate for
    ``resid_*`` streams (P1), a hidden unit for ``mlp_post``.

    What it does not prove: that a neuron with a large difference causes the behavior.

    Args:
        states: Stored activations or streamed moments.
        first, second: The two classes.
        by: Which of a prompt's words names its class, for activations.
        auc: Also the area under the ROC curve: ``True`` for exact areas of stored activations (a
            sort of every neuron), or the `Histograms` that were streamed beside the moments.

    Raises:
        PromptError: When a class is missing, or states are not finite.
        MechmemError: When a class has fewer than two examples, and for ``auc=True`` with moments,
            which do not hold it.
    """
    moments = Moments.from_activations(states, by) if isinstance(states, Activations) else states
    moments.pair(first, second)
    counts = moments.counts
    n1, n0 = counts[first], counts[second]
    if min(n1, n0) < 2:
        raise MechmemError(
            f"A spread needs at least two examples of each class, got {first}: {n1}, "
            f"{second}: {n0}. Observe more prompts."
        )
    out: dict[str, dict[Site, Tensor]] = {name: {} for name in _TENSORS}
    for site in moments.sites:
        one, zero = moments.classes[first][site], moments.classes[second][site]
        difference = (one.mean - zero.mean).flatten(1)
        within = (one.m2 + zero.m2).flatten(1)
        pooled = (within / (n1 + n0 - 2)).sqrt()
        total = within + difference**2 * (n1 * n0 / (n1 + n0))
        out["mean_difference"][site] = difference
        out["correlation"][site] = safe_ratio(
            difference * (n1 * n0 / (n1 + n0)) ** 0.5, total.sqrt()
        )
        out["effect_size"][site] = safe_ratio(difference, pooled)
        out["p"][site] = welch_p(
            difference, one.variance.flatten(1), zero.variance.flatten(1), n1, n0
        )
        out["mean"][site] = ((one.mean + zero.mean) / 2).flatten(1)
        out["std"][site] = pooled
    sizes = [values.numel() for values in out["p"].values()]
    joined = torch.cat([values.flatten() for values in out["p"].values()]).numpy()
    corrected = torch.split(torch.from_numpy(stats.false_discovery_control(joined)), sizes)
    for site, values in zip(out["p"], corrected, strict=True):
        out["q"][site] = values.reshape(out["p"][site].shape)
    provenance = Provenance(
        moments.provenance.model,
        moments.provenance.seen,
        moments.provenance.positions,
        moments.provenance.by,
        ((first, n1), (second, n0)),
    )
    return NeuronScores(
        **out, first=first, second=second, columns=moments.columns, provenance=provenance,
        auc=areas(states, moments, auc, first, second, by),
        spread=spreads(states, first, second, by),
    )  # fmt: skip
