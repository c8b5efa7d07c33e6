"""`Erase`: LEACE's affine eraser as an edit."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mechmem.analysis.directions import Direction
from mechmem.errors import EditError
from mechmem.models.model import Model
from mechmem.models.sites import Site
from mechmem.patching.base import Change
from mechmem.patching.directions import DirectionEdit, Move


@dataclass(frozen=True)
class Erase(DirectionEdit):
    """``h' = h - (w . (h - mu)) r``: LEACE (Belrose et al. 2306.03819), bias included.

    ``r`` is the difference of the class means, ``w`` and ``mu`` the direction's `reader` and
    `center`. On the states it was fitted to, no linear classifier does better than chance
    afterwards, and no affine change that achieves this moves the states by less.

    Attributes:
        direction: From ``mm.fit_directions(..., method="leace")``; each acts at its own site.
    """

    def changes(self, model: Model) -> dict[Site, Change]:
        for site in self.sites(model):
            one = self.of(site)
            if one.reader is None or one.center is None:
                raise EditError(
                    f"Erase needs the eraser that LEACE fits, but the direction at {one.site} was "
                    f"made by {one.method!r}: mm.fit_directions(..., method='leace')."
                )
            if one.site != site:
                raise EditError(
                    f"An eraser belongs to the states it was fitted to, {one.site}, not to {site}; "
                    "leave at= out, or fit it there too."
                )
        return self.moving(model, _eraser)


def _eraser(direction: Direction) -> Move:
    assert direction.reader is not None
    assert direction.center is not None
    vector, reader, center = direction.vector, direction.reader, direction.center

    def erase(h: Tensor) -> Tensor:
        wide = torch.promote_types(h.dtype, torch.float32)
        amount = (h.to(wide) - center.to(h.device, wide)) @ reader.to(h.device, wide)
        return (h.to(wide) - amount[..., None] * vector.to(h.device, wide)).to(h.dtype)

    return erase
