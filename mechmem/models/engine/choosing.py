"""Which token comes next: the likeliest, or a draw that is keyed and independent of batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mechmem.errors import ModelError
from mechmem.seeding import keyed_rng

__all__ = ["Choose", "Sampler", "likeliest"]

Choose = Callable[[Tensor, Sequence[int], int], Tensor]
"""From logits ``[row, vocab]``, which prompts the rows are, and the step, to ids ``[row]``."""


def likeliest(logits: Tensor, rows: Sequence[int], step: int) -> Tensor:
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
