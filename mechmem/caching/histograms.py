"""Histograms of chosen neurons per class: what an area under the curve needs, added up exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.caching.moments import Moments
from mechmem.errors import MechmemError, PromptError, SiteError, listed
from mechmem.models.sites import Site
from mechmem.numeric import MOST, finite_number, whole_number


@dataclass
class Histograms:
    """Counts of chosen coordinates in equal bins, for every class.

    Attributes:
        units: Chosen coordinates of every site, counted through ``position * feature``.
        low, high: Ends of the bins, ``[unit]`` per site; what lies outside has a bin of its own.
        bins: How many between the ends.
        counts: ``histograms.counts["memorized"][site]`` is ``[unit, bins + 2]``.
    """

    units: dict[Site, Tensor]
    low: dict[Site, Tensor]
    high: dict[Site, Tensor]
    bins: int = 512
    counts: dict[str, dict[Site, Tensor]] = field(default_factory=dict)

    @classmethod
    def around(
        cls,
        moments: Moments,
        units: Mapping[tuple[str, int], Sequence[int]],
        *,
        bins: int = 512,
        reach: float = 6.0,
    ) -> Histograms:
        """Bins over the mean plus and minus ``reach`` standard deviations of all classes together.

        Args:
            moments: Of the same prompts, from a first pass.
            units: Coordinates by site.

        Raises:
            SiteError: For a coordinate that is not there.
            MechmemError: For ``bins`` or a ``reach`` that are no numbers above 0.
        """
        whole_number(bins, "bins", most=MOST)
        reach = finite_number(reach, "reach", above=0)
        chosen, low, high = {}, {}, {}
        for key, indices in units.items():
            site, parts = Site(*key), [sites[Site(*key)] for sites in moments.classes.values()]
            index = torch.as_tensor(list(indices), dtype=torch.long)
            whole = parts[0]
            for part in parts[1:]:
                whole = whole.merged(part)
            if len(index) and not 0 <= int(index.min()) <= int(index.max()) < whole.mean.numel():
                raise SiteError(
                    f"{site} has coordinates 0 to {whole.mean.numel() - 1}, got {index.tolist()}."
                )
            mean = whole.mean.flatten()[index]
            width = reach * (whole.m2.flatten()[index] / max(whole.count - 1, 1)).sqrt()
            # A coordinate that never varies still needs bins that are wider than its rounding.
            width = width.clamp_min(torch.finfo(torch.float32).tiny).maximum(1e-12 * mean.abs())
            chosen[site], low[site], high[site] = index, mean - width, mean + width
        return cls(chosen, low, high, bins)

    def update(self, states: Mapping[Site, Tensor], names: Sequence[str | None]) -> None:
        """Add a batch: ``[example, position, *feature]`` per site, and every example's class."""
        for site, index in self.units.items():
            values = states[site].flatten(1)[:, index].double()
            scaled = (values - self.low[site]) / (self.high[site] - self.low[site]) * self.bins
            place = scaled.floor().clamp(-1, self.bins).long() + 1
            for name in sorted({name for name in names if name is not None}):
                rows = [k for k, other in enumerate(names) if other == name]
                empty = torch.zeros(len(index), self.bins + 2, dtype=torch.long)
                counts = self.counts.setdefault(name, {}).setdefault(site, empty)
                counts.scatter_add_(1, place[rows].T, torch.ones_like(place[rows].T))

    def merge(self, other: Histograms) -> Histograms:
        """Both together.

        Raises:
            MechmemError: When their bins differ.
        """
        same = self.bins == other.bins and self.units.keys() == other.units.keys()
        for site in self.units if same else ():
            for mine, theirs in ((self.units, other.units), (self.low, other.low),
                                 (self.high, other.high)):  # fmt: skip
                same = same and torch.equal(mine[site], theirs[site])
        if not same:
            raise MechmemError("Cannot merge histograms with different units or bins.")
        merged = {name: {s: c.clone() for s, c in at.items()} for name, at in self.counts.items()}
        for name, at in other.counts.items():
            known = merged.setdefault(name, {})
            for site, counts in at.items():
                known[site] = known[site] + counts if site in known else counts.clone()
        return Histograms(self.units, self.low, self.high, self.bins, merged)

    def auc(
        self, site: tuple[str, int], toward: str, away: str
    ) -> tuple[Float[Tensor, " unit"], Float[Tensor, " unit"]]:
        """Area under the ROC curve of every chosen unit, and by how much it can be off.

        The chance that a random example of ``toward`` has the larger activation, ties counted half.
        Two values in one bin count as a tie, so the exact area lies within the second number.

        Raises:
            PromptError: For a class or site that is not there.
        """
        for name in (toward, away):
            if Site(*site) not in self.counts.get(name, {}):
                raise PromptError(
                    f"No histogram of class {name!r} at {Site(*site)}; the classes are "
                    f"{listed(sorted(self.counts))}."
                )
        one, other = (
            (counts := self.counts[name][Site(*site)].double()) / counts.sum(1, keepdim=True)
            for name in (toward, away)
        )
        below = other.cumsum(1) - other
        tied = (one * other).sum(1)
        return (one * below).sum(1) + tied / 2, tied / 2
