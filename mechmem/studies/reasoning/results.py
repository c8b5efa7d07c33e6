"""What `run_reasoning_study` found, as data; `ReasoningStudy` puts it into words and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from mechmem.analysis.directions import Directions
from mechmem.analysis.token_projections import TokenProjections
from mechmem.caching.activations import Activations
from mechmem.studies.base import Study
from mechmem.studies.reasoning.edits import Trial
from mechmem.studies.reasoning.reading import Reading
from mechmem.studies.reasoning.turning import Turning
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.topics import TopicBalance


@dataclass(frozen=True)
class ReasoningResults(Study):
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
    reading: Reading
    halves: pd.DataFrame
    topics: TopicBalance
    trial: Trial | None
    unanswered: str
    selection: pd.DataFrame
    turning: Turning | None
    tokens: TokenProjections | None
    seconds: float
