"""The type checker under which the tests run mechmem; `tests/conftest.py` installs it."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import wraps
from types import FunctionType
from typing import Any, get_type_hints

import jaxtyping
from beartype import BeartypeConf, beartype

_shaped = jaxtyping.jaxtyped
# Not random: by default beartype looks at a random item of a list, and so would move the caller's
# random state, which the tests watch, and would find a wrong item on some days only. An integer
# is taken where a float is asked for, as everywhere in Python (PEP 484).
checked = beartype(
    conf=BeartypeConf(
        is_random=False, is_pep484_tower=True, violation_type=jaxtyping.TypeCheckError
    )
)


def install() -> None:
    """Check every call of mechmem from its first import on: types, and shapes where they are said.

    jaxtyping binds the arguments of every call by `inspect`, which cost a study nine tenths of the
    checks' time; most functions take no array, and go to beartype alone.
    """
    jaxtyping.jaxtyped = _jaxtyped
    jaxtyping.install_import_hook("mechmem", "checking.checked")


def _jaxtyped(*, typechecker: Any) -> Callable[[Any], Any]:
    def decorate(one: Any) -> Any:
        plain = isinstance(one, FunctionType) and not _takes_arrays(one)
        return _without_shapes(one) if plain else _shaped(one, typechecker=typechecker)

    return decorate


def _without_shapes(function: FunctionType) -> Any:
    typed = checked(_resolved(function))

    @wraps(function)
    def called(*args: Any, **kwargs: Any) -> Any:
        # What `helpers.as_users_run_it` sets.
        return (function if jaxtyping.config.jaxtyping_disable else typed)(*args, **kwargs)

    return called


def _resolved(function: FunctionType) -> FunctionType:
    """A copy whose annotations are no texts; what exists for mypy only may be anything."""
    code, names = function.__code__, function.__globals__
    copy = FunctionType(code, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__, copy.__qualname__ = function.__kwdefaults__, function.__qualname__
    copy.__module__, copy.__annotations__ = function.__module__, {}
    for argument, said in function.__annotations__.items():
        try:
            hint = get_type_hints(type("", (), {"__annotations__": {argument: said}}), names)
        except Exception:
            hint = {}
        copy.__annotations__[argument] = hint.get(argument, Any)
    return copy


def _takes_arrays(function: FunctionType) -> bool:
    """Whether an annotation names an array of jaxtyping's, or something that stands for one."""
    words = {
        word for said in function.__annotations__.values() for word in re.findall(r"\w+", str(said))
    }
    named = [function.__globals__.get(word) for word in words]
    return any(
        hasattr(one, "array_type") or getattr(one, "__module__", "") == "jaxtyping" for one in named
    )
