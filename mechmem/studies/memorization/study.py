"""`MemorizationStudy`: two meanings of memorization and the direction, in words and tables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pandas as pd

from mechmem import plotting
from mechmem.analysis.association import group_correlation
from mechmem.analysis.correlation import ScoreCorrelation
from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.evaluation.perturbation import PerturbationalMemorization
from mechmem.models.sites import Site
from mechmem.studies.base import Study
from mechmem.studies.memorization.counterfactual import CounterfactualMemorization
from mechmem.studies.words import estimate_of, joined, ratio
from mechmem.tasks.lab.recall_reasoning import KINDS

TRAINED = KINDS[:3]
"""Kinds of items that training asks about."""


@dataclass(frozen=True)
class MemorizationStudy(Study):
    """Both scores, how they go together with the direction, and what moving along it does.

    Attributes:
        site: Where the direction was fitted; chosen on the fitting items alone.
        perturbational: On the scored items, by name of the edit in force; ``""`` is none.
        counterfactual: On the same items; its edits have the same names.
        limem_along, counterfactual_along: Rank and linear correlation of each score with the
            item's projection on the direction of the model asked.
    """

    kind = "memorization"

    site: Site
    perturbational: Mapping[str, PerturbationalMemorization]
    counterfactual: CounterfactualMemorization
    limem_along: ScoreCorrelation
    counterfactual_along: ScoreCorrelation

    def headline(self) -> str:
        beyond = [
            name
            for name, found in self._along().items()
            if found.spearman[self.site].low > found.random[self.site][1]
            or found.spearman[self.site].high < found.random[self.site][0]
        ]
        if not beyond:
            return "Neither score goes together with the direction beyond random directions"
        which = "Both scores go" if len(beyond) == 2 else f"Only the {beyond[0]} score goes"
        return f"{which} together with the direction beyond random directions"

    def answer(self) -> str:
        told = joined(
            [
                f"{name} memorization {ratio(found.spearman[self.site])} (random directions: "
                "{:.2f} to {:.2f})".format(*found.random[self.site])
                for name, found in self._along().items()
            ]
        )
        return (
            f"On {len(self.table())} items that the direction at {self.site} was not fitted on, "
            f"the rank correlation of the projection was with {told}."
        )

    def notes(self) -> list[str]:
        rows = self.changes().query("kind == 'all'").to_dict("records")
        return [
            f"Edit “{edit}”: the mean score changed by "
            + joined([_changed(row) for row in rows if row["edit"] == edit])
            + "."
            for edit in dict.fromkeys(row["edit"] for row in rows)
        ]

    def limits(self) -> list[str]:
        return [
            "Both scores are measured where their cause is known, in a world of one question "
            "format; a correlation there is an example, not a law.",
            "A high counterfactual score says that this item's answer came from its own training "
            "prompts; a low score, that others lead to it as well, whether by a rule or by "
            "resemblance.",
            f"The small models are {len(self.counterfactual.inside)} of one recipe; the intervals "
            "of changes resample items, not models.",
        ]

    def tables(self) -> dict[str, pd.DataFrame]:
        return {
            "summary": self.correlations(),
            "items": self.table(),
            "within_kinds": self.within_kinds(),
            "changes": self.changes(),
        }

    def figures(self) -> dict[str, Any]:
        return {"memorization": plotting.memorization(self)}

    def details(self) -> dict[str, Any]:
        models = self.counterfactual.inside
        return {
            "site": str(self.site),
            "models": len(models),
            "items": len(self.counterfactual.groups),
            "edits": [name for name in self.perturbational if name],
        }

    def correlations(self) -> pd.DataFrame:
        """One row per score."""
        return pd.concat(
            [
                found.correlations().assign(score=found.score)
                for found in (self.limem_along, self.counterfactual_along)
            ],
            ignore_index=True,
        )

    def within_kinds(self) -> pd.DataFrame:
        """Rank correlation of each score with the projection among the items of one kind.

        The kinds differ in both, so the correlation over all items is partly theirs. NaN where a
        score does not vary.
        """
        rows = []
        for kind, items in self.table().groupby("kind"):
            along, groups = items["projection"].to_numpy(), items["group"].tolist()
            for score in ("perturbational", "counterfactual"):
                found = group_correlation(along, items[score].to_numpy(), groups, ranks=True)
                rows.append({"kind": kind, "score": score, **found.row("spearman")})
        return pd.DataFrame(rows)

    def changes(self) -> pd.DataFrame:
        """What each edit does to the mean of both scores, over all scored items and per kind."""
        rows = []
        plain = self.perturbational[""]
        for edit, found in self.perturbational.items():
            if not edit:
                continue
            for kind in (None, *TRAINED):
                one, other = plain, found
                if kind is not None:
                    one, other = plain.of("item", kind), found.of("item", kind)
                both = {
                    "perturbational": _paired(one, other),
                    "counterfactual": self.counterfactual.change(edit, kind),
                }
                for score, estimate in both.items():
                    rows.append(
                        {
                            "score": score,
                            "edit": edit,
                            "kind": kind or "all",
                            **estimate.row("change"),
                        }
                    )
        return pd.DataFrame(rows)

    def table(self) -> pd.DataFrame:
        """One row per item: projection, both scores, kind."""
        points = self.limem_along.points.assign(
            projection=self.limem_along.projections[self.site],
            counterfactual=self.counterfactual_along.points["score"],
        )
        means = (
            points.rename(columns={"score": "perturbational"})
            .groupby(["group", "class"], as_index=False)[
                ["projection", "perturbational", "counterfactual"]
            ]
            .mean()
        )
        scores = self.counterfactual.table()[["group", "kind", "score_low", "score_high"]].rename(
            columns=lambda name: name.replace("score", "counterfactual")
        )
        return means.merge(scores, on="group", validate="one_to_one")

    def _along(self) -> dict[str, ScoreCorrelation]:
        return {"perturbational": self.limem_along, "counterfactual": self.counterfactual_along}


def _changed(row: Mapping[Any, Any]) -> str:
    found = estimate_of(row, "change")
    return f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}] ({row['score']})"


def _paired(before: PerturbationalMemorization, after: PerturbationalMemorization) -> Estimate:
    one, other = before.scores, after.scores
    differences = [other[name] - one[name] for name in one]
    return group_mean(differences, before.items.groups, kind="change")
