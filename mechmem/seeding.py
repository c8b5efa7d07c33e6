"""Keyed randomness: every draw is named by a seed and words, never by the order of calls."""

from __future__ import annotations

import hashlib
import operator
import random
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import numpy as np
import torch

from mechmem.errors import MechmemError, MechmemWarning


def keyed_seed(seed: int, *names: object) -> int:
    """A 63-bit seed that depends on ``seed`` and every name, and on nothing else.

    Raises:
        MechmemError: For a seed that is not a whole number; 1.5 would be taken for 1.
    """
    try:
        whole = operator.index(seed)
        if isinstance(seed, bool):
            raise TypeError
    except TypeError:
        raise MechmemError(
            f"seed must be a whole number, got {seed!r:.80}; for example seed=0."
        ) from None
    text = "\x1f".join([str(whole), *(str(name) for name in names)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def keyed_rng(seed: int, *names: object) -> np.random.Generator:
    """A NumPy generator for one named purpose."""
    return np.random.default_rng(keyed_seed(seed, *names))


def keyed_order(items: Iterable[str], seed: int, *names: object) -> list[str]:
    """The distinct ``items`` in a random order that does not depend on the order they came in."""
    return sorted(set(items), key=lambda item: (keyed_seed(seed, *names, item), item))


_ONE_AT_A_TIME = threading.RLock()
_PATIENCE = 5.0
"""Seconds after which a thread says that it waits."""


@contextmanager
def _alone() -> Iterator[None]:
    if not _ONE_AT_A_TIME.acquire(timeout=_PATIENCE):
        warnings.warn(
            "Another thread loads or trains a model; this one waits until it is done.",
            MechmemWarning,
            stacklevel=5,
        )
        _ONE_AT_A_TIME.acquire()
    try:
        yield
    finally:
        _ONE_AT_A_TIME.release()


@contextmanager
def caller_state_kept() -> Iterator[None]:
    """Run a block that may draw random numbers, and leave the caller's generators untouched.

    Other threads wait: the generators are the process's, and so is what `transformers` puts in
    place of its own functions while it loads a model.
    """
    with _alone(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        python_state, numpy_state = random.getstate(), np.random.get_state()  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)  # noqa: NPY002
