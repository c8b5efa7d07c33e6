"""What a model says after prompts: logits, and how likely answers and tokens are."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from mechmem.models.check.site_check import checked_hooks
from mechmem.models.engine.backends import Backend, finite
from mechmem.models.engine.batched_edits import Cell, batch_edits, copies_per_cell, split_by_cell
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET, Feed, PlannedBatch
from mechmem.models.engine.forward import BatchPreparer, halved_on_oom, inference, plan_passes
from mechmem.models.engine.generation import generate
from mechmem.models.engine.hooks import Intervention
from mechmem.models.engine.stopping import Completion, Decode
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.progress import Progress, told

SCORED_TOKENS = 1024
"""Tokens of a batch of `token_scores`: the logits of all of them are held at once."""

Scores = tuple[Float[Tensor, " token"], Bool[Tensor, " token"]]


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
    passes = BatchPreparer(backend, prompts, pad_id)

    def run(work: PlannedBatch) -> Tensor:
        ready = passes.ready(work)
        with inference(backend), checked_hooks(backend, ready.batch.feed(), interventions):
            logits, _ = backend.forward(
                ready.batch.ids, ready.mask, cache=ready.cache, last_only=True
            )
        return finite(logits[:, -1].detach(), backend.model).cpu().float()

    with told(progress, len(prompts), "logits") as tell:
        for work, values in halved_on_oom(plan.works, run):
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
        # An answer's last token is scored, never read.
        TokenizedPrompt(prompt.id, prompt.ids + answer[:-1], prompt.spans)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]
    plan = plan_passes(
        backend, joined, token_budget, interventions=interventions, share=share, own=prompts
    )
    passes = BatchPreparer(backend, joined, pad_id)

    def run(work: PlannedBatch) -> list[Tensor]:
        ready = passes.ready(work)
        own = tuple(prompts[row] for row in work.rows)
        lengths = torch.tensor([len(prompt.ids) for prompt in own], device=ready.mask.device)
        # The lengths of the prompts alone make the answers generated text.
        feed = Feed(own, ready.batch.index, lengths, work.rows)
        longest = max(len(answers[row]) for row in work.rows)
        with inference(backend), checked_hooks(backend, feed, interventions):
            logits, _ = backend.forward(
                ready.batch.ids, ready.mask, cache=ready.cache, keep=longest
            )
        scores = []
        for k, row in enumerate(work.rows):
            wanted = torch.tensor(answers[row], device=logits.device)
            told_apart = finite(logits[k, -len(wanted) :], backend.model)
            # In float64: half precision ends with the logits.
            each = told_apart.double().log_softmax(-1)
            scores.append(each.gather(1, wanted[:, None]).sum().cpu())
        return scores

    with told(None, len(prompts), "scoring answers") as tell:
        for work, scores in halved_on_oom(plan.works, run):
            out[list(work.rows)] = torch.stack(scores)
            tell(len(work.rows), sum(len(joined[row].ids) for row in work.rows))
    return out


def token_scores(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    *,
    interventions: Sequence[Intervention] = (),
    pad_id: int = 0,
    token_budget: int = SCORED_TOKENS,
) -> list[Scores]:
    """Per text, of every token but the first: its log-probability (nats, float64) after those
    before it, and whether greedy decoding would have written it there."""
    out: dict[int, Scores] = {}
    # The logits of every token are wanted, those of a beginning too.
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


def one_token(
    token: int, decode: Decode, stop: Sequence[str] = (), eos_ids: Sequence[int] = ()
) -> Completion:
    """The completion that generating a single token makes."""
    if token in eos_ids:
        return Completion(finished=True)
    text = decode([token])
    cuts = [at for at in (text.find(end) for end in stop) if at >= 0]
    return Completion([token], text[: min(cuts)] if cuts else text, bool(cuts))


def many_generate(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    cells: Sequence[Cell],
    decode: Decode,
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    eos_ids: Sequence[int] = (),
    pad_id: int = 0,
    n_ctx: int | None = None,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> list[list[Completion]]:
    """Greedy text after every prompt in every cell; cells are written side by side, and what comes
    before the first edited token of a prompt is run once for all of them.

    Args:
        prompts, decode, max_new_tokens, stop, eos_ids, pad_id, n_ctx, token_budget: As for
            `mechmem.models.engine.generation.generate`.
        cells: The interventions of every cell; an empty one is the unedited model.
    """
    done = generate(
        backend, copies_per_cell(prompts, len(cells)), decode, max_new_tokens=max_new_tokens,
        stop=stop, eos_ids=eos_ids, interventions=batch_edits(cells, split_by_cell), pad_id=pad_id,
        n_ctx=n_ctx, token_budget=token_budget,
    )  # fmt: skip
    n = len(prompts)
    return [done[cell * n : (cell + 1) * n] for cell in range(len(cells))]


def many_logprobs(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    answers: Sequence[tuple[int, ...]],
    cells: Sequence[Cell],
    *,
    pad_id: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> Float[Tensor, "cell example"]:
    """Log-probability (nats) of an answer after every prompt, in every cell.

    Args:
        prompts, answers, pad_id, token_budget: As for `answer_logprobs`.
        cells: The interventions of every cell; an empty one is the unedited model.
    """
    scores = answer_logprobs(
        backend, copies_per_cell(prompts, len(cells)), list(answers) * len(cells),
        interventions=batch_edits(cells, split_by_cell), pad_id=pad_id, token_budget=token_budget,
    )  # fmt: skip
    return scores.reshape(len(cells), len(prompts))
