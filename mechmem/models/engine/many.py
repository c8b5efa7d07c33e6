"""Many edits on the same prompts: logits, answers of one token, text and log-probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from mechmem.models.engine.backends import Backend
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.engine.cells import Cell, by_tag, choir, tagged
from mechmem.models.engine.generation import Completion, Decode, generate
from mechmem.models.engine.grid import Grid
from mechmem.models.engine.run import answer_logprobs
from mechmem.models.tokens import TokenizedPrompt

__all__ = ["Next", "many_generate", "many_logits", "many_logprobs", "many_next", "one_token"]


def many_logits(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    cells: Sequence[Cell],
    *,
    pad_id: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> Float[Tensor, "cell example vocab"]:
    """Logits after every prompt in every cell, on the CPU.

    Args:
        prompts: What every cell is asked.
        cells: The interventions of every cell; an empty one is the unedited model.
    """
    grid = Grid(backend, prompts, cells, pad_id=pad_id, token_budget=token_budget)
    out: list[list[Tensor | None]] = [[None] * len(prompts) for _ in cells]

    def take(cell: int, rows: Sequence[int], logits: Tensor) -> None:
        for row, value in zip(rows, logits.cpu().float(), strict=True):
            out[cell][row] = value

    grid.run(take)
    return torch.stack([torch.stack([v for v in row if v is not None]) for row in out])


@dataclass(frozen=True)
class Next:
    """What one cell says after every prompt.

    Attributes:
        tokens: The likeliest next token.
        scores: Logits of the candidates.
        logits: All logits ``[vocab]``, by prompt, where they were asked for.
    """

    tokens: Int[Tensor, " example"]
    scores: Float[Tensor, "example candidate"]
    logits: dict[int, Tensor]


def many_next(
    grid: Grid,
    which: Sequence[int],
    candidates: Int[Tensor, "example candidate"],
    watched: Mapping[int, Sequence[int]] | None = None,
) -> dict[int, Next]:
    """The likeliest next token of every prompt, and the logits of some candidates.

    Args:
        grid: Prompts and cells.
        which: The cells to run.
        candidates: Token ids to score, as many for every prompt; there may be none.
        watched: Prompts whose logits are wanted whole, by cell.
    """
    n, width = candidates.shape
    out = {
        cell: Next(torch.zeros(n, dtype=torch.long), torch.zeros(n, width, dtype=torch.float64), {})
        for cell in which
    }
    wanted = watched or {}

    def take(cell: int, rows: Sequence[int], logits: Tensor) -> None:
        at, mine = list(rows), out[cell]
        ids = candidates[at].to(logits.device)
        mine.tokens[at] = logits.argmax(-1).cpu()
        mine.scores[at] = logits.float().gather(1, ids).double().cpu()
        places = {row: k for k, row in enumerate(at)}
        for row in set(wanted.get(cell, ())) & set(places):
            mine.logits[row] = logits[places[row]].float().cpu()

    grid.run(take, which)
    return out


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
        backend, tagged(prompts, len(cells)), decode, max_new_tokens=max_new_tokens, stop=stop,
        eos_ids=eos_ids, interventions=choir(cells, by_tag), pad_id=pad_id, n_ctx=n_ctx,
        token_budget=token_budget,
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
        prompts, answers, pad_id, token_budget: As for `mechmem.models.engine.run.answer_logprobs`.
        cells: The interventions of every cell; an empty one is the unedited model.
    """
    scores = answer_logprobs(
        backend, tagged(prompts, len(cells)), list(answers) * len(cells),
        interventions=choir(cells, by_tag), pad_id=pad_id, token_budget=token_budget,
    )  # fmt: skip
    return scores.reshape(len(cells), len(prompts))
