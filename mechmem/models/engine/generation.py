"""Greedy text after prompts, in batches, with a KV cache.

Hooks are attached once per batch. Rows that are done leave it, their keys and values with them, and
rows that wait take their places, as far as the token budget goes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from mechmem.errors import ModelError
from mechmem.models.architectures import length_class
from mechmem.models.check.site_check import checked_hooks
from mechmem.models.engine.backends import Backend, finite, is_out_of_memory
from mechmem.models.engine.batching import (
    DEFAULT_TOKEN_BUDGET,
    MAX_BATCH_ROWS,
    Feed,
    PlannedBatch,
)
from mechmem.models.engine.capabilities import (
    bytes_per_token,
    cache_continues,
    honors_padding,
)
from mechmem.models.engine.forward import (
    BatchPreparer,
    halved_on_oom,
    inference,
    plan_passes,
    release,
)
from mechmem.models.engine.hooks import Intervention
from mechmem.models.engine.kv_cache import join_rows, joins, keep_rows, reserve, tokens_kept
from mechmem.models.engine.stopping import Completion, Decode, StoppingCriteria
from mechmem.models.tokenizing import TokenizedPrompt
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
    rule = length_class(backend.model)
    with told(progress, len(prompts), "writing") as tell:
        for room, rows in _by_room(prompts, max_new_tokens, n_ctx):
            chosen = [prompts[row] for row in rows]
            keeps = room > 1 and cache_continues(backend)
            kept = None
            if keeps and all(
                rule(len(prompt.ids)) == rule(len(prompt.ids) + room - 1) for prompt in chosen
            ):
                kept = tokens_kept(bytes_per_token(backend), token_budget)
            plan = plan_passes(
                backend, chosen, token_budget, interventions=interventions, extra=room, kept=kept,
                # Without a cache every step runs the whole text anew, and nothing could be shared.
                share=share and (keeps or room == 1),
            )  # fmt: skip
            passes = BatchPreparer(backend, chosen, pad_id, grows=keeps)

            def picks(
                logits: Tensor, at: Sequence[int], step: int, rows: list[int] = rows
            ) -> Tensor:
                return choose(logits, [rows[row] for row in at], step)

            waiting = _Waiting(plan.works, chosen, kept or token_budget)

            def run(
                work: PlannedBatch,
                passes: BatchPreparer = passes,
                room: int = room,
                keeps: bool = keeps,
                waiting: _Waiting = waiting,
            ) -> dict[int, Completion]:
                while True:
                    taken = len(waiting.taken)
                    try:
                        return _write(
                            passes, work, waiting, room, keeps, interventions, ending, picks, n_ctx
                        )
                    except (RuntimeError, MemoryError) as error:
                        # Those that have joined are too many; without any it is tried in halves.
                        if not (is_out_of_memory(error) and waiting.give_back(taken)):
                            raise
                    release()

            for _, done in halved_on_oom(waiting, run):
                for row, completion in done.items():
                    out[rows[row]] = completion
                computed = sum(len(chosen[row].ids) for row in done)
                tell(len(done), computed + sum(len(item.ids) for item in done.values()))
    return out


class _Waiting:
    """Batches that have not begun, in order; rows of the next one may join a batch that writes.

    Args:
        works: The batches.
        prompts: What was planned.
        kept: Most tokens that rows which write may hold.

    Attributes:
        taken: What has joined, in order.
    """

    def __init__(
        self, works: Sequence[PlannedBatch], prompts: Sequence[TokenizedPrompt], kept: int
    ) -> None:
        self.works, self.taken = deque(works), list[PlannedBatch]()
        self.prompts, self.kept = prompts, kept

    def __iter__(self) -> Iterator[PlannedBatch]:
        while self.works:
            yield self.works.popleft()

    def join(self, passes: BatchPreparer, going: int, width: int, room: int) -> PlannedBatch | None:
        """Rows of the next batch, as many as there is room for; ``None`` for too few.

        Args:
            going: Rows that write still.
            width: Tokens of the longest of those that write.
            room: Tokens that every new one will grow by.
        """
        # A beginning cannot be run now: the edits of the batch that writes would act in its pass.
        if not self.works or not passes.knows(self.works[0]):
            return None
        rows = self.works[0].rows
        width = max([width, *(len(self.prompts[row].ids) for row in rows)])
        free = min(MAX_BATCH_ROWS, self.kept // (width + room)) - going
        # Few are not worth a pass of their own, and copying what the others have kept.
        if 8 * min(free, len(rows)) < going:
            return None
        piece, *rest = self.works.popleft().cut(free)
        self.works.extendleft(rest)
        self.taken.append(piece)
        return piece

    def give_back(self, since: int) -> bool:
        """What has joined since then waits again, and nobody joins any more; whether any had."""
        joined, self.kept = self.taken[since:], 0
        self.works.extendleft(reversed(joined))
        del self.taken[since:]
        return bool(joined)


def _write(
    passes: BatchPreparer,
    work: PlannedBatch,
    waiting: _Waiting,
    room: int,
    keeps: bool,
    interventions: Sequence[Intervention],
    ending: StoppingCriteria,
    choose: Choose,
    n_ctx: int | None,
) -> dict[int, Completion]:
    """Continue every row of one batch until it ends; rows that wait take the places of those that
    are done.

    Where keys and values of the last pass are of no use to the next one, because the model keeps
    more than those or computes positions by another rule from there on, the whole text is run
    again, and nobody joins. Edits say by absolute positions where they act, so they act on the same
    tokens then.
    """
    backend, ready = passes.backend, passes.ready(work)
    rule, lengths = length_class(backend.model), {len(prompt.ids) for prompt in passes.prompts}
    anew = {
        step
        for step in range(1, room)
        if not keeps or any(rule(length + step) != rule(length + step - 1) for length in lengths)
    }
    alike = len({rule(length) for length in lengths}) == 1 and honors_padding(backend)
    feed, ids, cache = ready.batch.feed(), ready.batch.ids, ready.cache
    width = ready.mask.shape[1]
    mask = torch.nn.functional.pad(ready.mask, (0, room - 1))
    done = {row: Completion() for row in work.rows}
    whole, index = ids, feed.index  # kept up only where a pass begins anew
    # Of the batch, and how many tokens they have written.
    members, ages = list(work.rows), [0] * len(work.rows)
    with inference(backend), checked_hooks(backend, feed, interventions) as follow:
        for step in count():
            logits, cache = backend.forward(
                ids, mask[:, :width], cache=cache, use_cache=keeps, last_only=True
            )
            ids = _next(finite(logits[:, -1], backend.model), members, ages, choose)
            del logits
            going = ending.take(ids, [done[row] for row in members], ages, room)
            if not going:
                break
            if step + 1 in anew:
                cache = None
            elif step == 0 or step in anew:  # a whole pass has left a cache without room
                reserve(cache, room - 1 - step)
            joining = None
            if alike and not anew and joins(cache):
                longest = max(len(passes.prompts[members[k]].ids) + ages[k] for k in going)
                joining = waiting.join(passes, len(going), longest, room)
            # TransformerLens counts the position of a row that is done on, past a learned table.
            past = n_ctx is not None and width >= n_ctx
            leave = joining is not None or past or _worth_leaving(len(members), len(going))
            if leave and len(going) < len(members) and (cache is None or keep_rows(cache, going)):
                at = torch.tensor(going, device=ids.device)
                feed, ids, mask = feed.only(going), ids[at], mask[at]
                if anew:
                    whole, index = whole[at], index[at]
                members, ages = [members[k] for k in going], [ages[k] for k in going]
                going = list(range(len(members)))
            if joining is not None:
                ready = passes.ready(joining)
                own = ready.batch.feed()
                follow(own)  # the same hooks, told of the other prompts for one pass
                logits, other = backend.forward(
                    ready.batch.ids, ready.mask, cache=ready.cache, use_cache=True, last_only=True
                )
                rows, young = list(joining.rows), [0] * len(joining.rows)
                done |= {row: Completion() for row in rows}
                first = _next(finite(logits[:, -1], backend.model), rows, young, choose)
                del logits
                more = ending.take(first, [done[row] for row in rows], young, room)
                going += [len(members) + k for k in more]
                cache, mask = join_rows(cache, mask[:, :width], other, ready.mask, room)
                width, mask = mask.shape[1], torch.nn.functional.pad(mask, (0, room))
                feed, ids = feed.above(own), torch.cat([ids, first])
                members, ages = members + rows, ages + young
            # A row that is done is fed on under a zero mask, so that its position stands still.
            live = _marked(going, len(members), ids.device)
            mask[:, width] = live
            width += 1
            # What a row has written counts the token that is now fed, which is why it is one less.
            later = feed.step(torch.tensor(ages, device=ids.device) - 1, live)
            if anew:
                whole, index = torch.cat([whole, ids], 1), torch.cat([index, later.index], 1)
            if step + 1 in anew:
                ids, later = whole, Feed(feed.prompts, index, feed.lengths, feed.rows)
            follow(later)
    for completion in done.values():
        ending.close(completion)
    return done


def _next(logits: Tensor, members: Sequence[int], ages: Sequence[int], choose: Choose) -> Tensor:
    """The next token ``[row, 1]`` of every row; ``choose`` is told how many it has written."""
    out = torch.empty(len(members), dtype=torch.long, device=logits.device)
    for age in set(ages):
        at = [k for k, own in enumerate(ages) if own == age]
        rows = torch.tensor(at, device=logits.device)
        out[rows] = choose(logits[rows], [members[k] for k in at], age)
    return out[:, None]


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
