"""A reasoning study's tables and figures by name."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
import plotly.graph_objects as go

from mechmem import plotting
from mechmem.analysis.correlation import score_correlation
from mechmem.analysis.cosines import compare_directions, cosine_profile, principal_cosines
from mechmem.analysis.directions import Directions, difference_of_means
from mechmem.analysis.state_map import StateMap, state_map
from mechmem.caching.activations import Activations
from mechmem.errors import MechmemError
from mechmem.studies.reasoning.answers import (
    accuracy_table,
    case_examples,
    mode_table,
    repair_table,
)
from mechmem.studies.reasoning.results import ReasoningResults
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.labels import LABELS

SMALLEST = 6
GRIDS = {
    "addition": ("grid_addition", "alpha"),
    "scaled projection": ("grid_scaled_projection", "scale"),
}
MOST_SOURCES = 4


def tables(study: ReasoningResults) -> dict[str, pd.DataFrame]:
    """Every table by name; the figures are drawn from these numbers."""
    held, train = _states(study, "test"), _states(study, "train")
    out = {
        "separation": study.reading.table(),
        "separation_parts": study.reading.parts,
        "methods": study.reading.methods,
        "selection": study.selection,
        "cosines": cosine_profile(study.directions, held, by="label", seed=study.seed).table(),
        "halves": study.halves,
        "direction_cosines": compare_directions(_sources(study, train)).table(),
        "principal_cosines": principal_cosines(study.directions, train).table(),
        "topics": study.topics.counts.reset_index(),
    }
    if study.tokens is not None:
        out["tokens"] = study.tokens.table()
    scored = _scored(held.prompts)
    if scored is not None:
        found = score_correlation(study.directions, held.select(scored), "score", seed=study.seed)
        out["score_correlations"] = found.correlations()
    if study.turning is not None:
        out |= {"turning": study.turning.test, "turning_validation": study.turning.validation}
    if study.trial is not None:
        out |= {
            "validation": study.trial.validation,
            "accuracy": accuracy_table(study.trial, study.seed),
            "modes": mode_table(study.trial, study.seed),
            "repairs": repair_table(study.trial),
            "cases": case_examples(study.trial),
            **{f"answers_{name}": seen.table() for name, seen in study.trial.before.items()},
        }
    return {name: table for name, table in out.items() if not table.empty}


def figures(study: ReasoningResults, *, theme: str = "light") -> dict[str, go.Figure]:
    """Every figure by name, in the order of the report."""
    held, train = _states(study, "test"), _states(study, "train")
    out = {
        "state_map": plotting.state_map(plane(study), theme=theme),
        "separation": plotting.separation_profile(
            study.reading.separation, theme=theme
        ).update_layout(title_text="How far reasoning and memory lie apart"),
        "cosine_profile": plotting.cosine_profile(
            cosine_profile(study.directions, held, by="label", seed=study.seed), theme=theme
        ),
        "direction_cosines": plotting.direction_cosines(
            compare_directions(_sources(study, train)), theme=theme
        ),
        "principal_cosines": plotting.principal_cosines(
            principal_cosines(study.directions, train), theme=theme
        ),
    }
    scored = _scored(held.prompts)
    if scored is not None:
        found = score_correlation(study.directions, held.select(scored), "score", seed=study.seed)
        out["score_correlation"] = plotting.score_correlation(
            found, site=study.reading.chosen, theme=theme
        )
    if study.trial is not None:
        tried = study.trial.validation
        for family, (name, strength) in GRIDS.items():
            fig = plotting.steering_grid(tried[tried["family"] == family], theme=theme)
            title = f"Accuracy under {family}, by layer and {strength}, validation questions"
            out[name] = fig.update_layout(title_text=title)
    if study.turning is not None:
        tried = study.turning.validation
        fig = plotting.steering_grid(tried[tried["family"] == "addition"], theme=theme)
        title = "Share of answers of the other route under addition, validation questions"
        out["grid_turning"] = fig.update_layout(title_text=title)
    return out


def plane(study: ReasoningResults) -> StateMap:
    """PCA of the training states at the chosen site with the test questions projected into it.

    Where items come in kinds, the plane is fitted on the kinds that are clear and every other
    kind is a set of its own.
    """
    held, train, site = _states(study, "test"), _states(study, "train"), study.reading.chosen
    named: dict[str, list[str]] = {}
    for prompt in held.prompts:
        named.setdefault(str(prompt.meta.get("item") or "test questions"), []).append(prompt.id)
    others = {
        name if name == "test questions" else f"test: {name}": held.take(
            [k for k, prompt in enumerate(held.prompts) if prompt.id in set(ids)]
        )
        for name, ids in named.items()
    }
    return state_map(
        train,
        site,
        direction=study.directions[site],
        others=others,
        by="label",
        name="training questions",
    )


def _sources(study: ReasoningResults, train: Activations) -> Mapping[str, Directions]:
    """The direction from all training questions, from halves of them, and from parts by kind."""
    out = {"all": study.directions}
    halves = train.prompts.split(train=0.5, validation=0.5, seed=study.seed)
    parts = dict(zip(("half A", "half B"), halves[:2], strict=True))
    for key in ("item", "source", "category"):
        kinds = _contrasts(train.prompts, key)
        if len(kinds) > 1:
            parts |= kinds
            break
    for name, part in parts.items():
        try:
            out[name] = difference_of_means(train.select(part), toward=LABELS[0], by="label")
        except MechmemError:  # a part in which a class is missing has no direction
            continue
    return out


def _contrasts(prompts: PromptSet, key: str) -> dict[str, PromptSet]:
    """Parts by ``meta[key]`` in which both labels occur often enough, the largest first.

    Kinds that have one label only make a part together.
    """
    kinds: dict[str, list[str]] = {}
    for prompt in prompts:
        if prompt.meta.get(key) not in (None, ""):
            kinds.setdefault(str(prompt.meta[key]), []).append(prompt.id)
    mixed, pure = {}, []
    for name, ids in sorted(kinds.items(), key=lambda pair: -len(pair[1])):
        part = prompts.select(ids)
        counts = [sum(p.label == label for p in part) for label in LABELS]
        if min(counts) >= SMALLEST:
            mixed[f"{key}: {name}"] = part
        elif min(counts) == 0:
            pure += ids
    out = dict(list(mixed.items())[:MOST_SOURCES])
    rest = prompts.select(pure)
    if out and all(sum(p.label == label for p in rest) >= SMALLEST for label in LABELS):
        out["the others"] = rest
    return out


def _scored(prompts: PromptSet) -> PromptSet | None:
    """The questions with a score, when there are more than two different ones."""
    part = prompts.filter(lambda prompt: prompt.meta.get("score") is not None)
    return part if len({prompt.meta["score"] for prompt in part}) > 1 and len(part) > 2 else None


def _states(study: ReasoningResults, part: str) -> Activations:
    return study.states.select(study.splits[part])
