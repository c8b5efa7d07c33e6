"""What a model can do, tried once on random tokens and remembered as long as the model lives.

A model that fails a trial runs the plain way, so a trial may be strict.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mechmem.models.engine.anatomy import without_hooks
from mechmem.models.engine.backends import Backend, refuse_training
from mechmem.models.engine.memory import is_out_of_memory

__all__ = ["forget", "holds", "same_logits", "tried"]

T = TypeVar("T")

_KNOWN: WeakKeyDictionary[Backend, dict[Hashable, Any]] = WeakKeyDictionary()
_SIGNS = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)
"""What models raise that cannot do what they are asked."""
_log = logging.getLogger(__name__)


def tried(backend: Backend, question: Hashable, test: Callable[[], T]) -> T:
    """The answer to a question about a model; the test runs at most once, without gradients and as
    if nobody had hooked the model.

    Raises:
        ModelError: In train mode, where nothing can be compared.
    """
    known = _KNOWN.setdefault(backend, {})
    if question not in known:
        refuse_training(backend)
        with torch.no_grad(), without_hooks(backend.model):
            known[question] = test()
    return known[question]  # type: ignore[no-any-return]


def forget(backend: Backend) -> None:
    """Ask everything anew."""
    _KNOWN.pop(backend, None)


def holds(what: str, test: Callable[[], bool]) -> bool:
    """Whether a test passes; a model that raises does not. Running out of memory says nothing about
    the model, so it is raised.

    Args:
        what: For the log, at level INFO, where the answer is no.
    """
    try:
        good = test()
    except _SIGNS as error:
        if is_out_of_memory(error):
            raise
        _log.info("%s: no, %s: %s", what, type(error).__name__, error)
        return False
    if not good:
        _log.info("%s: no, the numbers differ", what)
    return good


def same_logits(found: Tensor, plain: Tensor) -> bool:
    """Whether ``[..., vocab]`` logits are equal up to rounding: 1e-4, or 16 units of it in half
    precision, of their distance from their mean, which large common parts do not count for."""
    allowed = max(1e-4, 16 * torch.finfo(plain.dtype).eps)
    want = plain.double() - plain.double().mean(-1, keepdim=True)
    got = found.double() - found.double().mean(-1, keepdim=True)
    return bool(((got - want).norm(dim=-1) <= allowed * want.norm(dim=-1)).all())
