"""`PatchActivations`: the interchange intervention, one prompt's activations put into another's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from mechmem.caching.activations import Activations
from mechmem.caching.provenance import Provenance, Seen
from mechmem.errors import EditError, listed
from mechmem.models.engine.batching import Feed
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.sites import Site, SiteSpec, named
from mechmem.patching.base import Change, Edit, others, placed, region


@dataclass(frozen=True)
class PatchActivations(Edit):
    """``h(recipient) := h(donor)``: activation patching, or interchange intervention.

    Positions are aligned by name: the last token with the last, the k-th token of a span with the
    k-th token of the same span.

    Attributes:
        source: Activations of the donors.
        donors: Id of the donor in ``source``, by id of the prompt that receives.
        at: Default every site of the source.
        positions: Default where the source was read; values of one position may go elsewhere.
    """

    source: Activations
    donors: Mapping[str, str]
    at: SiteSpec | None = None
    positions: PositionSpec | None = None
    force: bool = False

    @property
    def provenance(self) -> Provenance:
        return self.source.provenance

    @property
    def seen(self) -> Seen:
        """Nothing is fitted: a donor's own value is used, and the donor is named."""
        return Seen()

    def changes(self, model: Model) -> dict[Site, Change]:
        where, window = self._region()
        row_of = {name: row for row, name in enumerate(self.source.prompts.ids)}
        unknown = [name for name in self.donors.values() if name not in row_of]
        if unknown:
            raise EditError(
                f"The source has no activations of donors {listed(unknown, 5)}. Cache them too, "
                "or name others in donors=."
            )
        rows = {name: row_of[donor] for name, donor in self.donors.items()}

        def patch(states: Tensor) -> Change:
            def put(activation: Tensor, feed: Feed) -> Tensor | None:
                lacking = [prompt.id for prompt in feed.prompts if prompt.id not in rows]
                if lacking:
                    raise EditError(
                        f"No donor is named for prompts {listed(lacking, 5)}; run only prompts "
                        "that are keys of donors=."
                    )
                values = states[[rows[prompt.id] for prompt in feed.prompts]].flatten(2)
                return placed(activation, feed, where, window, lambda h, v: v.expand_as(h), values)

            return put

        sites = self.source.sites if self.at is None else model.sites(self.at)
        return {site: patch(self.source[site]) for site in sites}

    @property
    def where(self) -> Positions:
        return self._region()[0]

    def _region(self) -> tuple[Positions, bool]:
        read_at = self.provenance.positions
        default = "all" if Positions.parse(read_at).pooled else read_at
        return region(self.positions, self.source.columns, read_at, default)

    def describe(self) -> dict[str, Any]:
        return {
            "edit": "PatchActivations",
            "pairs": len(self.donors),
            "at": "all cached" if self.at is None else named(self.at),
            "positions": str(self._region()[0]),
        }

    def controls(self, model: Model, seed: int) -> dict[str, Edit]:
        """``unrelated donors``: activations of another group's prompts in the donors' place."""
        prompts = self.source.prompts
        group = dict(zip(prompts.ids, prompts.groups, strict=True))
        donors = {
            name: others(
                sorted(
                    other
                    for other in prompts.ids
                    if group[other] not in (group[donor], group.get(name))
                ),
                1,
                seed,
                f"unrelated donors {name}",
                "donors of another group",
            )[0]
            for name, donor in self.donors.items()
        }
        return {"unrelated donors": replace(self, donors=donors)}
