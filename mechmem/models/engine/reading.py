"""Reading states: the wanted positions copied out inside the hook, and nothing else kept.

A position may lie in a beginning that was run before its row; then it was read there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mechmem.errors import ModelError
from mechmem.models.check.site_check import checked_hooks, require_sites
from mechmem.models.engine.backends import Backend, finite, model_device
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET, Batch, Feed, PlannedBatch, Prefix
from mechmem.models.engine.capabilities import has_hooks, holds, tried
from mechmem.models.engine.forward import BatchPreparer, halved_on_oom, inference, plan_passes
from mechmem.models.engine.hooks import Intervention, StopForward, hooks_attached
from mechmem.models.engine.plan import PassPlan
from mechmem.models.engine.shared_forward import ActivationReader
from mechmem.models.positions import Positions
from mechmem.models.sites import Site
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.progress import Progress, told
from mechmem.seeding import keyed_rng


def wanted_in_prefixes(
    works: Iterable[PlannedBatch], prompts: Sequence[TokenizedPrompt], positions: Positions
) -> dict[Prefix, list[int]]:
    """Which positions of every shared beginning some prompt asks for."""
    wanted: dict[Prefix, set[int]] = {}
    for work in works:
        for row, root in zip(work.rows, work.prefix_of, strict=False):
            prefix = work.prefixes[root]
            mine = wanted.setdefault(prefix, set())
            if not positions.pooled:
                columns = (index for _, index in positions.columns(prompts[row]))
                mine.update(index for index in columns if index < prefix.length)
    return {prefix: sorted(indices) for prefix, indices in wanted.items()}


@dataclass
class PrefixReader:
    """Reads one site in the pass over shared beginnings.

    Attributes:
        site: Where.
        at: Positions to keep of every beginning; ``None`` for their sum over all tokens.
        value: ``[beginning, position, *feature]``, or float64 sums ``[beginning, 1, *feature]``.
    """

    site: Site
    at: Sequence[Sequence[int]] | None
    value: Tensor | None = field(default=None, repr=False)

    def read(self, activation: Tensor, feed: Feed) -> None:
        """Keep what will be asked for."""
        if self.at is None:
            self.value = _summed(activation, feed.index >= 0)
            return
        width = max((len(indices) for indices in self.at), default=0)
        start = activation.shape[1] - feed.lengths
        rows = [[*indices, *[0] * (width - len(indices))] for indices in self.at]
        columns = torch.tensor(rows, dtype=torch.long, device=activation.device)
        columns = columns.reshape(len(rows), width) + start.to(activation.device)[:, None]
        self.value = activation[torch.arange(len(rows), device=activation.device)[:, None], columns]


@dataclass
class PrefixSlots:
    """How the rows of one batch find what was read in their beginnings.

    Attributes:
        prefix_of: ``[row]`` which beginning.
        slot: ``[row, position]`` which of its kept positions, -1 for positions of the row's own.
    """

    prefix_of: Tensor
    slot: Tensor

    @classmethod
    def of(
        cls,
        work: PlannedBatch,
        prompts: Sequence[TokenizedPrompt],
        positions: Positions,
        wanted: Mapping[Prefix, Sequence[int]],
    ) -> PrefixSlots:
        """For one batch."""
        slots = []
        for row, root in zip(work.rows, work.prefix_of, strict=True):
            kept = {index: k for k, index in enumerate(wanted[work.prefixes[root]])}
            columns = [] if positions.pooled else positions.columns(prompts[row])
            slots.append([kept.get(index, -1) for _, index in columns])
        return cls(
            torch.tensor(work.prefix_of, dtype=torch.long), torch.tensor(slots, dtype=torch.long)
        )


@dataclass
class SiteReader:
    """Copies the wanted positions out of an activation.

    Attributes:
        site, positions: What to read.
        prefix: The same site in the pass over the shared beginnings.
        slots: How rows find their part in it.
        value: ``[row, position, *feature]``, on the activation's device.
    """

    site: Site
    positions: Positions
    prefix: PrefixReader | None = None
    slots: PrefixSlots | None = None
    value: Tensor | None = field(default=None, repr=False)

    def read(self, activation: Tensor, feed: Feed) -> None:
        """Called by the hook."""
        device = activation.device
        if self.positions.pooled:
            total = _summed(activation, feed.mask(self.positions).to(device))
            if self.prefix is not None and self.slots is not None:
                assert self.prefix.value is not None
                total += self.prefix.value[self.slots.prefix_of.to(device)]
            self.value = total / over_features(feed.lengths.to(device)[:, None], total)
            return
        rows, columns = (where.to(device) for where in feed.at(self.positions))
        value = activation[rows, columns].detach()  # indexing copies: no view stays alive
        if (
            self.prefix is not None
            and self.slots is not None
            and bool((self.slots.slot >= 0).any())  # else beginnings may hold no state to take
        ):
            assert self.prefix.value is not None
            slot = self.slots.slot.to(device)
            # -1 takes any state, which `where` leaves out.
            known = self.prefix.value[self.slots.prefix_of.to(device)[:, None], slot]
            value = torch.where(over_features(slot >= 0, value), known, value)
        self.value = value


def over_features(values: Tensor, like: Tensor) -> Tensor:
    """``[row, position]`` with as many trailing axes as the features of ``like``."""
    return values.reshape(*values.shape, *(1 for _ in like.shape[2:]))


def _summed(activation: Tensor, keep: Tensor) -> Tensor:
    """Sum over the kept tokens, in float64."""
    # A sum over a beginning and one over its rest must add up to that over the whole.
    weight = over_features(keep.to(activation.device).double(), activation)
    return (activation.detach().double() * weight).sum(1, keepdim=True)


@dataclass(frozen=True)
class BatchStates:
    """States of one batch.

    Attributes:
        rows: Index of every example in the list that was run.
        states: ``[example, position, *feature]`` for every site, on the CPU.
    """

    rows: tuple[int, ...]
    states: dict[Site, Tensor]


def take_states(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    sites: Sequence[Site],
    positions: Positions,
    *,
    interventions: Sequence[Intervention] = (),
    pad_id: int = 0,
    dtype: torch.dtype = torch.float32,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    side: str = "left",
    share: bool = True,
    plan: PassPlan | None = None,
    works: Sequence[PlannedBatch] | None = None,
    progress: Progress = None,
) -> Iterator[BatchStates]:
    """Run the trunk once over every prompt and yield the wanted states batch by batch.

    No logits are computed; the pass ends after the deepest site.

    Args:
        share: Whether prompts that begin alike run their common beginning once, and short ones
            share rows.
        plan: Made before, for these prompts; otherwise made now.
        works: Only these batches of the plan.

    Raises:
        PositionError: Before anything runs, when a prompt lacks a position.
        ModelError: When the model is in train mode, or one prompt alone does not fit in memory.
    """
    positions.check_stackable(prompts)
    if plan is None:
        plan = plan_passes(
            backend, prompts, token_budget, interventions=interventions,
            share=share and side == "left",
            # A mean is taken along a row, over all prompts that would stand in it.
            pack=not positions.pooled,
        )  # fmt: skip
    works = plan.works if works is None else works
    wanted = wanted_in_prefixes(works, prompts, positions)

    def fronts(prefixes: tuple[Prefix, ...]) -> list[PrefixReader]:
        at = None if positions.pooled else [wanted[prefix] for prefix in prefixes]
        return [PrefixReader(site, at) for site in sites]

    # The pass over beginnings stops only where keys and values of all blocks that the rows run have
    # been made: not below an edit, and not before the first attention.
    ends = max(site.depth for site in sites)
    stop = ends > Site("resid_pre", 0).depth and all(e.site.depth <= ends for e in interventions)
    passes = BatchPreparer(backend, prompts, pad_id, side=side, readers=fronts, stop_early=stop)
    last = None if positions.pooled else last_block(backend, sites, interventions)

    def run(work: PlannedBatch) -> dict[Site, Tensor]:
        ready = passes.ready(work)
        takes = [SiteReader(site, positions) for site in sites]
        if work.prefixes:
            slots = PrefixSlots.of(work, prompts, positions, wanted)
            in_prefix = {item.site: item for item in ready.seen if isinstance(item, PrefixReader)}
            takes = [SiteReader(site, positions, in_prefix[site], slots) for site in sites]
        feed = ready.batch.feed()
        with (
            inference(backend),
            checked_hooks(backend, feed, interventions, takes, True),
            trimmed(backend, last, feed, positions),  # after the check of sites, which runs passes
            suppress(StopForward),
        ):
            backend.forward(
                ready.batch.ids, ready.mask, cache=ready.cache, positions=ready.positions
            )
        unread = [str(take.site) for take in takes if take.value is None]
        if unread:
            raise ModelError(
                f"The hooks of {', '.join(unread)} never fired on this model, so nothing can be "
                "read there; ask for another stream."
            )
        # Moved only now: a copy inside the hook would make an accelerator wait at every site.
        seen = [(t.site, t.value) for t in takes if t.value is not None]
        return {s: finite(v, backend.model, f"states at {s}").to("cpu", dtype) for s, v in seen}

    with told(progress, sum(len(work.rows) for work in works), "reading") as tell:
        for work, states in halved_on_oom(works, run):
            tell(len(work.rows), sum(len(prompts[row].ids) for row in work.rows))
            yield BatchStates(work.rows, states)


FEW_TOKENS = 0.5
"""Share of a pass's tokens up to which it is worth picking out those that are read."""

_INSIDE = ("mlp_post", "mlp_module", "mlp_out")


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
    return layer if can_trim(backend, layer) else None


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
        if columns.numel() > FEW_TOKENS * states.shape[0] * states.shape[1]:
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


def can_trim(backend: Backend, layer: int) -> bool:
    """Whether trimming a block leaves the tokens that are read as they are; tried once."""
    site = Site("resid_post", layer)
    what = f"trimming block {layer}"
    return tried(
        backend, ("trims", layer), lambda: holds(what, lambda: _try_trimming(backend, site))
    )


def _try_trimming(backend: Backend, site: Site) -> bool:
    """A padded and an unpadded prompt of random tokens, read at both ends."""
    require_sites(backend, [site])
    rng = keyed_rng(0, "trimming check")
    ids = tuple(rng.integers(0, int(backend.model.cfg.d_vocab), size=8).tolist())
    prompts = [TokenizedPrompt("long", ids, {}), TokenizedPrompt("short", ids[3:], {})]
    batch = Batch.collate(prompts, range(2), ids[0], model_device(backend.model))
    plain = _run_trimmed(backend, batch, site)
    with trimmed(backend, site.layer, batch.feed(), Positions((0, -1))):
        found = _run_trimmed(backend, batch, site)
    allowed = max(1e-4, 16 * torch.finfo(plain.dtype).eps)
    for row, column in ((0, 0), (0, 7), (1, 3), (1, 7)):
        want, got = (state[row, column].double() for state in (plain, found))
        if not float((got - want).norm()) <= allowed * float(want.norm()):
            return False
    # A token in between that still has its MLP would say that this is not where it runs.
    return not torch.equal(found[0, 5], plain[0, 5])


def _run_trimmed(backend: Backend, batch: Batch, site: Site) -> Tensor:
    keep = ActivationReader(site)
    with hooks_attached(backend, batch.feed(), (), [keep]):
        backend.forward(batch.ids, batch.mask)
    assert keep.value is not None
    return keep.value
