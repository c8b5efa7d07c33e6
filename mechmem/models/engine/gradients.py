"""Gradients of an answer margin with respect to activations, without touching the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.errors import ModelError
from mechmem.models.check.site_check import checked_hooks
from mechmem.models.engine.backends import Backend, held, model_device, refuse_training
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET, Batch, Feed
from mechmem.models.engine.capabilities import choose_attention
from mechmem.models.engine.forward import companions
from mechmem.models.engine.hooks import Intervention
from mechmem.models.engine.plan import plan_batches
from mechmem.models.positions import Positions
from mechmem.models.sites import Site
from mechmem.models.tokenizing import TokenizedPrompt

Answers = Sequence[tuple[int, ...]]


@dataclass
class Slope:
    """States at one site and position, and how the margin changes with each coordinate.

    Attributes:
        states: ``[example, position, *feature]`` float64.
        gradients: Nats per unit of activation, same shape.
    """

    states: Float[Tensor, "example position *feature"]
    gradients: Float[Tensor, "example position *feature"]


class _Tap:
    """Adds zeros to an activation at some positions; the gradient reaches the zeros."""

    def __init__(self, site: Site, positions: Positions) -> None:
        self.site, self.positions = site, positions
        self.state: Tensor | None = None
        self.zeros: Tensor | None = None

    def apply(self, activation: Tensor, feed: Feed) -> Tensor:
        """The same activation, differentiable in `zeros`."""
        rows, columns = (where.to(activation.device) for where in feed.at(self.positions))
        state = activation[rows, columns].detach()
        # A gradient with respect to zeros that are added is that of the activation, and asks
        # nothing of the weights: the graph begins here.
        zeros = torch.zeros_like(state, requires_grad=True)
        self.state, self.zeros = state, zeros
        return activation.index_put((rows, columns), zeros, accumulate=True)


def margin_gradients(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    first: Answers,
    second: Answers,
    sites: Sequence[Site],
    parts: Sequence[Positions],
    *,
    interventions: Sequence[Intervention] = (),
    pad_id: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> dict[tuple[Site, Positions], Slope]:
    """Gradient of ``log p(first) - log p(second)`` at every site and position, in one backward
    pass per batch (one per answer where one has several tokens).

    The weights' ``requires_grad`` is neither needed nor changed, and no ``.grad`` is written.

    Args:
        backend: The model.
        prompts: What to run; every part means the same number of tokens in all of them.
        first, second: Token ids of the two answers after every prompt.
        sites, parts: Where; every site with every part.
        interventions: Edits in force, before the gradient is taken.
    """
    for part in parts:
        part.check_stackable(prompts)
    short = all(len(ids) == 1 for ids in (*first, *second))
    out: dict[tuple[Site, Positions], Slope] = {}

    def run(tails: Answers, score: Callable[[Tensor, Sequence[int]], Tensor], sign: float) -> None:
        joined = [
            TokenizedPrompt(prompt.id, prompt.ids + tail[:-1], prompt.spans)
            for prompt, tail in zip(prompts, tails, strict=True)
        ]
        for rows in _batches(backend, joined, token_budget):
            batch = Batch.collate(joined, rows, pad_id, model_device(backend.model))
            own = tuple(prompts[row] for row in rows)
            lengths = torch.tensor([len(prompt.ids) for prompt in own], device=batch.ids.device)
            taps = [_Tap(site, part) for site in sites for part in parts]
            feed = Feed(own, batch.index, lengths, rows)
            # As in `inference`, but with gradients.
            refuse_training(backend)
            choose_attention(backend)
            with (
                held(backend.model),
                torch.enable_grad(),
                checked_hooks(backend, feed, [*interventions, *taps]),
            ):
                logits, _ = backend.forward(batch.ids, batch.mask, last_only=short)
                total = score(logits, rows)
                slopes = torch.autograd.grad(total, [_leaf(tap) for tap in taps])
            for tap, slope in zip(taps, slopes, strict=True):
                _keep(out, tap, slope * sign, rows, len(prompts))

    if short:
        run(first, lambda logits, rows: _difference(logits[:, -1], rows, first, second), 1.0)
    else:
        run(first, lambda logits, rows: _likelihood(logits, rows, first), 1.0)
        run(second, lambda logits, rows: _likelihood(logits, rows, second), -1.0)
    return out


def _batches(
    backend: Backend, prompts: Sequence[TokenizedPrompt], token_budget: int
) -> Iterator[tuple[int, ...]]:
    for group in companions(backend, [len(prompt.ids) for prompt in prompts]):
        for rows in plan_batches([prompts[row] for row in group], token_budget):
            yield tuple(group[row] for row in rows)


def _difference(last: Tensor, rows: Sequence[int], first: Answers, second: Answers) -> Tensor:
    at = torch.arange(len(rows), device=last.device)
    one = torch.tensor([first[row][0] for row in rows], device=last.device)
    other = torch.tensor([second[row][0] for row in rows], device=last.device)
    # Both log-probabilities have the same normalizer, which cancels.
    return (last[at, one] - last[at, other]).sum()


def _likelihood(logits: Tensor, rows: Sequence[int], answers: Answers) -> Tensor:
    parts = []
    for k, row in enumerate(rows):
        wanted = torch.tensor(answers[row], device=logits.device)
        # Padded on the left: a row's last logits are those of its answer.
        scores = logits[k, -len(wanted) :]
        parts.append(scores.log_softmax(-1).gather(1, wanted[:, None]).sum())
    return torch.stack(parts).sum()


def _leaf(tap: _Tap) -> Tensor:
    if tap.zeros is None:
        raise ModelError(
            f"The hook of {tap.site} never fired on this model, so no gradient can be taken there; "
            "ask for another stream."
        )
    return tap.zeros


def _keep(
    out: dict[tuple[Site, Positions], Slope],
    tap: _Tap,
    slope: Tensor,
    rows: Sequence[int],
    total: int,
) -> None:
    assert tap.state is not None
    state = tap.state.to("cpu", torch.float64)
    key = (tap.site, tap.positions)
    if key not in out:
        shape = (total, *state.shape[1:])
        # From zero, because answers of several tokens come in two runs, whose slopes add up.
        zeros = torch.zeros(shape, dtype=torch.float64)
        out[key] = Slope(zeros, zeros.clone())
    at = torch.tensor(list(rows))
    out[key].states[at] = state
    out[key].gradients[at] += slope.to("cpu", torch.float64)
