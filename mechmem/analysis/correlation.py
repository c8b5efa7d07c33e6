"""`score_correlation`: whether items with a higher score lie further along the direction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch

from mechmem.analysis.association import group_correlation, spearman
from mechmem.analysis.directions import Directions
from mechmem.analysis.held_out import refuse_seen_states
from mechmem.analysis.intervals import Estimate
from mechmem.caching.activations import Activations, class_names
from mechmem.errors import PromptError, listed
from mechmem.models.sites import Site
from mechmem.seeding import keyed_rng

RANDOM_DIRECTIONS = 200


@dataclass(frozen=True)
class ScoreCorrelation:
    """Correlation of a score with the projection on the direction, per site.

    Attributes:
        spearman, pearson: With 95 % intervals over groups.
        random: Middle 95 % of Spearman's correlation of isotropic random directions of the site.
        covariance: The same of random directions with the covariance of the states that the
            direction was fitted to, such as a fit to nothing gives; NaN where it is not known.
        points: One row per example: id, group, class, score.
        projections: ``[example]`` per site, in activation units.
        score: What the score is called.
    """

    spearman: Mapping[Site, Estimate]
    pearson: Mapping[Site, Estimate]
    random: Mapping[Site, tuple[float, float]]
    points: pd.DataFrame
    projections: Mapping[Site, np.ndarray]
    score: str
    covariance: Mapping[Site, tuple[float, float]]

    def beyond(self, site: Site) -> bool:
        """Whether the interval of Spearman's correlation lies outside both ranges of random
        directions. A direction fitted to exchanged labels often lies outside the isotropic one."""
        found, ranges = self.spearman[site], (self.random[site], self.covariance[site])
        above = all(found.low > high for _, high in ranges)
        return above or all(found.high < low for low, _ in ranges)

    def correlations(self) -> pd.DataFrame:
        """One row per site."""
        rows = []
        for site, rank in self.spearman.items():
            line = self.pearson[site]
            rows.append(
                {
                    "stream": site.stream,
                    "layer": site.layer,
                    **rank.row("spearman", counted=False),
                    **line.row("pearson", counted=False),
                    "random_low": self.random[site][0],
                    "random_high": self.random[site][1],
                    "covariance_low": self.covariance[site][0],
                    "covariance_high": self.covariance[site][1],
                    "n": rank.n,
                    "groups": rank.groups,
                }
            )
        return pd.DataFrame(rows)

    def table(self) -> pd.DataFrame:
        """One row per site and example, the site's correlations repeated."""
        parts = []
        for (_, row), along in zip(
            self.correlations().iterrows(), self.projections.values(), strict=True
        ):
            part = self.points.assign(score_name=self.score, projection=along)
            for column, value in row.items():
                part[str(column)] = value
            parts.append(part)
        return pd.concat(parts, ignore_index=True)


def score_correlation(
    directions: Directions,
    acts: Activations,
    scores: Sequence[float] | np.ndarray | Mapping[str, float] | str,
    *,
    by: str = "label",
    name: str | None = None,
    seed: int = 0,
    allow_seen: bool = False,
) -> ScoreCorrelation:
    """Spearman's and Pearson's correlation of a score with the projection (P2's reasoning score).

    Args:
        directions: Fitted elsewhere.
        acts: Held-out states at one position.
        scores: One per example in order, or by prompt id, or a key of `Prompt.meta`.
        by: ``"label"`` or ``"behavior"``: only for the color of the points.
        name: What to call the score.
        seed: Keys the random directions.
        allow_seen: Measure on fitted prompts all the same.

    Raises:
        LeakageError: When the directions have seen a prompt or a group of the states.
        PromptError: When a score is missing or not finite, or fewer than three examples are there.

    What it does not prove: a score and a label made from it correlate with any direction that
    separates the label; the correlation **within** a class says more.
    """
    if not allow_seen:
        refuse_seen_states(directions, acts, "correlate a score")
    values = _scores(acts, scores)
    groups = list(acts.prompts.groups)
    ranks, lines, random, covariance, projections = {}, {}, {}, {}, {}
    for direction in directions:
        site = direction.site
        states = acts[site].flatten(1).double()
        along = direction.project(states).numpy() if direction.norm else np.zeros(len(values))
        ranks[site] = group_correlation(along, values, groups, ranks=True)
        lines[site] = group_correlation(along, values, groups)
        rng = keyed_rng(seed, "score-correlation", "random", site.key)
        noise = torch.from_numpy(rng.standard_normal((states.shape[1], RANDOM_DIRECTIONS)))
        random[site], projections[site] = _range(states @ noise, values), along
        spread = direction.spread
        covariance[site] = (np.nan, np.nan)
        if spread is not None and spread.known:
            drawn = [spread.drawn(rng) for _ in range(RANDOM_DIRECTIONS)]
            covariance[site] = _range(states @ torch.stack(drawn, dim=1), values)
    points = pd.DataFrame(
        {
            "id": acts.prompts.ids,
            "group": groups,
            "class": [one or "" for one in class_names(acts.prompts, by)],
            "score": values,
        }
    )
    called = name or (scores if isinstance(scores, str) else "score")
    return ScoreCorrelation(ranks, lines, random, points, projections, called, covariance)


def _range(projections: torch.Tensor, values: np.ndarray) -> tuple[float, float]:
    """Middle 95 % of Spearman's correlation of the columns with the values."""
    found = [spearman(column, values) for column in projections.numpy().T]
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def _scores(acts: Activations, scores: Any) -> np.ndarray:
    if isinstance(scores, str):
        given: list[Any] = [prompt.meta.get(scores) for prompt in acts.prompts]
    elif isinstance(scores, Mapping):
        given = [scores.get(name) for name in acts.prompts.ids]
    else:
        given = list(scores)
        if len(given) != len(acts):
            raise PromptError(
                f"{len(acts)} examples need as many scores, got {len(given)}; give one each, or a "
                "mapping from prompt id to score."
            )
    lacking = [name for name, one in zip(acts.prompts.ids, given, strict=True) if not _finite(one)]
    if lacking:
        raise PromptError(
            f"No finite score of {listed(lacking, 5)}; set it, or leave those prompts out with "
            "acts.select(...)."
        )
    if len(given) < 3:
        raise PromptError(f"A correlation needs at least three examples, got {len(given)}.")
    return np.array([float(one) for one in given])


def _finite(value: Any) -> bool:
    return isinstance(value, (int, float, np.number)) and bool(np.isfinite(value))
