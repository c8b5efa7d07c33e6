"""Greedy text after prompts, in batches, with a KV cache.

Hooks are attached once per batch. Rows that are done leave it, their keys and values with them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mechmem.errors import ModelError
from mechmem.models.architectures import length_class
from mechmem.models.engine.backends import Backend, finite
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET, Feed, PlannedBatch
from mechmem.models.engine.capabilities import cache_continues
from mechmem.models.engine.forward import BatchPreparer, halved_on_oom, inference, plan_passes
from mechmem.models.engine.hooks import Intervention
from mechmem.models.engine.kv_cache import keep_rows, reserve
from mechmem.models.engine.site_check import checked_hooks
from mechmem.models.engine.stopping import Completion, StoppingCriteria
from mechmem.models.tokens import TokenizedPrompt
from mechmem.progress import Progress, told
from mechmem.seeding import keyed_rng

Choose = Callable[[Tensor, Sequence[int], int], Tensor]
"""From logits ``[row, vocab]``, which prompts the rows are, and the step, to ids ``[row]``."""


def greedy(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
    """Greedy."""
    return logits.argmax(-1)


@dataclass(frozen=True)
class Sampler:
    """Draws from ``softmax(logits / temperature)``.

    The largest of ``logits / temperature + Gumbel noise`` is such a draw; the noise depends on the
    seed, the prompt's key and the step alone, so that batch, order and device do not matter.

    Attributes:
        temperature: Above 0; 1 samples what the model was trained to say.
        seed: Keys the noise.
        keys: One name per prompt.
    """

    temperature: float
    seed: int
    keys: Sequence[str]

    def __post_init__(self) -> None:
        number = isinstance(self.temperature, (int, float)) and self.temperature > 0
        if not number or not np.isfinite(self.temperature):
            raise ModelError(
                f"temperature must be a finite number above 0, got {self.temperature!r}; greedy "
                "decoding is the limit at 0."
            )

    def __call__(self, logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
        scaled = logits.detach().to("cpu", torch.float64) / self.temperature
        noise = [
            keyed_rng(self.seed, "sample", self.keys[row], step).gumbel(size=logits.shape[-1])
            for row in rows
        ]
        return (scaled + torch.from_numpy(np.stack(noise))).argmax(-1).to(logits.device)


Decode = Callable[[Sequence[int]], str]


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
    choose: Choose = greedy,
) -> list[Completion]:
    """Text after every prompt, in the order given, with a KV cache.

    Args:
        decode: Ids to text, for the stop strings and the result.
        max_new_tokens: Most tokens to write; fewer where the context ends first.
        stop: Strings that end a completion; the text is cut before the first of them.
        eos_ids: Tokens that end a completion.
        share: Whether prompts that begin alike run their common beginning once.
        choose: Picks the next token; greedy unless told otherwise. It is told the places of the
            rows in ``prompts``.
    """
    out = [Completion() for _ in prompts]
    ending = StoppingCriteria(decode, stop, eos_ids)
    with told(progress, len(prompts), "writing") as tell:
        for room, rows in _by_room(prompts, max_new_tokens, n_ctx):
            chosen = [prompts[row] for row in rows]
            keeps = room > 1 and cache_continues(backend)
            plan = plan_passes(
                backend, chosen, token_budget, interventions=interventions, extra=room,
                share=share and (keeps or room == 1),
            )  # fmt: skip
            passes = BatchPreparer(backend, chosen, pad_id, grows=keeps)

            def picks(
                logits: Tensor, at: Sequence[int], step: int, rows: list[int] = rows
            ) -> Tensor:
                return choose(logits, [rows[row] for row in at], step)

            def run(
                work: PlannedBatch,
                passes: BatchPreparer = passes,
                room: int = room,
                keeps: bool = keeps,
            ) -> list[Completion]:
                return _write(passes, work, room, keeps, interventions, ending, picks)

            for work, done in halved_on_oom(plan.works, run):
                for row, completion in zip(work.rows, done, strict=True):
                    out[rows[row]] = completion
                computed = sum(len(chosen[row].ids) for row in work.rows)
                tell(len(work.rows), computed + sum(len(item.ids) for item in done))
    return out


def _write(
    passes: BatchPreparer,
    work: PlannedBatch,
    room: int,
    keeps: bool,
    interventions: Sequence[Intervention],
    ending: StoppingCriteria,
    choose: Choose,
) -> list[Completion]:
    """Continue every row of one batch until it ends.

    Where keys and values of the last pass are of no use to the next one, because the model keeps
    more than those or computes positions by another rule from there on, the whole text is run
    again. Edits say by absolute positions where they act, so they act on the same tokens then.
    """
    backend, ready = passes.backend, passes.ready(work)
    rule, lengths = length_class(backend.model), {len(prompt.ids) for prompt in ready.batch.prompts}
    anew = {
        step
        for step in range(1, room)
        if not keeps or any(rule(length + step) != rule(length + step - 1) for length in lengths)
    }
    feed, ids, cache = ready.batch.feed(), ready.batch.ids, ready.cache
    width = ready.mask.shape[1]
    mask = torch.nn.functional.pad(ready.mask, (0, room - 1))
    done = [Completion() for _ in work.rows]
    whole, index = ids, feed.index  # kept up only where a pass begins anew
    here = list(done)  # what each row of the batch writes
    members = list(work.rows)
    with inference(backend), checked_hooks(backend, feed, interventions) as follow:
        for step in range(room):
            logits, cache = backend.forward(
                ids, mask[:, : width + step], cache=cache, use_cache=keeps, last_only=True
            )
            ids = choose(finite(logits[:, -1], backend.model), members, step)[:, None]
            del logits
            for completion, (token,) in zip(here, ids.tolist(), strict=True):
                if not completion.finished:
                    ending.ends(completion, token)
            going = [row for row, completion in enumerate(here) if not completion.finished]
            if not going or step == room - 1:
                break
            if step + 1 in anew:
                cache = None
            elif step == 0 or step in anew:
                reserve(cache, room - 1 - step)
            if _worth_leaving(len(here), len(going)) and (cache is None or keep_rows(cache, going)):
                at = torch.tensor(going, device=ids.device)
                feed, ids, mask = feed.only(going), ids[at], mask[at]
                if anew:
                    whole, index = whole[at], index[at]
                here, members = [here[row] for row in going], [members[row] for row in going]
                going = list(range(len(here)))
            # A row that is done is fed on under a zero mask, so that its position stands still.
            live = _marked(going, len(here), ids.device)
            mask[:, width + step] = live
            later = feed.step(step, live)
            if anew:
                whole, index = torch.cat([whole, ids], 1), torch.cat([index, later.index], 1)
            if step + 1 in anew:
                ids, later = whole, Feed(feed.prompts, index, feed.lengths, feed.rows)
            follow(later)
    for completion in done:
        ending.close(completion)
    return done


def _worth_leaving(rows: int, going: int) -> bool:
    """Whether so many rows are done that copying the others' keys and values is made up for."""
    return 8 * (rows - going) >= rows


def _marked(chosen: Sequence[int], size: int, device: torch.device) -> Tensor:
    marks = torch.zeros(size, dtype=torch.bool)
    marks[list(chosen)] = True
    return marks.to(device)


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
