"""Prompts that share rows: what each may see, and whether a model keeps them apart."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.models.engine.backends import Backend, masking, model_device, model_dtype
from mechmem.models.engine.batching import Batch
from mechmem.models.engine.trials import holds, same_logits, tried
from mechmem.models.tokens import TokenizedPrompt
from mechmem.seeding import keyed_rng

__all__ = ["packs_truly", "sees_its_own"]


def sees_its_own(batch: Batch, dtype: torch.dtype) -> Float[Tensor, "row 1 token key"]:
    """What is added to attention scores: a token sees the earlier ones of its own prompt. Padding
    before the prompts of a row sees itself, so that no token is without any."""
    prompt = (batch.index == 0).cumsum(1)
    width = prompt.shape[1]
    earlier = torch.ones(width, width, dtype=torch.bool, device=prompt.device).tril()
    return masking((prompt[:, :, None] == prompt[:, None, :]) & earlier, dtype)[:, None]


def packs_truly(backend: Backend) -> bool:
    """Whether prompts that share rows get the model's own logits; tried once per model, on random
    tokens."""
    return tried(backend, "packs", lambda: holds("prompts in one row", lambda: _try(backend)))


def _try(backend: Backend) -> bool:
    """Prompts of five lengths in two rows, one of them padded, against a row for each."""
    cfg, device = backend.model.cfg, model_device(backend.model)
    rng = keyed_rng(0, "packing check")
    prompts = [
        TokenizedPrompt(str(n), tuple(rng.integers(0, int(cfg.d_vocab), size=n).tolist()), {})
        for n in (5, 3, 4, 2, 1)
    ]
    rows, pad = range(len(prompts)), prompts[0].ids[0]
    alone = Batch.collate(prompts, rows, pad, device)
    plain, _ = backend.forward(alone.ids, alone.mask)
    batch = Batch.collate(prompts, rows, pad, device, lane_of=(0, 0, 1, 1, 1))
    found, _ = backend.forward(
        batch.ids, sees_its_own(batch, model_dtype(backend.model)),
        positions=batch.index.clamp_min(0),
    )  # fmt: skip
    assert batch.starts is not None
    places = zip(prompts, batch.starts.tolist(), strict=True)
    return all(
        same_logits(found[lane, start : start + len(prompt.ids)], plain[row, -len(prompt.ids) :])
        for row, (prompt, (lane, start)) in enumerate(places)
    )
