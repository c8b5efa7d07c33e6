"""Controls of a neuron shift: other neurons, other values, other directions, the same size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from mechmem.models.model import Model
from mechmem.models.sites import Site
from mechmem.patching.base import Edit
from mechmem.patching.neurons import ShiftNeurons, neuron_shifts
from mechmem.seeding import keyed_rng

__all__ = ["SETTLED", "SHIFT_CONTROLS", "gaussian", "shift_controls"]

SHIFT_CONTROLS = {
    "alpha 0": "the edit with strength 0; must equal the unedited model exactly",
    "permuted": "the same neurons with the shift values exchanged among them",
    "random neurons": "as many random neurons per site and position, scaled to the same length",
    "low-rank neurons": (
        "as many of the lowest-ranking neurons per site and position, their own differences scaled "
        "to the same length"
    ),
    "random direction": "a Gaussian direction over all coordinates, scaled to the same length",
    "uniform noise": (
        "P1's own control: as many random neurons of all that were scored, shifted by values "
        "uniform between plus and minus the largest shift; not matched in length"
    ),
}

SETTLED = ("alpha 0", "low-rank neurons")
"""Controls in which nothing is drawn: another seed gives the same edit."""


def shift_controls(edit: ShiftNeurons, model: Model, seed: int) -> dict[str, Edit]:
    """The controls of a neuron shift, by name (see `SHIFT_CONTROLS`).

    Left out where it would be the edit itself or nothing at all: ``permuted`` when no site and
    position has two different shift values, ``low-rank neurons`` when every neuron was chosen.
    """
    # The shift in scored units and toward the first class, so that alpha and toward still apply.
    plain = replace(edit, alpha=1.0, toward=edit.scores.first).shift(model)
    made = {
        "permuted": _each_row(plain, seed, "permuted", _permuted),
        "random neurons": _each_row(plain, seed, "neurons", _moved),
        "low-rank neurons": _lowest(edit, plain),
        "random direction": _each_row(plain, seed, "direction", gaussian),
        "uniform noise": _uniform(edit, model, plain, seed),
    }
    if not any(len(row[row != 0].unique()) > 1 for value in plain.values() for row in value):
        del made["permuted"]
    out: dict[str, Edit] = {"alpha 0": replace(edit, alpha=0.0)}
    return out | {
        name: replace(edit, shifts=shifts)
        for name, shifts in made.items()
        if any(bool(value.any()) for value in shifts.values())
    }


def gaussian(row: Tensor, rng: np.random.Generator) -> Tensor:
    """A random direction of the same length."""
    noise = torch.from_numpy(rng.standard_normal(len(row)))
    scaled: Tensor = noise * (row.norm() / noise.norm())
    return scaled


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
    if torch.equal(out, row):  # few values may fall back into their places
        out[chosen] = row[chosen].roll(1)
    return out


def _moved(row: Tensor, rng: np.random.Generator) -> Tensor:
    """Random coordinates with random signs and the sizes of the shift: the same length."""
    values = row[row != 0]
    out = torch.zeros_like(row)
    at = torch.from_numpy(rng.choice(len(row), len(values), replace=False))
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], len(values)))
    out[at] = values[torch.from_numpy(rng.permutation(len(values)))] * signs
    return out


def _lowest(edit: ShiftNeurons, plain: dict[Site, Tensor]) -> dict[Site, Tensor]:
    ranking = edit.scores.ranking(edit.by)
    out = {}
    for site, value in plain.items():
        own = neuron_shifts(edit.scores, site, edit.units)
        out[site] = torch.stack(
            [_lowest_row(row, ranking[site][k], own[k]) for k, row in enumerate(value)]
        )
    return out


def _lowest_row(row: Tensor, rank: Tensor, own: Tensor) -> Tensor:
    free = (row == 0) & (own != 0)  # a neuron without a difference has no shift to scale
    number = min(int((row != 0).sum()), int(free.sum()))
    out = torch.zeros_like(row)
    if number:
        at = torch.where(free, rank, torch.inf).argsort(stable=True)[:number]
        out[at] = own[at] * (row.norm() / own[at].norm())
    return out


def _uniform(
    edit: ShiftNeurons, model: Model, plain: dict[Site, Tensor], seed: int
) -> dict[Site, Tensor]:
    """Drawn over everything that was ranked, as P1's code does; what falls on a site that is not
    edited is dropped, as there."""
    scores = edit.scores
    edited = scores.sites if edit.at is None else model.sites(edit.at)
    sites = edited
    if edit.among is not None:
        sites = scores.sites if edit.among == "scored" else model.sites(edit.among)
    if edit.shifts is None:
        chosen = scores.top(edit.top, by=edit.by, scope=edit.scope, sites=sites)
        number = len(chosen)
        values = [
            neuron_shifts(scores, site, edit.units).flatten()[index]
            for site, index in chosen.index.items()
        ]
    else:
        values = [value[value != 0] for value in plain.values()]
        number = sum(len(value) for value in values)
    largest = float(torch.cat(values).abs().max())
    shapes = [scores.mean_difference[site].shape for site in sites]
    total = sum(shape.numel() for shape in shapes)
    rng = keyed_rng(seed, "control", "uniform noise")
    drawn = np.zeros(total)
    at = rng.choice(total, min(number, total), replace=False)
    drawn[at] = rng.uniform(-largest, largest, len(at))
    parts = torch.split(torch.from_numpy(drawn), [shape.numel() for shape in shapes])
    return {
        site: part.reshape(shape)
        for site, part, shape in zip(sites, parts, shapes, strict=True)
        if site in edited
    }
