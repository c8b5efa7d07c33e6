"""Numbers that somebody gave: taken as they are, or refused by their names."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from typing import Any

from mechmem.errors import MechmemError, shown

MOST = 1_000_000
"""Most draws, replicates or bins of anything: more would fill the memory and tell nothing."""


def whole_number(
    value: Any,
    name: str,
    least: int = 1,
    *,
    most: int | None = None,
    error: type[MechmemError] = MechmemError,
) -> int:
    """``value``, if it is an integer from ``least`` (to ``most``); True is none, neither is 1.5.

    Raises:
        MechmemError: Or ``error``, for anything else.
    """
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or whole < least or (most is not None and whole > most):
        upto = "" if most is None else f" to {most:,}"
        raise error(f"{name} must be an integer from {least}{upto}, got {shown(value, 80)}.")
    return whole


def finite_number(
    value: Any,
    name: str,
    *,
    above: float = -math.inf,
    error: type[MechmemError] = MechmemError,
) -> float:
    """A finite number, of Python or of NumPy, and a larger one than ``above``.

    Raises:
        MechmemError: Or ``error``, for anything else.
    """
    try:
        plain = isinstance(value, numbers.Real) and not isinstance(value, bool)
        number = float(value) if plain else math.nan
    except OverflowError:  # an integer of 400 digits
        number = math.inf
    if not (math.isfinite(number) and number > above):
        least = "" if math.isinf(above) else f" above {above:g}"
        raise error(f"{name} must be a finite number{least}, got {shown(value, 80)}.")
    return number


def several(
    values: Any,
    name: str,
    of: str = "numbers",
    *,
    empty: bool = False,
    error: type[MechmemError] = MechmemError,
) -> tuple[Any, ...]:
    """The members of a sequence, at least one unless ``empty``; a text or a mapping is none.

    Raises:
        MechmemError: Or ``error``, for anything else.
    """
    sequence = isinstance(values, Iterable) and not isinstance(
        values, (str, bytes, bytearray, Mapping)
    )
    try:
        found = tuple(values) if sequence else ()
    except TypeError:  # an array or a tensor of no dimension
        sequence, found = False, ()
    if not sequence or not (found or empty):
        raise error(f"{name} must be a sequence of {of}, got {shown(values, 80)}.")
    return found


def finite_numbers(
    values: Any,
    name: str,
    *,
    above: float = -math.inf,
    empty: bool = False,
    error: type[MechmemError] = MechmemError,
) -> tuple[float, ...]:
    """Finite numbers, larger ones than ``above``, at least one unless ``empty``.

    Raises:
        MechmemError: Or ``error``, for anything else.
    """
    found = several(values, name, empty=empty, error=error)
    each = f"every number of {name}"
    return tuple(finite_number(value, each, above=above, error=error) for value in found)


def natural(text: str) -> int | None:
    """The number that a few plain digits say; of '²', a sign or 5,000 digits there is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None
