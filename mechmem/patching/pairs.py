"""Flip pairs made ready for patching: who gives, who receives, and which tokens correspond."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mechmem.caching.activations import class_names
from mechmem.errors import PositionError, PromptError, listed
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.tokenizing import EncodedPrompts, PromptsLike
from mechmem.seeding import keyed_rng
from mechmem.tasks.prompts import PromptSet

CONTROLS = {
    "unrelated": "a donor of the same class as the true one, from another group",
    "same behavior": "a donor of the recipient's own class, from another group",
}


@dataclass(frozen=True)
class AlignedPairs:
    """Pairs of which one member receives the other's activations.

    Attributes:
        recipients, donors: The members, row by row.
        parts: Positions that are patched one after the other, each part as a whole.
        counts: Number of tokens of every part, per pair; equal in both members.
    """

    recipients: EncodedPrompts
    donors: EncodedPrompts
    parts: tuple[Positions, ...]
    counts: tuple[tuple[int, ...], ...]

    def __len__(self) -> int:
        return len(self.recipients)

    def buckets(self) -> list[list[int]]:
        """Rows that have the same numbers of tokens, so that their states can be stacked."""
        found: dict[tuple[int, ...], list[int]] = {}
        for row, counts in enumerate(self.counts):
            found.setdefault(counts, []).append(row)
        return list(found.values())

    def side(self, name: str, rows: Sequence[int]) -> PromptSet:
        """Some of the ``"recipients"`` or ``"donors"``."""
        members: EncodedPrompts = getattr(self, name)
        return members.select(members.ids[row] for row in rows)

    def strangers(self, rows: Sequence[int], seed: int, name: str) -> dict[int, int]:
        """For every row a row of another group among ``rows``; left out where there is none."""
        out = {}
        ordered = sorted(rows, key=lambda row: self.recipients[row].id)
        for row in rows:
            mine = self.recipients[row]
            others = [k for k in ordered if self.recipients[k].group != mine.group]
            if others:
                pick = keyed_rng(seed, "patching control", name, mine.id).integers(len(others))
                out[row] = others[int(pick)]
        return out


def align_pairs(
    model: Model, prompts: PromptsLike, *, toward: str, by: str, positions: PositionSpec
) -> AlignedPairs:
    """The pairs of which exactly one member is of class ``toward``; that member is the donor.

    Raises:
        PromptError: When there is no such pair.
        PositionError: When a position means more tokens in one member of a pair than in the other.
    """
    asked = model.encode(prompts, "patch")
    classes = dict(zip(asked.ids, class_names(asked, by), strict=True))
    recipients, donors = [], []
    for pair in asked.pairs():
        other = [p for p in pair if classes[p.id] not in (None, toward)]
        chosen = [p for p in pair if classes[p.id] == toward]
        if len(chosen) == len(other) == 1:
            recipients += [p.id for p in other]
            donors += [p.id for p in chosen]
    if not recipients:
        raise PromptError(
            f"No pair has exactly one member of {by} {toward!r} and one of another; "
            f"the classes found are {listed(sorted(set(map(str, classes.values()))))}. "
            "Use the flips of mm.observe(...).flips(), or set by= and toward=."
        )
    parts = tuple(Positions((part,)) for part in Positions.parse(positions).parts)
    for part in parts:
        if part.pooled or part.parts[0] in ("generated", "each_step"):
            raise PositionError(
                f"positions={str(part)!r} names no prompt token to patch; use 'last', 'all', an "
                "integer or the name of a span."
            )
    counts = []
    takers, givers = (model.encode(asked.select(ids)) for ids in (recipients, donors))
    for one, other_member in zip(takers.rows, givers.rows, strict=True):
        mine, theirs = (
            tuple(len(part.columns(member)) for part in parts) for member in (one, other_member)
        )
        for part, a, b in zip(parts, mine, theirs, strict=True):
            if a != b:
                raise PositionError(
                    f"Position {str(part)!r} has {a} tokens in prompt {one.id!r} and {b} in its "
                    f"partner {other_member.id!r}, so they do not correspond; patch 'last', a span "
                    "of one length, or only pairs of one length."
                )
        counts.append(mine)
    return AlignedPairs(takers, givers, parts, tuple(counts))
