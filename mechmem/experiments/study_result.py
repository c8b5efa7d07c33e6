"""`Study`: what `run_study` found."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from mechmem.analysis.depth_profile import DepthProfile
from mechmem.analysis.directions import Directions
from mechmem.analysis.geometry import Separation
from mechmem.analysis.neurons import NeuronScores
from mechmem.analysis.probes import Probes
from mechmem.analysis.token_projections import TokenProjections
from mechmem.artifacts import versions
from mechmem.evaluation.behavior import Observations
from mechmem.experiments.sweep import Sweep
from mechmem.models.hooked import ModelInfo
from mechmem.tasks.prompts import PromptSet

__all__ = ["Study"]


@dataclass(frozen=True)
class Study:
    """What a study found; every part is a result object of its own.

    Attributes:
        model: The model asked.
        card: The manifest of a shipped model, else empty.
        task: Name of the task.
        seed: Keys splits, controls and resampling.
        splits: Prompts of each part; parts share no group.
        observed: What the unedited model did, per part; with answer margins for the test part.
        flips: Flips of the training part, on which everything is fitted.
        depth: Size of the mean difference at every depth, on the training flips.
        scores: Residual-stream neurons at the last prompt token, every layer.
        mlp_scores: MLP neurons at the last prompt token, every layer.
        window_scores: Residual neurons at the task's own positions; `scores` where it has none.
        directions: Difference of means per site at the last prompt token.
        separation: Along those directions, on the flips of the test part.
        probes: On the training flips, cross-validated by group.
        sweep: Edits chosen on validation, tested once.
        dose: Rates over a range of alphas on the test part, the edit beside a placebo.
        clean: Accuracy on ordinary items, unedited and under the chosen edit.
        tokens: The first test flips, token by token along the direction.
        negative: The same study on a model without a shared mode, if there is one.
        seconds: Wall-clock time.
    """

    model: ModelInfo
    card: Mapping[str, Any]
    task: str
    seed: int
    splits: Mapping[str, PromptSet]
    observed: Mapping[str, Observations]
    flips: PromptSet
    depth: DepthProfile
    scores: NeuronScores
    mlp_scores: NeuronScores
    window_scores: NeuronScores
    directions: Directions
    separation: Separation
    probes: Probes
    sweep: Sweep
    dose: pd.DataFrame
    clean: pd.DataFrame
    tokens: TokenProjections | None
    negative: Study | None
    seconds: float

    def answer(self) -> str:
        """The result in one honest sentence, made from the numbers."""
        from mechmem.experiments.report import sentence

        return sentence(self)

    def notes(self) -> list[str]:
        """What has to be said beside it: cost, the published form, probes, negative control."""
        from mechmem.experiments.wording import notes

        return notes(self)

    def tables(self) -> dict[str, pd.DataFrame]:
        """Every table by name."""
        from mechmem.experiments.report import tables

        return tables(self)

    def figures(self) -> dict[str, Any]:
        """Every figure by name, as plotly figures."""
        from mechmem.experiments.report import figures

        return figures(self)

    def save(self, folder: str | Path) -> Path:
        """Write ``report.html``, the tables as CSV and the artifacts as safetensors and JSON.

        Returns:
            The path of the report.

        Raises:
            ArtifactError: When the folder cannot be written.
        """
        from mechmem.experiments.report import write

        return write(self, Path(folder))

    def manifest(self) -> dict[str, Any]:
        """What is needed to do it again, JSON-ready."""
        return {
            "task": self.task,
            "seed": self.seed,
            "model": self.model.as_dict(),
            "card": dict(self.card),
            "versions": versions(),
            "splits": {
                name: {"prompts": len(part), "groups": sorted(set(part.groups))}
                for name, part in self.splits.items()
            },
            "chosen": [tested.edit.describe() for tested in self.sweep.tested],
        }
