"""Prompts that begin alike: a shared beginning ten times longer than the rest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import mechmem as mm
from benchmarks.setting import (
    Options,
    gap,
    model_of,
    padded,
    paired,
    plain_model,
    prompts_of,
    ragged_lengths,
    result,
    texts,
)

BATCH = 16


def run(options: Options) -> list[dict[str, Any]]:
    hf = plain_model(options)
    model = model_of(hf)
    lengths = ragged_lengths(options, 8 if options.tiny else 32, longest=60)
    prefix = 10 * round(sum(lengths) / len(lengths))
    (begin,) = texts(options, [prefix], hf.config.vocab_size, name=1)
    prompts = prompts_of(
        [f"{begin} {end}" for end in texts(options, lengths, hf.config.vocab_size)]
    )
    ids = sorted((list(item.ids) for item in model.tokenize(prompts)), key=len, reverse=True)
    batches = [padded(ids[k : k + BATCH]) for k in range(0, len(ids), BATCH)]

    @torch.no_grad()
    def bare() -> None:
        for tokens, mask in batches:
            hf.transformer(tokens, attention_mask=mask, use_cache=False)

    def shared() -> Tensor:
        return mm.cache_activations(model, prompts, sites="resid_post").values

    def whole() -> Tensor:
        return mm.cache_activations(model, prompts, sites="resid_post", share_prefixes=False).values

    timing = paired({"bare": bare, "shared": shared}, options.rounds)
    off = gap(shared(), whole())
    return [
        result(
            "shared beginning ten times the rest, times faster than the bare trunk",
            f"{options.shape}, {len(ids)} prompts of {prefix} shared and "
            f"{sum(lengths) / len(lengths):.0f} own tokens on average",
            timing.ratio("bare", "shared"),
            ">= 5",
            equality=f"states equal those without sharing to {off:.1e}",
            equal=off <= 1e-4,
            note=f"the bare trunk runs whole prompts in length-sorted batches of {BATCH}; "
            + timing.spread("bare", "shared"),
        )
    ]
