"""Every token of a text: how likely it was, and whether it was the likeliest."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechmem.models.engine.backends import Backend, finite
from mechmem.models.engine.batching import PlannedBatch
from mechmem.models.engine.forward import BatchPreparer, halved_on_oom, inference, plan_passes
from mechmem.models.engine.hooks import Intervention
from mechmem.models.engine.site_check import checked_hooks
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.progress import told

BUDGET = 1024
"""Tokens of a batch: the logits of all of them are held at once."""

Scores = tuple[Float[Tensor, " token"], Bool[Tensor, " token"]]


def token_scores(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    *,
    interventions: Sequence[Intervention] = (),
    pad_id: int = 0,
    token_budget: int = BUDGET,
) -> list[Scores]:
    """Per text, of every token but the first: its log-probability (nats, float64) after those
    before it, and whether greedy decoding would have written it there."""
    out: dict[int, Scores] = {}
    plan = plan_passes(backend, prompts, token_budget, interventions=interventions, share=False)
    passes = BatchPreparer(backend, prompts, pad_id)

    def run(work: PlannedBatch) -> list[Scores]:
        ready = passes.ready(work)
        longest = max(len(prompts[row].ids) for row in work.rows)
        with inference(backend), checked_hooks(backend, ready.batch.feed(), interventions):
            logits, _ = backend.forward(
                ready.batch.ids, ready.mask, cache=ready.cache, keep=longest
            )
        scored = []
        for k, row in enumerate(work.rows):
            ids = torch.tensor(prompts[row].ids, device=logits.device)
            own = finite(logits[k, -len(ids) :], backend.model)[:-1].double()
            logps = own.log_softmax(-1).gather(1, ids[1:, None])[:, 0]
            scored.append((logps.cpu(), (own.argmax(-1) == ids[1:]).cpu()))
        return scored

    with told(None, len(prompts), "scoring tokens") as tell:
        for work, scored in halved_on_oom(plan.works, run):
            out |= zip(work.rows, scored, strict=True)
            tell(len(work.rows), sum(len(prompts[row].ids) for row in work.rows))
    return [out[row] for row in range(len(prompts))]
