"""Two processes on two cores against one: the same extraction, ranks as torchrun would set them."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import mechmem as mm
from benchmarks.setting import (
    Options,
    gap,
    plain_model,
    prompts_of,
    ragged_lengths,
    result,
    texts,
    tokenizer_of,
)


def run(options: Options) -> list[dict[str, Any]]:
    n = 16 if options.tiny else 192
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        hf = plain_model(options)
        hf.save_pretrained(home / "model")
        tokenizer_of(hf).save_pretrained(home / "model")
        prompts = prompts_of(texts(options, ragged_lengths(options, n), hf.config.vocab_size))
        prompts.to_jsonl(home / "prompts.jsonl")
        ratios = []
        for k in range(options.rounds):
            seconds = {
                world: _together(home, home / f"{world}-{k}", world, n // 8)
                for world in ((1, 2) if k % 2 else (2, 1))
            }
            ratios.append(seconds[1] / seconds[2])
        one, two = (mm.merge_moments(home / f"{world}-0") for world in (1, 2))
    off = max(
        gap(two.classes[name][site].mean, one.classes[name][site].mean)
        for name in one.classes
        for site in one.sites
    )
    return [
        result(
            "two processes on two cores, times faster than one",
            f"{options.shape}, moments of resid_post, {n} ragged prompts",
            statistics.median(ratios),
            ">= 1.7",
            equality=f"merged means equal to {off:.1e}",
            equal=off <= 1e-12,
            note=f"from all models loaded to the last one done; {min(ratios):.2f} to "
            f"{max(ratios):.2f} over {len(ratios)} rounds; needs two idle cores, the load average "
            f"was {os.getloadavg()[0]:.1f}",
        )
    ]


def _together(home: Path, out: Path, world: int, shard: int) -> float:
    """Seconds from the moment that every process has its model until the last one is done."""
    code = (
        f"from benchmarks.bench_processes import work; work({str(home)!r}, {str(out)!r}, {shard})"
    )
    shared = {**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    running = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**shared, "RANK": str(rank), "WORLD_SIZE": str(world)},
        )
        for rank in range(world)
    ]
    try:
        for process in running:
            assert process.stdout is not None
            if process.stdout.readline().strip() != "ready":
                raise RuntimeError("a process did not get ready")
        for process in running:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        told = [process.communicate()[0] for process in running]
    finally:
        for process in running:
            process.kill()
            process.wait()
    return max(float(text) for text in told)


def work(home: str, out: str, shard: int) -> None:
    """One process: load, say so, wait for the word, extract its share, say how long it took."""
    import time

    import torch

    torch.set_num_threads(1)
    model = mm.load_model(str(Path(home) / "model"))
    prompts = mm.PromptSet.from_jsonl(Path(home) / "prompts.jsonl")
    mm.cache_activations(model, prompts[:2])  # a warm-up, and the check of the sites
    print("ready", flush=True)
    sys.stdin.readline()
    start = time.perf_counter()
    mm.extract_moments(model, prompts, out, by="behavior", shard_rows=shard)
    print(time.perf_counter() - start, flush=True)
