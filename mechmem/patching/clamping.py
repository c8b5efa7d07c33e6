"""`ClampNeurons`: single neurons kept within bounds."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from mechmem.analysis.neurons import NeuronSet
from mechmem.caching.provenance import Provenance
from mechmem.errors import EditError
from mechmem.models.engine.batching import Feed
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.sites import Site
from mechmem.patching.base import Change, Edit, check_number, placed, region
from mechmem.patching.neurons import (
    Neurons,
    count_neurons,
    neuron_columns,
    neuron_masks,
    other_neurons,
)


@dataclass(frozen=True)
class ClampNeurons(Edit):
    """``h[i]' = min(max(h[i], minimum), maximum)`` on the chosen neurons.

    Attributes:
        neurons: A `NeuronSet`, or coordinates by site.
        minimum, maximum: Bounds in units of the activation; ``None`` for no bound. Equal bounds set
            the neurons to a value.
        positions: Default ``"each_step"``; neurons chosen in a window are clamped each at the
            position it was chosen at.
    """

    neurons: Neurons
    minimum: float | None = None
    maximum: float | None = None
    positions: PositionSpec | None = None
    force: bool = False

    @property
    def provenance(self) -> Provenance | None:
        return self.neurons.scores.provenance if isinstance(self.neurons, NeuronSet) else None

    def changes(self, model: Model) -> dict[Site, Change]:
        if self.minimum is None and self.maximum is None:
            raise EditError(
                "ClampNeurons needs a minimum, a maximum, or both; for example minimum=0.0."
            )
        low = None if self.minimum is None else check_number(self.minimum, "minimum")
        high = None if self.maximum is None else check_number(self.maximum, "maximum")
        if low is not None and high is not None and low > high:
            raise EditError(f"minimum={low} is above maximum={high}; exchange the two.")
        where, window = self._region()

        def clamp(mask: Tensor) -> Change:
            def bound(activation: Tensor, feed: Feed) -> Tensor | None:
                return placed(
                    activation,
                    feed,
                    where,
                    window,
                    lambda h, chosen: torch.where(chosen.bool(), h.clamp(low, high), h),
                    mask[None],
                )

            return bound

        return {site: clamp(mask) for site, mask in neuron_masks(self.neurons, model).items()}

    @property
    def where(self) -> Positions:
        return self._region()[0]

    def _region(self) -> tuple[Positions, bool]:
        columns, read_at = neuron_columns(self.neurons)
        return region(self.positions, columns, read_at, default="each_step")

    def describe(self) -> dict[str, Any]:
        return {
            "edit": "ClampNeurons",
            "neurons": count_neurons(self.neurons),
            "minimum": self.minimum,
            "maximum": self.maximum,
            "positions": str(self._region()[0]),
        }

    def controls(self, model: Model, seed: int) -> dict[str, Edit]:
        """``random neurons``: others of each site, moved about as far."""
        drawn = other_neurons(self.neurons, model, seed, self.moved)
        return {"random neurons": replace(self, neurons=drawn)}

    def moved(self, mean: Tensor, sd: Tensor) -> Tensor:
        """How far neurons with Gaussian values are moved, on average."""
        out = torch.zeros_like(mean)
        for bound, sign in ((self.minimum, 1.0), (self.maximum, -1.0)):
            if bound is not None:
                short = sign * (bound - mean)  # how far the mean itself is out of bounds
                a = short / sd.clamp_min(torch.finfo(sd.dtype).tiny)
                density = torch.exp(-(a**2) / 2) / (2 * torch.pi) ** 0.5
                out += sd * density + short * torch.special.ndtr(a)
        return out
