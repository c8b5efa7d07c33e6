"""Controls: for every edit, edits of the same make without the contrast in them.

An effect counts only beyond these. They are made from the edit itself, so that they match it in
sites, positions, number of neurons and, where something is added, length. What is projected out,
scaled or set along a random direction is as much as the state has there, which may be less or more
than along the edit's own; so it is with clamped neurons.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import singledispatch
from typing import TypeVar

import torch
from torch import Tensor

from mechmem.analysis.directions import Direction, Directions
from mechmem.analysis.neurons import NeuronSet
from mechmem.errors import EditError
from mechmem.evaluation.neuron_controls import SHIFT_CONTROLS, gaussian, shift_controls
from mechmem.models.model import Model
from mechmem.models.sites import Site
from mechmem.patching.ablation import AblateHeads, AblateNeurons, AblateSites
from mechmem.patching.base import Edit, site_width
from mechmem.patching.conditional import OnlyWhere
from mechmem.patching.directions import (
    AddDirection,
    DirectionEdit,
    ProjectOut,
    ScaleProjection,
    SetProjection,
)
from mechmem.patching.erasing import Erase
from mechmem.patching.interchange import PatchActivations
from mechmem.patching.neurons import ClampNeurons, ShiftNeurons
from mechmem.patching.skipping import SkipLayers
from mechmem.seeding import keyed_rng

__all__ = ["CONTROL_NAMES", "controls"]

T = TypeVar("T")

CONTROL_NAMES = {
    **SHIFT_CONTROLS,
    "random heads": "as many of the heads that the edit leaves alone, of any layer",
    "random layers": "as many of the layers that the edit leaves alone, of the same stream",
    "unrelated donors": "activations of another group's prompts in the place of the donors'",
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
    return shift_controls(edit, model, seed)


@controls.register(AddDirection)
@controls.register(ProjectOut)
@controls.register(ScaleProjection)
@controls.register(SetProjection)
@controls.register(Erase)
def _(edit: DirectionEdit, model: Model, *, seed: int = 0) -> dict[str, Edit]:
    def randomized(direction: Direction) -> Direction:
        rng = keyed_rng(seed, "control", "random direction", direction.site.key)
        # An eraser still reads what it read, and takes as much away along the random direction.
        return replace(direction, vector=gaussian(direction.vector, rng), method="random")

    several = edit.direction
    if isinstance(several, Direction):
        drawn: Direction | Directions = randomized(several)
    else:
        drawn = Directions({site: randomized(one) for site, one in several.by_site.items()})
    out: dict[str, Edit] = {"random direction": replace(edit, direction=drawn)}
    if isinstance(edit, AddDirection):
        out["alpha 0"] = replace(edit, alpha=0.0)
    return out


@controls.register(AblateNeurons)
@controls.register(ClampNeurons)
def _(edit: AblateNeurons | ClampNeurons, model: Model, *, seed: int = 0) -> dict[str, Edit]:
    def draw(site: Site, total: int, number: int) -> Tensor:
        rng = keyed_rng(seed, "control", "random neurons", site.key)
        return torch.from_numpy(rng.choice(total, number, replace=False))

    neurons = edit.neurons
    if isinstance(neurons, NeuronSet):
        sizes = neurons.scores.mean_difference
        index = {
            site: draw(site, sizes[site].numel(), len(chosen))
            for site, chosen in neurons.index.items()
        }
        return {"random neurons": replace(edit, neurons=NeuronSet(neurons.scores, index))}
    others: dict[tuple[str, int], list[int]] = {}
    for key, chosen in neurons.items():
        (site,) = model.sites([key])
        width, number = site_width(model, site), len(set(chosen))
        others[site] = [int(k) for k in draw(site, width, number)]
    return {"random neurons": replace(edit, neurons=others)}


@controls.register
def _(edit: AblateHeads, model: Model, *, seed: int = 0) -> dict[str, Edit]:
    chosen = {(model.sites([key])[0], head) for key, heads in edit.heads.items() for head in heads}
    known = model.sites("z") if edit.source is None else edit.source.sites
    pool = [
        (site, head)
        for site in known
        if site.stream == "z"
        for head in range(model.info.n_heads)
        if (site, head) not in chosen
    ]
    heads: dict[tuple[str, int], list[int]] = {}
    for site, head in _others(pool, len(chosen), seed, "random heads", "heads"):
        heads.setdefault(site, []).append(head)
    return {"random heads": replace(edit, heads=heads)}


@controls.register(AblateSites)
@controls.register(SkipLayers)
def _(edit: AblateSites | SkipLayers, model: Model, *, seed: int = 0) -> dict[str, Edit]:
    chosen = model.sites(edit.at)
    source = edit.source if isinstance(edit, AblateSites) else None
    out: list[Site] = []
    for stream in dict.fromkeys(site.stream for site in chosen):
        mine = [site for site in chosen if site.stream == stream]
        pool = [
            site
            for site in model.sites(stream)
            if site not in mine and (source is None or site in source.sites)
        ]
        out += _others(pool, len(mine), seed, f"random layers {stream}", f"layers of {stream!r}")
    return {"random layers": replace(edit, at=out)}


@controls.register
def _(edit: PatchActivations, model: Model, *, seed: int = 0) -> dict[str, Edit]:
    prompts = edit.source.prompts
    group = dict(zip(prompts.ids, prompts.groups, strict=True))
    donors = {
        name: _others(
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
        for name, donor in edit.donors.items()
    }
    return {"unrelated donors": replace(edit, donors=donors)}


@controls.register
def _(edit: OnlyWhere, model: Model, *, seed: int = 0) -> dict[str, Edit]:
    inner = controls(edit.edit, model, seed=seed)
    gated = set(edit.gates)
    return {
        name: replace(edit, edit=control)
        for name, control in inner.items()
        if set(control.changes(model)) <= gated
    }


def _others(pool: Sequence[T], number: int, seed: int, name: str, what: str) -> list[T]:
    """Some of those that the edit leaves alone."""
    if len(pool) < number:
        raise EditError(
            f"A control needs {number} other {what}, but only {len(pool)} are left; edit fewer, or "
            "cache more for the source."
        )
    chosen = keyed_rng(seed, "control", name).choice(len(pool), number, replace=False)
    return [pool[int(k)] for k in chosen]
