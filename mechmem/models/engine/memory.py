"""Memory: how much a batch will need, and what to do when there is less."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch

from mechmem.errors import ModelError
from mechmem.models.engine.plan import Plan
from mechmem.models.engine.work import Work

__all__ = ["batch_bytes", "is_out_of_memory", "peak_bytes", "retried"]

T = TypeVar("T")


@runtime_checkable
class Divisible(Protocol):
    """A batch that can be cut: `Work` and the like."""

    @property
    def rows(self) -> Sized:
        """One entry per prompt."""
        ...

    @property
    def width(self) -> int:
        """Tokens of the longest row that are computed."""
        ...

    @property
    def reach(self) -> int:
        """Tokens of the longest row that are known already."""
        ...

    @property
    def fed(self) -> int:
        """Tokens that are computed."""
        ...

    def halves(self) -> Sequence[Any]:
        """The same in two parts; nothing when it cannot be cut."""
        ...


W = TypeVar("W", bound=Divisible)

_SAYINGS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_cpu")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator or the CPU's allocator ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU allocator raises a plain RuntimeError and is known by its words only.
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _SAYINGS)


def retried(works: Iterable[W], run: Callable[[W], T]) -> Iterator[tuple[W, T]]:
    """Run every batch; one that does not fit in memory is halved until it does.

    Later batches as large as one that did not fit are halved before they are tried.

    Yields:
        Every batch, or its parts, and what ``run`` returned for it.

    Raises:
        ModelError: When a single row does not fit.
    """
    too_large = float("inf")
    for whole in works:
        waiting = [whole]
        while waiting:
            work = waiting.pop()
            size = work.fed + len(work.rows) * work.reach
            if size >= too_large and work.halves():
                waiting += reversed(work.halves())
                continue
            result, failed = _attempt(run, work)
            if not failed:
                yield work, result[0]
                continue
            _release()
            if not work.halves():
                raise ModelError(
                    f"A prompt of {work.width + work.reach} tokens does not fit in memory even "
                    "alone; load the model in a smaller dtype, spread it over devices "
                    "(device_map=), or shorten the prompt."
                )
            too_large = min(too_large, size)
            waiting += reversed(work.halves())


def _attempt(run: Callable[[W], T], work: W) -> tuple[list[T], bool]:
    """The result in a list, or that memory ran out. The error is let go of here: it holds on to
    every tensor of the failed pass."""
    try:
        return [run(work)], False
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return [], True


def _release() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def batch_bytes(cfg: Any, work: Work, itemsize: int, *, keeps: bool, logits: bool) -> int:
    """Estimated memory of one batch on top of the weights.

    Args:
        cfg: Sizes, with TransformerLens's names.
        work: The batch.
        itemsize: Bytes of one weight.
        keeps: Whether keys and values of every layer are kept (generation).
        logits: Whether the last tokens' logits are computed.
    """
    rows, keys, fed = work.lanes, work.width + work.reach, work.fed
    heads, head = int(cfg.n_heads), int(cfg.d_head)
    groups = int(getattr(cfg, "n_key_value_heads", None) or heads)
    d_mlp = int(cfg.d_mlp or 4 * cfg.d_model)
    stream = fed * (4 * int(cfg.d_model) + 3 * heads * head + 3 * d_mlp) * itemsize
    scores = rows * heads * work.width * keys * (2 * itemsize + 4)  # softmax in 4 bytes
    expanded = 2 * rows * keys * heads * head * itemsize if work.prefixes else 0
    stored = 2 * int(cfg.n_layers) * groups * head * itemsize
    kept = stored * sum(prefix.length for prefix in work.prefixes)
    kept += stored * fed if keeps else 0
    return stream + scores + expanded + kept + (rows * int(cfg.d_vocab) * itemsize if logits else 0)


def peak_bytes(cfg: Any, plan: Plan, itemsize: int, **what: bool) -> int:
    """Estimated memory of the largest batch of a plan, on top of the weights."""
    roots = (
        Work(tuple(p.row for p in group), max(p.length for p in group)) for group in plan.roots
    )
    sizes = [batch_bytes(cfg, work, itemsize, **what) for work in plan.works]
    sizes += [batch_bytes(cfg, root, itemsize, **{**what, "keeps": True}) for root in roots]
    return max(sizes, default=0)
