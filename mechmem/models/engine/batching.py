"""Which prompts run together: length-sorted batches under a token budget, padded on one side."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.models.engine.positions import Positions
from mechmem.models.tokens import TokenizedPrompt

__all__ = [
    "DEFAULT_TOKEN_BUDGET",
    "MAX_PAIRS",
    "MAX_ROWS",
    "Batch",
    "Feed",
    "plan_batches",
    "rows_that_fit",
    "unpadded",
]

DEFAULT_TOKEN_BUDGET = 8192
MAX_ROWS = 512
MAX_PAIRS = 1 << 22
"""Most pairs of a token and a token it may attend to in one batch, which bounds the attention
scores: 0.5 GB per layer with 32 heads in 4 bytes. One prompt always fits."""


@dataclass(frozen=True)
class Batch:
    """Prompts padded to one length.

    Attributes:
        rows: Index of every row in the list that was planned.
        prompts: The tokenised prompt of every row.
        ids: Token ids, padding included.
        mask: 1 on real tokens.
        index: Position of every token within its own prompt, -1 on padding.
    """

    rows: tuple[int, ...]
    prompts: tuple[TokenizedPrompt, ...]
    ids: Int[Tensor, "row token"]
    mask: Int[Tensor, "row token"]
    index: Int[Tensor, "row token"]

    @classmethod
    def collate(
        cls,
        prompts: Sequence[TokenizedPrompt],
        rows: Sequence[int],
        pad_id: int,
        device: torch.device | str = "cpu",
        side: str = "left",
        skip: Sequence[int] = (),
    ) -> Batch:
        """Pad the chosen prompts to the longest of them.

        Args:
            skip: How many tokens at the start of every row are left out, because their keys and
                values are known already; none by default.
        """
        chosen = tuple(prompts[row] for row in rows)
        skip = skip or [0] * len(chosen)
        width = max(len(prompt.ids) - cut for prompt, cut in zip(chosen, skip, strict=True))
        ids = torch.full((len(chosen), width), pad_id, dtype=torch.long)
        index = torch.full((len(chosen), width), -1, dtype=torch.long)
        for k, (prompt, cut) in enumerate(zip(chosen, skip, strict=True)):
            length = len(prompt.ids) - cut
            at = slice(width - length, width) if side == "left" else slice(0, length)
            ids[k, at] = torch.tensor(prompt.ids[cut:], dtype=torch.long)
            index[k, at] = torch.arange(cut, cut + length)
        ids, index = ids.to(device), index.to(device)
        return cls(tuple(rows), chosen, ids, (index >= 0).long(), index)

    def feed(self) -> Feed:
        """What the first forward pass over this batch sees."""
        lengths = torch.tensor([len(prompt.ids) for prompt in self.prompts])
        return Feed(self.prompts, self.index, lengths.to(self.index.device), self.rows)


class Feed:
    """The tokens that one forward pass sees, located in their own prompts.

    The first pass over a batch sees the prompts; each cached generation step sees one more token
    per row. Everything is asked in absolute positions, so padding side and cache do not matter.

    Attributes:
        prompts: The prompt of every row.
        index: ``[row, token]`` position of every token in its own text, -1 on padding.
        lengths: ``[row]`` prompt length; larger positions are generated.
        rows: Index of every row in the list that was planned.
        decodes: Whether every token of the pass is a generated one.
    """

    def __init__(
        self,
        prompts: tuple[TokenizedPrompt, ...],
        index: Int[Tensor, "row token"],
        lengths: Int[Tensor, " row"],
        rows: tuple[int, ...],
        decodes: bool = False,
    ) -> None:
        self.prompts, self.index, self.lengths, self.rows = prompts, index, lengths, rows
        self.decodes = decodes
        self._masks: dict[Positions, Tensor] = {}
        self._columns: dict[Positions, Tensor] = {}
        self._covers: dict[Positions, bool | None] = {}

    def step(self, generated: int, live: Tensor) -> Feed:
        """The feed of one cached step.

        Args:
            generated: Which new token it processes, from 0.
            live: ``[row]`` False for rows that are done and only fed along.
        """
        index = torch.where(live, self.lengths + generated, -1)[:, None]
        return Feed(self.prompts, index, self.lengths, self.rows, decodes=True)

    def only(self, keep: Sequence[int]) -> Feed:
        """The feed of some of the rows."""
        at = torch.tensor(list(keep), dtype=torch.long, device=self.index.device)
        return Feed(
            tuple(self.prompts[row] for row in keep),
            self.index[at],
            self.lengths[at],
            tuple(self.rows[row] for row in keep),
            self.decodes,
        )

    def covers(self, positions: Positions) -> bool | None:
        """Whether the positions are every token of this pass, padding included (True), none of them
        (False), or some (None)."""
        if positions not in self._covers:
            mask = self.mask(positions)
            self._covers[positions] = True if bool(mask.all()) else None if mask.any() else False
        return self._covers[positions]

    def mask(self, positions: Positions) -> Tensor:
        """``[row, token]`` True where the positions are meant."""
        if positions not in self._masks:
            meant = torch.zeros_like(self.index, dtype=torch.bool)
            if positions.touches_prompt and not self.decodes:
                for column in self.columns(positions).unbind(1):
                    here = column >= 0
                    meant[here.nonzero()[:, 0], column[here]] = True
            if positions.touches_generated:
                meant |= self.index >= self.lengths[:, None]
            self._masks[positions] = meant
        return self._masks[positions]

    def columns(self, positions: Positions) -> Tensor:
        """``[row, position]`` tensor column of every prompt position meant, -1 where this pass does
        not see it (or the row has fewer positions than others)."""
        if positions not in self._columns and self.decodes:
            none = torch.full((len(self.prompts), 1), -1, device=self.index.device)
            self._columns[positions] = none
        if positions not in self._columns:
            wanted = [[at for _, at in positions.columns(prompt)] for prompt in self.prompts]
            width = max((len(row) for row in wanted), default=0)
            padded = [row + [-2] * (width - len(row)) for row in wanted]
            absolute = torch.tensor(padded, dtype=torch.long, device=self.index.device)
            absolute = absolute.reshape(len(wanted), width)
            start = _first_column(self.index)
            column = absolute - start[:, None]
            last = self.index.max(dim=1).values
            first = self.index.masked_fill(self.index < 0, 1 << 40).min(dim=1).values
            seen = (absolute >= first[:, None]) & (absolute <= last[:, None])
            self._columns[positions] = column.masked_fill(~seen, -1)
        return self._columns[positions]


def _first_column(index: Int[Tensor, "row token"]) -> Int[Tensor, " row"]:
    """Absolute position that column 0 would have in every row."""
    column = (index >= 0).long().argmax(dim=1)
    return index.gather(1, column[:, None])[:, 0] - column


def rows_that_fit(token_budget: int, width: int, keys: int | None = None) -> int:
    """How many rows of ``width`` tokens, each attending to ``keys`` of them, make one batch."""
    pairs = width * (width if keys is None else keys)
    return max(1, min(MAX_ROWS, token_budget // width, MAX_PAIRS // pairs))


def plan_batches(
    prompts: Sequence[TokenizedPrompt],
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    extra: int = 0,
    pass_cost: float = math.inf,
) -> Iterator[tuple[int, ...]]:
    """Rows of each batch: longest prompts first, so that little is padded and memory peaks early.

    Args:
        prompts: What to run.
        token_budget: Most tokens in a batch, padding included; one prompt always fits.
        extra: Tokens that every row will grow by (generation).
        pass_cost: What another batch costs, in tokens: more padding than that, and it is made.
    """
    order = sorted(range(len(prompts)), key=lambda row: (-len(prompts[row].ids), row))
    start = 0
    while start < len(order):
        width = len(prompts[order[start]].ids)
        size = rows_that_fit(token_budget, width + extra)
        lengths = [len(prompts[row].ids) for row in order[start : start + size]]
        size = unpadded(lengths, pass_cost)
        yield tuple(order[start : start + size])
        start += size


def unpadded(lengths: Sequence[int], allowed: float) -> int:
    """How many rows, longest first, go together before they need more padding than is allowed."""
    padding = 0
    for k, length in enumerate(lengths):
        padding += lengths[0] - length
        if padding > allowed:
            return k
    return len(lengths)
