"""Numbers that somebody gave: taken as they are, or refused by their names."""

from __future__ import annotations

import math
import numbers
import operator
from collections.abc import Iterable, Mapping
from typing import Any

from mechmem.errors import MechmemError, shown


def whole_number(
    value: Any, name: str, least: int = 1, *, error: type[MechmemError] = MechmemError
) -> int:
    """``value``, if it is an integer from ``least``; True is none, and neither is 1.5.

    Raises:
        MechmemError: Or ``error``, for anything else.
    """
    try:
        whole = None if isinstance(value, bool) else operator.index(value)
    except TypeError:
        whole = None
    if whole is None or whole < least:
        raise error(f"{name} must be an integer from {least}, got {shown(value, 80)}.")
    return whole


def finite_number(value: Any, name: str, *, error: type[MechmemError] = MechmemError) -> float:
    """A finite number, of Python or of NumPy.

    Raises:
        MechmemError: Or ``error``, for anything else.
    """
    try:
        plain = isinstance(value, numbers.Real) and not isinstance(value, bool)
        number = float(value) if plain else math.nan
    except OverflowError:  # an integer of 400 digits
        number = math.inf
    if not math.isfinite(number):
        raise error(f"{name} must be a finite number, got {shown(value, 80)}.")
    return number


def finite_numbers(
    values: Any, name: str, *, error: type[MechmemError] = MechmemError
) -> tuple[float, ...]:
    """Finite numbers, at least one.

    Raises:
        MechmemError: Or ``error``, for anything else.
    """
    several = isinstance(values, Iterable) and not isinstance(values, (str, bytes, Mapping))
    found = tuple(values) if several else ()
    if not found:
        raise error(f"{name} must be a sequence of numbers, got {shown(values, 80)}.")
    return tuple(finite_number(value, f"every number of {name}", error=error) for value in found)


def natural(text: str) -> int | None:
    """The number that a few plain digits say; of '²', a sign or 5,000 digits there is none."""
    return int(text) if text.isascii() and text.isdecimal() and len(text) <= 18 else None
