"""From what a page is opened on to a model with what was fitted on it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mechmem.analysis import (
    Directions,
    NeuronScores,
    difference_of_means,
    neuron_mean_difference,
)
from mechmem.app.live import Live
from mechmem.app.source import Source
from mechmem.caching import cache_activations
from mechmem.errors import MechmemError, ModelError, listed
from mechmem.evaluation import observe
from mechmem.models import Model, load_model
from mechmem.studies.defaults import OWN_PROMPTS
from mechmem.tasks import Choice, PromptSet, Task, get_task
from mechmem.tasks.base import with_reading

FITTED_PAIRS = 200
_FIT = """
asked = task
task = asked.prepared(lambda p: mm.observe(model, p, task=asked, margins=False).outcomes)
fit = task.pairs({n}, 0).split(train=0.6, validation=0.0, test=0.4, seed=0).train
flips = task.contrast(mm.observe(model, fit, task=task, margins=False).behaving)
acts = mm.cache_activations(model, flips, sites="resid_post")"""


def load_live(source: Source) -> Live:
    """The model of a source, with what its study fitted; without a study it is fitted here, where
    there is a task.

    Raises:
        ModelError: When the model is not here, or is not that of the study.
    """
    name = source.model_name
    if source.model is None and not (name.startswith(("lab/", "real/")) or Path(name).exists()):
        raise ModelError(
            f"The study is of {name!r:.80}, which is not on this machine, and a page fetches "
            "nothing. Say where it is: mechmem open FOLDER --model PATH."
        )
    model = load_model(name if source.model is None else source.model)
    if model.info.is_tiny:
        torch.set_num_threads(1)
    card = source.card or dict(model.card)
    task, line = _task(source, card)
    head = {
        "model": source.names.get("model", f"mm.load_model({model.name!r})"),
        "task": source.names.get("task", line),
    }
    if source.study is None:
        return _fitted(model, task, head)
    held: dict[str, Any] = {}
    for name, file, kind in (
        ("vector", "directions", Directions),
        ("scores", "neurons", NeuronScores),
    ):
        there = source.artifact(f"{file}.json")
        path = source.study.folder / "artifacts" / file
        held[name] = None if there is None else kind.load(path)
        head[name] = source.names.get(name, f"mm.{kind.__name__}.load({str(path)!r})")
    if held["vector"] is not None:
        held["vector"].provenance.check_model(model, "This study")
        useful = {site: one for site, one in held["vector"].by_site.items() if one.norm > 0}
        held["vector"] = Directions(useful)
    flips = _read(source, "flips.jsonl")
    known = [p for p in (_read(source, f"{n}_test.jsonl") for n in ("prompts", "questions")) if p]
    return Live(
        model, task, held["vector"], held["scores"], flips, known[0] if known else None, head,
        _reading(source) if task is None else None,
    )  # fmt: skip


def _task(source: Source, card: Mapping[str, Any]) -> tuple[Task | None, str]:
    """The task as the study read it, and the line that makes it; ``None`` for own prompts."""
    task, line = _named(source, card)
    by = _reading(source)
    if task is None or by in (None, task.choice or task.reading):
        return task, line
    said = f"mm.{by!r}" if isinstance(by, Choice) else repr(by)
    return with_reading(task, by), f"mm.tasks.with_reading({line}, {said})"


def _reading(source: Source) -> str | Choice | None:
    """How the study read its answers."""
    rule = None if source.study is None else source.study.manifest.get("choice")
    if not isinstance(rule, Mapping):
        return source.reading
    return Choice(**{name: rule[name] for name in ("within", "length") if name in rule})


def _named(source: Source, card: Mapping[str, Any]) -> tuple[Task | None, str]:
    if isinstance(source.task, Task):
        return source.task, "task"
    saved = source.study.task if source.study is not None else card.get("task")
    name = source.task or saved
    if name is None or name == OWN_PROMPTS:
        return None, "None"
    options = card.get("task_options", {}) if name == card.get("task") else {}
    given = "".join(f", {key}={value!r}" for key, value in options.items())
    return get_task(name, **options), f"mm.get_task({name!r}{given})"


def _fitted(model: Model, task: Task | None, head: dict[str, str]) -> Live:
    """Directions and neurons as a study fits them, on pairs of the task, with seed 0."""
    if task is None:
        return Live(model, None, None, None, None, None, head)
    ready = task.prepared(lambda asked: observe(model, asked, task=task, margins=False).outcomes)
    n = min(int(model.card.get("study_pairs", FITTED_PAIRS)), FITTED_PAIRS)
    fit, _, shown = ready.pairs(n, 0).split(train=0.6, validation=0.0, test=0.4, seed=0)
    seen = observe(model, fit, task=ready, margins=False)
    flips = ready.contrast(seen.behaving)
    first, second = ready.behaviors
    if len(flips) < 4:
        raise MechmemError(
            f"Only {len(flips)} of {len(fit)} prompts of {ready.name!r} are contrasted "
            f"({listed(sorted(set(seen.outcomes)))}), too few to fit a direction. Leave --task out "
            "to look at prompts alone."
        )
    acts = cache_activations(model, flips, sites="resid_post")
    head["fit"] = _FIT.format(n=n)
    head["vector"] = f"mm.difference_of_means(acts, toward={second!r})"
    head["scores"] = f"mm.neuron_mean_difference(acts, first={first!r}, second={second!r})"
    return Live(
        model,
        ready,
        difference_of_means(acts, toward=second),
        neuron_mean_difference(acts, first=first, second=second),
        flips,
        observe(model, shown, task=ready, margins=False).behaving,
        head,
    )


def _read(source: Source, name: str) -> PromptSet | None:
    file = source.artifact(name)
    return None if file is None else PromptSet.from_jsonl(file)
