"""Peak memory of streaming moments: 1,000 prompts against 100,000 on a lab model."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.setting import Options, result

SIZES = (1_000, 100_000)
TINY = (64, 640)
LAB = "lab/addition-cued"


def run(options: Options) -> list[dict[str, Any]]:
    few, many = (_measured(n, options.seed) for n in (TINY if options.tiny else SIZES))
    counts = f"{few['prompts']:,} and {many['prompts']:,} prompts"
    equal = few["counted"] == few["prompts"] and many["counted"] == many["prompts"]
    return [
        result(
            "peak resident memory, MB more for a hundred times the prompts",
            f"{LAB}, moments of resid_post at all layers, {counts} from a generator",
            many["mb"] - few["mb"],
            "<= 50 MB",
            equality=f"every prompt is counted once: {equal}",
            equal=equal,
            note=f"{few['mb']:.0f} and {many['mb']:.0f} MB, each in a process of its own; "
            f"{many['prompts'] / many['seconds']:,.0f} prompts/s",
        )
    ]


def _measured(n: int, seed: int) -> dict[str, Any]:
    """Run in a process of its own, because a peak never comes down again."""
    code = f"from benchmarks.bench_memory import stream; stream({n}, {seed})"
    done = subprocess.run(
        [sys.executable, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
    )
    measured: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return measured


def stream(n: int, seed: int) -> None:
    """Moments of ``n`` prompts; prints what it took."""
    import time

    import torch

    import mechmem as mm

    torch.set_num_threads(1)
    model = mm.load_model(LAB)
    known = [prompt.text for prompt in mm.get_task("addition-cued").pairs(n=200, seed=seed)]

    def prompts() -> Iterator[mm.Prompt]:
        for k in range(n):
            behavior = ("memorized", "generalized")[k % 2]
            yield mm.Prompt(id=str(k), text=known[k % len(known)], behavior=behavior)

    start = time.perf_counter()
    moments = mm.cache_moments(model, prompts(), by="behavior")
    seconds = time.perf_counter() - start
    print(
        json.dumps(
            {
                "prompts": n,
                "counted": sum(moments.counts.values()),
                "mb": _peak(),
                "seconds": seconds,
            }
        )
    )


def _peak() -> float:
    """Peak resident memory of this process, in MB."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage tells on Linux holds the parent's memory from before exec
        (line,) = (row for row in status.read_text().splitlines() if row.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
