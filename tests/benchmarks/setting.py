"""What every benchmark stands on: the shapes, seeded models and prompts, and paired timing."""

from __future__ import annotations

import copy
import gc
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers import models as token_models
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import mechmem as mm

__all__ = [
    "Options",
    "Timing",
    "clock",
    "gap",
    "model_of",
    "padded",
    "paired",
    "plain_model",
    "prompts_of",
    "ragged_lengths",
    "result",
    "texts",
    "tokenizer_of",
]


@dataclass(frozen=True)
class Options:
    """How a benchmark is run.

    Attributes:
        tiny: A shape that runs in a second, to see that a benchmark works; its ratios mean nothing.
        rounds: Paired rounds; the median over rounds is reported.
        seed: Of weights and prompts.
        rivals: Run the rivals that need an environment of their own.
    """

    tiny: bool = False
    rounds: int = 5
    seed: int = 0
    rivals: bool = True

    @property
    def shape(self) -> str:
        return "tiny GPT-2" if self.tiny else "GPT-2 small (12 layers, d 768, vocabulary 50,257)"


def result(
    benchmark: str,
    shape: str,
    ratio: float,
    target: str = "",
    *,
    equality: str,
    note: str = "",
    equal: bool = True,
) -> dict[str, Any]:
    """One row of the table.

    Args:
        ratio: The measured number.
        target: Such as ``">= 1.9"`` or ``"<= 50 MB"``; empty for a number that is only shown.
        equality: Which results were compared in the same run, and how close they were.
        equal: Whether they were as close as they must be; a benchmark of wrong results fails.
    """
    holds = None
    if target:
        sign, limit = target.split()[:2]
        holds = equal and (ratio <= float(limit) if sign == "<=" else ratio >= float(limit))
    return {
        "benchmark": benchmark,
        "shape": shape,
        "ratio": float(ratio),
        "target": target,
        "holds": holds,
        "equal": equal,
        "equality": equality,
        "note": note,
    }


def clock() -> float:
    """Seconds: of the wall, or of this process on its processor (``--clock cpu``).

    With one thread and a free core both tell the same; where other work shares the cores, the
    processor's own seconds are what the work costs.
    """
    cpu = os.environ.get("MECHMEM_BENCH_CLOCK") == "cpu"
    return time.process_time() if cpu else time.perf_counter()


@dataclass(frozen=True)
class Timing:
    """Seconds of every function in every round."""

    seconds: Mapping[str, Sequence[float]]

    def ratio(self, slow: str, fast: str) -> float:
        """Median over rounds of the one's seconds over the other's in the same round."""
        pairs = zip(self.seconds[slow], self.seconds[fast], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name])

    def spread(self, slow: str, fast: str) -> str:
        """The smallest and the largest ratio."""
        ratios = [a / b for a, b in zip(self.seconds[slow], self.seconds[fast], strict=True)]
        return f"{min(ratios):.2f} to {max(ratios):.2f} over {len(ratios)} rounds"


def paired(functions: Mapping[str, Callable[[], object]], rounds: int) -> Timing:
    """Seconds of every function in every round, after one warm-up each.

    The order turns round by one every round, so that none always follows the same one.
    """
    names = list(functions)
    for name in names:
        functions[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for k in range(rounds):
        turn = k % len(names)
        for name in names[turn:] + names[:turn]:
            gc.collect()
            start = clock()
            functions[name]()
            seconds[name].append(clock() - start)
    return Timing(seconds)


def gap(got: Any, want: Any) -> float:
    """Largest difference, relative to the largest value that is expected."""
    got, want = (torch.as_tensor(value).double() for value in (got, want))
    return float((got - want).abs().max() / want.abs().max())


def plain_model(options: Options, n_positions: int = 1024) -> GPT2LMHeadModel:
    """A random GPT-2 as transformers makes it, with its own attention, in evaluation mode."""
    size: dict[str, Any] = {"n_positions": n_positions}
    if options.tiny:
        size |= {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 200}
    last = size.get("vocab_size", 50257) - 1
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        config = GPT2Config(bos_token_id=last, eos_token_id=last, pad_token_id=0, **size)
        return GPT2LMHeadModel(config).eval()


def tokenizer_of(hf: Any) -> PreTrainedTokenizerFast:
    """One token per word ``w0``, ``w1``, ...; nothing is added to a text."""
    last = hf.config.vocab_size - 1
    words = {f"w{k}": k for k in range(last)} | {"<end>": last}
    core = Tokenizer(token_models.WordLevel(words, unk_token="w0"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="w0",
        pad_token="w0",
        eos_token="<end>",
        padding_side="left",
    )


def model_of(hf: Any) -> mm.Model:
    """The same weights, as mechmem loads them."""
    return mm.load_model(copy.deepcopy(hf), tokenizer=tokenizer_of(hf))


def ragged_lengths(options: Options, n: int, longest: int = 110) -> list[int]:
    """Lengths like those of questions: 33 on average, few long ones."""
    if options.tiny:
        longest = min(longest, 12)
    drawn = np.random.default_rng(options.seed).lognormal(3.35, 0.55, n)
    return [
        int(length) for length in np.clip((drawn / (6 if options.tiny else 1)).round(), 3, longest)
    ]


def texts(options: Options, lengths: Sequence[int], vocabulary: int, name: int = 0) -> list[str]:
    """Random words of the given numbers of tokens."""
    rng = np.random.default_rng([options.seed, name])
    return [" ".join(f"w{k}" for k in rng.integers(1, vocabulary - 1, n)) for n in lengths]


def prompts_of(texts: Sequence[str]) -> mm.PromptSet:
    """Prompts in pairs, one of each behavior."""
    return mm.PromptSet(
        mm.Prompt(
            id=f"p{k}",
            text=text,
            group=f"g{k // 2}",
            behavior=("memorized", "generalized")[k % 2],
            memorized="w1",
            generalized="w2",
        )
        for k, text in enumerate(texts)
    )


def padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids padded on the left, and their mask."""
    width = max(len(row) for row in ids)
    out = torch.zeros(len(ids), width, dtype=torch.long)
    mask = torch.zeros_like(out)
    for k, row in enumerate(ids):
        out[k, width - len(row) :] = torch.tensor(list(row))
        mask[k, width - len(row) :] = 1
    return out, mask
