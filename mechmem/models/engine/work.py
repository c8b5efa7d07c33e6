"""One batch of a plan: which prompts, what they share, and how it is cut when memory runs out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

__all__ = ["Prefix", "Work"]


@dataclass(frozen=True)
class Prefix:
    """The first ``length`` tokens of the prompt in ``row``."""

    row: int
    length: int


@dataclass(frozen=True)
class Work:
    """One batch.

    Attributes:
        rows: The prompts, by their place in the list that was planned.
        width: Tokens of the longest row of the pass, without what is shared.
        prefixes: Beginnings that are run first; empty when nothing is shared.
        root_of: For every row, which of `prefixes` it continues.
        lane_of: For every prompt, in which row of the pass it stands, one behind the other; empty
            when each has one of its own.
        lengths: Tokens of every prompt, where they share rows.
    """

    rows: tuple[int, ...]
    width: int
    prefixes: tuple[Prefix, ...] = ()
    root_of: tuple[int, ...] = ()
    lane_of: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()

    @classmethod
    def of(cls, rows: Sequence[int], lane_of: Sequence[int], lengths: Sequence[int]) -> Work:
        """Prompts that share rows, as few as may do so.

        Args:
            rows: The prompts, lane by lane.
            lane_of: The lane of each, from 0.
            lengths: Its tokens.
        """
        used = [0] * (max(lane_of) + 1)
        for lane, length in zip(lane_of, lengths, strict=True):
            used[lane] += length
        if len(used) == len(rows):
            return cls(tuple(rows), max(used))
        return cls(tuple(rows), max(used), lane_of=tuple(lane_of), lengths=tuple(lengths))

    @property
    def lanes(self) -> int:
        """Rows of the pass."""
        return max(self.lane_of) + 1 if self.lane_of else len(self.rows)

    @property
    def skip(self) -> tuple[int, ...]:
        """Tokens at the start of every row that its prefix has run already."""
        return tuple(self.prefixes[root].length for root in self.root_of)

    @property
    def reach(self) -> int:
        """Tokens of the longest prefix."""
        return max((prefix.length for prefix in self.prefixes), default=0)

    @property
    def fed(self) -> int:
        """Tokens that the pass over the rows computes, padding included."""
        return self.lanes * self.width

    def among(self, places: Sequence[int]) -> Work:
        """The same batch, where its rows are counted among others.

        Args:
            places: For every row as it is counted now, its place there.
        """
        return replace(
            self,
            rows=tuple(places[row] for row in self.rows),
            prefixes=tuple(Prefix(places[p.row], p.length) for p in self.prefixes),
        )

    def halves(self) -> list[Work]:
        """The same prompts in two batches; nothing for a single one."""
        middle = len(self.rows) // 2
        if self.lane_of and self.lanes > 1:
            middle = self.lane_of.index(self.lanes // 2)  # rows stay whole
        parts = (slice(0, middle), slice(middle, None)) if middle else ()
        return [self._only(part) for part in parts]

    def _only(self, part: slice) -> Work:
        if self.lane_of:
            lanes = self.lane_of[part]
            return Work.of(self.rows[part], [k - lanes[0] for k in lanes], self.lengths[part])
        used = sorted(set(self.root_of[part]))
        return Work(
            self.rows[part],
            self.width,
            tuple(self.prefixes[root] for root in used),
            tuple(used.index(root) for root in self.root_of[part]),
        )
