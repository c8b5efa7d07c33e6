"""What the input words alone would predict: a classifier that sees no state of the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from mechmem.analysis.classifiers import input_only_scores
from mechmem.caching.activations import class_names
from mechmem.errors import PromptError, listed
from mechmem.models.model import Model
from mechmem.models.tokenizing import PromptsLike, as_prompts
from mechmem.tasks.prompts import PromptSet


@dataclass(frozen=True)
class InputWords:
    """The baseline of a probe, for single prompts (`input_only_scores`).

    Attributes:
        token_ids: Of the prompts that it is fitted to.
        target: Per such prompt, 1 for the second class.
        classes: The two classes.
    """

    token_ids: tuple[tuple[int, ...], ...]
    target: tuple[int, ...]
    classes: tuple[str, str]

    def predict(self, model: Model, prompts: PromptsLike) -> pd.DataFrame:
        """One row per prompt: ``id``, ``predicted`` class, and its ``score``, above 0 for the
        second class. A token that was not seen at its place says nothing."""
        tokenized = model.tokenize(as_prompts(prompts))
        asked = [one.ids for one in tokenized]
        score = input_only_scores(self.token_ids, np.array(self.target), asked)
        return pd.DataFrame(
            {
                "id": [one.id for one in tokenized],
                "predicted": [self.classes[int(value > 0)] for value in score],
                "score": score,
            }
        )


def fit_input_words(model: Model, prompts: PromptSet, *, by: str = "behavior") -> InputWords:
    """Fit the logistic classifier of `fit_probes`' ``input_only`` to all prompts of a contrast.

    How often it is right on groups that it has not seen is ``input_only`` of `fit_probes`. A model
    whose behavior the words give away may still decide it somewhere; a probe does not show it.

    Args:
        model: Tokenizes.
        prompts: With exactly two behaviors (or labels), for example flips.
        by: ``"behavior"`` or ``"label"``.

    Raises:
        PromptError: Unless there are two classes.
    """
    names = class_names(prompts, by)
    rows = [k for k, name in enumerate(names) if name is not None]
    classes = sorted({str(names[k]) for k in rows})
    if len(classes) != 2:
        raise PromptError(
            f"The input words are to tell two classes apart, these prompts show {listed(classes)}. "
            "Give prompts of two."
        )
    ids: Sequence[tuple[int, ...]] = [one.ids for one in model.tokenize(prompts)]
    return InputWords(
        tuple(tuple(ids[k]) for k in rows),
        tuple(int(names[k] == classes[1]) for k in rows),
        (classes[0], classes[1]),
    )
