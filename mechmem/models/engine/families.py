"""Prompts that begin alike: which of them should share how long a beginning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

__all__ = ["families"]

MIN_PREFIX = 8
"""Shorter beginnings are not worth a pass of their own."""


@dataclass
class _Node:
    """A beginning shared by the prompts from ``left`` on in sorted order."""

    depth: int
    left: int
    saved: int = 0
    families: list[tuple[int, int, int]] = field(default_factory=list)

    def take(self, child: _Node) -> None:
        self.saved += child.saved
        self.families += child.families

    def close(self, right: int) -> None:
        """Share at this depth, where that saves more than sharing deeper."""
        own = (right - self.left) * self.depth
        if self.depth >= MIN_PREFIX and own >= self.saved:
            self.saved, self.families = own, [(self.depth, self.left, right)]


def families(keys: Sequence[tuple[int, ...]]) -> list[tuple[int, list[int]]]:
    """Which rows share how long a beginning: the choice that saves most tokens."""
    everywhere = _common(min(keys), max(keys))  # a header of all of them: not worth comparing
    order = sorted(range(len(keys)), key=lambda row: (keys[row][everywhere:], row))
    same = [0, *(_common(keys[a], keys[b]) for a, b in pairwise(order)), -1]
    stack = [_Node(0, 0)]
    for place in range(len(order)):
        depth, child, left = same[place + 1], _Node(0, place), place
        while stack and stack[-1].depth > depth:
            node = stack.pop()
            node.take(child)
            node.close(place)
            child, left = node, node.left
        if depth < 0:
            break
        if stack and stack[-1].depth == depth:
            stack[-1].take(child)
        else:
            node = _Node(depth, left)
            node.take(child)
            stack.append(node)
    return [(depth, sorted(order[left : right + 1])) for depth, left, right in child.families]


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """Length of the common beginning, by comparing slices: long ones compare fast."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
