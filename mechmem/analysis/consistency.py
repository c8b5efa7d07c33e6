"""Do the chosen neurons hold: overlap of two choices, and of the halves of one set of examples."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from scipy import stats

from mechmem.analysis.contrasts import (
    CHUNK,
    RESAMPLED_RANKINGS,
    StackedStates,
    count_top,
    top_masks,
)
from mechmem.analysis.neurons import NeuronScores
from mechmem.caching.activations import Activations
from mechmem.errors import MechmemError, ModelError, PromptError, listed
from mechmem.numeric import MOST, whole_number
from mechmem.seeding import keyed_rng


@dataclass(frozen=True)
class NeuronOverlap:
    """Two choices of the highest-ranking neurons, compared.

    Attributes:
        top: Neurons chosen from each.
        total: Neurons to choose from.
        shared: Chosen in both.
        chance: Expected number shared by two independent choices (hypergeometric), and its
            middle 95 %.
        p: Probability of at least as many shared by chance.
        signs: Neurons chosen in either, and how many of them differ in the same direction.
        rank_correlation: Spearman's rho of the absolute scores of all neurons.
    """

    top: int
    total: int
    shared: int
    chance: tuple[float, float, float]
    p: float
    signs: tuple[int, int]
    rank_correlation: float

    @property
    def overlap(self) -> float:
        """Share of the chosen neurons that both have."""
        return self.shared / self.top

    @property
    def sign_agreement(self) -> float:
        """Share of the neurons chosen in either that differ in the same direction in both."""
        return self.signs[1] / self.signs[0]

    def table(self) -> pd.DataFrame:
        """One row."""
        expected, low, high = (value / self.top for value in self.chance)
        return pd.DataFrame(
            [
                {
                    "top": self.top,
                    "total": self.total,
                    "overlap": self.overlap,
                    "chance": expected,
                    "chance_low": low,
                    "chance_high": high,
                    "p": self.p,
                    "sign_agreement": self.sign_agreement,
                    "neurons_in_either": self.signs[0],
                    "rank_correlation": self.rank_correlation,
                }
            ]
        )


def neuron_overlap(
    one: NeuronScores,
    other: NeuronScores,
    *,
    top: float = 0.05,
    by: str = "correlation",
    scope: str = "global",
    force: bool = False,
) -> NeuronOverlap:
    """Overlap and sign agreement of the top neurons of two contrasts on one model.

    Chance is that of two independent choices. Coordinates are correlated, and large ones are
    chosen more often by a ranking that knows scale, so overlap beyond this chance is the least
    that has to be shown; `split_halves` brings a control with exchanged classes.

    Args:
        one, other: Scores at the same sites and positions, of one model.
        top, by, scope: As in `NeuronScores.top`.
        force: Compare scores of two models. Coordinates of models trained from different first
            weights are not aligned: neuron 5 of one says nothing about neuron 5 of the other.

    Raises:
        ModelError: For scores of two models, unless ``force``.
        MechmemError: For other sites or positions.
    """
    same = one.provenance.model.fingerprint == other.provenance.model.fingerprint
    if not same and not force:
        raise ModelError(
            f"These scores are of two models, {one.provenance.model.name!r} (fingerprint "
            f"{one.provenance.model.fingerprint}) and {other.provenance.model.name!r} "
            f"({other.provenance.model.fingerprint}). Coordinates of models trained apart are not "
            "aligned, so an overlap means nothing; compare halves, seeds of the prompts or tasks "
            "on one model, or pass force=True for checkpoints of one training."
        )
    shapes = [
        {site: tuple(value.shape) for site, value in scores.mean_difference.items()}
        for scores in (one, other)
    ]
    if shapes[0] != shapes[1] or one.columns != other.columns:
        raise MechmemError(
            f"Neurons are compared one by one; these are at {listed(map(str, one.sites))}, "
            f"positions {list(one.columns)}, and at {listed(map(str, other.sites))}, positions "
            f"{list(other.columns)}. Score both at the same sites and positions."
        )
    sign = 1.0 if one.first == other.first else -1.0
    if {one.first, one.second} != {other.first, other.second}:
        sign = 1.0  # contrasts of other classes: first is compared with first
    masks = [
        torch.cat([chosen.mask(site).flatten() for site in one.sites]).numpy()
        for chosen in (one.top(top, by=by, scope=scope), other.top(top, by=by, scope=scope))
    ]
    middle = 0.5 if by == "auc" else 0.0  # where a neuron does not tell the classes apart
    flat = [
        torch.cat([getattr(scores, by)[site].flatten() - middle for site in one.sites]).numpy()
        for scores in (one, other)
    ]
    k, total = int(masks[0].sum()), len(masks[0])
    shared = int((masks[0] & masks[1]).sum())
    law = stats.hypergeom(total, k, k)
    either = masks[0] | masks[1]
    agree = int((np.sign(flat[0]) == np.sign(sign * flat[1]))[either].sum())
    chance = (float(law.mean()), float(law.ppf(0.025)), float(law.ppf(0.975)))
    rho = float(stats.spearmanr(np.abs(flat[0]), np.abs(flat[1])).statistic)
    return NeuronOverlap(
        k, total, shared, chance, float(law.sf(shared - 1)), (int(either.sum()), agree), rho
    )


@dataclass(frozen=True)
class SplitHalves:
    """How far two halves of the instances choose the same neurons.

    Attributes:
        overlap: Share of the chosen neurons that both halves choose, per split.
        sign_agreement: Of the neurons chosen in either half, the share that differs in the same
            direction in both.
        rank_correlation: Spearman's rho of the absolute scores of all neurons.
        shuffled: The same three with the classes exchanged at random within every group.
        top, total: Neurons chosen, and to choose from.
        n, groups: Examples and groups that were halved.
    """

    overlap: Float[np.ndarray, " split"]
    sign_agreement: Float[np.ndarray, " split"]
    rank_correlation: Float[np.ndarray, " split"]
    shuffled: dict[str, np.ndarray]
    top: int
    total: int
    n: int
    groups: int

    def table(self) -> pd.DataFrame:
        """One row per statistic: mean and middle 95 % over the splits, observed and shuffled.

        The ranges are over random splits of the same examples, no confidence intervals.
        """
        rows = []
        chance = {"overlap": self.top / self.total, "sign_agreement": 0.5, "rank_correlation": 0.0}
        for name, expected in chance.items():
            row: dict[str, float | str] = {"statistic": name}
            for column, values in (
                ("mean", getattr(self, name)),
                ("shuffled", self.shuffled[name]),
            ):
                low, high = np.quantile(values, [0.025, 0.975])
                row |= {
                    column: float(values.mean()),
                    f"{column}_low": float(low),
                    f"{column}_high": float(high),
                }
            rows.append({**row, "chance": expected, "n": self.n, "groups": self.groups})
        return pd.DataFrame(rows)


def split_halves(
    acts: Activations,
    *,
    top: float = 0.05,
    ranking: str = "correlation",
    scope: str = "global",
    first: str = "memorized",
    second: str = "generalized",
    by: str = "behavior",
    splits: int = 100,
    seed: int = 0,
) -> SplitHalves:
    """Choose neurons on each half of the groups, and compare the two choices.

    Half of the data choose less stably than all of it: this is a lower bound for a choice made
    on everything.

    Args:
        acts: States with both classes in the same groups, for example of flips.
        top: Number or share of the neurons.
        ranking: ``"correlation"``, ``"mean_difference"``, or ``"scaled"`` (mean difference in
            units of the site's typical spread).
        scope: ``"global"``, or ``"site"`` for the same share of every site.
        first, second, by: The classes.
        splits: Random divisions of the groups.
        seed: Keys divisions and shuffles.

    Raises:
        MechmemError: For an unknown ranking or scope, an impossible ``top``, or no splits.
        PromptError: With fewer than four groups.
    """
    whole_number(splits, "splits", most=MOST)
    if ranking not in RESAMPLED_RANKINGS:
        raise MechmemError(
            f"Unknown ranking {ranking!r}; allowed are {listed(RESAMPLED_RANKINGS)}."
        )
    if scope not in ("global", "site"):
        raise MechmemError(f"scope must be 'global' or 'site', got {scope!r}.")
    contrast = StackedStates.of(acts, first, second, by)
    if contrast.n_groups < 4:
        raise PromptError(
            f"Halves need at least four groups, there are {contrast.n_groups}; observe more "
            "instances."
        )
    k = count_top(top, contrast.total)
    parts = tuple(contrast.parts.values()) if scope == "site" else ()
    half = np.zeros((splits, len(contrast.values)))
    for split in range(splits):
        order = keyed_rng(seed, "split-halves", split).permutation(contrast.n_groups)
        half[split] = np.isin(contrast.groups, order[: contrast.n_groups // 2])
    labels = np.stack([contrast.shuffled(seed, "halves", split) for split in range(splits)])
    usual = np.broadcast_to(contrast.is_first, labels.shape)
    kept, exchanged = (_with_both(half.astype(bool), names) for names in (usual, labels))
    if not kept or not exchanged:
        raise PromptError(
            f"No split into halves of {contrast.n_groups} groups left both classes in both halves; "
            "observe more instances of the rarer class, or use flips."
        )
    observed = _compared(contrast, half[kept], usual[kept], ranking, k, parts)
    null = _compared(contrast, half[exchanged], labels[exchanged], ranking, k, parts)
    return SplitHalves(
        **observed,
        shuffled=null,
        top=k,
        total=contrast.total,
        n=len(contrast.values),
        groups=contrast.n_groups,
    )


def _with_both(half: np.ndarray, labels: np.ndarray) -> list[int]:
    """The divisions with both classes in both halves."""
    return [
        row
        for row, side in enumerate(half)
        if all(0 < labels[row][part].sum() < part.sum() for part in (side, ~side))
    ]


def _compared(
    contrast: StackedStates,
    half: np.ndarray,
    labels: np.ndarray,
    ranking: str,
    k: int,
    parts: tuple[slice, ...],
) -> dict[str, np.ndarray]:
    out: dict[str, list[float]] = {"overlap": [], "sign_agreement": [], "rank_correlation": []}
    for start in range(0, len(half), CHUNK):
        rows = slice(start, start + CHUNK)
        one, other = (
            contrast.statistics(side, labels[rows])[ranking]
            for side in (half[rows], 1 - half[rows])
        )
        chosen, again = top_masks(one, k, parts), top_masks(other, k, parts)
        either = chosen | again
        out["overlap"] += ((chosen & again).sum(1) / chosen.sum(1)).tolist()
        agree = (np.sign(one) == np.sign(other)) & either
        out["sign_agreement"] += (agree.sum(1) / either.sum(1)).tolist()
        ranks = [stats.rankdata(np.abs(values), axis=1) for values in (one, other)]
        ranks = [values - values.mean(1, keepdims=True) for values in ranks]
        spread = np.sqrt((ranks[0] ** 2).sum(1) * (ranks[1] ** 2).sum(1))
        out["rank_correlation"] += ((ranks[0] * ranks[1]).sum(1) / spread).tolist()
    return {name: np.array(values) for name, values in out.items()}
