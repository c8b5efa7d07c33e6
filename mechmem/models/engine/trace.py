"""What is written down in one pass: what modules were handed, what hooks gave, what was edited."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from mechmem.models.engine.anatomy import Anatomy
from mechmem.models.engine.batching import Feed
from mechmem.models.sites import Site
from mechmem.seeding import keyed_rng

__all__ = ["PAD", "Nudge", "See", "Trace"]

Listeners = list[tuple[torch.nn.Module, Callable[[Tensor], None]]]

PAD = 2
"""Tokens of padding before the padded row."""


def kept_rows(layer: int) -> list[int]:
    return [0, 1, 2 + layer]


@dataclass
class See:
    """Keeps a layer's plain, padded and edited row as they leave its hook."""

    site: Site
    value: Tensor | None = None

    def read(self, activation: Tensor, feed: Feed) -> None:
        self.value = activation[kept_rows(self.site.layer)].detach()


@dataclass
class Nudge:
    """Moves a layer's edited row by a random step of half its length, and keeps both."""

    site: Site
    before: Tensor | None = None
    after: Tensor | None = None

    def apply(self, activation: Tensor, feed: Feed) -> Tensor:
        row = 2 + self.site.layer
        rng = keyed_rng(0, "nudge", self.site.key)
        step = torch.as_tensor(rng.standard_normal(tuple(activation.shape[1:])))
        size = activation[row].double().square().mean().sqrt().cpu()
        moved = activation.clone()
        moved[row] += (0.5 * size * step).to(activation)
        self.before = activation[kept_rows(self.site.layer)].detach()
        self.after = moved[kept_rows(self.site.layer)].detach()
        return moved


@dataclass
class Trace:
    """What the modules were handed, and what the hooks gave."""

    stream: str
    n_layers: int
    entering: dict[int, Tensor] = field(default_factory=dict)
    leaving: dict[int, Tensor] = field(default_factory=dict)
    attn_in: dict[int, Tensor] = field(default_factory=dict)
    mlp_in: dict[int, Tensor] = field(default_factory=dict)
    values: Mapping[Site, Tensor] = field(default_factory=dict)

    def listeners(self, blocks: list[Anatomy], ends: list[torch.nn.Module]) -> Listeners:
        """Pairs of a module and what to do with its input."""
        out: Listeners = []
        for layer, block in enumerate(blocks):
            out.append((block.block, partial(self._block, layer)))
            for module, kept in (
                (block.attn_reader, self.attn_in),
                (block.mlp_reader, self.mlp_in),
            ):
                if module is not None:
                    out.append((module, partial(self._keep, kept, layer)))
        out += [(end, partial(self._keep, self.leaving, self.n_layers - 1)) for end in ends]
        return out

    def _block(self, layer: int, value: Tensor) -> None:
        self._keep(self.entering, layer, value)
        if layer:
            self._keep(self.leaving, layer - 1, value)

    def _keep(self, to: dict[int, Tensor], layer: int, value: Tensor) -> None:
        if layer not in to:
            to[layer] = value[kept_rows(layer)].clone()

    def at(self, stream: str, layer: int) -> Tensor | None:
        return self.values.get(Site(stream, layer))
