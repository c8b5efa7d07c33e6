"""How far two judges agree about the same questions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float

from mechmem.errors import PromptError
from mechmem.numeric import MOST, finite_number, whole_number
from mechmem.seeding import keyed_rng
from mechmem.tasks.questions.labels import THRESHOLD, Labels

RESAMPLES = 1000


@dataclass(frozen=True)
class Agreement:
    """Two judges on the questions that both scored.

    Attributes:
        judges: Their names.
        n: Questions both gave a readable score to.
        left_out: Questions that both were asked about and one or both gave no readable score to.
        same: Share of the n with the same label.
        kappa: Cohen's kappa of the labels; NaN when both judges gave every question one label.
        spearman: Rank correlation of the scores; NaN when one judge's scores are all equal.
        kappa_interval, spearman_interval: 95 % percentile intervals from resampling questions.

    A high agreement does not say that both are right: judges can share a mistake, such as taking
    every question about mathematics for reasoning.
    """

    judges: tuple[str, str]
    n: int
    left_out: int
    same: float
    kappa: float
    kappa_interval: tuple[float, float]
    spearman: float
    spearman_interval: tuple[float, float]


def agreement(
    one: Labels,
    other: Labels,
    *,
    threshold: float = THRESHOLD,
    seed: int = 0,
    draws: int = RESAMPLES,
) -> Agreement:
    """Cohen's kappa of the labels and Spearman's correlation of the scores, with intervals.

    Raises:
        PromptError: When they share no scored question, or one id names two questions.
        MechmemError: For no draws, or a threshold that is no number.
    """
    whole_number(draws, "draws", most=MOST)
    finite_number(threshold, "threshold")
    asked = [name for name in one.scores if name in other.scores]
    moved = [name for name in asked if one.digests.get(name) != other.digests.get(name)]
    if moved:
        raise PromptError(
            f"{len(moved)} ids, {moved[0]!r} among them, name different questions in the two sets "
            "of labels; judge the same questions."
        )
    rows = [
        (a, b) for name in asked if None not in (a := one.scores[name], b := other.scores[name])
    ]
    if not rows:
        raise PromptError(f"{one.judge!r} and {other.judge!r} have no scored question in common.")
    scores = np.array(rows, dtype=float)
    rng = keyed_rng(seed, "agreement", len(scores))
    drawn = scores[rng.integers(len(scores), size=(draws, len(scores)))]
    above = scores > threshold
    kappas, ranks = _kappa(np.stack([above, *(drawn > threshold)])), _spearman(drawn)
    return Agreement(
        (one.judge, other.judge),
        len(scores),
        len(asked) - len(scores),
        float(np.mean(above[:, 0] == above[:, 1])),
        float(kappas[0]),
        _interval(kappas[1:]),
        float(_spearman(scores[None])[0]),
        _interval(ranks),
    )


def agreement_table(
    judged: Sequence[Labels], *, threshold: float = THRESHOLD, seed: int = 0
) -> pd.DataFrame:
    """`agreement` of every two judges, one row each."""
    rows = []
    for one, other in combinations(judged, 2):
        found = agreement(one, other, threshold=threshold, seed=seed)
        rows.append(
            {
                "judge": found.judges[0],
                "other": found.judges[1],
                "n": found.n,
                "left_out": found.left_out,
                "same": found.same,
                "kappa": found.kappa,
                "kappa_low": found.kappa_interval[0],
                "kappa_high": found.kappa_interval[1],
                "spearman": found.spearman,
                "spearman_low": found.spearman_interval[0],
                "spearman_high": found.spearman_interval[1],
            }
        )
    return pd.DataFrame(rows)


def _kappa(above: Bool[np.ndarray, "draw question 2"]) -> Float[np.ndarray, " draw"]:
    """Cohen's kappa of every draw: agreement beyond what the two judges' shares alone give."""
    seen = np.mean(above[..., 0] == above[..., 1], axis=1)
    one, other = above.mean(axis=1).T
    chance = one * other + (1 - one) * (1 - other)
    out = np.full(len(above), math.nan)
    out[chance < 1] = ((seen - chance) / (1 - chance + (chance == 1)))[chance < 1]
    return out


def _spearman(scores: Float[np.ndarray, "draw question 2"]) -> Float[np.ndarray, " draw"]:
    """Pearson's correlation of the ranks of every draw, ties at their mean rank."""
    from scipy.stats import rankdata

    ranks = rankdata(scores, axis=1)
    ranks = ranks - ranks.mean(axis=1, keepdims=True)
    together = (ranks[..., 0] * ranks[..., 1]).sum(axis=1)
    spread = np.sqrt((ranks**2).sum(axis=1).prod(axis=1))
    out = np.full(len(scores), math.nan)
    out[spread > 0] = together[spread > 0] / spread[spread > 0]
    return out


def _interval(draws: Float[np.ndarray, " draw"]) -> tuple[float, float]:
    known = draws[~np.isnan(draws)]
    if known.size == 0:
        return math.nan, math.nan
    low, high = np.quantile(known, [0.025, 0.975])
    return float(low), float(high)
