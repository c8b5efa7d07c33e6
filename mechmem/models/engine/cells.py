"""Many edits side by side: every row of a batch belongs to a cell, and meets its edits only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.models.engine.batching import Batch, Feed
from mechmem.models.engine.positions import Positions
from mechmem.models.engine.wiring import Intervention
from mechmem.models.sites import Site
from mechmem.models.tokens import TokenizedPrompt

__all__ = [
    "Cell",
    "CellPrompt",
    "Chorus",
    "Shift",
    "Split",
    "Tiled",
    "by_tag",
    "choir",
    "tagged",
    "touched",
]

Cell = Sequence[Intervention]
"""The interventions of one setting of a grid; empty for the unedited model."""


@dataclass(frozen=True)
class CellPrompt(TokenizedPrompt):
    """A prompt as one cell runs it.

    Attributes:
        cell: Which cell's edits it meets.
    """

    cell: int = 0


def touched(cell: Cell) -> Positions | None:
    """All tokens that the interventions may change; ``None`` when that is not known."""
    parts: dict[str | int, None] = {}
    for item in cell:
        where = getattr(item, "where", None)
        if not isinstance(where, Positions):
            return None
        parts |= dict.fromkeys(where.parts)
    return Positions(tuple(parts))


def tagged(prompts: Sequence[TokenizedPrompt], cells: int) -> list[CellPrompt]:
    """Every prompt once per cell: all prompts of cell 0, then those of cell 1, ..."""
    names = [part.name for part in fields(TokenizedPrompt)]
    plain = [{name: getattr(prompt, name) for name in names} for prompt in prompts]
    return [CellPrompt(**values, cell=cell) for cell in range(cells) for values in plain]


@dataclass(frozen=True)
class Shift:
    """A change that adds fixed values, so that many of them can be made at once.

    Attributes:
        where: The tokens.
        values: ``[position, d]``: one for all tokens, or one for each of them in order.
    """

    where: Positions
    values: Float[Tensor, "position d"] = field(repr=False)


@dataclass(frozen=True)
class Split:
    """Which rows of a pass belong to which cell.

    Attributes:
        parts: For every cell with rows: what it sees of the pass, and where its rows are.
        cell_of: The cell of every row.
    """

    parts: Mapping[int, tuple[Feed, slice | Tensor]]
    cell_of: Int[Tensor, " row"]


class Tiled(Feed):
    """What a pass sees in which the same batch stands once per cell, one after the other."""

    def __init__(self, batch: Batch, cells: int) -> None:
        self.one, self.cells = batch.feed(), cells
        super().__init__(
            self.one.prompts * cells,
            self.one.index.repeat(cells, 1),
            self.one.lengths.repeat(cells),
            self.one.rows * cells,
        )

    def mask(self, positions: Positions) -> Tensor:
        """As in `Feed`, computed for one cell only."""
        return self.one.mask(positions).repeat(self.cells, 1)

    def columns(self, positions: Positions) -> Tensor:
        """As in `Feed`, computed for one cell only."""
        return self.one.columns(positions).repeat(self.cells, 1)

    def split(self, feed: Feed) -> Split:
        """The rows of every cell."""
        rows = len(self.one.prompts)
        parts = {k: (self.one, slice(k * rows, (k + 1) * rows)) for k in range(self.cells)}
        at = torch.arange(self.cells, device=feed.index.device).repeat_interleave(rows)
        return Split(parts, at)


def by_tag(feed: Feed) -> Split:
    """The rows of every cell, where the prompts are `tagged`."""
    if feed not in _SPLITS:
        rows: dict[int, list[int]] = {}
        cells = [prompt.cell if isinstance(prompt, CellPrompt) else 0 for prompt in feed.prompts]
        for row, cell in enumerate(cells):
            rows.setdefault(cell, []).append(row)
        device = feed.index.device
        parts: dict[int, tuple[Feed, slice | Tensor]] = {
            cell: (feed.only(own), torch.tensor(own, device=device)) for cell, own in rows.items()
        }
        _SPLITS[feed] = Split(parts, torch.tensor(cells, device=device))
    return _SPLITS[feed]


_SPLITS: WeakKeyDictionary[Feed, Split] = WeakKeyDictionary()


@dataclass
class Chorus:
    """What all cells do at one site, each to its own rows.

    Attributes:
        site: Where.
        members: The cell and one of its interventions, in the order in which they act.
        split: Which rows are whose.
    """

    site: Site
    members: list[tuple[int, Intervention]]
    split: Callable[[Feed], Split]

    @property
    def where(self) -> Positions | None:
        """The tokens that may come out changed in any cell."""
        return touched([item for _, item in self.members])

    def apply(self, activation: Tensor, feed: Feed) -> Tensor | None:
        """The activation with the rows of every cell changed by its own interventions."""
        split = self.split(feed)
        at_once, one_by_one = self._sorted(split)
        out: Tensor | None = None
        for members in at_once:
            moved = _shifted(activation if out is None else out, feed, split, members)
            out = out if moved is None else moved
        written = False
        for cell, intervention in one_by_one:
            own, at = split.parts[cell]
            changed = intervention.apply((activation if out is None else out)[at], own)
            if changed is None:
                continue
            if not written:
                out, written = (activation if out is None else out).clone(), True
            assert out is not None
            out[at] = changed
        return out

    def _sorted(
        self, split: Split
    ) -> tuple[list[list[tuple[int, Intervention]]], list[tuple[int, Intervention]]]:
        """Members that can act at once, and the others; only those with rows in this pass."""
        here = [(cell, item) for cell, item in self.members if cell in split.parts]
        counts: dict[int, int] = {}
        for cell, _ in here:
            counts[cell] = counts.get(cell, 0) + 1
        kinds: dict[object, list[tuple[int, Intervention]]] = {}
        rest = []
        for cell, item in here:
            shift = getattr(item, "shift", None)
            if isinstance(shift, Shift) and counts[cell] == 1:
                kinds.setdefault((shift.where, shift.values.shape), []).append((cell, item))
            else:
                rest.append((cell, item))
        few = [members[0] for members in kinds.values() if len(members) == 1]
        return [members for members in kinds.values() if len(members) > 1], [*few, *rest]


def choir(cells: Sequence[Cell], split: Callable[[Feed], Split]) -> list[Chorus]:
    """One intervention per site for all cells."""
    by_site: dict[Site, list[tuple[int, Intervention]]] = {}
    for number, cell in enumerate(cells):
        for item in cell:
            by_site.setdefault(item.site, []).append((number, item))
    return [Chorus(site, members, split) for site, members in by_site.items()]


def _shifted(
    activation: Tensor, feed: Feed, split: Split, members: Sequence[tuple[int, Intervention]]
) -> Tensor | None:
    """All members' values added at once; each is told what happened to its rows."""
    device = activation.device
    shifts: list[Shift] = [item.shift for _, item in members]  # type: ignore[attr-defined]
    place = torch.full((int(split.cell_of.max()) + 1,), -1, dtype=torch.long)
    place[[cell for cell, _ in members]] = torch.arange(len(members))
    member_of = place.to(device)[split.cell_of.to(device)]
    values = torch.stack([shift.values for shift in shifts]).to(activation)
    own = values[member_of]  # of other cells' rows the last one's, never used
    flat = activation.flatten(2)
    mine = (member_of >= 0)[:, None]
    if own.shape[1] == 1:
        mask = feed.mask(shifts[0].where).to(device) & mine
        added = flat + own
    else:
        columns = feed.columns(shifts[0].where).to(device)
        mask = torch.zeros(flat.shape[:2], dtype=torch.bool, device=device)
        added = flat.clone()
        for k in range(columns.shape[1]):
            rows = ((columns[:, k] >= 0) & mine[:, 0]).nonzero()[:, 0]
            at = columns[rows, k]
            added[rows, at] = flat[rows, at] + own[rows, k]
            mask[rows, at] = True
    met = torch.zeros(len(members) + 1, device=device).index_add_(
        0, member_of.clamp_min(-1) + 1, mask.any(1).float()
    )[1:]
    if not bool(met.any()):
        for _, item in members:
            item.tell(False, 0, 0.0, 0.0, 0.0)  # type: ignore[attr-defined]
        return None
    out = torch.where(mask[..., None], added, flat)
    sums = _moved(flat, out, member_of + 1, len(members) + 1)[1:]
    for (_, item), hit, row in zip(members, met.tolist(), sums.tolist(), strict=True):
        item.tell(hit > 0, int(row[0]), *row[1:])  # type: ignore[attr-defined]
    return out.reshape(activation.shape)


def _moved(before: Tensor, after: Tensor, group_of: Tensor, groups: int) -> Tensor:
    """``[group, 4]``: moved tokens, and sums of distance, of length before, of their ratio."""
    wide = torch.promote_types(before.dtype, torch.float32)
    distance = (after.to(wide) - before.to(wide)).norm(dim=-1)
    at = distance > 0
    length = before.to(wide).norm(dim=-1)
    ratio = distance / length.clamp_min(torch.finfo(wide).tiny)
    rows = torch.stack(
        [at.to(wide).sum(1), distance.sum(1), (length * at).sum(1), (ratio * at).sum(1)], dim=1
    ).double()
    return torch.zeros(groups, 4, dtype=torch.float64, device=before.device).index_add_(
        0, group_of, rows
    )
