"""`depth_profile`: how large the mean difference of two classes is at every depth."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechmem.analysis.contrasts import CHUNK, StackedStates
from mechmem.caching.activations import Activations
from mechmem.errors import PromptError
from mechmem.models.sites import Site
from mechmem.numeric import MOST, whole_number


@dataclass(frozen=True)
class DepthProfile:
    """Size of the neuron-wise mean difference (P1's NMD) at every site.

    Attributes:
        raw: Root mean square of the differences of a site's neurons, in units of the activations.
        scaled: The same divided by the typical spread of the site (root mean square of the pooled
            standard deviations), so that sites of different size can be compared.
        shuffled: ``scaled`` with the classes exchanged at random within every group: mean, and the
            middle 95 % of the draws. A size inside is what chance alone gives.
        first, second: The classes.
        n, groups: Examples, and the groups that they come from.
    """

    raw: Mapping[Site, float]
    scaled: Mapping[Site, float]
    shuffled: Mapping[Site, tuple[float, float, float]]
    first: str
    second: str
    n: int
    groups: int

    def table(self) -> pd.DataFrame:
        """One row per site."""
        return pd.DataFrame(
            [
                {
                    "stream": site.stream,
                    "layer": site.layer,
                    "raw": self.raw[site],
                    "scaled": self.scaled[site],
                    "shuffled": mean,
                    "shuffled_low": low,
                    "shuffled_high": high,
                    "n": self.n,
                    "groups": self.groups,
                }
                for site, (mean, low, high) in self.shuffled.items()
            ]
        )


def depth_profile(
    acts: Activations,
    *,
    first: str = "memorized",
    second: str = "generalized",
    by: str = "behavior",
    draws: int = 200,
    seed: int = 0,
) -> DepthProfile:
    """How the mean difference grows with depth, beside what chance gives at the same depth.

    A size is never negative, so sampling alone makes it positive; and states grow with depth, so
    the raw size grows whatever the classes are. Read ``scaled`` against ``shuffled``.

    What it does not prove: that the behavior is decided where the difference is large.

    Args:
        acts: States with both classes in the same groups, for example of flips.
        first, second, by: The classes.
        draws: Shuffles.
        seed: Keys them.

    Raises:
        PromptError: When a class is missing, states are not finite, no group shows both, or no
            shuffle is asked for.
    """
    whole_number(draws, "draws", most=MOST, error=PromptError)
    contrast = StackedStates.of(acts, first, second, by)
    plain = contrast.statistics(np.ones((1, len(contrast.values))))
    raw = _sizes(contrast, plain["mean_difference"])[0]
    scaled = _sizes(contrast, plain["scaled"])[0]
    null = []
    for start in range(0, draws, CHUNK):
        labels = np.stack(
            [contrast.shuffled(seed, draw) for draw in range(start, min(start + CHUNK, draws))]
        )
        found = contrast.statistics(np.ones(labels.shape), labels)
        null.append(_sizes(contrast, found["scaled"]))
    drawn = np.concatenate(null)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=0)
    mean = drawn.mean(0)
    sites = list(contrast.parts)
    return DepthProfile(
        {site: float(raw[k]) for k, site in enumerate(sites)},
        {site: float(scaled[k]) for k, site in enumerate(sites)},
        {site: (float(mean[k]), float(low[k]), float(high[k])) for k, site in enumerate(sites)},
        first,
        second,
        len(contrast.values),
        contrast.n_groups,
    )


def _sizes(contrast: StackedStates, differences: np.ndarray) -> np.ndarray:
    """Root mean square over the neurons of a site, ``[draw, site]``."""
    return np.stack(
        [np.sqrt((differences[:, part] ** 2).mean(1)) for part in contrast.parts.values()], axis=1
    )
