"""First weights for `colors`: a skeleton of the circuit that three hops need.

Models of this size that started from random weights learned to name *some* color of the context
and stayed there. This start lays out subspaces of the residual stream: block 0 writes the words
one and two places back to every token, block 1 reads the target's role to the last token, block 2
the names with that role, block 3 the color of such a name. Everything is trained afterwards; that
the circuit exists, and where, is our doing.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from mechmem.seeding import keyed_rng

WIDTH, HEADS, LAYERS = 128, 4, 4
CODE, CLASSES = 20, 4
IDENTITY = slice(0, CODE)
CLASS = slice(CODE, CODE + CLASSES)
PLACE = slice(24, 40)
TWO_BACK = slice(40, 60)
ONE_BACK = slice(64, 84)
ROLE = slice(88, 108)
CLUE = slice(108, 128)
PERIODS = (3.0, 4.3, 6.1, 8.9, 13.0, 19.0, 32.0, 64.0)
SHARPNESS = {"place": 3.0, "name": 4.0, "role": 4.0, "clue": 8.0}


def lay_out(model: Any, words: Sequence[Sequence[int]], seed: int) -> None:
    """Write the skeleton into a fresh GPT-2 of 4 layers, width 128, 4 heads.

    Args:
        model: Changed in place; what the skeleton leaves out keeps its random weights.
        words: Token ids of the names, the roles, and the colors.
        seed: Draws the words' codes.
    """
    rng = keyed_rng(seed, "colors", "start")
    body = model.transformer
    with torch.no_grad():
        body.wte.weight.copy_(_tensor(_codes(rng, words, body.wte.weight.shape)))
        body.wpe.weight.copy_(_tensor(_places(body.wpe.weight.shape)))
        first, role, clue, color = (block.attn for block in body.h)
        turns = [_turned(2), _turned(1)]
        for head, (turn, target) in enumerate(zip(turns, (TWO_BACK, ONE_BACK), strict=True)):
            sharp = SHARPNESS["place"]
            _head(first, head, PLACE, PLACE, IDENTITY, target, sharp, 1.0, turn)
        _head(role, 0, ONE_BACK, TWO_BACK, IDENTITY, ROLE, SHARPNESS["name"], 1.0)
        _head(clue, 0, ROLE, IDENTITY, TWO_BACK, CLUE, SHARPNESS["role"], 1.0)
        _head(color, 0, CLUE, TWO_BACK, IDENTITY, IDENTITY, SHARPNESS["clue"], 5.0)
        _only_colors(color)


def _codes(rng: np.random.Generator, words: Sequence[Sequence[int]], shape: Any) -> np.ndarray:
    """A unit code and a class for every word; codes of one class are as different as can be."""
    table = np.zeros(tuple(shape))
    table[:, IDENTITY] = _unit(rng.standard_normal((shape[0], CODE)))
    for kind, ids in enumerate(words):
        spread = rng.standard_normal((len(ids), CODE))
        for _ in range(200):  # push codes of one class apart
            near = spread @ spread.T
            np.fill_diagonal(near, 0.0)
            spread = _unit(spread - 0.1 * (near**3) @ spread * 4 - 0.02 * near @ spread)
        table[list(ids), IDENTITY] = spread
        table[list(ids), CODE + kind] = 0.7
    return table


def _places(shape: Any) -> np.ndarray:
    table = np.zeros(tuple(shape))
    at = np.arange(shape[0])[:, None] * 2 * np.pi / np.array(PERIODS)[None]
    table[:, PLACE] = np.concatenate([np.cos(at), np.sin(at)], axis=1) / np.sqrt(len(PERIODS))
    return table


def _turned(back: int) -> np.ndarray:
    """The code of place ``t`` to that of place ``t - back``."""
    angle, n = 2 * np.pi * back / np.array(PERIODS), len(PERIODS)
    turn = np.zeros((2 * n, 2 * n))
    for k in range(n):
        cos, sin = np.cos(angle[k]), np.sin(angle[k])
        turn[k, k], turn[n + k, k], turn[k, n + k], turn[n + k, n + k] = cos, sin, -sin, cos
    return turn


def _head(
    attention: Any,
    head: int,
    ask: slice,
    answer: slice,
    read: slice,
    write: slice,
    sharpness: float,
    strength: float,
    turn: np.ndarray | None = None,
) -> None:
    """A head that looks where ``answer`` equals this token's ``ask``, and copies ``read`` there."""
    width, wide = attention.c_proj.weight.shape[0], WIDTH // HEADS
    size = ask.stop - ask.start
    here = slice(head * wide, head * wide + size)
    weight, out = attention.c_attn.weight, attention.c_proj.weight
    for part in range(3):
        weight[:, part * width + head * wide : part * width + (head + 1) * wide] = 0
    out[head * wide : (head + 1) * wide] = 0
    query = np.eye(size) if turn is None else turn
    weight[ask, here] = _tensor(sharpness * query)
    weight[answer, width + here.start : width + here.stop] = _tensor(np.eye(size))
    copied = read.stop - read.start
    values = slice(2 * width + head * wide, 2 * width + head * wide + copied)
    weight[read, values] = _tensor(np.eye(copied))
    # What a layer norm makes of a part of unit length is about a sixth of its width.
    out[head * wide : head * wide + copied, write] = _tensor(np.eye(copied) * strength / 6)


def _only_colors(attention: Any) -> None:
    """The last head prefers words that are colors."""
    width = attention.c_proj.weight.shape[0]
    attention.c_attn.bias[CODE] = 8.0
    attention.c_attn.weight[CLASS.start + 2, width + CODE] = 2.0


def _unit(rows: np.ndarray) -> np.ndarray:
    out: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return out


def _tensor(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32)
