"""A forward pass that starts at a stored residual: the blocks below are not run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor

from mechmem.models.engine.backends import Backend, model_device
from mechmem.models.engine.batching import Batch, Feed
from mechmem.models.engine.trials import holds, same_logits, tried
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
    backend: Backend,
    start: int,
    residual: Float[Tensor, "row token d"] | None,
    form: Form | None = None,
) -> Iterator[None]:
    """Inside, a forward pass runs the blocks from ``start`` on, beginning with ``residual``.

    The hook point at the end of block ``start - 1`` still fires, on the residual.

    Args:
        backend: A model for which `resumes_truly`.
        start: From 0 (the whole model) to the number of blocks (none of them).
        residual: ``resid_post`` of block ``start - 1``; not needed from 0 on.
        form: How its blocks hand their output on; by default what the trial found.
    """
    if start == 0:
        yield
        return
    assert residual is not None
    blocks = [backend.model.blocks[layer] for layer in range(start)]
    point = backend.model.hook_dict[hook_name(Site("resid_post", start - 1))]
    hand_on = form or _form_of(backend) or _FORMS[0]

    def pass_on(*args: Any, **kwargs: Any) -> Any:
        return hand_on(args[0] if args else kwargs["hidden_states"])

    def begin(*args: Any, **kwargs: Any) -> Any:
        return hand_on(point(residual))

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
    return _form_of(backend) is not None


def _form_of(backend: Backend) -> Form | None:
    def first() -> Form | None:
        tests = ((form, partial(_try, backend, form)) for form in _FORMS)
        return next((form for form, test in tests if holds("resuming", test)), None)

    return tried(backend, "resumes", first)


def _try(backend: Backend, form: Form) -> bool:
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
        with resumed(backend, start, keep.value, form):
            found, _ = backend.forward(other, batch.mask, last_only=True)
        if not same_logits(found, plain):
            return False
    return True
