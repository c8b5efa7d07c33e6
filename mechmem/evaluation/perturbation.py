"""Perturbational memorization: items that are solved, and no longer when they change a little."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float, Int

from mechmem.analysis.intervals import NOT_MEASURED, Estimate, group_mean
from mechmem.errors import PromptError, listed
from mechmem.evaluation.behavior import hits
from mechmem.evaluation.rates import evaluate
from mechmem.models.model import Model
from mechmem.patching.base import Edit
from mechmem.tasks.base import Task
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.perturb import ORIGINAL


@dataclass(frozen=True)
class PerturbationalMemorization:
    """What became of solved items under local perturbations (LiMem, arXiv 2410.23123).

    Attributes:
        items: The originals.
        solved: Whether each was solved.
        kept: Share of its perturbations that were solved.
        variants: How many perturbations it has.
    """

    items: PromptSet
    solved: Bool[np.ndarray, " item"]
    kept: Float[np.ndarray, " item"]
    variants: Int[np.ndarray, " item"]

    @property
    def scores(self) -> dict[str, float]:
        """Per item: 0 where it was not solved, else the share of its perturbations that were not.

        Their mean is LiMem.
        """
        values = self.solved * (1 - self.kept)
        return dict(zip(self.items.ids, values.tolist(), strict=True))

    @property
    def accuracy(self) -> Estimate:
        """Acc: share of the originals that were solved."""
        return group_mean(self.solved.astype(float), self.items.groups, kind="share")

    @property
    def consistency(self) -> Estimate:
        """CR: of the perturbations of solved originals, the share that was solved; every original
        counts once, and ``n`` counts the solved ones. NaN where none was solved."""
        rows = np.flatnonzero(self.solved)
        if not rows.size:
            return NOT_MEASURED
        groups = [self.items[int(k)].group for k in rows]
        return group_mean(self.kept[rows], groups, kind="share")

    @property
    def limem(self) -> Estimate:
        """LiMem = Acc (1 - CR)."""
        return group_mean(list(self.scores.values()), self.items.groups, kind="share")

    def of(self, key: str, value: object) -> PerturbationalMemorization:
        """Only the items whose ``meta[key]`` is ``value``.

        Raises:
            PromptError: When there is none.
        """
        rows = [k for k, item in enumerate(self.items) if item.meta.get(key) == value]
        if not rows:
            raise PromptError(
                f"No item has meta[{key!r}] == {value!r}; there are "
                f"{listed(sorted({str(item.meta.get(key)) for item in self.items}))}."
            )
        return PerturbationalMemorization(
            PromptSet(self.items[k] for k in rows),
            self.solved[rows],
            self.kept[rows],
            self.variants[rows],
        )

    def table(self) -> pd.DataFrame:
        """One row per item."""
        return pd.DataFrame(
            {
                "id": self.items.ids,
                "group": self.items.groups,
                "solved": self.solved,
                "kept": self.kept,
                "variants": self.variants,
                "score": list(self.scores.values()),
            }
        )

    def summary(self) -> pd.DataFrame:
        """Acc, CR and LiMem with their 95 % intervals."""
        rows = {"accuracy": self.accuracy, "consistency": self.consistency, "limem": self.limem}
        return pd.DataFrame([{"measure": name, **one.row("value")} for name, one in rows.items()])


def perturbational_memorization(
    model: Model,
    items: PromptSet,
    perturbations: PromptSet,
    *,
    task: Task | None = None,
    edit: Edit | Sequence[Edit] | None = None,
    solved: str = "correct",
) -> PerturbationalMemorization:
    """Ask every item and its perturbations, and see which solved items break.

    Args:
        model: From `load_model`.
        items: The originals, with their right answers.
        perturbations: Made by `mechmem.tasks.questions.perturb` or the task:
            ``meta["perturbs"]`` names the item.
        task: Reads the completions.
        edit: In force during all of it.
        solved: The outcome that counts as solved.

    Raises:
        PromptError: For an item without a perturbation, or a perturbation of no item.
        LeakageError: When the edit has seen an item or a perturbation.

    What it does not prove: an item can break because the perturbed one is harder, not because the
    original was known by heart. Compare kinds of items that were perturbed alike.
    """
    known = set(items.require("perturb").ids)
    lost = [p.id for p in perturbations if p.meta.get(ORIGINAL) not in known]
    if lost:
        raise PromptError(
            f"Perturbations {listed(lost, 5)} belong to none of the items: meta[{ORIGINAL!r}] must "
            "be an item's id. Select the items first, then perturb them."
        )
    of = [str(p.meta[ORIGINAL]) for p in perturbations]
    bare = [name for name in items.ids if name not in set(of)]
    if bare:
        raise PromptError(f"Items {listed(bare, 5)} have no perturbation; add some, or leave them.")
    seen = evaluate(model, items + perturbations, task=task, edit=edit, margins=False).after
    if solved not in seen.allowed:
        raise PromptError(
            f"Unknown outcome {solved!r}; this task has {listed(seen.allowed)}. Pass solved=."
        )
    right = hits(seen, solved).astype(bool)
    first, rest = right[: len(items)], right[len(items) :]
    row = {name: k for k, name in enumerate(items.ids)}
    counts, sums = np.zeros(len(items), dtype=int), np.zeros(len(items))
    for name, hit in zip(of, rest, strict=True):
        counts[row[name]] += 1
        sums[row[name]] += hit
    return PerturbationalMemorization(items, first, sums / counts, counts)
