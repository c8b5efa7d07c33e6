"""Short hashes of edits, prompts and tasks: equal ones mean the same work."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import inspect
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from mechmem.artifacts import versions
from mechmem.errors import ArtifactError
from mechmem.models.model import Model
from mechmem.patching.apply import Firing
from mechmem.tasks.base import Task
from mechmem.tasks.prompts import PromptSet

_PLAIN = (str, bytes, int, float, bool, type(None), np.generic)


class Digests:
    """Hashes of values by what they hold; large parts that several values share are read once.

    The values must stay alive and unchanged while it is used.
    """

    def __init__(self) -> None:
        self._known: dict[int, str] = {}

    def of(self, value: Any) -> str:
        """A hash of the type and content.

        Raises:
            ArtifactError: For something that holds code or an open handle, which has no content.
        """
        if isinstance(value, _PLAIN):
            return _hash(f"{type(value).__name__}:{value!r}".encode())
        if id(value) not in self._known:
            self._known[id(value)] = self._fresh(value)
        return self._known[id(value)]

    def _fresh(self, value: Any) -> str:
        if isinstance(value, torch.Tensor):
            value = value.detach().to("cpu")
            head = f"tensor:{value.dtype}:{tuple(value.shape)}:".encode()
            return _hash(head + value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        if isinstance(value, np.ndarray):
            head = f"array:{value.dtype}:{value.shape}:".encode()
            return _hash(head + np.ascontiguousarray(value).tobytes())
        if isinstance(value, (type, torch.dtype, enum.Enum, PurePath)):
            return _hash(str(value).encode())
        if isinstance(value, Mapping):
            pairs = sorted((self.of(key), self.of(item)) for key, item in value.items())
            return _hash(f"mapping:{pairs}".encode())
        if isinstance(value, Set):
            return _hash(f"set:{sorted(self.of(item) for item in value)}".encode())
        name = _name(type(value))
        if dataclasses.is_dataclass(value):
            parts = {f.name: self.of(getattr(value, f.name)) for f in dataclasses.fields(value)}
            return _hash(f"{name}:{parts}".encode())
        if isinstance(value, Sequence):
            return _hash(f"sequence:{[self.of(item) for item in value]}".encode())
        if callable(value) or not hasattr(value, "__dict__"):
            raise ArtifactError(
                f"{value!r:.60} ({name}) has no content that can be compared, so what is made with "
                "it cannot be found again in a folder; leave folder= out, or make it a dataclass."
            )
        parts = {key: self.of(item) for key, item in sorted(vars(value).items())}
        return _hash(f"{name}:{parts}".encode())


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
    own = [c for c in kind.__mro__ if c.__module__.split(".")[0] not in sys.stdlib_module_names]
    parts: dict[str, Any] = {"kind": _name(kind), "sources": {_name(c): _source(c) for c in own}}
    names = ("name", "outcomes", "max_new_tokens", "stop", *vars(task))
    for name in dict.fromkeys(names):
        try:
            parts[f"data.{name}"] = digests.of(getattr(task, name))
        except ArtifactError:
            parts[f"data.{name}"] = type(getattr(task, name)).__qualname__
    return Digests().of(parts)


def _name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"


def _source(kind: type) -> str:
    try:
        return inspect.getsource(kind)
    except (OSError, TypeError):  # typed in at a prompt
        return ""


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]
