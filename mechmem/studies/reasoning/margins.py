"""Turning where a small model answers little: by the margin of the right answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechmem.analysis.directions import Directions, difference_of_means
from mechmem.analysis.layer_choice import choose_layers
from mechmem.caching.activations import Activations
from mechmem.errors import EditError, PromptError
from mechmem.evaluation.behavior import Observations, observe
from mechmem.models.model import Model
from mechmem.numeric import MOST, finite_numbers, whole_number
from mechmem.seeding import keyed_order
from mechmem.studies.defaults import SHUFFLES
from mechmem.studies.reasoning.edits import LAST
from mechmem.studies.reasoning.refits import exchange_labels, judge_edits
from mechmem.studies.reasoning.rows import mean_of, of_label
from mechmem.studies.verdict import Verdict
from mechmem.tasks.base import PromptAnswers, with_reading
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.labels import LABELS

REASONING, MEMORY = LABELS
LAYERS, ALPHAS, RANDOM_DRAWS = 4, (1.0, 2.0), 19
CHOICE = 0.4
"""Share of the questions on which an edit is chosen."""
UNIT = "hundredths of a nat of margin on {} questions"


@dataclass(frozen=True)
class MarginTurning:
    """What moving along the direction does to the margin of the right answer over a wrong one.

    Attributes:
        verdict: Effects are the mean change of the margin, in nats, of each label's questions when
            they are pushed toward that label; refits on dealt-out labels behind it.
        questions: Per label, on the test questions and unedited: the share whose right answer is
            the likelier one, the mean margin in nats, and the change.

    The sign knows the label, as in P2; so it does in the refits. A margin that grows need not
    change an answer.
    """

    verdict: Verdict
    questions: pd.DataFrame


def turn_margins(
    model: Model,
    states: Activations,
    items: PromptSet,
    *,
    layers: int = LAYERS,
    alphas: Sequence[float] = ALPHAS,
    shuffles: int = SHUFFLES,
    draws: int = RANDOM_DRAWS,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> MarginTurning:
    """Push questions along the difference of means of ``states``, at the last token.

    Layers are chosen by how well held-out fitting questions are told apart there, the edit on 40 %
    of the items, and the rest is looked at once; all of it again in every refit on exchanged
    labels.

    Args:
        model: From `load_model`.
        states: ``resid_post`` of labeled questions at the last token.
        items: Labeled questions with the right answer in `memorized` and a wrong one in
            `generalized`, none of them fitted on.
        layers: Most layers that are tried.
        alphas: Strengths, in lengths of the direction.
        shuffles: Refits; 0 leaves them out, and then nothing is tested.
        draws: Random directions beside the chosen edit.
        seed: Keys parts, exchanges and controls.
        progress: Called with a line for every step.

    Raises:
        PromptError: When a label or an answer is missing.
        LeakageError: When an item was fitted on.
        EditError: For strengths that are not above 0, or none.
    """
    whole_number(shuffles, "shuffles", 0, most=MOST)
    whole_number(draws, "draws", most=MOST)
    whole_number(layers, "layers", most=MOST)
    alphas = finite_numbers(alphas, "alphas", above=0, error=EditError)
    say = progress or (lambda line: None)
    lacking = [p.id for p in items if p.memorized is None or p.generalized is None]
    if lacking or {p.label for p in items} != set(LABELS):
        raise PromptError(
            f"Turning needs items of both labels, {REASONING!r} and {MEMORY!r}, each with a right "
            f"(`memorized`) and a wrong (`generalized`) answer; missing on {len(lacking)} of "
            f"{len(items)}."
        )
    few = {name: len({p.group for p in items if p.label == name}) for name in LABELS}
    if min(few.values()) < 2:
        raise PromptError(
            "Turning chooses on some items and looks once at the others, so each label needs items "
            f"of two groups at least; there are {few}."
        )
    reader = with_reading(PromptAnswers("behavior"), "choice")
    parts = _parts(items, seed)
    before = {name: observe(model, part, task=reader) for name, part in parts.items()}
    exchange, how = exchange_labels(states.prompts)
    reason = exchange.reason() if shuffles else ""
    say("fitting on exchanged labels")
    refits = [
        _directions(states.select(exchange.draw(seed, k)), layers)
        for k in range(0 if reason else shuffles)
    ]
    say("turning answers")
    verdict = judge_edits(
        model, _directions(states, layers), refits, parts, before, reader, {LAST: alphas},
        draws=draws, seed=seed, reason=reason, how=how, planned=shuffles, gain=margin_gain,
        unit=UNIT,
    )  # fmt: skip
    return MarginTurning(verdict, _table(before["test"], verdict))


def margin_gain(after: Observations, before: Observations, label: str) -> float:
    """Mean change of the margin on the questions of a label, in nats."""
    return float((after.margins - before.margins)[of_label(before, label)].mean())


def _directions(states: Activations, most: int) -> Directions:
    every = difference_of_means(states, toward=REASONING, by="label")
    return Directions(
        {site: every[site] for site in choose_layers(states, most, REASONING, MEMORY, by="label")}
    )


def _parts(items: PromptSet, seed: int) -> dict[str, PromptSet]:
    chosen: set[str] = set()
    for label in LABELS:
        groups = [p.group for p in items if p.label == label]
        order = keyed_order(groups, seed, "turning", label)
        chosen |= set(order[: max(1, round(CHOICE * len(order)))])
    return {
        "validation": items.filter(lambda p: p.group in chosen),
        "test": items.filter(lambda p: p.group not in chosen),
    }


def _table(before: Observations, verdict: Verdict) -> pd.DataFrame:
    rows: list[dict[str, Any]] = []
    own = verdict.effects.get(verdict.chosen, {})
    for label in LABELS:
        mine = of_label(before, label)
        right = mean_of((before.margins > 0).astype(float), mine, before, "share")
        margin = mean_of(before.margins, mine, before, "mean")
        rows.append(
            {"label": label, **right.row("right", counted=False),
             **margin.row("margin", counted=False), "change": own.get(label, np.nan),
             "n": len(mine), "groups": right.groups}
        )  # fmt: skip
    return pd.DataFrame(rows)
