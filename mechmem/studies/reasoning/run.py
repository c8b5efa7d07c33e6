"""`run_reasoning_study`: P2 (arXiv 2503.23084, "LiReF") on one model, from states to edits."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from mechmem.analysis.directions import Directions, difference_of_means
from mechmem.analysis.draws import DRAWS
from mechmem.caching.extract import cache_activations
from mechmem.errors import EditError, PromptError, TaskError
from mechmem.evaluation.selection import select_direction
from mechmem.models.model import Model
from mechmem.numeric import MOST, finite_numbers, whole_number
from mechmem.patching.margins import behavior_margins
from mechmem.studies.defaults import SHUFFLES
from mechmem.studies.reasoning.edits import ALPHAS, SCALES, try_edits
from mechmem.studies.reasoning.reading import (
    held_out_reading,
    split_half_cosines,
    subsets_of,
)
from mechmem.studies.reasoning.refits import UNIT, exchange_labels, judge_edits
from mechmem.studies.reasoning.study import ReasoningStudy
from mechmem.studies.reasoning.turning import turn_answers
from mechmem.studies.token_reading import project_questions
from mechmem.studies.verdict import Verdict
from mechmem.tasks.base import QuestionTask, Task
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.labels import LABELS
from mechmem.tasks.questions.reasoning import Reasoning
from mechmem.tasks.questions.topics import topic_balance

N_QUESTIONS = 1152
SHARES = {"train": 0.5, "validation": 0.2, "test": 0.3}
MOST_LAYERS = 8
FEWEST_PER_LABEL = 4


def run_reasoning_study(
    model: Model,
    *,
    task: Task | None = None,
    questions: PromptSet | None = None,
    examples: PromptSet | None = None,
    shots: int | None = None,
    n: int = N_QUESTIONS,
    alphas: Sequence[float] = ALPHAS,
    scales: Sequence[float] = SCALES,
    draws: int = DRAWS,
    shuffles: int = SHUFFLES,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> ReasoningStudy:
    """Is there one direction between reasoning and memory in this model, and what does it do?

    Groups are divided first. Directions are fitted on the training questions, edits chosen on the
    validation questions, and everything that is reported comes from the test questions.

    Args:
        model: From `load_model`.
        task: `RecallReasoning` for its lab model; `Reasoning` for question sets, whose data,
            answer length and reading then hold; or a `QuestionTask` of your own.
        questions: Labelled questions from ``get_task("reasoning").read(...)``; default the task's.
        examples, shots: Worked examples for the evaluation prompts (`Reasoning.evaluation`).
        n: Questions that a task makes; one with data of its own gives all.
        alphas, scales: Strengths to try, all with both signs.
        draws: Random directions of the same size per edit on the test questions, and draws with the
            states' covariance behind the verdict.
        shuffles: Refits of the whole recipe on exchanged labels, for the verdict; 0 leaves them
            out, and then nothing is tested.
        seed: Keys splits, controls and resampling.
        progress: Called with a line before every step.

    Raises:
        PromptError: Without both labels in every part.
        TaskError: Without questions, or with fewer shots than 0.
        EditError: For strengths that are not above 0, or none.
    """
    whole_number(shuffles, "shuffles", 0, most=MOST)
    whole_number(draws, "draws", most=MOST)
    if shots is not None:
        whole_number(shots, "shots", 0, most=MOST, error=TaskError)
    alphas = finite_numbers(alphas, "alphas", above=0, error=EditError)
    scales = finite_numbers(scales, "scales", above=0, error=EditError)
    say = progress or (lambda line: None)
    started = time.monotonic()
    reader = task if task is not None else Reasoning()
    labeled, asked = _asked(reader, questions, examples, shots, n, seed)
    splits = divided(labeled, seed)
    say("reading states")
    # The input of block l + 1, where the paper reads, is the output of block l.
    states = cache_activations(
        model, labeled, sites=[("resid_pre", 0), "resid_post"], positions="last"
    )
    train, validation, test = (states.select(splits[name]) for name in SHARES)
    say("fitting directions")
    directions = difference_of_means(train, toward=LABELS[0], by="label")
    kinds = subsets_of(splits["test"], "item")
    reading = held_out_reading(directions, train, validation, test, kinds, seed)
    say("comparing halves")
    halves = split_half_cosines(train, seed)
    parts = {
        name: asked.filter(lambda p, ids=set(splits[name].ids): p.id in ids)  # type: ignore[misc]
        for name in ("validation", "test")
    }
    short = _too_few(parts)
    trial = None
    if not short:
        trial = try_edits(
            model, candidates(directions), parts, reader, alphas=alphas, scales=scales,
            draws=draws, seed=seed, say=say,
        )  # fmt: skip
    exchange, how = exchange_labels(splits["train"])
    reason = (short or exchange.reason()) if shuffles else ""
    say("fitting on exchanged labels")
    refits = [
        candidates(
            difference_of_means(train.select(exchange.draw(seed, k)), toward=LABELS[0], by="label")
        )
        for k in range(0 if reason else shuffles)
    ]
    verdict = Verdict({}, [], shuffles, reason, unit=UNIT)
    if trial is not None:
        verdict = judge_edits(
            model, candidates(directions), refits, parts, trial.before, reader,
            {"addition": alphas, "scaled projection": scales}, draws=draws, seed=seed,
            reason=reason, how=how, planned=shuffles,
        )  # fmt: skip
    return ReasoningStudy(
        model.info,
        model.card,
        reader.name,
        seed,
        splits,
        states,
        directions,
        reading,
        halves,
        topic_balance(labeled),
        trial,
        short,
        verdict,
        _selection(model, directions, parts["validation"], reader),
        turn_answers(
            model,
            candidates(directions),
            parts["validation"],
            parts["test"],
            reader,
            draws=draws,
            seed=seed,
            say=say,
        ),
        project_questions(model, directions[reading.chosen], splits["test"]),
        time.monotonic() - started,
    )


def _asked(
    reader: Task,
    questions: PromptSet | None,
    examples: PromptSet | None,
    shots: int | None,
    n: int,
    seed: int,
) -> tuple[PromptSet, PromptSet]:
    """Labelled questions in the form for states, and those with an answer in the form to answer."""
    if not isinstance(reader, QuestionTask):
        raise TaskError(
            f"The study of reasoning and memory needs a task with labeled questions, got "
            f"{reader.name!r}; use get_task('reasoning', data=...) or get_task('recall-reasoning')."
        )
    given = reader.questions(n, seed) if questions is None else questions
    labeled = reader.extraction(given.filter(lambda prompt: prompt.label in LABELS))
    answered = labeled.filter(lambda prompt: prompt.answer is not None)
    if isinstance(reader, Reasoning):  # of a kind that is never run, such as code
        answered = answered.filter(lambda prompt: prompt.meta.get("kind") is not None)
    return labeled, reader.evaluation(answered, examples, shots)


def divided(labeled: PromptSet, seed: int) -> dict[str, PromptSet]:
    """By group, each label by itself, so that small sets have both labels in every part."""
    first: dict[str, str | None] = {}
    for prompt in labeled:
        first.setdefault(prompt.group, prompt.label)
    out: dict[str, set[str]] = {name: set() for name in SHARES}
    for label in LABELS:
        mine = labeled.filter(lambda p, label=label: first[p.group] == label)  # type: ignore[misc]
        groups = len(set(mine.groups))
        if groups < FEWEST_PER_LABEL:
            raise PromptError(
                f"The study needs at least {FEWEST_PER_LABEL} groups of questions labeled "
                f"{label!r}, got {groups}; give every question a 'label' "
                f"({' or '.join(LABELS)}) or a 'score', and more of them."
            )
        for name, part in zip(SHARES, mine.split(**SHARES, seed=seed), strict=True):
            out[name].update(part.ids)
    return {
        name: labeled.filter(lambda p, ids=ids: p.id in ids)  # type: ignore[misc]
        for name, ids in out.items()
    }


def candidates(directions: Directions) -> Directions:
    """Those to edit along: not zero, at most `MOST_LAYERS`, spread evenly over the layers."""
    sites = [direction.site for direction in directions if direction.norm > 0]
    chosen = np.unique(np.linspace(0, len(sites) - 1, min(MOST_LAYERS, len(sites))).round())
    return Directions({sites[int(k)]: directions[sites[int(k)]] for k in chosen})


def _selection(
    model: Model, directions: Directions, validation: PromptSet, reader: Task
) -> pd.DataFrame:
    """The rule of Arditi et al. 2406.11717, scored by the margin of the worked-out answer."""
    both = validation.filter(lambda p: p.memorized is not None and p.generalized is not None)
    if {prompt.label for prompt in both} != set(LABELS):
        return pd.DataFrame()
    return select_direction(
        model,
        directions,
        validation=both,
        task=reader,
        score=lambda view, prompts: -behavior_margins(view, prompts, task=reader),
        by="label",
    ).table()


def _too_few(parts: Mapping[str, PromptSet]) -> str:
    for name, part in parts.items():
        for label in LABELS:
            if not any(prompt.label == label for prompt in part):
                return (
                    f"no {name} question labeled {label} has an answer, so no accuracy could be "
                    "measured and no edit was tried"
                )
    return ""
