"""What an extraction will take, before it runs."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mechmem.caching.activations import check_dtype
from mechmem.caching.memory import measured_memory
from mechmem.caching.speed import measured_speed
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.engine.forward import plan_passes
from mechmem.models.engine.plan import PassPlan
from mechmem.models.engine.reading import take_states
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.sites import Site, SiteSpec
from mechmem.models.tokenizing import PromptsLike, TokenizedPrompt


@dataclass(frozen=True)
class ExtractionPlan:
    """The batches of an extraction and what they will take.

    Attributes:
        plan: The batches.
        peak_bytes: Estimated memory of the largest batch, on top of the weights, carried over from
            a few short passes. It counts the tensors that are alive together, not what an allocator
            keeps back.
        state_bytes: Size of the states, where they are kept.
        seconds: Carried over from a few short passes; ``None`` when none was timed.
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
    """Plan an extraction without running it, but for four short passes of random tokens (1,024 at
    most in a row) that say what memory it takes, and are run again for the time.

    Args:
        timed: Whether to say the time: on an idle machine within a third, under edits rougher.
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
    longest = max(len(prompt.ids) for prompt in tokenized)
    memory = measured_memory(model, wanted, longest)
    seconds = None
    if timed:
        seconds = measured_speed(model, wanted, where, plan).total(plan)
        if model.interventions:
            seconds *= _slower(model, tokenized[sample], wanted, where)
    return ExtractionPlan(
        plan,
        memory.peak(plan, per_prompt * 4 // dtype.itemsize),
        per_prompt * len(asked),
        seconds,
    )


def _slower(
    model: Model, prompt: TokenizedPrompt, sites: Sequence[Site], where: Positions
) -> float:
    """How many times as long one prompt takes under the edits in force."""
    took = {True: 0.0, False: 0.0}
    for edited in (True, False, True, False):
        start = time.perf_counter()
        for _taken in take_states(
            model.backend, [prompt], sites, where, pad_id=model.tokens.pad_id,
            interventions=model.interventions if edited else (),
        ):  # fmt: skip
            pass
        took[edited] = time.perf_counter() - start
    return took[True] / took[False]


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
