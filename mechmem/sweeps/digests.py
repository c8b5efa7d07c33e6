"""Short hashes of what the cells of a sweep stand on: model, prompts, task and settings."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Mapping
from typing import Any

from mechmem.artifacts import versions
from mechmem.digests import Digests, kind_name
from mechmem.errors import ArtifactError
from mechmem.models.model import Model
from mechmem.patching.apply import Firing
from mechmem.tasks.base import Task
from mechmem.tasks.prompts import PromptSet


def setting_digest(
    model: Model, prompts: PromptSet, task: Task | None, settings: Mapping[str, Any]
) -> str:
    """A hash of all that the cells of one part of a sweep have in common.

    A task counts as in `task_digest`; so does the version of mechmem, which reads completions.
    """
    info = model.info.as_dict()
    del info["name"]  # where it was loaded from does not matter
    about: dict[str, Any] = {"model": info, "settings": dict(settings), "task": ""}
    about["mechmem"] = versions()["mechmem"]
    about["prompts"] = [*prompts.to_records(), [item.ids for item in model.encode(prompts).rows]]
    digests = Digests()
    outer = [item.edit for item in model.interventions if isinstance(item, Firing)]
    about["edits"] = [digests.of(edit) for edit in outer]
    hooks = [item for item in model.interventions if not isinstance(item, Firing)]
    if hooks:
        about["hooks"] = [digests.of(item) for item in hooks]
    if task is not None:
        about["task"] = task_digest(task)
    return Digests().of(about)


def task_digest(task: Task) -> str:
    """A hash of a task: its class, the sources of its class and of every class that it inherits
    from outside the standard library, where they can be read, and those of its attributes that are
    data. Functions that these classes call do not count.
    """
    digests = Digests()
    kind = type(task)
    # Outside the standard library, whose sources change with Python and not with the task.
    own = [c for c in kind.__mro__ if c.__module__.split(".")[0] not in sys.stdlib_module_names]
    sources = {kind_name(c): _source(c) for c in own}
    parts: dict[str, Any] = {"kind": kind_name(kind), "sources": sources}
    names = ("name", "outcomes", "max_new_tokens", "stop", *vars(task))
    for name in dict.fromkeys(names):
        try:
            parts[f"data.{name}"] = digests.of(getattr(task, name))
        except ArtifactError:
            # Code, or what holds some.
            parts[f"data.{name}"] = type(getattr(task, name)).__qualname__
    return Digests().of(parts)


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed in at a prompt
        return ""
