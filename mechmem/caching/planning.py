"""What an extraction will take, before it runs."""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch

from mechmem.caching.activations import check_dtype
from mechmem.caching.memory import measured_memory
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET, PlannedBatch
from mechmem.models.engine.forward import plan_passes
from mechmem.models.engine.plan import PassPlan, pair_cost, pass_cost
from mechmem.models.engine.reading import take_states
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.sites import SiteSpec
from mechmem.models.tokenizing import PromptsLike


@dataclass(frozen=True)
class ExtractionPlan:
    """The batches of an extraction and what they will take.

    Attributes:
        plan: The batches.
        peak_bytes: Estimated memory of the largest batch, on top of the weights, carried over from
            a few short passes. It counts the tensors that are alive together, not what an allocator
            keeps back.
        state_bytes: Size of the states, where they are kept.
        seconds: Estimated from one timed batch; ``None`` when none was timed.
    """

    plan: PassPlan
    peak_bytes: int
    state_bytes: int
    seconds: float | None

    def __str__(self) -> str:
        speed = ""
        if self.seconds is not None:
            rate = self.plan.tokens / self.seconds
            speed = f", about {_time(self.seconds)} ({rate:,.0f} tokens/s)"
        return (
            f"{self.plan}; about {_size(self.peak_bytes)} of memory beside the weights{speed}; "
            f"{_size(self.state_bytes)} of states when they are kept"
        )


def plan_extraction(
    model: Model,
    prompts: PromptsLike,
    *,
    sites: SiteSpec = "resid_post",
    positions: PositionSpec = "last",
    dtype: torch.dtype = torch.float32,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    share_prefixes: bool = True,
    timed: bool = True,
) -> ExtractionPlan:
    """Plan an extraction without running it, but for one batch that is timed and four short passes
    of random tokens (1,024 at most) that say what memory it takes.

    Args:
        timed: Run the plan's smallest batch twice and take the time of the second. The estimate is
            rough where batches differ much in length.
        model, prompts, sites, positions, dtype, token_budget, share_prefixes: As they will be
            given to `cache_activations`, `cache_moments` or `extract_activations`.

    Raises:
        PromptError, SiteError, PositionError: As those would.
    """
    check_dtype(dtype)
    asked = model.encode(prompts, "plan")
    tokenized = asked.rows
    where = Positions.parse(positions)
    where.check_stackable(tokenized)
    wanted = model.sites(sites)
    plan = plan_passes(
        model.backend,
        tokenized,
        token_budget,
        interventions=model.interventions,
        share=share_prefixes,
        pack=not where.pooled,
    )
    # One prompt tells how wide the states are; beside the others it takes no time.
    sample = min(range(len(tokenized)), key=lambda row: len(tokenized[row].ids))
    (one,) = take_states(model.backend, [tokenized[sample]], wanted, where, share=False)
    per_prompt = sum(state[0].numel() for state in one.states.values()) * dtype.itemsize
    seconds, costs = None, (pass_cost(model.backend), pair_cost(model.backend))
    if timed:
        work = min(plan.works, key=lambda item: item.computed)
        if work.prefixes:  # whole prompts, so that one pass is timed and not two
            work = PlannedBatch(work.rows, max(len(tokenized[row].ids) for row in work.rows))
        alone = PassPlan((work,), plan.prompts)
        for _ in range(2):
            start = time.perf_counter()
            for _taken in take_states(
                model.backend, tokenized, wanted, where, interventions=model.interventions,
                pad_id=model.tokens.pad_id, plan=alone,
            ):  # fmt: skip
                pass
            seconds = (time.perf_counter() - start) * plan.cost(*costs) / alone.cost(*costs)
    longest = max(len(prompt.ids) for prompt in tokenized)
    return ExtractionPlan(
        plan,
        measured_memory(model, wanted, longest).peak(plan, per_prompt * 4 // dtype.itemsize),
        per_prompt * len(asked),
        seconds,
    )


def _size(number: float) -> str:
    for unit in ("B", "KB", "MB", "GB"):
        if number < 1000:
            return f"{number:.3g} {unit}"
        number /= 1000
    return f"{number:.3g} TB"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.2g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
