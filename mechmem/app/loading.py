"""From what a page is opened on to a model with what was fitted on it."""

from __future__ import annotations

from collections import Counter
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
from mechmem.errors import ModelError
from mechmem.evaluation import observe
from mechmem.models import Model, load_model
from mechmem.studies.defaults import OWN_PROMPTS
from mechmem.tasks import Choice, PromptSet, QuestionTask, Task, get_task
from mechmem.tasks.base import with_reading
from mechmem.tasks.questions.labels import LABELS

FITTED_PAIRS = 200
_PARTS: dict[str, Any] = {"train": 0.6, "validation": 0.0, "test": 0.4, "seed": 0}
_FIT = """
asked = task
task = asked.prepared(lambda p: mm.observe(model, p, task=asked, margins=False).outcomes)
fit = task.pairs({n}, 0).split(train=0.6, validation=0.0, test=0.4, seed=0).train
fit = task.contrast(mm.observe(model, fit, task=task, margins=False).behaving)
acts = mm.cache_activations(model, fit, sites="resid_post")"""
_FIT_LABELED = """
asked = task.extraction(task.questions({n}, 0))
fit = asked.split(train=0.6, validation=0.0, test=0.4, seed=0).train
acts = mm.cache_activations(model, fit, sites="resid_post")"""


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
    flips = _read(source, "flips.jsonl") or _read(source, "questions_train.jsonl")
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
    if getattr(source.study, "kind", "") in ("reading", "together"):
        saved = None  # questions, or several tasks: neither makes prompts
    name = source.task or saved
    if name is None or name == OWN_PROMPTS:
        return None, "None"
    options = card.get("task_options", {}) if name == card.get("task") else {}
    given = "".join(f", {key}={value!r}" for key, value in options.items())
    return get_task(name, **options), f"mm.get_task({name!r}{given})"


def _fitted(model: Model, task: Task | None, head: dict[str, str]) -> Live:
    """Directions and neurons as a study fits them, on a part of the task's prompts, with seed 0:
    by behavior on what came out both ways, by label on labeled questions."""
    if task is None:
        return Live(model, None, None, None, None, None, head)
    n = min(int(model.card.get("study_pairs", FITTED_PAIRS)), FITTED_PAIRS)
    if isinstance(task, QuestionTask):
        by, (second, first), recipe = "label", LABELS, _FIT_LABELED
        fit, _, shown = task.extraction(task.questions(n, 0)).split(**_PARTS)
    else:
        by, (first, second), recipe = "behavior", task.behaviors, _FIT
        asked = task
        task = asked.prepared(lambda p: observe(model, p, task=asked, margins=False).outcomes)
        fit, _, shown = task.pairs(n, 0).split(**_PARTS)
        fit = task.contrast(observe(model, fit, task=task, margins=False).behaving)
        shown = observe(model, shown, task=task, margins=False).behaving
    sides = Counter(getattr(prompt, by) for prompt in fit)
    if min(sides[first], sides[second]) < 2:
        lacking = (
            f"too few contrasted prompts of {task.name!r} are {first} ({sides[first]}) and "
            f"{second} ({sides[second]}) to fit one"
        )
        return Live(model, task, None, None, None, None, head, lacking=lacking)
    acts = cache_activations(model, fit, sites="resid_post")
    head["fit"] = recipe.format(n=n)
    head["vector"] = f"mm.difference_of_means(acts, toward={second!r}, by={by!r})"
    head["scores"] = (
        f"mm.neuron_mean_difference(acts, first={first!r}, second={second!r}, by={by!r})"
    )
    r = difference_of_means(acts, toward=second, by=by)
    scores = neuron_mean_difference(acts, first=first, second=second, by=by)
    return Live(model, task, r, scores, fit, shown, head)


def _read(source: Source, name: str) -> PromptSet | None:
    file = source.artifact(name)
    return None if file is None else PromptSet.from_jsonl(file)
