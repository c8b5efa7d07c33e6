"""`layer_distribution`: in which layers the highest-ranking neurons lie, and how much is scale."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechmem.analysis.contrasts import (
    CHUNK,
    RESAMPLED_RANKINGS,
    StackedStates,
    count_top,
    top_masks,
)
from mechmem.analysis.intervals import Estimate
from mechmem.caching.activations import Activations
from mechmem.errors import MechmemError, listed
from mechmem.models.sites import Site
from mechmem.numeric import MOST, whole_number


@dataclass(frozen=True)
class LayerDistribution:
    """Share of the chosen neurons at every site, by ranking.

    Attributes:
        share: ``share[ranking][site]``, with a 95 % interval from resampling groups.
        shuffled: The same with the classes exchanged at random within every group: where neurons
            are chosen when there is nothing to find. Mean and middle 95 % of the draws.
        even: Share of all neurons that lie at the site.
        chosen: How many neurons were chosen in all.
        first, second: The classes.
    """

    share: Mapping[str, Mapping[Site, Estimate]]
    shuffled: Mapping[str, Mapping[Site, tuple[float, float, float]]]
    even: Mapping[Site, float]
    chosen: int
    first: str
    second: str

    def table(self) -> pd.DataFrame:
        """One row per ranking and site."""
        rows = []
        for ranking, sites in self.share.items():
            for site, share in sites.items():
                mean, low, high = self.shuffled[ranking][site]
                rows.append(
                    {
                        "ranking": ranking,
                        "stream": site.stream,
                        "layer": site.layer,
                        **share.row("share", counted=False),
                        "shuffled": mean,
                        "shuffled_low": low,
                        "shuffled_high": high,
                        "even": self.even[site],
                        "chosen": self.chosen,
                        "n": share.n,
                        "groups": share.groups,
                    }
                )
        return pd.DataFrame(rows)


def layer_distribution(
    acts: Activations,
    *,
    top: float = 0.05,
    rankings: Sequence[str] = RESAMPLED_RANKINGS,
    first: str = "memorized",
    second: str = "generalized",
    by: str = "behavior",
    draws: int = 200,
    seed: int = 0,
) -> LayerDistribution:
    """Where the ``top`` neurons lie, ranked globally in three ways.

    States grow with depth, so a ranking by the raw mean difference favors late layers whatever
    the classes are. ``"scaled"`` divides by the typical spread of the site, ``"correlation"``
    (P1's ranking) by every neuron's own. The shuffled shares show what each ranking chooses
    where the classes mean nothing.

    What it does not prove: that the layers where the neurons lie are those that decide.

    Args:
        acts: States with both classes in the same groups, for example of flips.
        top: Number (integer) or share (float) of the neurons.
        rankings: Some of ``"mean_difference"``, ``"scaled"``, ``"correlation"``.
        first, second, by: The classes.
        draws: Resamples of groups, and shuffles.
        seed: Keys both.

    Raises:
        MechmemError: For an unknown ranking, an impossible ``top``, or no draws.
        PromptError: When a class is missing or no group shows both.
    """
    whole_number(draws, "draws", most=MOST)
    unknown = [name for name in rankings if name not in RESAMPLED_RANKINGS]
    if unknown or not rankings:
        raise MechmemError(
            f"Unknown ranking {listed(unknown)}; allowed are {listed(RESAMPLED_RANKINGS)}."
        )
    contrast = StackedStates.of(acts, first, second, by)
    k = count_top(top, contrast.total)
    plain = np.ones((1, len(contrast.values)))
    observed = _shares(contrast, plain, k, None)
    resampled = _shares(contrast, contrast.resampled(seed, draws), k, None)
    labels = np.stack([contrast.shuffled(seed, draw) for draw in range(draws)])
    shuffled = _shares(contrast, np.ones((draws, len(contrast.values))), k, labels)
    n, groups = len(contrast.values), contrast.n_groups
    share: dict[str, dict[Site, Estimate]] = {}
    null: dict[str, dict[Site, tuple[float, float, float]]] = {}
    for name in rankings:
        low, high = np.quantile(resampled[name], [0.025, 0.975], axis=0)
        null_low, null_high = np.quantile(shuffled[name], [0.025, 0.975], axis=0)
        mean = shuffled[name].mean(0)
        share[name], null[name] = {}, {}
        for j, site in enumerate(contrast.parts):
            value = float(observed[name][0, j])
            # Choosing again on resampled groups spreads the choice; the interval holds the value.
            ends = min(float(low[j]), value), max(float(high[j]), value)
            share[name][site] = Estimate(value, *ends, n, groups)
            null[name][site] = (float(mean[j]), float(null_low[j]), float(null_high[j]))
    even = {
        site: (part.stop - part.start) / contrast.total for site, part in contrast.parts.items()
    }
    return LayerDistribution(share, null, even, k, first, second)


def _shares(
    contrast: StackedStates, weights: np.ndarray, k: int, labels: np.ndarray | None
) -> dict[str, np.ndarray]:
    """Share of the chosen per site, ``[draw, site]`` by ranking."""
    out: dict[str, list[np.ndarray]] = {name: [] for name in RESAMPLED_RANKINGS}
    for start in range(0, len(weights), CHUNK):
        rows = slice(start, start + CHUNK)
        scores = contrast.statistics(weights[rows], None if labels is None else labels[rows])
        for name, values in scores.items():
            mask = top_masks(values, k)
            counts = [mask[:, part].sum(1) for part in contrast.parts.values()]
            out[name].append(np.stack(counts, axis=1) / k)
    return {name: np.concatenate(parts) for name, parts in out.items()}
