"""From a plan to forward passes: batches made ready, shared beginnings run when first needed."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, runtime_checkable

import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.errors import ModelError
from mechmem.models.architectures import attends_to_all, length_class
from mechmem.models.check.site_check import checked_hooks
from mechmem.models.engine.backends import (
    Backend,
    held,
    is_out_of_memory,
    model_device,
    model_dtype,
    refuse_training,
)
from mechmem.models.engine.batching import Batch, PlannedBatch, Prefix
from mechmem.models.engine.capabilities import (
    check_runs,
    choose_attention,
    has_hooks,
    honors_padding,
)
from mechmem.models.engine.hooks import Intervention, Reader, StopForward
from mechmem.models.engine.packing import can_pack, packed_causal_mask
from mechmem.models.engine.plan import PassPlan, make_plan, pair_cost, pass_cost
from mechmem.models.engine.prefixes import (
    PrefixCache,
    can_continue_prefixes,
    prefix_prompts,
    run_prefixes,
    shareable_lengths,
)
from mechmem.models.tokenizing import TokenizedPrompt

T = TypeVar("T")


@runtime_checkable
class Divisible(Protocol):
    """A batch that can be cut: `PlannedBatch` and the like."""

    @property
    def rows(self) -> Sized:
        """One entry per prompt."""
        ...

    @property
    def width(self) -> int:
        """Tokens of the longest row that are computed."""
        ...

    @property
    def prefix_width(self) -> int:
        """Tokens of the longest row that are known already."""
        ...

    @property
    def computed(self) -> int:
        """Tokens that are computed."""
        ...

    def halves(self) -> Sequence[Any]:
        """The same in two parts; nothing when it cannot be cut."""
        ...


W = TypeVar("W", bound=Divisible)


def halved_on_oom(works: Iterable[W], run: Callable[[W], T]) -> Iterator[tuple[W, T]]:
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
            # Stored beginnings count once per row, as attention sees them.
            size = work.computed + len(work.rows) * work.prefix_width
            if size >= too_large and work.halves():
                # Reversed: taken from the end, they run in order.
                waiting += reversed(work.halves())
                continue
            result, failed = _attempt(run, work)
            if not failed:
                yield work, result[0]
                continue
            release()
            if not work.halves():
                raise ModelError(
                    f"A prompt of {work.width + work.prefix_width} tokens does not fit in memory "
                    "even alone; load the model in a smaller dtype, spread it over devices "
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


def release() -> None:
    """Free what a pass that failed has left."""
    # What the failed pass left may hang in cycles, and the allocator keeps freed blocks.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


Readers = Callable[[tuple[Prefix, ...]], Sequence[Reader]]


def plan_passes(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    token_budget: int,
    *,
    interventions: Sequence[Intervention] = (),
    extra: int = 0,
    kept: int | None = None,
    share: bool = True,
    own: Sequence[TokenizedPrompt] | None = None,
    pack: bool = False,
) -> PassPlan:
    """The plan for these prompts on this model.

    Args:
        prompts: What will be fed.
        token_budget: Most tokens in one batch, padding included.
        interventions: Edits in force; what they touch is not shared.
        extra: Tokens that every row will grow by (generation).
        kept: Most tokens that the rows of a batch may hold in the end, where the passes that follow
            read new tokens only; ``None`` where a pass may read them all.
        share: Whether prompts may share anything: those that begin alike, their beginning, which
            then runs once; and short ones a row.
        own: The prompts without what follows them, when ``prompts`` carry more (answers).
        pack: Whether short prompts may share rows: only where states at positions of theirs are
            read and nothing else is wanted.

    Raises:
        ModelError: When the model is in train mode.
    """
    refuse_training(backend)
    check_runs(backend)
    choose_attention(backend)
    # What is asked of the prompts alone must hold for the longest that is fed behind one.
    answers = zip(prompts, own or prompts, strict=True)
    more = extra + max((len(fed.ids) - len(bare.ids) for fed, bare in answers), default=0)
    allowed = shareable_lengths(backend, own or prompts, interventions, more) if share else None
    pair = None
    if share and pack and not interventions and _may_pack(backend, prompts):
        pair = pair_cost(backend)
    groups = companions(backend, [len(prompt.ids) for prompt in prompts], extra)
    # Only what the plan has a use for is tried, since a trial costs passes.
    while True:
        plans = [
            make_plan(
                [prompts[row] for row in rows], token_budget, extra=extra, kept=kept,
                limits=None if allowed is None else [allowed[row] for row in rows],
                pass_cost=pass_cost(backend), pair_cost=pair,
                n_ctx=int(getattr(backend.model.cfg, "n_ctx", 0) or 0) or math.inf,
            )
            for rows in groups
        ]  # fmt: skip
        works = (work.among(rows) for rows, part in zip(groups, plans, strict=True)
                 for work in part.works)  # fmt: skip
        plan = plans[0] if len(groups) == 1 else PassPlan(tuple(works), tuple(prompts), extra)
        if plan.packs and not can_pack(backend):
            pair = None
        elif plan.prefix_passes and not can_continue_prefixes(backend):
            allowed = None
        else:
            return plan


def companions(backend: Backend, lengths: Sequence[int], extra: int = 0) -> list[list[int]]:
    """Rows that may stand in one pass, in groups: nearly always all of them.

    Apart stand prompts whose positions the model computes by different rules (`length_class`), each
    length by itself where that rule changes while text is written, and every length by itself on
    models that read padding.

    Args:
        lengths: Tokens of every row.
        extra: Tokens that every row will grow by; the last of them is never read.
    """
    rule = length_class(backend.model)
    alone = len(set(lengths)) > 1 and not honors_padding(backend)
    groups: dict[tuple[int, int], list[int]] = {}
    for row, length in enumerate(lengths):
        now, later = rule(length), rule(length + max(0, extra - 1))
        # -1 stands for any rule, or any length.
        key = (-1, length) if alone or now != later else (now, -1)
        groups.setdefault(key, []).append(row)
    return list(groups.values()) or [[]]


def _may_pack(backend: Backend, prompts: Sequence[TokenizedPrompt]) -> bool:
    """Not where a window would be lost under a mask of our own, or hooks of the user's own expect
    one prompt per row."""
    longest = max((len(prompt.ids) for prompt in prompts), default=0)
    return (
        backend.kind == "TransformerBridge"
        and attends_to_all(backend.model, longest)
        and not has_hooks(backend.model)
    )


@dataclass
class PreparedBatch:
    """One batch, about to run.

    Attributes:
        work: What it was made from.
        batch: Its tokens, without those that were run already.
        mask: Over everything its rows attend to.
        cache: Keys and values of the shared beginnings; ``None`` when there are none.
        seen: What the readers of the beginnings' pass saw.
        positions: Of every token in its prompt, where prompts share rows.
    """

    work: PlannedBatch
    batch: Batch
    mask: Tensor
    cache: Any = None
    seen: Sequence[Reader] = ()
    positions: Int[Tensor, "row token"] | None = None


class BatchPreparer:
    """Makes the batches of a plan ready.

    Args:
        backend: The model.
        prompts: What was planned.
        pad_id: Any token; it is masked.
        side: Where batches are padded.
        grows: Whether a batch's keys and values are needed after its pass.
        readers: Given the beginnings, who reads in their pass.
        stop_early: Leave that pass after its deepest reader.
    """

    def __init__(
        self,
        backend: Backend,
        prompts: Sequence[TokenizedPrompt],
        pad_id: int,
        *,
        side: str = "left",
        grows: bool = False,
        readers: Readers | None = None,
        stop_early: bool = False,
    ) -> None:
        self.backend, self.prompts, self.pad_id = backend, prompts, pad_id
        self.side, self.grows, self.readers, self.stop = side, grows, readers, stop_early
        self.device = model_device(backend.model)
        self._last: tuple[tuple[Prefix, ...], PrefixCache, Sequence[Reader]] | None = None

    def ready(self, work: PlannedBatch) -> PreparedBatch:
        """The batch, after its beginnings have been run."""
        batch = Batch.collate(
            self.prompts, work.rows, self.pad_id, self.device, self.side, work.skip, work.lane_of
        )
        if work.lane_of:
            mask = packed_causal_mask(batch, model_dtype(self.backend.model))
            # Padding has the index -1, which no table of positions has; nobody sees its states.
            return PreparedBatch(work, batch, mask, positions=batch.index.clamp_min(0))
        if not work.prefixes:
            return PreparedBatch(work, batch, batch.mask)
        root, seen = self._prefix_cache(work.prefixes)
        mask = root.mask(work.prefix_of, batch.mask)
        return PreparedBatch(work, batch, mask, root.cache(work.prefix_of, self.grows), seen)

    def knows(self, work: PlannedBatch) -> bool:
        """Whether a batch can be made ready without a pass."""
        return not work.prefixes or (self._last is not None and self._last[0] == work.prefixes)

    def _prefix_cache(self, prefixes: tuple[Prefix, ...]) -> tuple[PrefixCache, Sequence[Reader]]:
        if self._last is None or self._last[0] != prefixes:
            self._last = None  # free it before the next one is made
            alone = prefix_prompts(self.prompts, prefixes)
            batch = Batch.collate(alone, range(len(alone)), self.pad_id, self.device)
            readers = () if self.readers is None else self.readers(prefixes)

            def run(cache: Any) -> None:
                # Without edits: what is shared lies before the first token that they touch.
                hooks = checked_hooks(self.backend, batch.feed(), (), readers, self.stop)
                with inference(self.backend), hooks, suppress(StopForward):
                    # Nobody wants these logits, so there are as few as can be.
                    self.backend.forward(batch.ids, batch.mask, cache=cache, last_only=True)

            self._last = (prefixes, run_prefixes(batch, run), readers)
        return self._last[1], self._last[2]


@contextmanager
def inference(backend: Backend) -> Iterator[None]:
    """No gradients, no dropout unseen, and no other thread's hooks."""
    with held(backend.model):
        refuse_training(backend)
        # Here as well as in `plan_passes`: the plan may have been made in another process.
        choose_attention(backend)
        with torch.no_grad():
            yield
