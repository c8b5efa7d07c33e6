"""Does the direction turn answers from one route to the other? Only where both have an answer.

Accuracy cannot rise where a model is right already. Whether an edit makes it recall what it should
work out, and the other way round, can be seen at any accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechmem.analysis.directions import Directions
from mechmem.errors import TaskError
from mechmem.evaluation.steering import Make, add, scale_everywhere, steering_grid
from mechmem.models.model import Model
from mechmem.studies.reasoning.edits import VALIDATION_DRAWS
from mechmem.tasks.base import Task
from mechmem.tasks.parsing.answers import starts_with_answer
from mechmem.tasks.prompts import Prompt, PromptSet
from mechmem.tasks.questions.labels import LABELS

ROUTES: dict[str, tuple[Make, tuple[float, ...]]] = {
    "addition": (add, (1.0, 2.0, 4.0, 8.0)),
    "scaled projection": (scale_everywhere, (0.1, 0.25, 0.5, 1.0)),
}
"""Families and the strengths tried, beyond those at which accuracy is best."""


@dataclass(frozen=True)
class Turning:
    """How often an edit makes the model give the answer of the other route.

    Attributes:
        validation: Rows of `mechmem.steering_grid` that count turned answers, with ``family``.
        test: The same for one setting per family, chosen on validation by the mean share turned
            with the sign away from the label; never on the test questions.
    """

    validation: pd.DataFrame
    test: pd.DataFrame


class _OtherRoute(Task):
    """Reads whether the answer is that of the route that the question does not ask for."""

    name = "other-route"
    outcomes = ("turned", "kept", "other")

    def __init__(self, reader: Task) -> None:
        self.max_new_tokens, self.stop = reader.max_new_tokens, reader.stop

    def pairs(self, n: int, seed: int = 0) -> PromptSet:
        raise TaskError("other-route reads answers and makes no questions.")

    def classify(self, prompt: Prompt, completion: str) -> str:
        routes = (prompt.generalized, prompt.memorized)
        asked, other = routes if prompt.label == LABELS[0] else routes[::-1]
        if starts_with_answer(completion, other or ""):
            return "turned"
        return "kept" if starts_with_answer(completion, asked or "") else "other"


def turn_answers(
    model: Model,
    directions: Directions,
    validation: PromptSet,
    test: PromptSet,
    reader: Task,
    *,
    draws: int,
    seed: int,
    say: Callable[[str], None],
) -> Turning | None:
    """Shares turned on validation questions, and of one setting per family on test questions.

    ``None`` when questions with an answer on both routes are missing in a class.
    """
    held, last = (_both(part) for part in (validation, test))
    if any({prompt.label for prompt in part} != set(LABELS) for part in (held, last)):
        return None
    task, tried, tested = _OtherRoute(reader), [], []
    for family, (make, strengths) in ROUTES.items():

        def grid(
            prompts: PromptSet, some: Directions, sizes: Sequence[float], n: int, make: Make = make
        ) -> pd.DataFrame:
            return steering_grid(
                model, some, prompts, alphas=sizes, task=task, make=make, draws=n, seed=seed
            ).rows

        say(f"turning by {family}")
        rows = grid(held, directions, strengths, VALIDATION_DRAWS)
        tried.append(rows.assign(family=family))
        own = rows[(rows["kind"] == "edit") & _away(rows)]
        cells = own.assign(size=own["alpha"].abs()).groupby(["stream", "layer", "size"])
        best = cells["share"].mean().reset_index().sort_values("share", kind="stable").iloc[-1]
        one = directions[str(best["stream"]), int(best["layer"])]
        rows = grid(last, Directions({one.site: one}), [float(best["size"])], draws)
        tested.append(rows.assign(family=family))
    return Turning(pd.concat(tried, ignore_index=True), pd.concat(tested, ignore_index=True))


def _away(rows: pd.DataFrame) -> pd.Series[bool]:
    """Cells in which a class is pushed away from its own route."""
    sign = np.where(rows["class"] == LABELS[0], -1, 1)
    return pd.Series(np.sign(rows["alpha"]) == sign, index=rows.index)


def _both(prompts: PromptSet) -> PromptSet:
    return prompts.filter(
        lambda p: None not in (p.memorized, p.generalized) and p.memorized != p.generalized
    )
