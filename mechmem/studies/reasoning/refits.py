"""P2's edits judged by refits on exchanged labels: the same grid, choice and test for every one.

The statistic: the paired gain in accuracy of each class when it is pushed with its own sign, on
test questions, of the setting and family that served both classes best on validation questions. The
sign knows the label, as in P2; so it does in the refits.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from mechmem.analysis.directions import Directions
from mechmem.analysis.exchange import FEWEST_EXCHANGEABLE, Exchange
from mechmem.evaluation.behavior import Observations
from mechmem.evaluation.controls import controls
from mechmem.evaluation.many_edits import evaluate_each
from mechmem.models.model import Model
from mechmem.patching.base import Edit
from mechmem.studies.reasoning.edits import SIGNED, SignedEdit
from mechmem.studies.reasoning.rows import correct, of_label
from mechmem.studies.verdict import COVARIANCE, Effects, Verdict, rank_p
from mechmem.tasks.base import Task
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.labels import LABELS

Gain = Callable[[Observations, Observations, str], float]
UNIT = "points of accuracy on {} questions"
SIGNS = dict(zip(LABELS, (1, -1), strict=True))


def exchange_labels(questions: PromptSet) -> tuple[Exchange, str]:
    """How the labels of training questions are exchanged: inside their category where that can
    change at least ten groups, else over all; and which of the two."""
    inside = Exchange(questions, by="label", stratum=lambda p: str(p.meta.get("category", "")))
    if inside.exchangeable >= FEWEST_EXCHANGEABLE:
        return inside, "inside categories"
    return Exchange(questions, by="label"), "over all categories"


def judge_edits(
    model: Model,
    real: Directions,
    refits: Sequence[Directions],
    parts: Mapping[str, PromptSet],
    before: Mapping[str, Observations],
    reader: Task,
    strengths: Mapping[str, Sequence[float]],
    *,
    draws: int,
    seed: int,
    reason: str = "",
    how: str = "",
    planned: int = 0,
    gain: Gain | None = None,
    unit: str = UNIT,
) -> Verdict:
    """The verdict on additions and scaled projections along the directions.

    Args:
        real, refits: Directions of the labels, and of every exchange of them.
        parts, before: ``"validation"`` and ``"test"`` questions, and the unedited answers.
        strengths: By family of `SIGNED`.
        draws: Random draws with the states' covariance of the chosen edit.
        reason: Why no refit could be made.
        how: How labels were exchanged.
        planned: Refits asked for.
        gain: What an edit did on the questions of a label, from answers after and before; default
            the gain in accuracy.
        unit: What a gain is, in words.
    """
    gain = gain or _gain
    found, chosen = _effects(model, real, parts, before, reader, strengths, gain)
    null = [_effects(model, one, parts, before, reader, strengths, gain)[0] for one in refits]
    beyond: dict[str, tuple[float, int]] = {}
    if chosen is not None and refits:
        for label, sign in SIGNS.items():
            edit = chosen.edit(sign)
            made = [controls(edit, model, seed=seed + k) for k in range(draws)]
            drawn = [named[COVARIANCE] for named in made if COVARIANCE in named]
            if drawn:
                gains = [
                    gain(seen, before["test"], label)
                    for seen in _answers(model, drawn, parts, before, "test", reader)
                ]
                own = found[chosen.family][label]
                beyond[label] = (rank_p(own, gains), len(gains))
    return Verdict(found, null, planned, reason, beyond, how, unit)


def _effects(
    model: Model,
    directions: Directions,
    parts: Mapping[str, PromptSet],
    before: Mapping[str, Observations],
    reader: Task,
    strengths: Mapping[str, Sequence[float]],
    gain: Gain,
) -> tuple[Effects, SignedEdit | None]:
    """Gains on test by family, the best family on validation first, and its setting."""
    settings = [
        SignedEdit(family, direction, float(size))
        for family, sizes in strengths.items()
        for direction in directions
        if direction.norm > 0
        for size in sizes
    ]
    if not settings:
        return {}, None
    edits = [setting.edit(sign) for setting in settings for sign in SIGNS.values()]
    seen = _answers(model, edits, parts, before, "validation", reader)
    held = before["validation"]
    scores = [
        float(np.mean([gain(seen[2 * k + j], held, name) for j, name in enumerate(SIGNS)]))
        for k in range(len(settings))
    ]

    def rank(k: int) -> tuple[float, float]:
        """Ties go to the weaker edit, then to the earlier layer, as in the study's own choice."""
        return round(scores[k], 9), -settings[k].strength

    best = {}
    for family in SIGNED:
        mine = [k for k, setting in enumerate(settings) if setting.family == family]
        if mine:
            best[family] = max(mine, key=rank)
    order = sorted(best, key=lambda family: -scores[best[family]])
    edits = [settings[best[family]].edit(sign) for family in order for sign in SIGNS.values()]
    seen = _answers(model, edits, parts, before, "test", reader)
    effects = {
        family: {
            label: gain(seen[2 * k + j], before["test"], label) for j, label in enumerate(SIGNS)
        }
        for k, family in enumerate(order)
    }
    return effects, settings[best[order[0]]]


def _answers(
    model: Model,
    edits: Sequence[Edit],
    parts: Mapping[str, PromptSet],
    before: Mapping[str, Observations],
    part: str,
    reader: Task,
) -> list[Observations]:
    rates = evaluate_each(
        model, parts[part], list(edits), task=reader, before=before[part], margins=False
    )
    return [item.after for item in rates]


def _gain(after: Observations, before: Observations, label: str) -> float:
    """Accuracy on the questions of a label, after minus before."""
    return float((correct(after) - correct(before))[of_label(before, label)].mean())
