"""Steered greedy text against plain `hf.generate`: two edits at every layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mechmem as mm
from benchmarks.setting import (
    Options,
    model_of,
    padded,
    paired,
    plain_model,
    prompts_of,
    ragged_lengths,
    result,
    texts,
)

ROWS = 8


def run(options: Options) -> list[dict[str, Any]]:
    hf = plain_model(options)
    model, new = model_of(hf), 4 if options.tiny else 48
    lengths = ragged_lengths(options, 3 * ROWS)
    made = texts(options, lengths, hf.config.vocab_size)
    prompts, others = prompts_of(made[:ROWS]), prompts_of(made[ROWS:])
    acts = mm.cache_activations(model, others, sites="resid_post")
    scores = mm.neuron_mean_difference(acts)
    ways = mm.difference_of_means(acts, toward="generalized")
    shift = mm.ShiftNeurons(scores, top=0.05, alpha=1.0)
    adds = [mm.AddDirection(ways["resid_post", k], alpha=0.5) for k in range(model.n_layers)]
    ids, mask = padded([list(item.ids) for item in model.tokenize(prompts)])
    end = hf.config.eos_token_id

    @torch.no_grad()
    def plain() -> Tensor:
        return hf.generate(
            ids, attention_mask=mask, max_new_tokens=new, do_sample=False, pad_token_id=end
        )[:, ids.shape[1] :]

    def unedited() -> list[list[int]]:
        return [done.ids for done in model.complete(prompts, new)]

    def steered() -> list[list[int]]:
        with mm.patched(model, [shift, *adds]) as view:
            return [done.ids for done in view.complete(prompts, new)]

    timing = paired({"plain": plain, "unedited": unedited, "steered": steered}, options.rounds)
    wanted = [_until(row.tolist(), end) for row in plain()]
    found, found_steered = unedited(), steered()
    by_hand = [
        _by_hand(hf, row, new, end, _vectors(shift, adds, model))
        for row in (
            [list(item.ids) for item in model.tokenize(prompts)][: 8 if options.tiny else 2]
        )
    ]
    equal = found == wanted and found_steered[: len(by_hand)] == by_hand
    changed = sum(a != b for a, b in zip(found, found_steered, strict=True))
    rate = sum(map(len, wanted))
    shape = f"{options.shape}, batch {ROWS}, {new} new tokens, prompts of {min(lengths[:ROWS])} to "
    shape += f"{max(lengths[:ROWS])} tokens"
    equality = (
        f"unedited token for token {'equal' if found == wanted else 'UNEQUAL'} to hf.generate; "
        f"{len(by_hand)} steered texts {'equal' if equal else 'UNEQUAL'} to plain hooks without "
        f"a cache; steering changed {changed} of {ROWS}"
    )
    note = f"hf.generate {rate / timing.median('plain'):.0f} tokens/s"
    return [
        result(
            "steered generation, tokens/s over hf.generate's",
            f"{shape}, ShiftNeurons and AddDirection at every layer",
            timing.ratio("plain", "steered"),
            ">= 0.9",
            equality=equality,
            equal=equal,
            note=f"{note}; {timing.spread('plain', 'steered')}",
        ),
        result(
            "generation without edits, tokens/s over hf.generate's",
            shape,
            timing.ratio("plain", "unedited"),
            equality="as above",
            equal=equal,
            note=timing.spread("plain", "unedited"),
        ),
    ]


def _vectors(
    shift: mm.ShiftNeurons, adds: list[mm.AddDirection], model: mm.Model
) -> dict[int, tuple[Tensor, Tensor]]:
    """By layer: what is added to every token, and what to the last prompt token and later ones."""
    later = {site.layer: value[0] for site, value in shift.shift(model).items()}
    return {
        k: ((add.direction.vector * add.alpha).float(), later.get(k, torch.zeros(1)).float())
        for k, add in enumerate(adds)
    }


@torch.no_grad()
def _by_hand(
    hf: Any, ids: list[int], new: int, end: int, vectors: dict[int, tuple[Tensor, Tensor]]
) -> list[int]:
    """Greedy text with PyTorch's own hooks, the whole text run anew for every token."""
    start = len(ids) - 1

    def adder(everywhere: Tensor, later: Tensor) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            states = (output[0] if isinstance(output, tuple) else output) + everywhere
            states[:, start:] += later
            return (states, *output[1:]) if isinstance(output, tuple) else states

        return hook

    blocks = hf.transformer.h
    handles = [blocks[k].register_forward_hook(adder(*pair)) for k, pair in vectors.items()]
    text = list(ids)
    try:
        for _ in range(new):
            text.append(int(hf(torch.tensor([text]), use_cache=False).logits[0, -1].argmax()))
    finally:
        for handle in handles:
            handle.remove()
    return _until(text[len(ids) :], end)


def _until(ids: list[int], end: int) -> list[int]:
    return ids[: ids.index(end)] if end in ids else ids
