"""`read_labels`: what the states know of reasoning and memory, on real questions.

A direction is fitted on one set, its layer is chosen on that set alone, and it is then looked at on
questions it has not seen: of the same subjects, of other sets, and within one subject, where the
subject cannot tell the label. Length, form and words of the input stand beside, fitted on the same
questions and tried on the same others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd

from mechmem.analysis.directions import Directions, difference_of_means
from mechmem.analysis.held_out import refuse_seen_states
from mechmem.analysis.layer_choice import cross_fitted_auroc
from mechmem.caching.activations import Activations
from mechmem.caching.extract import cache_activations
from mechmem.errors import PromptError
from mechmem.models.model import Model
from mechmem.models.sites import Site
from mechmem.numeric import MOST, whole_number
from mechmem.plotting.data import each_row
from mechmem.plotting.question_reading import question_reading
from mechmem.plotting.refits import refits
from mechmem.seeding import keyed_order
from mechmem.studies.base import Study
from mechmem.studies.reasoning.margins import MarginTurning, turn_margins
from mechmem.studies.reasoning.read_measures import baselines, by_layer, cosines, shape
from mechmem.studies.verdict import Verdict
from mechmem.studies.words import sentence, whole_percent
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.labels import LABELS
from mechmem.tasks.questions.shipped import shipped_questions, within_subjects

REASONING, MEMORY = LABELS
HELD_OUT, ACROSS, WITHIN, OTHER = (
    "same subjects, held out",
    "other set, across subjects",
    "other set, within subjects",
    "word problems against facts",
)
MOST_QUESTIONS = {ACROSS: 120, WITHIN: 140, OTHER: 80}
"""Most questions per label of a shipped set; more cost time and tell little more."""


@dataclass(frozen=True)
class QuestionReading(Study):
    """What can be read off the states, and off the input alone.

    Attributes:
        chosen: The layer: best of five-fold cross-fitted AUROC on the fitting questions.
        directions: Difference of means toward reasoning per site, on the fitting questions.
        fitted: How many questions that were.
        sets: The questions of every set that was looked at.
        layers: Per set and site: AUROC, its interval, random directions and directions of dealt-out
            labels (2.5 to 97.5 %).
        baselines: Per set: AUROC of length, form and words of the input, beside the chosen site's.
        shape: Per site: length of the direction, share of its squared length in its largest
            coordinate, the same of the mean state, variance on the first principal component, the
            direction's cosine with it, and its cosine with the direction of the other set.
        cosines: Between the directions of two sites.
        seconds: Wall-clock time.
        turning: What edits along it did to the margin of right answers; ``None`` where nothing was
            edited.

    The labels are proxies for what a question asks for; an area says that the two kinds look
    different inside the model, not that it reasons on one of them.
    """

    kind: ClassVar[str] = "reading"

    chosen: Site
    directions: Directions
    fitted: int
    sets: Mapping[str, PromptSet]
    layers: pd.DataFrame
    baselines: pd.DataFrame
    shape: pd.DataFrame
    cosines: pd.DataFrame
    seconds: float
    turning: MarginTurning | None = None

    @property
    def verdict(self) -> Verdict | None:
        """What may be claimed of edits; ``None`` where nothing was edited."""
        return None if self.turning is None else self.turning.verdict

    def headline(self) -> str:
        if self.verdict is not None:
            return self.verdict.headline
        return f"Read at {self.chosen}: nothing was edited"

    def answer(self) -> str:
        told = [
            f"{row.set}: {row.x:.2f} [{row.x_low:.2f}, {row.x_high:.2f}] (words {row.words:.2f}, "
            f"form {row.form:.2f}, length {row.length:.2f})"
            for row in each_row(self.baselines)
        ]
        text = (
            f"Along one direction at {self.chosen}, chosen and fitted on {self.fitted} other "
            f"questions, reasoning lies above memory with AUROC {'; '.join(told)}."
        )
        return text if self.verdict is None else f"{text} {self.verdict.sentence}"

    def notes(self) -> list[str]:
        at = self.shape[self.shape["site"] == self.chosen.key].iloc[0]
        rows = list(each_row(self.baselines))
        beaten = [row.set for row in rows if row.x_low <= max(row.words, row.form, row.length)]
        out = [
            f"the largest coordinate holds {whole_percent(at.largest_coordinate)} of the "
            f"direction's squared length, and {whole_percent(at.largest_of_mean)} of the mean "
            "state's",
        ]
        dealt = [f"{row.shuffled_low:.2f} to {row.shuffled_high:.2f}" for row in rows]
        out.append(f"directions of dealt-out labels reach, in the same order, {', '.join(dealt)}")
        if beaten:
            out.append(f"not clearly beyond the input alone: {', '.join(beaten)}")
        return [sentence(text) for text in out]

    def limits(self) -> list[str]:
        return [
            "That the model reasons on one kind and remembers on the other: only that the two look "
            "different at the last token.",
            "That it is not the topic: labels of whole subjects are the topic. Look at the rows "
            "within subjects, whose labels go by the form of the options, which is not shown to "
            "the model.",
        ]

    def tables(self) -> dict[str, pd.DataFrame]:
        out = {
            "baselines": self.baselines,
            "layers": self.layers,
            "shape": self.shape,
            "cosines": self.cosines,
        }
        if self.turning is not None:
            out["turning"] = self.turning.questions
            out["refits"] = self.turning.verdict.table()
        return {name: table for name, table in out.items() if not table.empty}

    def figures(self) -> dict[str, Any]:
        out = {"layers": question_reading(self.layers)}
        if self.verdict is not None and self.verdict.shuffles:
            out["refits"] = refits(self.verdict)
        return out

    def details(self) -> dict[str, Any]:
        return {
            "chosen": str(self.chosen),
            "fitted": self.fitted,
            "sets": {name: prompts.ids for name, prompts in self.sets.items()},
            "seconds": round(self.seconds, 1),
            "refits": None if self.verdict is None else self.verdict.as_dict(),
        }

    def write_artifacts(self, folder: Path) -> None:
        self.directions.save(folder / "directions")


def read_labels(
    model: Model,
    *,
    questions: PromptSet | None = None,
    others: Mapping[str, PromptSet] | None = None,
    turn: PromptSet | None = None,
    shuffles: int = 19,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> QuestionReading:
    """Read reasoning and memory off the states at the last token, every layer.

    Args:
        model: From `load_model`.
        questions: Labeled questions to fit on and, the other half of each label, to test on; the
            shipped MMLU-Pro sample by default.
        others: Labeled sets that nothing is fitted on, by name; shipped ones by default:
            MMLU-Redux across and within subjects, and GSM8K against MMLU-Redux's facts (told apart
            by form as well: see the baselines).
        turn: Questions with a right and a wrong answer on which to edit as well (`turn_margins`),
            such as `right_and_wrong()`; by default nothing is edited.
        shuffles: Refits behind the verdict on these edits.
        seed: Keys the halves, resampling and random directions.
        progress: Called with a line for every step.

    Raises:
        PromptError: Unless every set holds both labels.
        LeakageError: When a question of another set was fitted on.
    """
    started = time.monotonic()
    whole_number(shuffles, "shuffles", 0, most=MOST)
    say = progress or (lambda line: None)
    whole = shipped_questions("mmlu-pro") if questions is None else questions
    fitting, held = _halves(whole.filter(lambda p: p.label in LABELS), seed)
    sets = {HELD_OUT: held, **(_shipped_others(whole, seed) if others is None else others)}
    for name, prompts in {"questions": fitting, **sets}.items():
        if {p.label for p in prompts} != set(LABELS):
            raise PromptError(
                f"The set {name!r} must hold questions labeled {REASONING!r} and {MEMORY!r}; it "
                f"holds {len(prompts)} questions of {sorted({str(p.label) for p in prompts})}."
            )
    sets = _apart(fitting, sets)
    every = {p.id: p for prompts in (fitting, *sets.values()) for p in prompts}
    say(f"reading the states of {len(every)} questions")
    acts = cache_activations(
        model, PromptSet(every.values()), sites=[("resid_pre", 0), "resid_post"], positions="last"
    )
    train = acts.select(fitting)
    directions = difference_of_means(train, toward=REASONING, by="label")
    areas = cross_fitted_auroc(train, REASONING, MEMORY, by="label", seed=seed)
    chosen = max(areas, key=lambda site: areas[site])
    say("measuring the separation")
    tested = {name: acts.select(prompts) for name, prompts in sets.items()}
    for other in tested.values():
        refuse_seen_states(directions, other, "measure the separation")
    layers = pd.concat(
        [
            by_layer(name, directions, train, other, within=name == WITHIN, seed=seed)
            for name, other in tested.items()
        ],
        ignore_index=True,
    )
    return QuestionReading(
        model.info,
        model.card,
        "questions",
        seed,
        chosen,
        directions,
        len(fitting),
        sets,
        layers,
        baselines(layers, chosen, train, tested, within=WITHIN, seed=seed),
        shape(directions, train, tested),
        cosines(directions),
        time.monotonic() - started,
        None
        if turn is None
        else turn_margins(
            model, _blocks(train), turn, shuffles=shuffles, seed=seed, progress=progress
        ),
    )


def _apart(fitting: PromptSet, sets: Mapping[str, PromptSet]) -> dict[str, PromptSet]:
    """The sets with ids that name one question each: several tables may all count from 0."""
    texts = {p.id: p.text for p in fitting}
    return {
        name: PromptSet(
            p if texts.setdefault(p.id, p.text) == p.text else replace(p, id=f"{name}: {p.id}")
            for p in prompts
        )
        for name, prompts in sets.items()
    }


def _blocks(acts: Activations) -> Activations:
    states = {site: state for site, state in acts.states.items() if site.stream == "resid_post"}
    return replace(acts, states=states)


def _halves(prompts: PromptSet, seed: int) -> tuple[PromptSet, PromptSet]:
    """Half of the groups of every subject to fit on, the rest to test on."""
    first: set[str] = set()
    for subject in sorted({str(p.meta.get("category")) for p in prompts}):
        groups = [p.group for p in prompts if str(p.meta.get("category")) == subject]
        order = keyed_order(groups, seed, "question halves", subject)
        first |= set(order[: (len(order) + 1) // 2])
    return (
        prompts.filter(lambda p: p.group in first),
        prompts.filter(lambda p: p.group not in first),
    )


def _shipped_others(whole: PromptSet, seed: int) -> dict[str, PromptSet]:
    """Without the questions that stand in the fitted set as well (sets share some)."""
    known = set(whole.groups)
    redux, problems = (
        shipped_questions(name).filter(lambda p: p.group not in known)
        for name in ("mmlu-redux", "gsm8k")
    )
    inside = within_subjects(redux)
    facts = redux.filter(lambda p: p.label == MEMORY and p.id not in set(inside.ids))
    return {
        ACROSS: _some(
            redux.filter(lambda p: p.label == REASONING) + facts, MOST_QUESTIONS[ACROSS], seed
        ),
        WITHIN: _some(inside, MOST_QUESTIONS[WITHIN], seed),
        OTHER: _some(problems + facts, MOST_QUESTIONS[OTHER], seed),
    }


def _some(prompts: PromptSet, most: int, seed: int) -> PromptSet:
    kept: set[str] = set()
    for label in LABELS:
        mine = [p.id for p in prompts if p.label == label]
        kept |= set(keyed_order(mine, seed, "some questions")[:most])
    return prompts.filter(lambda p: p.id in kept)
