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
from dataclasses import dataclass
from typing import Any

import numpy as np
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
    result,
    texts,
)
from mechmem.tasks.base import PromptAnswers

TOPS, ALPHAS, WAYS = (0.05, 0.1), (1.0, 3.0, 5.0), ("generalized", "memorized")
CONTROLS = ("permuted", "random neurons", "uniform noise")


@dataclass(frozen=True)
class Shape:
    """What is asked.

    Attributes:
        prompts: How many.
        shortest, longest: Their tokens.
        new: Tokens of an answer.
        draws: Of every control of every cell; 0 leaves controls out.
    """

    prompts: int
    shortest: int
    longest: int
    new: int
    draws: int


WORDS = Shape(48, 60, 160, 1, 3)
"""Answers of one word, as in P1's colors, every cell with its controls."""
TEXTS = Shape(24, 10, 56, 8, 0)
"""Short prompts and longer answers: nothing but batches to be gained."""
TINY = Shape(4, 3, 8, 2, 1)


class Scene:
    """A model, prompts, the cells of the grid, and the ways to run them."""

    def __init__(self, options: Options, shape: Shape) -> None:
        self.options, self.shape = options, shape
        self.hf = plain_model(options)
        self.model = model_of(self.hf)
        rng = np.random.default_rng(options.seed)
        n = shape.prompts
        lengths = rng.integers(shape.shortest, shape.longest + 1, 3 * n).tolist()
        made = texts(options, lengths, self.hf.config.vocab_size)
        self.prompts, fitting = prompts_of(made[:n]), prompts_of(made[n:])
        self.fitting = mm.PromptSet(
            mm.Prompt(id=f"f{k}", text=p.text, group=f"f{p.group}", behavior=p.behavior)
            for k, p in enumerate(fitting)
        )
        self.task = PromptAnswers.for_prompts(self.prompts)
        self.task.max_new_tokens = shape.new
        scores = mm.neuron_mean_difference(mm.cache_activations(self.model, self.fitting))
        self.cells = [
            mm.ShiftNeurons(scores, top=top, alpha=alpha, toward=way)
            for top in TOPS
            for alpha in ALPHAS
            for way in WAYS
        ]
        self.grid = len(self.cells)
        for cell in self.cells[: self.grid]:
            for draw in range(shape.draws):
                made_for = mm.controls(cell, self.model, seed=options.seed + draw)
                for name in CONTROLS:
                    control = made_for[name]
                    assert isinstance(control, mm.ShiftNeurons)
                    self.cells.append(control)
        self.shifts = [
            {site.layer: value[0].float() for site, value in cell.shift(self.model).items()}
            for cell in self.cells
        ]
        self.ids = [list(item.ids) for item in self.model.tokenize(self.prompts)]
        self.end = self.hf.config.eos_token_id

    def mechmem(self) -> list[tuple[str, ...]]:
        """Texts of every cell and prompt, all cells side by side."""
        rates = mm.evaluate_each(
            self.model, self.prompts, self.cells, task=self.task, margins=False
        )
        return [rate.after.completions for rate in rates]

    def p1(self, cell: int, prompts: list[int]) -> tuple[list[str], float]:
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

    def vectorized(self, cell: int, batch: int = 8) -> list[str]:
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
    def _generate(self, hf: Any, rows: list[list[int]]) -> list[str]:
        ids, mask = padded(rows)
        made = hf.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=self.shape.new,
            do_sample=False,
            pad_token_id=self.end,
        )
        new = [row[ids.shape[1] :].tolist() for row in made]
        new = [row[: row.index(self.end)] if self.end in row else row for row in new]
        return [self.model.tokens.decode(row) for row in new]


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
    """One row against P1's style for answers of a word, which has a target, and one for texts."""
    if options.tiny:
        return _compare(options, TINY, "")
    return [*_compare(options, WORDS, ">= 50"), *_compare(options, TEXTS, "")]


def _compare(options: Options, shape: Shape, target: str) -> list[dict[str, Any]]:
    scene = Scene(options, shape)
    cells = len(scene.cells)
    some = list(range(0, cells, cells // 3))[: 2 if options.tiny else 3]
    lengths = [len(row) for row in scene.ids]
    usual = sum(lengths) / len(lengths)
    few = sorted(range(len(lengths)), key=lambda k: (abs(lengths[k] - usual), k))[:2]
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
    called = (
        f"{options.shape}, {scene.grid} cells and {cells - scene.grid} controls, "
        f"{shape.prompts} prompts of {shape.shortest} to {shape.longest} tokens, "
        f"{shape.new} new token{'s' if shape.new > 1 else ''}"
    )
    equality = f"{alike} of {parts} texts equal P1's style, {same} of {total} the vectorized one's"
    return [
        result(
            "P1's grid, times faster than P1's style",
            called,
            statistics.median(a / b for a, b in zip(slow, fast, strict=True)),
            target,
            equality=equality,
            equal=equal,
            note=f"P1's style was run on {len(some)} cells x {len(few)} prompts of usual length, "
            f"its seconds taken for the whole: {statistics.median(slow):.0f} s against "
            f"{statistics.median(fast):.1f} s",
        ),
        result(
            "P1's grid, times faster than a vectorized shift in batches of 8",
            called,
            statistics.median(a / b for a, b in zip(vector, fast, strict=True)),
            equality=equality,
            equal=equal,
            note=f"run on {len(some)} cells",
        ),
    ]
