"""A model whose work can be stopped between two forward passes."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

from mechmem.models import Model


def watched(model: Model) -> Model:
    """A view of the model that asks ``backend.check`` before every forward pass, so that work can
    be stopped between two."""
    backend: Any = copy.copy(model.backend)
    kind = type(backend)

    class Watched(kind):  # type: ignore[misc, valid-type]
        check = staticmethod(go_on)

        def forward(self, *args: Any, **options: Any) -> Any:
            self.check()
            return super().forward(*args, **options)

    backend.__class__ = Watched
    return replace(model, backend=backend)


def go_on() -> None:
    """What is asked where nobody stops."""
