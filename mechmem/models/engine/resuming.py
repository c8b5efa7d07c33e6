"""A forward pass that starts at a stored residual: the blocks below are not run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.errors import SiteError
from mechmem.models.engine.anatomy import without_hooks
from mechmem.models.engine.backends import Backend, model_device
from mechmem.models.engine.batching import Batch, Feed
from mechmem.models.engine.truth import vouch
from mechmem.models.engine.wiring import connected, hook_name
from mechmem.models.sites import Site
from mechmem.models.tokens import TokenizedPrompt
from mechmem.seeding import keyed_rng

__all__ = ["Keep", "resumed", "resumes_truly", "start_of"]

Form = Callable[[Tensor], Any]
"""How a block of this model hands its output on."""

_FORMS: tuple[Form, ...] = (lambda value: value, lambda value: (value,))


class Keep:
    """Keeps the whole activation of one site."""

    def __init__(self, site: Site) -> None:
        self.site = site
        self.value: Tensor | None = None

    def read(self, activation: Tensor, feed: Feed) -> None:
        """Called by the hook; the pass computes new tensors from it and never changes it."""
        self.value = activation.detach()


def start_of(site: Site) -> int:
    """The first block that an edit at this site needs run: everything below can be stored."""
    return site.layer + (site.stream == "resid_post")


@contextmanager
def resumed(
    backend: Backend, start: int, residual: Float[Tensor, "row token d"] | None
) -> Iterator[None]:
    """Inside, a forward pass runs the blocks from ``start`` on, beginning with ``residual``.

    The hook point at the end of block ``start - 1`` still fires, on the residual.

    Args:
        backend: A model for which `resumes_truly`.
        start: From 0 (the whole model) to the number of blocks (none of them).
        residual: ``resid_post`` of block ``start - 1``; not needed from 0 on.
    """
    if start == 0:
        yield
        return
    assert residual is not None
    blocks = [backend.model.blocks[layer] for layer in range(start)]
    point = backend.model.hook_dict[hook_name(Site("resid_post", start - 1))]
    form = _TRIED.get(backend) or _FORMS[0]

    def pass_on(*args: Any, **kwargs: Any) -> Any:
        return form(args[0] if args else kwargs["hidden_states"])

    def begin(*args: Any, **kwargs: Any) -> Any:
        return form(point(residual))

    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            block.__dict__["forward"] = pass_on
        blocks[-1].__dict__["forward"] = begin
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.__dict__["forward"] = forward


def resumes_truly(backend: Backend) -> bool:
    """Whether resuming gives the model's own logits; tried once per model, on random tokens."""
    if backend not in _TRIED:
        _TRIED[backend] = None
        with torch.no_grad(), without_hooks(backend.model):
            for form in _FORMS:
                _TRIED[backend] = form
                try:
                    good = _try(backend)
                except (
                    RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError,
                    SiteError,
                ):  # fmt: skip
                    good = False  # a model that cannot be resumed so runs whole
                if good:
                    break
                _TRIED[backend] = None
    return _TRIED[backend] is not None


_TRIED: WeakKeyDictionary[Backend, Form | None] = WeakKeyDictionary()


def _try(backend: Backend) -> bool:
    """A padded and an unpadded prompt, from the first, a middle and the last block's end."""
    cfg = backend.model.cfg
    layers = int(cfg.n_layers)
    starts = sorted({1, (layers + 1) // 2, layers})
    vouch(backend, [Site("resid_post", layer) for layer in range(layers)])
    rng = keyed_rng(0, "resume check")
    ids = tuple(rng.integers(0, int(cfg.d_vocab), size=7).tolist())
    prompts = [TokenizedPrompt("long", ids, {}), TokenizedPrompt("short", ids[3:], {})]
    batch = Batch.collate(prompts, range(2), ids[0], model_device(backend.model))
    keeps = [Keep(Site("resid_post", start - 1)) for start in starts]
    with connected(backend, batch.feed(), (), keeps):
        plain, _ = backend.forward(batch.ids, batch.mask, last_only=True)
    other = batch.ids.roll(1, dims=1)  # other tokens: what is below must not matter
    for start, keep in zip(starts, keeps, strict=True):
        with resumed(backend, start, keep.value):
            found, _ = backend.forward(other, batch.mask, last_only=True)
        off = (found - plain).double().norm(dim=-1) / plain.double().norm(dim=-1)
        if not bool((off <= max(1e-4, 16 * torch.finfo(plain.dtype).eps)).all()):
            return False
    return True
