"""Controls: for every edit, the edits of the same size that should do nothing.

An effect counts only beyond these. They are made from the edit itself, so that they match it in
sites, positions, number of neurons and length.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import singledispatch

import numpy as np
import torch
from torch import Tensor

from mechmem.analysis.neurons import NeuronSet
from mechmem.errors import EditError
from mechmem.models.hooked import Model
from mechmem.models.sites import Site
from mechmem.patching.base import Edit
from mechmem.patching.directions import AddDirection, ProjectOut, ScaleProjection, SetProjection
from mechmem.patching.neurons import AblateNeurons, ShiftNeurons
from mechmem.seeding import keyed_rng

__all__ = ["CONTROL_NAMES", "controls"]

CONTROL_NAMES = {
    "alpha 0": "the edit with strength 0; must equal the unedited model exactly",
    "permuted": "the same neurons with the shift values exchanged among them",
    "random neurons": "as many random neurons per site and position, scaled to the same length",
    "random direction": "a Gaussian direction over all coordinates, scaled to the same length",
}


@singledispatch
def controls(edit: Edit, model: Model, *, seed: int = 0) -> dict[str, Edit]:
    """The controls of an edit, by name (see `CONTROL_NAMES`).

    Args:
        edit: The edit whose effect is to be judged.
        model: The model it will act on.
        seed: Keys every draw; another seed gives another draw.

    Raises:
        EditError: For a kind of edit that has no controls registered.
    """
    raise EditError(
        f"No controls are defined for {type(edit).__name__}; register some with "
        "mechmem.evaluation.controls.register."
    )


@controls.register
def _(edit: ShiftNeurons, model: Model, *, seed: int = 0) -> dict[str, Edit]:
    # The shift in scored units and toward the first class, so that alpha and toward still apply.
    plain = replace(edit, alpha=1.0, toward=edit.scores.first).shift(model)
    return {
        "alpha 0": replace(edit, alpha=0.0),
        "permuted": replace(edit, shifts=_each_row(plain, seed, "permuted", _permuted)),
        "random neurons": replace(edit, shifts=_each_row(plain, seed, "neurons", _moved)),
        "random direction": replace(edit, shifts=_each_row(plain, seed, "direction", _gaussian)),
    }


@controls.register(AddDirection)
@controls.register(ProjectOut)
@controls.register(ScaleProjection)
@controls.register(SetProjection)
def _(
    edit: AddDirection | ProjectOut | ScaleProjection | SetProjection,
    model: Model,
    *,
    seed: int = 0,
) -> dict[str, Edit]:
    direction = edit.direction
    rng = keyed_rng(seed, "control", "random direction", direction.site.key)
    vector = _gaussian(direction.vector, rng)
    placebo: Edit = replace(edit, direction=replace(direction, vector=vector, method="random"))
    out = {"random direction": placebo}
    if isinstance(edit, AddDirection):
        out["alpha 0"] = replace(edit, alpha=0.0)
    return out


@controls.register
def _(edit: AblateNeurons, model: Model, *, seed: int = 0) -> dict[str, Edit]:
    scores = edit.neurons.scores
    index = {
        site: torch.from_numpy(
            keyed_rng(seed, "control", "random neurons", site.key).choice(
                scores.mean_difference[site].numel(), len(chosen), replace=False
            )
        )
        for site, chosen in edit.neurons.index.items()
    }
    return {"random neurons": replace(edit, neurons=NeuronSet(scores, index))}


def _each_row(
    shift: dict[Site, Tensor],
    seed: int,
    name: str,
    make: Callable[[Tensor, np.random.Generator], Tensor],
) -> dict[Site, Tensor]:
    return {
        site: torch.stack(
            [
                make(row, keyed_rng(seed, "control", name, site.key, k))
                for k, row in enumerate(value)
            ]
        )
        for site, value in shift.items()
    }


def _permuted(row: Tensor, rng: np.random.Generator) -> Tensor:
    chosen = row.nonzero()[:, 0]
    out = torch.zeros_like(row)
    out[chosen] = row[chosen][torch.from_numpy(rng.permutation(len(chosen)))]
    return out


def _moved(row: Tensor, rng: np.random.Generator) -> Tensor:
    """Random coordinates with random signs and the sizes of the shift: the same length."""
    values = row[row != 0]
    out = torch.zeros_like(row)
    at = torch.from_numpy(rng.choice(len(row), len(values), replace=False))
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], len(values)))
    out[at] = values[torch.from_numpy(rng.permutation(len(values)))] * signs
    return out


def _gaussian(row: Tensor, rng: np.random.Generator) -> Tensor:
    noise = torch.from_numpy(rng.standard_normal(len(row)))
    scaled: Tensor = noise * (row.norm() / noise.norm())
    return scaled
