"""One thread at a time on one model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

from mechmem.models.engine.backends import model_device

_LOCKS: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_NEW_LOCK = threading.Lock()


@contextmanager
def held(model: Any) -> Iterator[None]:
    """Keep other threads out of a TransformerLens model while its hooks are ours.

    Hooks sit on the model itself, so a pass of one thread would be edited and read by the hooks of
    another. The lock belongs to the model, not to a view of it: every `Model` made from it, edited
    or not, waits for the others. A thread may enter again, as an edit does that asks its own model.
    Inside, a caller's ``torch.autocast`` has no effect.
    """
    with _NEW_LOCK:
        lock = _LOCKS.setdefault(model, threading.RLock())
    # Under the caller's autocast masks overflow; who wants another dtype loads the model in it.
    with lock, torch.autocast(model_device(model).type, enabled=False):
        yield
