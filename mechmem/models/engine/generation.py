"""Greedy text after prompts, in batches, with a KV cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from mechmem.models.engine.backends import Backend
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.engine.memory import retried
from mechmem.models.engine.passes import Passes, plan_passes, running
from mechmem.models.engine.plan import Work
from mechmem.models.engine.progress import Progress, told
from mechmem.models.engine.truth import wired
from mechmem.models.engine.wiring import Intervention
from mechmem.models.tokens import TokenizedPrompt

__all__ = ["Completion", "generate"]

Decode = Callable[[Sequence[int]], str]


@dataclass
class Completion:
    """What the model wrote after one prompt.

    Attributes:
        ids: Generated token ids, without the end-of-sequence token.
        text: The same as text, cut at the stop string.
        finished: False when the limit of new tokens ended it.
    """

    ids: list[int] = field(default_factory=list)
    text: str = ""
    finished: bool = False


def generate(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    decode: Decode,
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    eos_ids: Sequence[int] = (),
    interventions: Sequence[Intervention] = (),
    pad_id: int = 0,
    n_ctx: int | None = None,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    share: bool = True,
    progress: Progress = None,
) -> list[Completion]:
    """Greedy text after every prompt, in the order given, with a KV cache.

    Args:
        decode: Ids to text, for the stop strings and the result.
        max_new_tokens: Most tokens to write; fewer where the context ends first.
        stop: Strings that end a completion; the text is cut before the first of them.
        eos_ids: Tokens that end a completion.
        share: Whether prompts that begin alike run their common beginning once.
    """
    out = [Completion() for _ in prompts]
    with told(progress, len(prompts), "writing") as tell:
        for room, rows in _by_room(prompts, max_new_tokens, n_ctx):
            chosen = [prompts[row] for row in rows]
            plan = plan_passes(
                backend, chosen, token_budget, interventions=interventions, extra=room, share=share
            )
            passes = Passes(backend, chosen, pad_id, grows=room > 1)

            def run(work: Work, passes: Passes = passes, room: int = room) -> list[Completion]:
                return _write(backend, passes, work, room, interventions, decode, stop, eos_ids)

            for work, done in retried(plan.works, run):
                for row, completion in zip(work.rows, done, strict=True):
                    out[rows[row]] = completion
                fed = sum(len(chosen[row].ids) for row in work.rows)
                tell(len(work.rows), fed + sum(len(item.ids) for item in done))
    return out


def _write(
    backend: Backend,
    passes: Passes,
    work: Work,
    room: int,
    interventions: Sequence[Intervention],
    decode: Decode,
    stop: Sequence[str],
    eos_ids: Sequence[int],
) -> list[Completion]:
    """Continue every row of one batch until it ends."""
    ready = passes.ready(work)
    feed, ids, mask, cache = ready.batch.feed(), ready.batch.ids, ready.mask, ready.cache
    going = [Completion() for _ in work.rows]
    live = torch.ones(len(work.rows), dtype=torch.bool, device=ids.device)
    for step in range(room):
        seen = feed if step == 0 else feed.step(step - 1, live)
        with running(backend), wired(backend, seen, interventions):
            logits, cache = backend.forward(
                ids, mask, cache=cache, use_cache=room > 1, last_only=True
            )
        chosen = logits[:, -1].argmax(-1)
        for k, token in enumerate(chosen.tolist()):
            if live[k]:
                _extend(going[k], token, decode, stop, eos_ids)
                live[k] = not going[k].finished
        if not live.any():
            break
        # A row that is done is fed on under a zero mask, so that its position stands still.
        ids = chosen[:, None]
        mask = torch.cat([mask, live[:, None].to(mask)], dim=1)
    return going


def _by_room(
    prompts: Sequence[TokenizedPrompt], max_new_tokens: int, n_ctx: int | None
) -> list[tuple[int, list[int]]]:
    """Rows that may run together, and how many tokens each of them can be continued by.

    Prompts that nearly fill the context run with their equals only: beside longer or shorter ones
    the padded batch would outgrow the context. The last new token need not be read again.
    """
    by_room: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        free = max_new_tokens if n_ctx is None else n_ctx - len(prompt.ids) + 1
        by_room.setdefault(min(max_new_tokens, free), []).append(row)
    return sorted(by_room.items(), reverse=True)


def _extend(
    completion: Completion,
    token: int,
    decode: Decode,
    stop: Sequence[str],
    eos_ids: Sequence[int],
) -> None:
    if token in eos_ids:
        completion.finished = True
        return
    completion.ids.append(token)
    completion.text = decode(completion.ids)
    found = [at for at in (completion.text.find(text) for text in stop) if at >= 0]
    if found:
        completion.text, completion.finished = completion.text[: min(found)], True
