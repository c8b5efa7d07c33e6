"""A forward pass that starts at a stored residual: the blocks below are not run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers.cache_utils import DynamicCache

from mechmem.models.check.site_check import checked_hooks, require_sites
from mechmem.models.engine.backends import Backend, model_device
from mechmem.models.engine.batching import Batch, Feed
from mechmem.models.engine.capabilities import holds, same_logits, tried
from mechmem.models.engine.forward import PreparedBatch, inference
from mechmem.models.engine.hooks import StopForward, hook_name, hooks_attached
from mechmem.models.engine.kv_cache import PrefixedLayer
from mechmem.models.engine.prefixes import PrefixCache
from mechmem.models.sites import Site
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.seeding import keyed_rng

Form = Callable[[Tensor], Any]
"""How a block of this model hands its output on."""

# Blocks of some models hand on a tensor, those of others a tuple that begins with it.
_FORMS: tuple[Form, ...] = (lambda value: value, lambda value: (value,))


class ActivationReader:
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
        backend: A model for which `can_resume`.
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
        # Through the hook point, so that edits and readers at this end still act.
        return hand_on(point(residual))

    own = [block.__dict__.get("forward") for block in blocks]
    try:
        for block in blocks:
            # Past a bridge's `__setattr__`, which would set it on the transformers module inside.
            block.__dict__["forward"] = pass_on
        blocks[-1].__dict__["forward"] = begin
        yield
    finally:
        for block, forward in zip(blocks, own, strict=True):
            block.__dict__.pop("forward", None)
            if forward is not None:
                block.__dict__["forward"] = forward


def can_resume(backend: Backend) -> bool:
    """Whether resuming gives the model's own logits; tried once per model, on random tokens."""
    return _form_of(backend) is not None


def _form_of(backend: Backend) -> Form | None:
    def first() -> Form | None:
        tests = ((form, partial(_try_resuming, backend, form)) for form in _FORMS)
        return next((form for form, test in tests if holds("resuming", test)), None)

    return tried(backend, "resumes", first)


def _try_resuming(backend: Backend, form: Form) -> bool:
    """A padded and an unpadded prompt, from the first, a middle and the last block's end."""
    cfg = backend.model.cfg
    layers = int(cfg.n_layers)
    starts = sorted({1, (layers + 1) // 2, layers})
    require_sites(backend, [Site("resid_post", layer) for layer in range(layers)])
    rng = keyed_rng(0, "resume check")
    ids = tuple(rng.integers(0, int(cfg.d_vocab), size=7).tolist())
    prompts = [TokenizedPrompt("long", ids, {}), TokenizedPrompt("short", ids[3:], {})]
    batch = Batch.collate(prompts, range(2), ids[0], model_device(backend.model))
    keeps = [ActivationReader(Site("resid_post", start - 1)) for start in starts]
    with hooks_attached(backend, batch.feed(), (), keeps):
        plain, _ = backend.forward(batch.ids, batch.mask, last_only=True)
    other = batch.ids.roll(1, dims=1)  # other tokens: what is below must not matter
    for start, keep in zip(starts, keeps, strict=True):
        with resumed(backend, start, keep.value, form):
            found, _ = backend.forward(other, batch.mask, last_only=True)
        if not same_logits(found, plain):
            return False
    return True


@dataclass(frozen=True)
class SharedForward:
    """Some prompts, run once without edits.

    Attributes:
        rows: The prompts, by their place in the list that was planned.
        mask: ``[row, key]`` 1 on every token, shared beginnings included, in order.
        residuals: By block, what enters it: ``[row, token, d]``, the last tokens.
        layers: Keys and values ``[row, head, key, d]`` of every layer, if they are needed.
    """

    rows: tuple[int, ...]
    mask: Int[Tensor, "row key"]
    residuals: dict[int, Tensor]
    layers: list[tuple[Tensor, Tensor]]

    @property
    def width(self) -> int:
        """Keys of the longest row."""
        return int(self.mask.shape[1])

    @property
    def bytes(self) -> int:
        """Memory of what is stored."""
        held = [*self.residuals.values(), *(part for pair in self.layers for part in pair)]
        return sum(value.numel() * value.element_size() for value in held)

    def residual(self, start: int, at: Sequence[int], width: int) -> Float[Tensor, "row token d"]:
        """What enters a block in some of the rows, at their last ``width`` tokens."""
        stored = self.residuals[start]
        stored = stored if len(at) == len(stored) else stored[list(at)]
        return stored[:, stored.shape[1] - width :]

    def root(self, at: Sequence[int], skip: Sequence[int]) -> PrefixCache:
        """The keys and values of the first ``skip`` tokens of some of the rows."""
        rows = torch.tensor(list(at), device=self.mask.device)
        mask = self.mask[rows]
        # Counted in tokens, not in columns: padding before a row is none of the skipped.
        mask = mask * (mask.cumsum(1) <= torch.tensor(list(skip), device=mask.device)[:, None])
        used = int(mask.any(0).nonzero().max()) + 1 if bool(mask.any()) else 0
        every = len(at) == self.mask.shape[0]
        layers = [
            (
                (keys if every else keys[rows])[:, :, :used],
                (values if every else values[rows])[:, :, :used],
            )
            for keys, values in self.layers
        ]
        return PrefixCache(mask[:, :used], layers)


def run_shared(
    backend: Backend,
    ready: PreparedBatch,
    starts: Sequence[int],
    keys: bool,
    last: int | None = None,
) -> SharedForward:
    """Run a batch without edits and keep what cells need.

    Args:
        starts: Blocks whose input is kept, from 1 on.
        keys: Whether keys and values are kept as well.
        last: How many tokens of every row's input are kept; default all.
    """
    keeps = [ActivationReader(Site("resid_post", start - 1)) for start in starts]
    cache: Any = ready.cache
    if keys and cache is None:
        cache = DynamicCache()
    if keeps or keys:
        # Keys are wanted of all blocks; without them the pass may end at the last reader.
        hooks = checked_hooks(backend, ready.batch.feed(), (), keeps, not keys)
        with inference(backend), hooks, suppress(StopForward):
            backend.forward(ready.batch.ids, ready.mask, cache=cache, last_only=True)
    # Cloned, since a slice would keep the whole tensor alive.
    residuals = {
        start: keep.value if last is None else keep.value[:, -last:].clone()
        for start, keep in zip(starts, keeps, strict=True)
        if keep.value is not None
    }
    layers = [_whole(layer) for layer in cache.layers] if keys else []
    return SharedForward(ready.batch.rows, ready.mask, residuals, layers)


def _whole(layer: Any) -> tuple[Tensor, Tensor]:
    """Keys and values of a layer's beginning and of what followed it."""
    return layer.joined() if isinstance(layer, PrefixedLayer) else (layer.keys, layer.values)
