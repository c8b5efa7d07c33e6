"""What `run_study` found, as data; `BehaviorStudy` puts it into words, tables and files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from mechmem.analysis.depth_profile import DepthProfile
from mechmem.analysis.directions import Directions
from mechmem.analysis.geometry import Separation
from mechmem.analysis.neurons import NeuronScores
from mechmem.analysis.probes import Probes
from mechmem.analysis.token_projections import TokenProjections
from mechmem.evaluation.behavior import Observations
from mechmem.studies.base import Study
from mechmem.studies.verdict import Verdict
from mechmem.sweeps.result import Sweep
from mechmem.tasks.prompts import PromptSet


@dataclass(frozen=True)
class BehaviorResults(Study):
    """What a study found; every part is a result object of its own.

    Attributes:
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
        verdict: What may be claimed, from refits on exchanged behaviors.
        negative: The same study on a model without a shared mode, if there is one.
        seconds: Wall-clock time.
    """

    kind = "behavior"

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
    verdict: Verdict
    negative: BehaviorResults | None
    seconds: float
