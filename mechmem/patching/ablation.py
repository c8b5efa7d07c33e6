"""Ablations: neurons, heads and branches set to zero, to a mean or to another prompt's value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mechmem.analysis.neurons import NeuronSet
from mechmem.caching.provenance import Provenance, Seen
from mechmem.errors import EditError, listed
from mechmem.models.engine.batching import Feed
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.sites import Site, SiteSpec, named
from mechmem.patching.base import (
    Change,
    Edit,
    others,
    placed,
    region,
    tokens_of,
)
from mechmem.patching.neurons import (
    Neurons,
    count_neurons,
    indices,
    neuron_columns,
    neuron_masks,
    one_site,
    other_neurons,
)
from mechmem.patching.replacement import Replacement, ReplacementSource, Values


@dataclass(frozen=True, kw_only=True)
class _Ablation(Edit):
    """Shared by the ablations that replace an activation by a value.

    Attributes:
        mode: ``"zero"``; ``"mean"`` of the source (over examples of `Activations`; over classes
            that each count once of `Moments` and `NeuronScores`); ``"resample"``, the value of
            another prompt of the source, never of the same group.
        source: What means and other prompts' values are taken from.
        positions: Where in the text. Values of several positions go back to their own.
        seed: Keys the donors of ``"resample"``; one prompt has the same donor at every site.
    """

    mode: str = "zero"
    source: ReplacementSource | None = None
    positions: PositionSpec | None = None
    seed: int = 0
    force: bool = False

    @property
    def _replacement(self) -> Replacement:
        return Replacement(self.mode, self.source, self.seed)

    @property
    def _fitted(self) -> list[Provenance]:
        used = self._replacement.used
        return [] if used is None else [used.provenance]

    @property
    def provenance(self) -> Provenance | None:
        return next(iter(self._fitted), None)

    @property
    def seen(self) -> Seen:
        """A mean was fitted on its prompts; another instance's value was not."""
        used = self._replacement.used
        return used.provenance.seen if used is not None and self.mode == "mean" else Seen()

    def check(self, model: Model) -> None:
        for provenance in () if self.force else self._fitted:
            provenance.check_model(model, type(self).__name__)

    @property
    def where(self) -> Positions:
        return self._region()[0]

    def _region(self) -> tuple[Positions, bool]:
        used = self._replacement.used
        if used is None:
            return tokens_of("all" if self.positions is None else self.positions), False
        read_at = used.provenance.positions
        default = "all" if Positions.parse(read_at).pooled else read_at
        return region(self.positions, used.columns, read_at, default)

    def _replacing(self, masks: Mapping[Site, Tensor | None]) -> dict[Site, Change]:
        """Put the new values where the masks ``[position or 1, d]`` are True, or everywhere."""
        where, window = self._region()
        return {
            site: _setter(self._replacement.values(site), mask, where, window)
            for site, mask in masks.items()
        }

    def describe(self) -> dict[str, Any]:
        return {
            "edit": type(self).__name__,
            "mode": self.mode,
            "positions": str(self._region()[0]),
            **({"seed": self.seed} if self.mode == "resample" else {}),
        }


@dataclass(frozen=True)
class AblateNeurons(_Ablation):
    """Set chosen neurons to zero, to their mean, or to their values on another prompt.

    Attributes:
        neurons: A `NeuronSet` (which brings its own means: both classes weigh equally), or
            coordinates by site.
        positions: Default ``"each_step"``; neurons chosen in a window are ablated each at the
            position it was chosen at.
    """

    neurons: Neurons
    mode: str = field(default="mean", kw_only=True)

    @property
    def _replacement(self) -> Replacement:
        own = self.neurons.scores if isinstance(self.neurons, NeuronSet) else None
        return Replacement(self.mode, own if self.source is None else self.source, self.seed)

    @property
    def _fitted(self) -> list[Provenance]:
        own = [self.neurons.scores.provenance] if isinstance(self.neurons, NeuronSet) else []
        return [*own, *super()._fitted]

    @property
    def seen(self) -> Seen:
        own = self.neurons.scores.provenance.seen if isinstance(self.neurons, NeuronSet) else Seen()
        return own | super().seen

    def _region(self) -> tuple[Positions, bool]:
        used = self._replacement.used
        columns, read_at = neuron_columns(self.neurons)
        if used is not None and len(used.columns) > 1:
            if len(columns) > 1 and columns != used.columns:
                raise EditError(
                    f"The neurons were chosen at positions {listed(columns)} and the source has "
                    f"{listed(used.columns)}; cache it at the same positions."
                )
            columns, read_at = used.columns, used.provenance.positions
        return region(self.positions, columns, read_at, default="each_step")

    def changes(self, model: Model) -> dict[Site, Change]:
        self._replacement.check()
        return self._replacing(neuron_masks(self.neurons, model))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "neurons": count_neurons(self.neurons)}

    def controls(self, model: Model, seed: int) -> dict[str, Edit]:
        """``random neurons``: others of each site, whose ablation moves them about as far."""

        def moved(mean: Tensor, sd: Tensor) -> Tensor:
            return (mean**2 + sd**2).sqrt() if self.mode == "zero" else sd

        drawn = other_neurons(self.neurons, model, seed, moved, self.source)
        return {"random neurons": replace(self, neurons=drawn)}


@dataclass(frozen=True)
class AblateHeads(_Ablation):
    """Set what attention heads hand to the output projection (stream ``z``).

    The projection's bias stays. Zero is "knocked out"; a mean keeps the head's average message.

    Attributes:
        heads: Head numbers by site, ``{("z", 3): [0, 2]}``.
        positions: Default where the source was read; ``"all"`` without one.
    """

    heads: Mapping[tuple[str, int], Sequence[int]]

    def changes(self, model: Model) -> dict[Site, Change]:
        self._replacement.check()
        n_heads, width = model.info.n_heads, int(model.tl.cfg.d_head)
        masks: dict[Site, Tensor] = {}
        for key, chosen in self.heads.items():
            site = one_site(model, key)
            if site.stream != "z":
                raise EditError(f"Heads live in stream 'z', got {site}; write ('z', {site.layer}).")
            heads = indices(chosen, n_heads, f"{site} has heads")
            if heads:
                mask = masks.setdefault(site, torch.zeros(1, n_heads * width, dtype=torch.bool))
                mask.view(n_heads, width)[heads] = True
        return self._replacing(masks)

    def describe(self) -> dict[str, Any]:
        heads = {Site(*site).key: list(chosen) for site, chosen in self.heads.items()}
        return {**super().describe(), "heads": heads}

    def controls(self, model: Model, seed: int) -> dict[str, Edit]:
        """``random heads``: as many of the heads that the edit leaves alone, of any layer."""
        chosen = {(one_site(model, key), head) for key, own in self.heads.items() for head in own}
        known = model.sites("z") if self.source is None else self.source.sites
        pool = [
            (site, head)
            for site in known
            if site.stream == "z"
            for head in range(model.info.n_heads)
            if (site, head) not in chosen
        ]
        heads: dict[tuple[str, int], list[int]] = {}
        for site, head in others(pool, len(chosen), seed, "random heads", "heads"):
            heads.setdefault(site, []).append(head)
        return {"random heads": replace(self, heads=heads)}


@dataclass(frozen=True)
class AblateSites(_Ablation):
    """Set whole activations: ``"mlp_out"`` and ``"attn_out"`` ablate MLPs and attention branches.

    Attributes:
        at: One site, a list, or a stream; any stream.
        positions: Default where the source was read; ``"all"`` without one.
    """

    at: SiteSpec

    def changes(self, model: Model) -> dict[Site, Change]:
        self._replacement.check()
        return self._replacing(dict.fromkeys(model.sites(self.at)))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "at": named(self.at)}

    def controls(self, model: Model, seed: int) -> dict[str, Edit]:
        known = None if self.source is None else self.source.sites
        return {"random layers": replace(self, at=other_layers(model, self.at, seed, known))}


def other_layers(
    model: Model, at: SiteSpec, seed: int, known: Sequence[Site] | None = None
) -> list[Site]:
    """As many of the layers that an edit leaves alone, of the same streams.

    Raises:
        EditError: When too few are left.
    """
    chosen, out = model.sites(at), []
    for stream in dict.fromkeys(site.stream for site in chosen):
        mine = [site for site in chosen if site.stream == stream]
        pool = [
            site
            for site in model.sites(stream)
            if site not in mine and (known is None or site in known)
        ]
        out += others(pool, len(mine), seed, f"random layers {stream}", f"layers of {stream!r}")
    return out


def _setter(values: Values, mask: Tensor | None, where: Positions, window: bool) -> Change:
    """Values and mask go through `placed` together, so that each position meets its own of both."""

    def put(activation: Tensor, feed: Feed) -> Tensor | None:
        width = activation.flatten(2).shape[-1]
        new = values(feed)
        if new.shape[-1] not in (1, width):
            raise EditError(
                f"The source has width {new.shape[-1]}, but the activation edited has {width}."
            )
        kept = torch.ones(1, 1) if mask is None else mask
        columns = max(new.shape[1], kept.shape[0])
        both = torch.cat(
            [
                new.expand(-1, columns, width),
                kept.to(new).expand(columns, width).expand(new.shape[0], -1, -1),
            ],
            dim=-1,
        )

        def change(h: Tensor, value: Tensor) -> Tensor:
            return torch.where(value[..., width:] > 0, value[..., :width], h)

        return placed(activation, feed, where, window, change, both)

    return put
