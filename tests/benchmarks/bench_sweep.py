"""A grid of edits with one-token answers: against the loop that a user writes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
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
from mechmem.evaluation.many_edits import evaluate_each
from mechmem.models.engine.grid import many_logits
from mechmem.patching.apply import patched_each
from mechmem.tasks.base import PromptAnswers

ALPHAS = (0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
BATCH = 16
PROMPTS = 48
ROUNDS = 3


class Scene:
    """One model, a direction per layer, a grid of layers and alphas, 48 ragged prompts, of which
    edits at all positions, which cost more, take the first 16."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.hf = plain_model(options)
        self.model = model_of(self.hf)
        lengths = ragged_lengths(options, PROMPTS)
        vocabulary = self.hf.config.vocab_size
        self.lengths = lengths
        self.prompts = prompts_of(texts(options, lengths, vocabulary))
        self.ids = [list(item.ids) for item in self.model.tokenize(self.prompts)]
        others = mm.PromptSet(
            replace(prompt, id=f"other {prompt.id}", group=f"other {prompt.group}")
            for prompt in prompts_of(texts(options, [8] * 8, vocabulary, name=1))
        )
        acts = mm.cache_activations(self.model, others, sites="resid_post")
        self.directions = mm.difference_of_means(acts, toward="generalized")
        self.task = PromptAnswers("behavior")
        self.task.max_new_tokens = 1
        layers = self.model.n_layers
        self.grid = [(layer, alpha) for layer in range(layers) for alpha in ALPHAS]
        self.sample = [self.grid[k] for k in range(3, len(self.grid), max(7, 7 * layers // 4))]

    def count(self, positions: str) -> int:
        """How many prompts are asked."""
        return BATCH if positions == "all" else PROMPTS

    def shape(self, positions: str) -> str:
        """What the table says of the size."""
        lengths = self.lengths[: self.count(positions)]
        mean = sum(lengths) / len(lengths)
        return (
            f"{self.options.shape}, {self.model.n_layers} layers x {len(ALPHAS)} alphas, "
            f"{len(lengths)} prompts of {mean:.0f} tokens on average, at most "
            f"{max(lengths)}"
        )

    def edits(self, positions: str) -> list[mm.AddDirection]:
        return [
            mm.AddDirection(self.directions["resid_post", layer], alpha=alpha, positions=positions)
            for layer, alpha in self.grid
        ]

    def mechmem(self, positions: str) -> list[tuple[str, ...]]:
        """What a user calls: the answers of every cell."""
        rates = evaluate_each(
            self.model, self.prompts[: self.count(positions)], self.edits(positions),
            task=self.task, margins=False,
        )  # fmt: skip
        return [each.after.completions for each in rates]

    def loop(self, positions: str) -> Tensor:
        """Some of the cells as a user writes them: a hook on the block, one forward pass per cell
        and batch in the order given, all logits. A pass costs the same in every cell."""
        out = []
        for layer, alpha in self.sample:
            vector = (self.directions["resid_post", layer].vector * alpha).float()
            parts = []
            for first in range(0, self.count(positions), BATCH):
                ids, mask = padded(self.ids[first : first + BATCH])
                with torch.no_grad(), _added(self.hf.transformer.h[layer], vector, positions):
                    positions_of = (mask.cumsum(-1) - 1).clamp_min(0)
                    logits = self.hf(ids, attention_mask=mask, position_ids=positions_of).logits
                parts.append(logits[:, -1])
            out.append(torch.cat(parts))
        return torch.stack(out)

    def reused(self, positions: str) -> Tensor:
        """The logits of the same cells, run side by side."""
        chosen = [
            mm.AddDirection(self.directions["resid_post", layer], alpha=alpha, positions=positions)
            for layer, alpha in self.sample
        ]
        with patched_each(self.model, chosen) as views:
            cells = [view.interventions for view in views]
            asked = self.prompts[: self.count(positions)]
            return many_logits(self.model.backend, self.model.tokenize(asked), cells)


@contextmanager
def _added(block: Any, vector: Tensor, positions: str) -> Iterator[None]:
    def add(module: Any, args: Any, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        if positions == "all":
            states = states + vector
        else:
            states = torch.cat([states[:, :-1], states[:, -1:] + vector], dim=1)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    handle = block.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def run(options: Options | None = None) -> list[dict[str, Any]]:
    """Two rows: edits at all positions, and at the last one."""
    options = options or Options()
    scene = Scene(options)
    functions = {
        f"{who} {positions}": lambda who=who, positions=positions: getattr(scene, who)(positions)
        for positions in ("all", "last")
        for who in ("mechmem", "loop")
    }
    timing = paired(functions, min(options.rounds, ROUNDS))
    more = len(scene.grid) / len(scene.sample)
    rows = []
    for positions, target in (("all", ">= 4"), ("last", ">= 30")):
        own, got = scene.loop(positions), scene.reused(positions)
        spread = own.amax(-1) - own.amin(-1)
        off = float(((got - own).abs().amax(-1) / spread).max())
        answers = scene.mechmem(positions)
        told = [answers[scene.grid.index(cell)] for cell in scene.sample]
        heard = [
            tuple(scene.model.tokens.decode([token]) for token in row.argmax(-1).tolist())
            for row in own
        ]
        same = sum(
            a == b for x, y in zip(told, heard, strict=True) for a, b in zip(x, y, strict=True)
        )
        total = sum(len(row) for row in heard)
        ours, loop = f"mechmem {positions}", f"loop {positions}"
        rows.append(
            result(
                f"a grid of edits at {positions} positions, times faster than a user's loop"
                if positions == "all"
                else "a grid of edits at the last position, times faster than a user's loop",
                scene.shape(positions),
                timing.ratio(loop, ours) * more,
                target,
                equality=(
                    f"logits equal to {off:.1e} of their spread; {same} of {total} answers equal"
                ),
                equal=off <= 1e-4 and same == total,
                note=(
                    f"all {len(scene.grid)} cells in {timing.median(ours):.1f} s; the loop timed "
                    f"on {len(scene.sample)} of them and multiplied"
                ),
            )
        )
    return rows


if __name__ == "__main__":
    for row in run():
        print(row)
