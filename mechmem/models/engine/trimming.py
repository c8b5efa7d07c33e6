"""The last block that is read: its MLP runs on the tokens that are read, and on no others.

An MLP looks at one token at a time, so where a pass ends after a block and only some tokens are
read there, that of the others would be computed for nobody.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from mechmem.models.engine.anatomy import has_hooks
from mechmem.models.engine.backends import Backend, model_device
from mechmem.models.engine.batching import Batch, Feed
from mechmem.models.engine.positions import Positions
from mechmem.models.engine.resuming import Keep
from mechmem.models.engine.trials import holds, tried
from mechmem.models.engine.truth import vouch
from mechmem.models.engine.wiring import Intervention, connected
from mechmem.models.sites import Site
from mechmem.models.tokens import TokenizedPrompt
from mechmem.seeding import keyed_rng

__all__ = ["last_block", "trimmed", "trims_truly"]

FEW = 0.5
"""Share of a pass's tokens up to which it is worth picking out those that are read."""
_INSIDE = ("mlp_post", "mlp_out")


def last_block(
    backend: Backend, sites: Sequence[Site], interventions: Sequence[Intervention]
) -> int | None:
    """The block at whose end the last of the sites lies, if its MLP may be trimmed.

    Not where somebody looks inside that MLP, or may look at what other tokens hold behind it: edits
    in that block, and hooks of the user's own.
    """
    layer = max(site.layer for site in sites)
    if Site("resid_post", layer) not in sites:
        return None
    if any(site.layer == layer and site.stream in _INSIDE for site in sites):
        return None
    if any(item.site.layer >= layer for item in interventions) or has_hooks(backend.model):
        return None
    return layer if trims_truly(backend, layer) else None


@contextmanager
def trimmed(
    backend: Backend, layer: int | None, feed: Feed, positions: Positions
) -> Iterator[None]:
    """Inside, the MLP of a block is computed for the tokens that are read, and is 0 elsewhere.

    Args:
        layer: From `last_block`; ``None`` leaves the model as it is.
        feed: What the pass sees.
        positions: Which of it is read.
    """
    if layer is None:
        yield
        return
    rows, columns = feed.at(positions)
    mlp = backend.model.blocks[layer].mlp
    own, before = mlp.forward, mlp.__dict__.get("forward")

    def forward(states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if columns.numel() > FEW * states.shape[0] * states.shape[1]:
            return own(states, *args, **kwargs)  # type: ignore[no-any-return]
        at = rows.to(states.device), columns.to(states.device).clamp_min(0)
        made = torch.zeros_like(states)
        made[at] = own(states[at], *args, **kwargs)
        return made

    try:
        mlp.__dict__["forward"] = forward
        yield
    finally:
        del mlp.__dict__["forward"]
        if before is not None:
            mlp.__dict__["forward"] = before


def trims_truly(backend: Backend, layer: int) -> bool:
    """Whether trimming a block leaves the tokens that are read as they are; tried once."""
    site = Site("resid_post", layer)
    what = f"trimming block {layer}"
    return tried(backend, ("trims", layer), lambda: holds(what, lambda: _try(backend, site)))


def _try(backend: Backend, site: Site) -> bool:
    """A padded and an unpadded prompt of random tokens, read at both ends."""
    vouch(backend, [site])
    rng = keyed_rng(0, "trimming check")
    ids = tuple(rng.integers(0, int(backend.model.cfg.d_vocab), size=8).tolist())
    prompts = [TokenizedPrompt("long", ids, {}), TokenizedPrompt("short", ids[3:], {})]
    batch = Batch.collate(prompts, range(2), ids[0], model_device(backend.model))
    plain = _run(backend, batch, site)
    with trimmed(backend, site.layer, batch.feed(), Positions((0, -1))):
        found = _run(backend, batch, site)
    allowed = max(1e-4, 16 * torch.finfo(plain.dtype).eps)
    for row, column in ((0, 0), (0, 7), (1, 3), (1, 7)):
        want, got = (state[row, column].double() for state in (plain, found))
        if not float((got - want).norm()) <= allowed * float(want.norm()):
            return False
    # A token in between that still has its MLP would say that this is not where it runs.
    return not torch.equal(found[0, 5], plain[0, 5])


def _run(backend: Backend, batch: Batch, site: Site) -> Tensor:
    keep = Keep(site)
    with connected(backend, batch.feed(), (), [keep]):
        backend.forward(batch.ids, batch.mask)
    assert keep.value is not None
    return keep.value
