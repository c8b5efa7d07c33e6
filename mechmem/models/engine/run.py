"""Running a model over prompts: states out, logits out, nothing left behind."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.errors import ModelError
from mechmem.models.engine.backends import Backend
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET, Feed
from mechmem.models.engine.generation import Completion, generate
from mechmem.models.engine.memory import retried
from mechmem.models.engine.passes import Passes, plan_passes, running
from mechmem.models.engine.plan import Plan
from mechmem.models.engine.positions import Positions
from mechmem.models.engine.progress import Progress, told
from mechmem.models.engine.taking import Behind, Front, Take, wanted_in_front
from mechmem.models.engine.trimming import last_block, trimmed
from mechmem.models.engine.truth import wired
from mechmem.models.engine.wiring import Intervention, StopForward
from mechmem.models.engine.work import Prefix, Work
from mechmem.models.sites import Site
from mechmem.models.tokens import TokenizedPrompt

__all__ = ["Completion", "Taken", "answer_logprobs", "generate", "last_logits", "take_states"]


@dataclass(frozen=True)
class Taken:
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
    plan: Plan | None = None,
    works: Sequence[Work] | None = None,
    progress: Progress = None,
) -> Iterator[Taken]:
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
            backend,
            prompts,
            token_budget,
            interventions=interventions,
            share=share and side == "left",
            pack=not positions.pooled,
        )
    works = plan.works if works is None else works
    wanted = wanted_in_front(works, prompts, positions)

    def fronts(prefixes: tuple[Prefix, ...]) -> list[Front]:
        at = None if positions.pooled else [wanted[prefix] for prefix in prefixes]
        return [Front(site, at) for site in sites]

    # The pass over beginnings stops only where keys and values of all blocks that the rows run have
    # been made: not below an edit, and not before the first attention.
    ends = max(site.depth for site in sites)
    stop = ends > Site("resid_pre", 0).depth and all(e.site.depth <= ends for e in interventions)
    passes = Passes(backend, prompts, pad_id, side=side, readers=fronts, stop_early=stop)
    last = None if positions.pooled else last_block(backend, sites, interventions)

    def run(work: Work) -> dict[Site, Tensor]:
        ready = passes.ready(work)
        takes = [Take(site, positions) for site in sites]
        if work.prefixes:
            behind = Behind.of(work, prompts, positions, wanted)
            front = {item.site: item for item in ready.seen if isinstance(item, Front)}
            takes = [Take(site, positions, front[site], behind) for site in sites]
        feed = ready.batch.feed()
        with (
            running(backend),
            wired(backend, feed, interventions, takes, True),
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
        return {t.site: t.value.to(device="cpu", dtype=dtype) for t in takes if t.value is not None}

    with told(progress, sum(len(work.rows) for work in works), "reading") as tell:
        for work, states in retried(works, run):
            tell(len(work.rows), sum(len(prompts[row].ids) for row in work.rows))
            yield Taken(work.rows, states)


def last_logits(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    *,
    interventions: Sequence[Intervention] = (),
    pad_id: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    share: bool = True,
    progress: Progress = None,
) -> Float[Tensor, "example vocab"]:
    """Logits after every prompt, in the order given."""
    out: list[Tensor | None] = [None] * len(prompts)
    plan = plan_passes(backend, prompts, token_budget, interventions=interventions, share=share)
    passes = Passes(backend, prompts, pad_id)

    def run(work: Work) -> Tensor:
        ready = passes.ready(work)
        with running(backend), wired(backend, ready.batch.feed(), interventions):
            logits, _ = backend.forward(
                ready.batch.ids, ready.mask, cache=ready.cache, last_only=True
            )
        return logits[:, -1].detach().cpu().float()

    with told(progress, len(prompts), "logits") as tell:
        for work, values in retried(plan.works, run):
            for row, value in zip(work.rows, values, strict=True):
                out[row] = value
            tell(len(work.rows), sum(len(prompts[row].ids) for row in work.rows))
    return torch.stack([value for value in out if value is not None])


def answer_logprobs(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    answers: Sequence[tuple[int, ...]],
    *,
    interventions: Sequence[Intervention] = (),
    pad_id: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    share: bool = True,
) -> Float[Tensor, " example"]:
    """Log-probability (nats) of each answer's tokens after its prompt, summed over the tokens.

    The answer is fed as generated text, so edits at generated positions act on it as they would
    while the model writes it.
    """
    out = torch.zeros(len(prompts), dtype=torch.float64)
    joined = [
        TokenizedPrompt(prompt.id, prompt.ids + answer[:-1], prompt.spans)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    plan = plan_passes(
        backend, joined, token_budget, interventions=interventions, share=share, own=prompts
    )
    passes = Passes(backend, joined, pad_id)

    def run(work: Work) -> list[Tensor]:
        ready = passes.ready(work)
        own = tuple(prompts[row] for row in work.rows)
        lengths = torch.tensor([len(prompt.ids) for prompt in own], device=ready.mask.device)
        feed = Feed(own, ready.batch.index, lengths, work.rows)
        longest = max(len(answers[row]) for row in work.rows)
        with running(backend), wired(backend, feed, interventions):
            logits, _ = backend.forward(
                ready.batch.ids, ready.mask, cache=ready.cache, keep=longest
            )
        scores = []
        for k, row in enumerate(work.rows):
            wanted = torch.tensor(answers[row], device=logits.device)
            each = logits[k, -len(wanted) :].double().log_softmax(-1)
            scores.append(each.gather(1, wanted[:, None]).sum().cpu())
        return scores

    with told(None, len(prompts), "scoring answers") as tell:
        for work, scores in retried(plan.works, run):
            out[list(work.rows)] = torch.stack(scores)
            tell(len(work.rows), sum(len(joined[row].ids) for row in work.rows))
    return out
