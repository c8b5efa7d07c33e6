"""Do the counts in a GGUF file fit its size? Its readers make a loop of each, whatever it says."""

from __future__ import annotations

import math
import mmap
import struct
from pathlib import Path

from mechmem.errors import ArtifactError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value of each kind of fixed size."""
_TEXT, _LIST = 8, 9
_PACKED = 8
"""Most weights in a byte."""


def check_counts(file: Path) -> int | None:
    """Refuse a file that says it holds more than it has bytes for.

    Returns:
        How many weights it holds; ``None`` for a file that begins as no GGUF file does.

    Raises:
        ArtifactError: When a count, a text or a list goes beyond its end.
    """
    with file.open("rb") as held:
        if held.read(4) != b"GGUF" or file.stat().st_size < 24:
            return None  # the reader has better words for it
        with mmap.mmap(held.fileno(), 0, access=mmap.ACCESS_READ) as data:
            order = "<" if struct.unpack_from("<I", data, 4)[0] & 0xFFFF else ">"
            try:
                return _walk(data, order)
            except (struct.error, _TooMany):
                raise ArtifactError(
                    f"{file} says that it holds more than its {len(data):,} bytes; it was cut off "
                    "or changed. Get it again."
                ) from None


class _TooMany(Exception):
    """More than there are bytes for."""


def _walk(data: mmap.mmap, order: str) -> int:
    """Through all values, as a reader would, but never past the end; then the sizes of tensors."""
    whole = struct.Struct(f"{order}Q").unpack_from
    kinds = struct.Struct(f"{order}I").unpack_from
    tensors, values = whole(data, 8)[0], whole(data, 16)[0]
    if tensors + values > len(data):
        raise _TooMany

    def after(kind: int, at: int, depth: int = 0) -> int:
        """Where a value of this kind ends."""
        if kind == _TEXT:
            at += 8 + whole(data, at)[0]
        elif kind == _LIST:
            inside, many, at = kinds(data, at)[0], whole(data, at + 4)[0], at + 12
            if many > len(data) or depth > 8:
                raise _TooMany
            if inside in _SIZES:
                at += many * _SIZES[inside]
            else:
                for _ in range(many):
                    at = after(inside, at, depth + 1)
        elif kind in _SIZES:
            at += _SIZES[kind]
        else:
            raise _TooMany  # no kind at all
        if at > len(data):
            raise _TooMany
        return at

    at = 24
    for _ in range(values):
        at = after(_TEXT, at)
        at = after(kinds(data, at)[0], at + 4)
    weights = 0
    for _ in range(tensors):
        at = after(_TEXT, at)
        sides = kinds(data, at)[0]
        if sides > 8:
            raise _TooMany
        weights += math.prod(whole(data, at + 4 + 8 * side)[0] for side in range(sides))
        at += 4 + 8 * sides + 12
    if weights > len(data) * _PACKED:
        raise _TooMany
    return weights
