"""Names under which tasks, question sets and kinds of questions are found."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import Generic, TypeVar

from mechmem.errors import MechmemWarning, TaskError, did_you_mean, listed

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Things of one sort by name. A name may be given again: a notebook's cell is run twice.

    Args:
        sort: What they are, for messages.
    """

    def __init__(self, sort: str) -> None:
        self._sort = sort
        self._found: dict[str, T] = {}

    def add(self, name: object, thing: T) -> T:
        """Make a thing known, in place of one that had its name before.

        Raises:
            TaskError: For a name that is not a text, or is empty.
        """
        if not isinstance(name, str) or not name.strip():
            raise TaskError(
                f"A {self._sort} is registered under a name, got {name!r:.60} for {thing!r:.60}; "
                "set its `name`, or pass one."
            )
        if self._found.get(name, thing) is not thing:
            warnings.warn(
                f"A {self._sort} named {name!r} was registered before; the new one takes its "
                "place.",
                MechmemWarning,
                stacklevel=3,
            )
        self._found[name] = thing
        return thing

    def __getitem__(self, name: str) -> T:
        if name not in self._found:
            raise TaskError(
                f"Unknown {self._sort} {name!r}; known are {listed(sorted(self._found))}."
                f"{did_you_mean(name, self._found)}"
            )
        return self._found[name]

    def __contains__(self, name: object) -> bool:
        return name in self._found

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)
