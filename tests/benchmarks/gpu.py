"""Optional: extraction and a sweep on one GPU, with random weights of Llama-3-8B's shape in bf16.

    PYTHONPATH=tests python -m benchmarks.gpu            # about 20 GB of GPU memory
    PYTHONPATH=tests python -m benchmarks.gpu --tiny     # a tiny shape on any device

Tokens per second against the bare forward pass on the same length-sorted batches, and against what
the device's matrix multiplication and memory allow, both measured in the same run.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

import mechmem as mm
from benchmarks.setting import Options, padded, prompts_of, ragged_lengths, texts, tokenizer_of
from mechmem.evaluation.many_edits import evaluate_each

__all__ = ["main", "measure"]

LLAMA = {
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "rope_theta": 500000.0,
    "max_position_embeddings": 8192,
}
TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 200,
}
ALPHAS = (-4.0, -2.0, -1.0, 0.5, 1.0, 2.0, 4.0)


def measure(options: Options, device: str, dtype: torch.dtype) -> list[dict[str, Any]]:
    """Rows: what, tokens per second, and its share of each limit."""
    with torch.device(device), torch.random.fork_rng(devices=[]):
        torch.manual_seed(options.seed)
        config = LlamaConfig(**(TINY if options.tiny else LLAMA), pad_token_id=0)
        hf = LlamaForCausalLM._from_config(config, dtype=dtype).eval()
    lengths = ragged_lengths(options, 16 if options.tiny else 512, longest=400)
    made = texts(options, lengths, config.vocab_size)
    prompts = prompts_of(made)
    tokenizer = tokenizer_of(hf)
    ids = sorted(tokenizer(made)["input_ids"], key=len, reverse=True)
    batches = [[t.to(device) for t in padded(ids[k : k + 64])] for k in range(0, len(ids), 64)]
    weights = sum(p.numel() for p in hf.model.layers.parameters())

    @torch.no_grad()
    def bare() -> None:
        for tokens, mask in batches:
            hf.model(tokens, attention_mask=mask, use_cache=False)

    tokens = sum(lengths)
    rows = [_row("bare forward, trunk only", tokens, _seconds(bare, device, options.rounds))]
    model = mm.load_model(hf, tokenizer=tokenizer, consume=True)

    def extract() -> None:
        mm.cache_activations(model, prompts, sites="resid_post", token_budget=16384)

    rows.append(_row("mechmem extraction", tokens, _seconds(extract, device, options.rounds)))
    fit = prompts_of(texts(options, [12] * 8, config.vocab_size, name=2))
    fit = mm.PromptSet(
        mm.Prompt(id=f"f{p.id}", text=p.text, group=f"f{p.group}", behavior=p.behavior) for p in fit
    )
    ways = mm.difference_of_means(mm.cache_activations(model, fit), toward="generalized")
    cells = [
        mm.AddDirection(way, alpha=alpha, positions="last") for way in ways for alpha in ALPHAS
    ]
    some = prompts[: 8 if options.tiny else 64]
    counted = sum(len(item.ids) for item in model.tokenize(some)) * (len(cells) + 1)

    def sweep() -> None:
        evaluate_each(model, some, cells)

    name = f"sweep of {len(cells)} cells at the last position, tokens that cells amount to"
    rows.append(_row(name, counted, _seconds(sweep, device, 1)))
    # 2 operations per weight and token, against a product of large matrices; a pass reads all.
    speed, bandwidth = _limits(device, dtype, 256 if options.tiny else 8192)
    for row in rows:
        row["share of matmul limit"] = row["tokens/s"] * 2 * weights / speed
        row["tokens/s over the bare forward's"] = row["tokens/s"] / rows[0]["tokens/s"]
    size = torch.finfo(dtype).bits / 8
    rows.append({"what": "reading all weights once", "seconds": weights * size / bandwidth})
    return rows


def _row(what: str, tokens: int, seconds: float) -> dict[str, Any]:
    return {"what": what, "tokens": tokens, "seconds": seconds, "tokens/s": tokens / seconds}


def _seconds(run: Callable[[], object], device: str, rounds: int) -> float:
    run()
    taken = []
    for _ in range(rounds):
        _wait(device)
        start = time.perf_counter()
        run()
        _wait(device)
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def _limits(device: str, dtype: torch.dtype, size: int) -> tuple[float, float]:
    """Operations per second of a matrix product, bytes per second of reading and writing."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    seconds = _seconds(lambda: a @ b, device, 10)
    out = torch.empty_like(a)
    copying = _seconds(lambda: out.copy_(a), device, 10)
    return 2 * size**3 / seconds, 2 * a.numel() * a.element_size() / copying


def _wait(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(arguments)
    if not chosen.tiny and not torch.cuda.is_available():
        print("There is no GPU here; --tiny runs a tiny shape on the CPU.", file=sys.stderr)
        return 1
    device = "cuda" if torch.cuda.is_available() else "cpu"
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, bfloat16")
    for row in measure(Options(chosen.tiny, chosen.rounds), device, torch.bfloat16):
        print(", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{v}" for k, v in row.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
