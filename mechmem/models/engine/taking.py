"""Reading states: the wanted positions copied out inside the hook, and nothing else kept.

A position may lie in a beginning that was run before its row; then it was read there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechmem.models.engine.batching import Feed
from mechmem.models.engine.positions import Positions
from mechmem.models.engine.work import Prefix, Work
from mechmem.models.sites import Site
from mechmem.models.tokens import TokenizedPrompt

__all__ = ["Behind", "Front", "Take", "wanted_in_front"]


def wanted_in_front(
    works: Iterable[Work], prompts: Sequence[TokenizedPrompt], positions: Positions
) -> dict[Prefix, list[int]]:
    """Which positions of every shared beginning some prompt asks for."""
    wanted: dict[Prefix, set[int]] = {}
    for work in works:
        for row, root in zip(work.rows, work.root_of, strict=False):
            prefix = work.prefixes[root]
            mine = wanted.setdefault(prefix, set())
            if not positions.pooled:
                columns = (index for _, index in positions.columns(prompts[row]))
                mine.update(index for index in columns if index < prefix.length)
    return {prefix: sorted(indices) for prefix, indices in wanted.items()}


@dataclass
class Front:
    """Reads one site in the pass over shared beginnings.

    Attributes:
        site: Where.
        at: Positions to keep of every beginning; ``None`` for their sum over all tokens.
        value: ``[beginning, position, *feature]``, or float64 sums ``[beginning, 1, *feature]``.
    """

    site: Site
    at: Sequence[Sequence[int]] | None
    value: Tensor | None = field(default=None, repr=False)

    def read(self, activation: Tensor, feed: Feed) -> None:
        """Keep what will be asked for."""
        if self.at is None:
            self.value = _summed(activation, feed.index >= 0)
            return
        width = max((len(indices) for indices in self.at), default=0)
        start = activation.shape[1] - feed.lengths
        rows = [[*indices, *[0] * (width - len(indices))] for indices in self.at]
        columns = torch.tensor(rows, dtype=torch.long, device=activation.device)
        columns = columns.reshape(len(rows), width) + start.to(activation.device)[:, None]
        self.value = activation[torch.arange(len(rows), device=activation.device)[:, None], columns]


@dataclass
class Behind:
    """How the rows of one batch find what was read in their beginnings.

    Attributes:
        root_of: ``[row]`` which beginning.
        slot: ``[row, position]`` which of its kept positions, -1 for positions of the row's own.
    """

    root_of: Tensor
    slot: Tensor

    @classmethod
    def of(
        cls,
        work: Work,
        prompts: Sequence[TokenizedPrompt],
        positions: Positions,
        wanted: Mapping[Prefix, Sequence[int]],
    ) -> Behind:
        """For one batch."""
        slots = []
        for row, root in zip(work.rows, work.root_of, strict=True):
            kept = {index: k for k, index in enumerate(wanted[work.prefixes[root]])}
            columns = [] if positions.pooled else positions.columns(prompts[row])
            slots.append([kept.get(index, -1) for _, index in columns])
        return cls(
            torch.tensor(work.root_of, dtype=torch.long), torch.tensor(slots, dtype=torch.long)
        )


@dataclass
class Take:
    """Copies the wanted positions out of an activation.

    Attributes:
        site, positions: What to read.
        front: The same site in the pass over the shared beginnings.
        behind: How rows find their part in it.
        value: ``[row, position, *feature]``, on the activation's device.
    """

    site: Site
    positions: Positions
    front: Front | None = None
    behind: Behind | None = None
    value: Tensor | None = field(default=None, repr=False)

    def read(self, activation: Tensor, feed: Feed) -> None:
        """Called by the hook."""
        device = activation.device
        if self.positions.pooled:
            total = _summed(activation, feed.mask(self.positions).to(device))
            if self.front is not None and self.behind is not None:
                assert self.front.value is not None
                total += self.front.value[self.behind.root_of.to(device)]
            self.value = total / over_features(feed.lengths.to(device)[:, None], total)
            return
        rows, columns = (where.to(device) for where in feed.at(self.positions))
        value = activation[rows, columns].detach()  # indexing copies: no view stays alive
        if (
            self.front is not None
            and self.behind is not None
            and bool((self.behind.slot >= 0).any())
        ):
            assert self.front.value is not None
            slot = self.behind.slot.to(device)
            front = self.front.value[self.behind.root_of.to(device)[:, None], slot]
            value = torch.where(over_features(slot >= 0, value), front, value)
        self.value = value


def over_features(values: Tensor, like: Tensor) -> Tensor:
    """``[row, position]`` with as many trailing axes as the features of ``like``."""
    return values.reshape(*values.shape, *(1 for _ in like.shape[2:]))


def _summed(activation: Tensor, keep: Tensor) -> Tensor:
    """Sum over the kept tokens, in float64."""
    weight = over_features(keep.to(activation.device).double(), activation)
    return (activation.detach().double() * weight).sum(1, keepdim=True)
