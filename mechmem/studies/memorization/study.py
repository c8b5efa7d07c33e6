"""`MemorizationStudy`: two meanings of memorization and the direction, in words and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
import pandas as pd

from mechmem import plotting
from mechmem.analysis.association import group_correlation
from mechmem.analysis.correlation import ScoreCorrelation
from mechmem.analysis.draws import beyond_draws, mean_of_draws
from mechmem.analysis.intervals import group_mean
from mechmem.evaluation.perturbation import PerturbationalMemorization
from mechmem.evaluation.steering import RANDOM
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
        size: How far an edit, and a random direction beside it, moves a state of that model; in the
            small models each is as long as their own direction.
    """

    kind = "memorization"

    site: Site
    perturbational: Mapping[str, PerturbationalMemorization]
    counterfactual: CounterfactualMemorization
    limem_along: ScoreCorrelation
    counterfactual_along: ScoreCorrelation
    size: float

    def headline(self) -> str:
        beyond = [name for name, found in self._along().items() if found.beyond(self.site)]
        if not beyond:
            return "Neither score goes together with the direction beyond random directions"
        which = "Both scores go" if len(beyond) == 2 else f"Only the {beyond[0]} score goes"
        return f"{which} together with the direction beyond random directions"

    def answer(self) -> str:
        told = joined(
            [
                f"{name} memorization {ratio(found.spearman[self.site])} (random directions: "
                "{:.2f} to {:.2f}; with the states' covariance: {:.2f} to {:.2f})".format(
                    *found.random[self.site], *found.covariance[self.site]
                )
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
            "edits": self._edits(),
            "draws": len(self._draws()),
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
        """What each edit does to the mean of both scores, over all scored items and per kind, and
        how far beyond one more random direction of the same length that goes."""
        rows = []
        for kind in (None, *TRAINED):
            for score in ("perturbational", "counterfactual"):
                own = {name: self._differences(score, name, kind) for name in self._edits()}
                found = [self._differences(score, name, kind) for name in self._draws()]
                drawn, groups = np.stack([change for change, _ in found]), found[0][1]
                about = {"score": score, "kind": kind or "all"}
                sizes = (self.size, self.size) if score == "perturbational" else (nan, nan)
                for name, (change, _) in own.items():
                    mean = group_mean(change, groups, kind="change")
                    further = beyond_draws(change, drawn, groups, sizes=sizes)
                    rows.append({**about, "edit": name, **mean.row("change"), **further.row()})
                control = mean_of_draws(drawn, groups, kind="change")
                more = {"draws": len(drawn), "control_size": sizes[1]}
                rows.append({**about, "edit": RANDOM, **control.row("change"), **more})
        return pd.DataFrame(rows)

    def _edits(self) -> list[str]:
        return [name for name in self.perturbational if name and not name.startswith(RANDOM)]

    def _draws(self) -> list[str]:
        return [name for name in self.perturbational if name.startswith(RANDOM)]

    def _differences(
        self, score: str, edit: str, kind: str | None
    ) -> tuple[np.ndarray, Sequence[str]]:
        if score == "counterfactual":
            return self.counterfactual.differences(edit, kind)
        before, after = self.perturbational[""], self.perturbational[edit]
        if kind is not None:
            before, after = before.of("item", kind), after.of("item", kind)
        changes = [after.scores[name] - value for name, value in before.scores.items()]
        return np.array(changes), before.items.groups

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
    found, name = estimate_of(row, "change"), row["score"]
    said = f"{found.value:+.2f} [{found.low:+.2f}, {found.high:+.2f}] ({name})"
    if row["edit"] == RANDOM:
        return said
    further = estimate_of(row, "beyond")
    return (
        f"{said}, {further.value:+.2f} [{further.low:+.2f}, {further.high:+.2f}] beyond one more "
        f"of {int(row['draws'])} random directions"
    )
