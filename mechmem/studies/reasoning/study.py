"""`ReasoningStudy`: what `run_reasoning_study` found, with its words, tables, figures and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mechmem import plotting
from mechmem.analysis.correlation import ScoreCorrelation, score_correlation
from mechmem.analysis.cosines import compare_directions, cosine_profile, principal_cosines
from mechmem.analysis.directions import Directions
from mechmem.analysis.token_projections import TokenProjections
from mechmem.caching.activations import Activations
from mechmem.studies.base import Study
from mechmem.studies.reasoning import words
from mechmem.studies.reasoning.answers import (
    accuracy_table,
    case_examples,
    mode_table,
    repair_table,
)
from mechmem.studies.reasoning.edits import FAMILY_FORMULAS, Trial
from mechmem.studies.reasoning.reading import HeldOutReading
from mechmem.studies.reasoning.summary import summary_table
from mechmem.studies.reasoning.turning import Turning
from mechmem.studies.reasoning.views import plane, scored, sources
from mechmem.studies.token_reading import questions_table
from mechmem.studies.verdict import Verdict
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.topics import TopicBalance

GRIDS = {
    "addition": ("grid_addition", "alpha"),
    "scaled projection": ("grid_scaled_projection", "scale"),
}


@dataclass(frozen=True)
class ReasoningStudy(Study):
    """What was asked, read and done.

    Attributes:
        splits: Labelled questions as ``train``, ``validation``, ``test``, in the form in which
            states are read. No group is on two sides.
        states: States of all questions at the last token.
        directions: Difference of means toward reasoning on the training questions, by site.
        reading: Separation on the test questions with its baselines.
        halves: Cosine between directions of two halves of the training groups.
        topics: How topics and labels go together.
        trial: Edits on validation and test questions; ``None`` where too few have an answer.
        unanswered: Why there is no `trial`.
        verdict: What may be claimed of the edits, from refits on exchanged labels.
        selection: Candidate sites under the bypass, induce and KL rule on validation questions;
            empty where questions lack two answers.
        turning: How often edits make the model take the other route; ``None`` where questions lack
            two answers.
        tokens: Some test questions, token by token along the direction at the chosen site.
        seconds: Wall-clock time.
    """

    kind = "reasoning"

    splits: Mapping[str, PromptSet]
    states: Activations
    directions: Directions
    reading: HeldOutReading
    halves: pd.DataFrame
    topics: TopicBalance
    trial: Trial | None
    unanswered: str
    verdict: Verdict
    selection: pd.DataFrame
    turning: Turning | None
    tokens: TokenProjections | None
    seconds: float

    def headline(self) -> str:
        return words.headline(self.reading, self.verdict)

    def answer(self) -> str:
        return words.answer(self.reading, self.trial, self.unanswered, self.verdict)

    def notes(self) -> list[str]:
        told = words.notes(
            self.trial, self.turning, self.topics, self.card, self.task, self.seed
        )  # fmt: skip
        return list(told)

    def limits(self) -> list[str]:
        groups = len(set(self.splits["test"].groups))
        planted = bool(self.card.get("planted"))
        return list(words.limits(groups, planted=planted, seed=self.seed))

    def summary(self) -> pd.DataFrame:
        return summary_table(self.reading, self.trial)

    def tables(self) -> dict[str, pd.DataFrame]:
        held, train = self._states("test"), self._states("train")
        compared = compare_directions(sources(self.directions, train, self.seed))
        before = None if self.trial is None else self.trial.before["test"]
        out = {
            "summary": self.summary(),
            "examples": questions_table(self.splits["test"], before),
            "refits": self.verdict.table(),
            "separation": self.reading.table(),
            "separation_parts": self.reading.parts,
            "methods": self.reading.methods,
            "selection": self.selection,
            "cosines": cosine_profile(self.directions, held, by="label").table(),
            "halves": self.halves,
            "direction_cosines": compared.table(),
            "principal_cosines": principal_cosines(self.directions, train).table(),
            "topics": self.topics.counts.reset_index(),
        }
        if self.tokens is not None:
            out["tokens"] = self.tokens.table()
        found = self._score_correlation()
        if found is not None:
            out["score_correlations"] = found.correlations()
        if self.turning is not None:
            out |= {"turning": self.turning.test, "turning_validation": self.turning.validation}
        if self.trial is not None:
            out |= {
                "validation": self.trial.validation,
                "accuracy": accuracy_table(self.trial),
                "modes": mode_table(self.trial),
                "repairs": repair_table(self.trial),
                "cases": case_examples(self.trial),
                **{f"answers_{name}": seen.table() for name, seen in self.trial.before.items()},
            }
        return {name: table for name, table in out.items() if not table.empty}

    def figures(self, *, theme: str = "light") -> dict[str, Any]:
        """Every figure by name, in the order of the report; ``theme`` is light or dark."""
        held, train = self._states("test"), self._states("train")
        compared = compare_directions(sources(self.directions, train, self.seed))
        seen = plane(train, held, self.directions[self.reading.chosen])
        out = {
            "state_map": plotting.state_map(seen, theme=theme),
            "separation": plotting.separation_profile(
                self.reading.separation, theme=theme
            ).update_layout(title_text="How far reasoning and memory lie apart"),
            "cosine_profile": plotting.cosine_profile(
                cosine_profile(self.directions, held, by="label"), theme=theme
            ),
            "direction_cosines": plotting.direction_cosines(compared, theme=theme),
            "principal_cosines": plotting.principal_cosines(
                principal_cosines(self.directions, train), theme=theme
            ),
        }
        found = self._score_correlation()
        if found is not None:
            out["score_correlation"] = plotting.score_correlation(
                found, site=self.reading.chosen, theme=theme
            )
        if self.trial is not None:
            tried = self.trial.validation
            for family, (name, strength) in GRIDS.items():
                fig = plotting.steering_grid(tried[tried["family"] == family], theme=theme)
                title = f"Accuracy under {family}, by layer and {strength}, validation questions"
                out[name] = fig.update_layout(title_text=title)
        if self.verdict.shuffles:
            out["refits"] = plotting.refits(self.verdict, theme=theme)
        if self.turning is not None:
            tried = self.turning.validation
            fig = plotting.steering_grid(tried[tried["family"] == "addition"], theme=theme)
            title = "Share of answers of the other route under addition, validation questions"
            out["grid_turning"] = fig.update_layout(title_text=title)
        return out

    def details(self) -> dict[str, Any]:
        tested = self.trial.tested if self.trial is not None else ()
        return {
            "splits": {
                name: {
                    "questions": len(part),
                    "groups": sorted(set(part.groups)),
                    "reasoning": sum(prompt.label == "reasoning" for prompt in part),
                    "memory": sum(prompt.label == "memory" for prompt in part),
                }
                for name, part in self.splits.items()
            },
            "topics": {
                "by_topic": self.topics.by_topic,
                "majority": self.topics.majority,
                "dealt": self.topics.dealt,
            },
            "families": FAMILY_FORMULAS,
            "chosen": [
                {"pick": item.pick, **item.setting.edit(item.setting.signs[0]).describe()}
                for item in tested
            ],
            "draws": max((len(d) for item in tested for d in item.random.values()), default=0),
            "unanswered": self.unanswered,
            "refits": self.verdict.as_dict(),
            "seconds": self.seconds,
        }

    def write_artifacts(self, folder: Path) -> None:
        self.directions.save(folder / "directions")
        for name, part in self.splits.items():
            part.to_jsonl(folder / f"questions_{name}.jsonl")

    def _states(self, part: str) -> Activations:
        return self.states.select(self.splits[part])

    def _score_correlation(self) -> ScoreCorrelation | None:
        held = self._states("test")
        rated = scored(held.prompts)
        if rated is None:
            return None
        return score_correlation(self.directions, held.select(rated), "score", seed=self.seed)
