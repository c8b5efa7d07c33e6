"""`SkipLayers`: blocks that write nothing into the residual stream."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mechmem.errors import EditError
from mechmem.models.engine.batching import Feed
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.sites import Site, SiteSpec, named
from mechmem.patching.ablation import other_layers
from mechmem.patching.base import Change, Edit, Watcher, kept_to, tokens_of


@dataclass(frozen=True)
class SkipLayers(Edit):
    """``resid_post := resid_pre``: the block writes nothing, at the positions.

    The block still runs, and later tokens still attend to its keys and values of skipped tokens;
    what it would have added to the residual stream is dropped, edits inside the block included.

    Attributes:
        at: ``("resid_post", 3)``, a list of such, or ``"resid_post"`` for every layer.
        positions: Where in the text.
    """

    at: SiteSpec
    positions: PositionSpec = "all"
    force: bool = False

    @property
    def provenance(self) -> None:
        return None

    @property
    def where(self) -> Positions:
        return tokens_of(self.positions)

    def changes(self, model: Model) -> dict[Site, Change]:
        where = tokens_of(self.positions)
        sites = model.sites(self.at)
        wrong = [site for site in sites if site.stream != "resid_post"]
        if wrong:
            raise EditError(
                f"A skipped layer is named by its end, got {wrong[0]}; "
                f"write ('resid_post', {wrong[0].layer})."
            )
        return {site: _Skip(site.layer, where) for site in sites}

    def describe(self) -> dict[str, Any]:
        return {
            "edit": "SkipLayers",
            "at": named(self.at),
            "positions": str(Positions.parse(self.positions)),
        }

    def controls(self, model: Model, seed: int) -> dict[str, Edit]:
        """``random layers``: as many of the layers that the edit leaves alone."""
        return {"random layers": replace(self, at=other_layers(model, self.at, seed))}


class _Entry(Watcher):
    """Remembers what entered a block in this pass, all edits there included."""

    def __init__(self, layer: int, where: Positions) -> None:
        self.site, self.where = Site("resid_pre", layer), where
        self.value: Tensor | None = None

    def apply(self, activation: Tensor, feed: Feed) -> None:
        self.value = activation


class _Skip:
    """Puts the block's input in the place of its output."""

    def __init__(self, layer: int, where: Positions) -> None:
        self.watches = _Entry(layer, where)
        self.where = where

    def __call__(self, activation: Tensor, feed: Feed) -> Tensor | None:
        entered, self.watches.value = self.watches.value, None
        assert entered is not None
        return kept_to(feed, self.where, activation, lambda h: entered.to(h))
