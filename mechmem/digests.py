"""Short hashes of values by what they hold: equal ones mean the same work."""

from __future__ import annotations

import dataclasses
import enum
import hashlib
from collections.abc import Mapping, Sequence, Set
from pathlib import PurePath
from typing import Any

import numpy as np
import torch

from mechmem.errors import ArtifactError

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
        name = kind_name(type(value))
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


def kind_name(kind: type) -> str:
    """A class with its module."""
    return f"{kind.__module__}.{kind.__qualname__}"


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:24]
