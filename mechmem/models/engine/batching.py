"""One batch: its tokens, where they stand in their prompts, and how many of them fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.errors import ModelError
from mechmem.models.positions import Positions
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.numeric import whole_number

DEFAULT_TOKEN_BUDGET = 8192

MAX_BATCH_ROWS = 512

MAX_PAIRS = 1 << 22
"""Most pairs of a token and a token it may attend to in one batch, which bounds the attention
scores: 0.5 GB per layer with 32 heads in 4 bytes. One prompt always fits."""

MOST_TOKENS = 1 << 62
"""A budget of so many is no limit; more tokens than that are no number that a machine counts."""


@dataclass(frozen=True)
class Batch:
    """Prompts padded to one length.

    Attributes:
        rows: Index of every prompt in the list that was planned.
        prompts: The tokenized prompts.
        ids: Token ids, padding included.
        mask: 1 on real tokens.
        index: Position of every token within its own prompt, -1 on padding.
        starts: Where prompts share rows: the row in which each stands, and its first column there;
            ``None`` when each has a row of its own.
    """

    rows: tuple[int, ...]
    prompts: tuple[TokenizedPrompt, ...]
    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]
    index: Int[Tensor, "row token"]
    starts: Int[Tensor, "prompt 2"] | None = None

    @classmethod
    def collate(
        cls,
        prompts: Sequence[TokenizedPrompt],
        rows: Sequence[int],
        pad_id: int,
        device: torch.device | str = "cpu",
        side: str = "left",
        skip: Sequence[int] = (),
        lane_of: Sequence[int] = (),
    ) -> Batch:
        """Pad the chosen prompts to the longest row.

        Args:
            skip: How many tokens at the start of every row are left out, because their keys and
                values are known already; none by default.
            lane_of: In which row every prompt stands, one behind the other; by default each in one
                of its own.
        """
        chosen = tuple(prompts[row] for row in rows)
        skip = skip or [0] * len(chosen)
        lanes = lane_of or range(len(chosen))
        used = [0] * (max(lanes) + 1)
        for prompt, cut, lane in zip(chosen, skip, lanes, strict=True):
            used[lane] += len(prompt.ids) - cut
        width = max(used)
        # Filled on the CPU and moved once: each write to an accelerator is a call of its own.
        ids = torch.full((len(used), width), pad_id, dtype=torch.long)
        index = torch.full((len(used), width), -1, dtype=torch.long)
        # On the left by default, so that the last column holds the last token of every prompt.
        free = [width - taken if side == "left" else 0 for taken in used]
        starts = torch.tensor([lanes, [0] * len(chosen)]).T
        for k, (prompt, cut, lane) in enumerate(zip(chosen, skip, lanes, strict=True)):
            length, start = len(prompt.ids) - cut, free[lane]
            at = slice(start, start + length)
            ids[lane, at] = torch.tensor(prompt.ids[cut:], dtype=torch.long)
            index[lane, at] = torch.arange(cut, cut + length)
            starts[k, 1], free[lane] = start, start + length
        ids, index = ids.to(device), index.to(device)
        shared = starts.to(device) if lane_of else None
        return cls(tuple(rows), chosen, ids, (index >= 0).long(), index, shared)

    def feed(self) -> Feed:
        """What the first forward pass over this batch sees."""
        lengths = torch.tensor([len(prompt.ids) for prompt in self.prompts]).to(self.index.device)
        return Feed(self.prompts, self.index, lengths, self.rows, starts=self.starts)


class Feed:
    """The tokens that one forward pass sees, located in their own prompts.

    The first pass over a batch sees the prompts; each cached generation step sees one more token
    per row. Everything is asked in absolute positions, so padding side and cache do not matter.

    Attributes:
        prompts: One per row, or several where they share rows.
        index: ``[row, token]`` position of every token in its own text, -1 on padding.
        lengths: ``[prompt]`` prompt length; larger positions are generated.
        rows: Index of every prompt in the list that was planned.
        decodes: Whether every token of the pass is a generated one.
        starts: ``[prompt, 2]`` row and first column of every prompt, where they share rows; nothing
            is generated there.
    """

    def __init__(
        self,
        prompts: tuple[TokenizedPrompt, ...],
        index: Int[Tensor, "row token"],
        lengths: Int[Tensor, " prompt"],
        rows: tuple[int, ...],
        decodes: bool = False,
        starts: Int[Tensor, "prompt 2"] | None = None,
    ) -> None:
        self.prompts, self.index, self.lengths, self.rows = prompts, index, lengths, rows
        self.decodes, self.starts = decodes, starts
        self._masks: dict[Positions, Tensor] = {}
        self._columns: dict[Positions, Tensor] = {}
        self._covers: dict[Positions, bool | None] = {}

    def step(self, generated: int | Tensor, live: Tensor) -> Feed:
        """The feed of one cached step.

        Args:
            generated: Which new token it processes, from 0; of every row, where they began apart.
            live: ``[row]`` False for rows that are done and only fed along.
        """
        # -1 as on padding: no position is meant there, so no edit acts on a row that is done.
        index = torch.where(live, self.lengths + generated, -1)[:, None]
        return Feed(self.prompts, index, self.lengths, self.rows, decodes=True)

    def only(self, keep: Sequence[int]) -> Feed:
        """The feed of some of the rows, where prompts do not share them."""
        assert self.starts is None
        at = torch.tensor(list(keep), dtype=torch.long, device=self.index.device)
        return Feed(
            tuple(self.prompts[row] for row in keep),
            self.index[at],
            self.lengths[at],
            tuple(self.rows[row] for row in keep),
            self.decodes,
        )

    def above(self, other: Feed) -> Feed:
        """The rows of both, for steps that follow."""
        return Feed(
            self.prompts + other.prompts,
            # The widths differ; `step` makes the index of what follows anew.
            torch.cat([self.index[:, -1:], other.index[:, -1:]]),
            torch.cat([self.lengths, other.lengths]),
            self.rows + other.rows,
        )

    def covers(self, positions: Positions) -> bool | None:
        """Whether the positions are every token of this pass, padding included (True), none of them
        (False), or some (None)."""
        if positions not in self._covers:
            mask = self.mask(positions)
            # Remembered, for asking a tensor makes an accelerator wait, and every edit asks.
            self._covers[positions] = True if bool(mask.all()) else None if mask.any() else False
        return self._covers[positions]

    def mask(self, positions: Positions) -> Tensor:
        """``[row, token]`` True where the positions are meant."""
        if positions not in self._masks:
            meant = torch.zeros_like(self.index, dtype=torch.bool)
            if positions.touches_prompt and not self.decodes:
                rows, columns = self.at(positions)
                here = columns >= 0
                meant[rows.expand_as(columns)[here], columns[here]] = True
            if positions.touches_generated and self.starts is None:
                meant |= self.index >= self.lengths[:, None]
            self._masks[positions] = meant
        return self._masks[positions]

    def at(self, positions: Positions) -> tuple[Int[Tensor, "prompt 1"], Tensor]:
        """The row of every prompt, and its `columns` there."""
        columns = self.columns(positions)
        if self.starts is not None:
            return self.starts[:, :1], columns
        return torch.arange(len(columns), device=columns.device)[:, None], columns

    def columns(self, positions: Positions) -> Tensor:
        """``[prompt, position]`` tensor column of every prompt position meant, -1 where this pass
        does not see it (or the prompt has fewer positions than others)."""
        if positions not in self._columns and self.decodes:
            none = torch.full((len(self.prompts), 1), -1, device=self.index.device)
            self._columns[positions] = none
        if positions not in self._columns:
            wanted = [[at for _, at in positions.columns(prompt)] for prompt in self.prompts]
            width = max((len(row) for row in wanted), default=0)
            # -2 is less than any position, so what fills up counts as not seen.
            padded = [row + [-2] * (width - len(row)) for row in wanted]
            absolute = torch.tensor(padded, dtype=torch.long, device=self.index.device)
            absolute = absolute.reshape(len(wanted), width)
            if self.starts is not None:
                column, seen = absolute + self.starts[:, 1:], absolute >= 0
            else:
                column = absolute - _first_column(self.index)[:, None]
                last = self.index.max(dim=1).values
                # Padding (-1) would be the smallest, and must not be taken for the first position.
                first = self.index.masked_fill(self.index < 0, 1 << 40).min(dim=1).values
                seen = (absolute >= first[:, None]) & (absolute <= last[:, None])
            self._columns[positions] = column.masked_fill(~seen, -1)
        return self._columns[positions]


def _first_column(index: Int[Tensor, "row token"]) -> Int[Tensor, " row"]:
    """Absolute position that column 0 would have in every row."""
    # The first token of a row may be any of its prompt's, where a beginning was left out.
    column = (index >= 0).long().argmax(dim=1)
    return index.gather(1, column[:, None])[:, 0] - column


@dataclass(frozen=True)
class Prefix:
    """The first ``length`` tokens of the prompt in ``row``."""

    row: int
    length: int


@dataclass(frozen=True)
class PlannedBatch:
    """One batch.

    Attributes:
        rows: The prompts, by their place in the list that was planned.
        width: Tokens of the longest row of the pass, without what is shared.
        prefixes: Beginnings that are run first; empty when nothing is shared.
        prefix_of: For every row, which of `prefixes` it continues.
        lane_of: For every prompt, in which row of the pass it stands, one behind the other; empty
            when each has one of its own.
        lengths: Tokens of every prompt, where they share rows.
    """

    rows: tuple[int, ...]
    width: int
    prefixes: tuple[Prefix, ...] = ()
    prefix_of: tuple[int, ...] = ()
    lane_of: tuple[int, ...] = ()
    lengths: tuple[int, ...] = ()

    @classmethod
    def of(
        cls, rows: Sequence[int], lane_of: Sequence[int], lengths: Sequence[int]
    ) -> PlannedBatch:
        """Prompts that share rows, as few as may do so.

        Args:
            rows: The prompts, lane by lane.
            lane_of: The lane of each, from 0.
            lengths: Its tokens.
        """
        used = [0] * (max(lane_of) + 1)
        for lane, length in zip(lane_of, lengths, strict=True):
            used[lane] += length
        # One prompt in every row is an ordinary batch and needs no mask of our own.
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
        return tuple(self.prefixes[root].length for root in self.prefix_of)

    @property
    def prefix_width(self) -> int:
        """Tokens of the longest prefix."""
        return max((prefix.length for prefix in self.prefixes), default=0)

    @property
    def computed(self) -> int:
        """Tokens that the pass over the rows computes, padding included."""
        return self.lanes * self.width

    def among(self, places: Sequence[int]) -> PlannedBatch:
        """The same batch, where its rows are counted among others.

        Args:
            places: For every row as it is counted now, its place there.
        """
        return replace(
            self,
            rows=tuple(places[row] for row in self.rows),
            prefixes=tuple(Prefix(places[p.row], p.length) for p in self.prefixes),
        )

    def halves(self) -> list[PlannedBatch]:
        """The same prompts in two batches; nothing for a single one."""
        middle = len(self.rows) // 2
        if self.lane_of and self.lanes > 1:
            middle = self.lane_of.index(self.lanes // 2)  # rows stay whole
        return self.cut(middle) if middle else []

    def cut(self, rows: int) -> list[PlannedBatch]:
        """The first prompts, and the rest if there is any."""
        parts = [slice(0, rows), *([slice(rows, None)] if rows < len(self.rows) else [])]
        return [self._only(part) for part in parts]

    def _only(self, part: slice) -> PlannedBatch:
        rows = self.rows[part]
        if self.lane_of:
            lanes = self.lane_of[part]
            return PlannedBatch.of(rows, [k - lanes[0] for k in lanes], self.lengths[part])
        used = sorted(set(self.prefix_of[part]))
        prefixes = tuple(self.prefixes[root] for root in used)
        roots = tuple(used.index(root) for root in self.prefix_of[part])
        # The width is a bound, that of the whole batch; `collate` pads to what there is.
        return PlannedBatch(rows, self.width, prefixes, roots)


def check_budget(token_budget: int) -> None:
    """Refuse what is no number of tokens.

    Raises:
        ModelError: Naming it.
    """
    whole_number(token_budget, "token_budget", most=MOST_TOKENS, error=ModelError)


def rows_that_fit(
    token_budget: int, width: int, keys: int | None = None, most: float = MAX_BATCH_ROWS
) -> int:
    """How many rows of ``width`` tokens, each attending to ``keys`` of them, make one batch.

    Args:
        most: No more than so many.

    Raises:
        ModelError: For a budget that is not a number of tokens.
    """
    check_budget(token_budget)
    pairs = width * (width if keys is None else keys)
    return max(1, int(min(MAX_BATCH_ROWS, most, token_budget // width, MAX_PAIRS // pairs)))
