"""P1's whole grid: 2 topN x 3 alphas x 2 directions and controls, against P1's style of running it.

P1's style, written anew: for every cell the model is copied, every neuron's shift is an addition of
its own in a forward hook, and prompts are generated one by one. It is run on a part of the cells
and prompts and its time taken for the whole, which is said in the table. The third way is what a
careful user writes: one hook with one vector per layer, padded batches, all cells one by one.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

import mechmem as mm
from benchmarks.setting import (
    Options,
    clock,
    model_of,
    padded,
    plain_model,
    prompts_of,
    ragged_lengths,
    result,
    texts,
)
from mechmem.models.engine.many import many_generate
from mechmem.patching.apply import patched_each

TOPS, ALPHAS, WAYS = (0.05, 0.1), (1.0, 3.0, 5.0), ("generalized", "memorized")
NEW = 8


class Scene:
    """A model, prompts, the cells of the grid, and the ways to run them."""

    def __init__(self, options: Options) -> None:
        self.options, self.new = options, 3 if options.tiny else NEW
        self.hf = plain_model(options)
        self.model = model_of(self.hf)
        n = 4 if options.tiny else 24
        lengths = ragged_lengths(options, 3 * n)
        made = texts(options, lengths, self.hf.config.vocab_size)
        self.prompts, fitting = prompts_of(made[:n]), prompts_of(made[n:])
        self.fitting = mm.PromptSet(
            mm.Prompt(id=f"f{k}", text=p.text, group=f"f{p.group}", behavior=p.behavior)
            for k, p in enumerate(fitting)
        )
        scores = mm.neuron_mean_difference(mm.cache_activations(self.model, self.fitting))
        self.cells: list[mm.ShiftNeurons] = []
        for top in TOPS:
            for alpha in ALPHAS:
                for way in WAYS:
                    self.cells.append(mm.ShiftNeurons(scores, top=top, alpha=alpha, toward=way))
        self.grid = len(self.cells)
        # A control for every cell of the largest alpha: as many neurons, drawn at random.
        for cell in [cell for cell in self.cells if cell.alpha == max(ALPHAS)]:
            control = mm.controls(cell, self.model, seed=options.seed)["random neurons"]
            assert isinstance(control, mm.ShiftNeurons)
            self.cells.append(control)
        self.shifts = [
            {site.layer: value[0].float() for site, value in cell.shift(self.model).items()}
            for cell in self.cells
        ]
        self.ids = [list(item.ids) for item in self.model.tokenize(self.prompts)]
        self.end = self.hf.config.eos_token_id

    def mechmem(self) -> list[list[list[int]]]:
        """Ids of every cell and prompt, all cells side by side."""
        with patched_each(self.model, self.cells) as views:
            done = many_generate(
                self.model.backend,
                self.model.tokenize(self.prompts),
                [view.interventions for view in views],
                self.model.tokens.decode,
                max_new_tokens=self.new,
                eos_ids=[self.end],
                pad_id=self.model.tokens.pad_id,
                n_ctx=self.model.tokens.n_ctx,
            )
        return [[completion.ids for completion in cell] for cell in done]

    def p1(self, cell: int, prompts: list[int]) -> tuple[list[list[int]], float]:
        """One cell in P1's style: texts of some prompts, and the seconds that all would take."""
        start = clock()
        copied = copy.deepcopy(self.hf)
        single = {
            layer: [(int(i), float(value[i])) for i in value.nonzero()[:, 0]]
            for layer, value in self.shifts[cell].items()
        }

        def adder(pairs: list[tuple[int, float]]) -> Callable[[Tensor], None]:
            def add(states: Tensor) -> None:
                for index, value in pairs:
                    states[:, -1, index] += value

            return add

        with _hooked(copied, {layer: adder(pairs) for layer, pairs in single.items()}):
            begun = clock()
            done = [self._generate(copied, [self.ids[row]])[0] for row in prompts]
        each = (clock() - begun) / len(prompts)
        return done, begun - start + each * len(self.ids)

    def vectorized(self, cell: int, batch: int = 8) -> list[list[int]]:
        """One cell with one vector per layer, in padded batches."""

        def adder(value: Tensor) -> Callable[[Tensor], None]:
            def add(states: Tensor) -> None:
                states[:, -1] += value

            return add

        out = []
        shifts = self.shifts[cell]
        with _hooked(self.hf, {layer: adder(value) for layer, value in shifts.items()}):
            for start in range(0, len(self.ids), batch):
                out += self._generate(self.hf, self.ids[start : start + batch])
        return out

    @torch.no_grad()
    def _generate(self, hf: Any, rows: list[list[int]]) -> list[list[int]]:
        ids, mask = padded(rows)
        made = hf.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=self.new,
            do_sample=False,
            pad_token_id=self.end,
        )
        new = [row[ids.shape[1] :].tolist() for row in made]
        return [row[: row.index(self.end)] if self.end in row else row for row in new]


@contextmanager
def _hooked(hf: Any, adders: dict[int, Callable[[Tensor], None]]) -> Iterator[None]:
    def hook(add: Callable[[Tensor], None]) -> Callable[..., None]:
        def run(module: Any, args: Any, output: Any) -> None:
            add(output[0] if isinstance(output, tuple) else output)

        return run

    blocks = hf.transformer.h
    handles = [blocks[k].register_forward_hook(hook(add)) for k, add in adders.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(options: Options) -> list[dict[str, Any]]:
    scene = Scene(options)
    cells = len(scene.cells)
    start = clock()
    scene.mechmem()  # a warm-up
    warm = clock() - start
    some = list(range(0, cells, 5))[: 2 if options.tiny else 3]
    few = list(range(2))
    fast, vector, slow = [], [], []
    for _ in range(max(1, options.rounds // 2)):
        start = clock()
        ours = scene.mechmem()
        fast.append(clock() - start)
        start = clock()
        theirs = {cell: scene.vectorized(cell) for cell in some}
        vector.append((clock() - start) * cells / len(some))
        done = {cell: scene.p1(cell, few) for cell in some}
        single = {cell: made for cell, (made, _) in done.items()}
        slow.append(sum(seconds for _, seconds in done.values()) * cells / len(some))
    same = sum(
        ours[cell][row] == theirs[cell][row] for cell in some for row in range(len(scene.ids))
    )
    alike = sum(ours[cell][row] == single[cell][k] for cell in some for k, row in enumerate(few))
    total, parts = len(some) * len(scene.ids), len(some) * len(few)
    equal = same == total and alike == parts
    shape = (
        f"{options.shape}, {scene.grid} cells and {cells - scene.grid} controls, "
        f"{len(scene.ids)} ragged prompts, {scene.new} new tokens"
    )
    equality = f"{alike} of {parts} texts equal P1's style, {same} of {total} the vectorised one's"
    return [
        result(
            "P1's grid, times faster than P1's style",
            shape,
            statistics.median(a / b for a, b in zip(slow, fast, strict=True)),
            ">= 50",
            equality=equality,
            equal=equal,
            note=f"P1's style was run on {len(some)} cells x {len(few)} prompts and its seconds "
            f"taken for the whole: {statistics.median(slow):.0f} s against "
            f"{statistics.median(fast):.1f} s",
        ),
        result(
            "P1's grid, times faster than a vectorised shift in batches of 8",
            shape,
            statistics.median(a / b for a, b in zip(vector, fast, strict=True)),
            equality=equality,
            equal=equal,
            note=f"run on {len(some)} cells; first run of mechmem {warm:.1f} s",
        ),
    ]
