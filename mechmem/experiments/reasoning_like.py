"""What the report reads of a `mechmem.ReasoningStudy`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import pandas as pd

from mechmem.analysis.directions import Directions
from mechmem.analysis.token_projections import TokenProjections
from mechmem.caching.activations import Activations
from mechmem.experiments.reasoning_edits import Trial
from mechmem.experiments.reasoning_reading import Reading
from mechmem.experiments.reasoning_turning import Turning
from mechmem.models.hooked import ModelInfo
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.topics import TopicBalance

__all__ = ["ReasoningStudyLike"]


@runtime_checkable
class ReasoningStudyLike(Protocol):
    """The attributes of a study, without its methods of writing itself."""

    @property
    def model(self) -> ModelInfo: ...
    @property
    def card(self) -> Mapping[str, Any]: ...
    @property
    def task(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def splits(self) -> Mapping[str, PromptSet]: ...
    @property
    def states(self) -> Activations: ...
    @property
    def directions(self) -> Directions: ...
    @property
    def reading(self) -> Reading: ...
    @property
    def halves(self) -> pd.DataFrame: ...
    @property
    def topics(self) -> TopicBalance: ...
    @property
    def trial(self) -> Trial | None: ...
    @property
    def unanswered(self) -> str: ...
    @property
    def selection(self) -> pd.DataFrame: ...
    @property
    def turning(self) -> Turning | None: ...
    @property
    def tokens(self) -> TokenProjections | None: ...
    @property
    def seconds(self) -> float: ...
    def manifest(self) -> dict[str, Any]: ...
