"""Last-token states of all layers: against the bare trunk, a cache loop, P2's style, and rivals."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

import mechmem as mm
from benchmarks.environments import Rivals
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


class Scene:
    """One model, one list of prompts, and everybody's way to the same states."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.hf = plain_model(options)
        self.model = model_of(self.hf)
        lengths = ragged_lengths(options, 8 if options.tiny else 48)
        self.texts = texts(options, lengths, self.hf.config.vocab_size)
        self.prompts = prompts_of(self.texts)
        self.ids = [list(item.ids) for item in self.model.tokenize(self.prompts)]
        self.lengths = lengths
        self.sorted = [
            padded([self.ids[row] for row in rows])
            for rows in _batches(sorted(range(len(lengths)), key=lambda row: -lengths[row]), BATCH)
        ]

    @property
    def shape(self) -> str:
        n, longest = len(self.lengths), max(self.lengths)
        mean = sum(self.lengths) / n
        return (
            f"{self.options.shape}, {n} prompts of {mean:.0f} tokens on average, at most {longest}"
        )

    @torch.no_grad()
    def floor(self) -> None:
        """The trunk alone, on batches of 16 sorted by length and padded before; nothing is kept."""
        for ids, mask in self.sorted:
            self.hf.transformer(ids, attention_mask=mask, use_cache=False)

    def mechmem(self) -> Tensor:
        """What a user calls, from texts to `Activations`."""
        acts = mm.cache_activations(self.model, self.prompts, sites="resid_post")
        return acts.values

    @torch.no_grad()
    def run_with_cache(self) -> Tensor:
        """TransformerLens's own loop: batches as they come, with a filter on what is kept."""
        out = []
        for rows in _batches(range(len(self.ids)), BATCH):
            ids, mask = padded([self.ids[row] for row in rows])
            _, cache = self.model.tl.run_with_cache(
                ids, attention_mask=mask, names_filter=lambda name: name.endswith("hook_resid_post")
            )
            layers = range(self.model.n_layers)
            last = [cache[f"blocks.{k}.hook_resid_post"][:, -1].clone() for k in layers]
            out.append(torch.stack(last, dim=1))
        return torch.cat(out)

    @torch.no_grad()
    def p2(self, batch: int) -> Tensor:
        """P2's style: hidden states of every layer asked of transformers, logits computed too, and
        summed up in float64 for the last token."""
        out = []
        for rows in _batches(range(len(self.ids)), batch):
            ids, mask = padded([self.ids[row] for row in rows])
            found = self.hf(ids, attention_mask=mask, output_hidden_states=True)
            states = [layer[:, -1].double() for layer in found.hidden_states[:-1]]
            out.append(torch.stack(states, dim=1))
        return torch.cat(out)


def run(options: Options) -> list[dict[str, Any]]:
    scene = Scene(options)
    ours = scene.mechmem()
    ways = {
        "floor": scene.floor,
        "mechmem": scene.mechmem,
        "run_with_cache": scene.run_with_cache,
        "p2 batch 1": lambda: scene.p2(1),
        "p2 batch 16": lambda: scene.p2(BATCH),
    }
    timing = paired(ways, options.rounds)
    off = gap(scene.run_with_cache(), ours)
    rows = [
        result(
            "last-token states of all layers, seconds over the bare trunk's",
            scene.shape,
            timing.ratio("mechmem", "floor"),
            "<= 1.05",
            equality=f"states equal run_with_cache to {off:.1e}",
            equal=off <= 1e-4,
            note=f"{timing.median('mechmem'):.2f} s; {timing.spread('mechmem', 'floor')}",
        ),
        result(
            "times faster than a run_with_cache loop",
            scene.shape,
            timing.ratio("run_with_cache", "mechmem"),
            ">= 1.9",
            equality=f"states equal to {off:.1e}",
            equal=off <= 1e-4,
            note="TransformerLens, batches of 16 in the order given, resid_post kept",
        ),
    ]
    # hidden_states[k] enters block k, so it is what block k - 1 wrote.
    off = gap(scene.p2(1)[:, 1:], ours[:, :-1])
    best = min(("p2 batch 1", "p2 batch 16"), key=timing.median)
    rows.append(
        result(
            "times faster than P2's style of loop",
            scene.shape,
            timing.ratio(best, "mechmem"),
            ">= 1.9",
            equality=f"states equal to {off:.1e}",
            equal=off <= 1e-4,
            note=f"transformers with output_hidden_states; its better batch size, {best[3:]}",
        )
    )
    return rows + (_rivals(scene, ours, timing.ratio("mechmem", "floor")) if options.rivals else [])


def _rivals(scene: Scene, ours: Tensor, own_ratio: float) -> list[dict[str, Any]]:
    """Each measured against the floor in its own environment, in the same rounds."""
    rows = []
    for name, found in Rivals.measure(scene.hf, scene.texts, scene.options.rounds).items():
        off = gap(found.states, ours[:, found.layers])
        rows.append(
            result(
                f"times faster than {name}",
                scene.shape,
                found.ratio / own_ratio,
                ">= 1.9",
                equality=f"states equal to {off:.1e}",
                equal=off <= 1e-3,
                note=(
                    f"{found.ratio:.2f} times the bare trunk in its own environment "
                    f"({found.versions}), {found.setting}"
                ),
            )
        )
    return rows


def _batches(rows: Any, size: int) -> list[list[int]]:
    rows = list(rows)
    return [rows[k : k + size] for k in range(0, len(rows), size)]
