"""Running a model over prompts: states out, logits out, text out, nothing left behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.errors import ModelError
from mechmem.models.engine.backends import Backend, model_device
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET, Batch, Feed, plan_batches
from mechmem.models.engine.positions import Positions
from mechmem.models.engine.truth import wired
from mechmem.models.engine.wiring import Intervention, StopForward
from mechmem.models.sites import Site
from mechmem.models.tokens import TokenizedPrompt

__all__ = ["Completion", "Taken", "answer_logprobs", "generate", "last_logits", "take_states"]

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Taken:
    """States of one batch.

    Attributes:
        rows: Index of every example in the list that was run.
        states: ``[example, position, *feature]`` for every site.
    """

    rows: tuple[int, ...]
    states: dict[Site, Tensor]


@dataclass
class _Take:
    """Copies the wanted positions out of an activation."""

    site: Site
    positions: Positions
    dtype: torch.dtype
    value: Tensor | None = None

    def read(self, activation: Tensor, feed: Feed) -> None:
        if self.positions.pooled:
            keep = feed.mask(self.positions).to(activation.device)
            weight = keep.double() / keep.sum(1, keepdim=True)
            shape = (*weight.shape, *(1 for _ in activation.shape[2:]))
            value = (activation.double() * weight.reshape(shape)).sum(1, keepdim=True)
        else:
            columns = feed.columns(self.positions).to(activation.device)
            rows = torch.arange(columns.shape[0], device=activation.device)
            value = activation[rows[:, None], columns]  # indexing copies: no view stays alive
        self.value = value.detach().to(device="cpu", dtype=self.dtype)


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
    progress: Progress | None = None,
) -> Iterator[Taken]:
    """Run the trunk once over every prompt and yield the wanted states batch by batch.

    No logits are computed; the pass ends after the deepest site.

    Raises:
        PositionError: Before anything runs, when a prompt lacks a position.
        ModelError: When the model is in train mode.
    """
    positions.check_stackable(prompts)
    for rows in plan_batches(prompts, token_budget):
        batch = Batch.collate(prompts, rows, pad_id, model_device(backend.model), side)
        takes = [_Take(site, positions, dtype) for site in sites]
        hooks = wired(backend, batch.feed(), interventions, takes, True)
        with _running(backend), hooks, suppress(StopForward):
            backend.forward(batch.ids, batch.mask)
        unread = [str(take.site) for take in takes if take.value is None]
        if unread:
            raise ModelError(
                f"The hooks of {', '.join(unread)} never fired on this model, so nothing can be "
                "read there; ask for another stream."
            )
        if progress is not None:
            progress(len(rows))
        yield Taken(rows, {take.site: take.value for take in takes if take.value is not None})


def last_logits(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    *,
    interventions: Sequence[Intervention] = (),
    pad_id: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    progress: Progress | None = None,
) -> Float[Tensor, "example vocab"]:
    """Logits after every prompt, in the order given."""
    out: list[Tensor | None] = [None] * len(prompts)
    for rows in plan_batches(prompts, token_budget):
        batch = Batch.collate(prompts, rows, pad_id, model_device(backend.model))
        with _running(backend), wired(backend, batch.feed(), interventions):
            logits, _ = backend.forward(batch.ids, batch.mask, last_only=True)
        for row, value in zip(rows, logits[:, -1].detach().cpu().float(), strict=True):
            out[row] = value
        if progress is not None:
            progress(len(rows))
    return torch.stack([value for value in out if value is not None])


def answer_logprobs(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    answers: Sequence[tuple[int, ...]],
    *,
    interventions: Sequence[Intervention] = (),
    pad_id: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
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
    for rows in plan_batches(joined, token_budget):
        batch = Batch.collate(joined, rows, pad_id, model_device(backend.model))
        own = tuple(prompts[row] for row in rows)
        lengths = torch.tensor([len(prompt.ids) for prompt in own], device=batch.index.device)
        feed = Feed(own, batch.index, lengths, rows)
        longest = max(len(answers[row]) for row in rows)
        with _running(backend), wired(backend, feed, interventions):
            logits, _ = backend.forward(batch.ids, batch.mask, last_only=longest == 1)
        for k, row in enumerate(rows):
            wanted = torch.tensor(answers[row], device=logits.device)
            scores = logits[k, -len(wanted) :].double().log_softmax(-1)
            out[row] = scores.gather(1, wanted[:, None]).sum().cpu()
    return out


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
    decode: Callable[[Sequence[int]], str],
    *,
    max_new_tokens: int,
    stop: Sequence[str] = (),
    eos_ids: Sequence[int] = (),
    interventions: Sequence[Intervention] = (),
    pad_id: int = 0,
    n_ctx: int | None = None,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    progress: Progress | None = None,
) -> list[Completion]:
    """Greedy text after every prompt, in the order given, with a KV cache.

    Args:
        decode: Ids to text, for the stop strings and the result.
        max_new_tokens: Most tokens to write; fewer where the context ends first.
        stop: Strings that end a completion; the text is cut before the first of them.
        eos_ids: Tokens that end a completion.
    """
    out = [Completion() for _ in prompts]
    for rows, room in _generation_batches(prompts, max_new_tokens, n_ctx, token_budget):
        batch = Batch.collate(prompts, rows, pad_id, model_device(backend.model))
        feed, ids, mask, cache = batch.feed(), batch.ids, batch.mask, None
        going = [out[row] for row in rows]
        live = torch.ones(len(rows), dtype=torch.bool, device=ids.device)
        for step in range(room):
            seen = feed if step == 0 else feed.step(step - 1, live)
            with _running(backend), wired(backend, seen, interventions):
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
        if progress is not None:
            progress(len(rows))
    return out


def _generation_batches(
    prompts: Sequence[TokenizedPrompt], max_new_tokens: int, n_ctx: int | None, token_budget: int
) -> Iterator[tuple[tuple[int, ...], int]]:
    """Rows that run together, and how many tokens each of them can be continued by.

    Prompts that nearly fill the context run with their equals only: beside longer or shorter ones
    the padded batch would outgrow the context. The last new token need not be read again.
    """
    by_room: dict[int, list[int]] = {}
    for row, prompt in enumerate(prompts):
        free = max_new_tokens if n_ctx is None else n_ctx - len(prompt.ids) + 1
        by_room.setdefault(min(max_new_tokens, free), []).append(row)
    for room, rows in sorted(by_room.items(), reverse=True):
        for batch in plan_batches([prompts[row] for row in rows], token_budget, extra=room):
            yield tuple(rows[k] for k in batch), room


def _extend(
    completion: Completion,
    token: int,
    decode: Callable[[Sequence[int]], str],
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


@contextmanager
def _running(backend: Backend) -> Iterator[None]:
    """No gradients, and no dropout unseen."""
    if getattr(backend.model, "training", False):
        raise ModelError(
            "The model is in train mode, where dropout makes every pass different; "
            "call model.eval() on it first."
        )
    with torch.no_grad():
        yield
