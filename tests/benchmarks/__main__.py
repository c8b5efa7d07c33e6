"""`python -m benchmarks [NAME ...]`: run benchmarks and write the table.

NAME is that of a module without ``bench_``; without any, all run. ``--tiny`` only sees that they
work; ``--no-rivals`` leaves out those that need an environment of their own.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import pkgutil
import sys
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import benchmarks
from benchmarks.setting import Options

__all__ = ["available", "main", "run_one"]


def available() -> list[str]:
    """Names of the benchmarks in this folder."""
    found = (module.name for module in pkgutil.iter_modules(benchmarks.__path__))
    return sorted(name.removeprefix("bench_") for name in found if name.startswith("bench_"))


def run_one(name: str, options: Options) -> list[dict[str, Any]]:
    """The rows of one benchmark."""
    run = importlib.import_module(f"benchmarks.bench_{name}").run
    rows: list[dict[str, Any]] = run(options) if inspect.signature(run).parameters else run()
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run, print, write; 1 when a target is missed."""
    import torch

    from benchmarks.environments import bench_folder
    from benchmarks.table import machine, markdown, save

    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(available()))
    parser.add_argument("--rounds", type=int, default=5, help="paired rounds; the median counts")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tiny", action="store_true", help="see that it works; ratios are moot")
    parser.add_argument("--no-rivals", action="store_true")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--clock", choices=["wall", "cpu"], default="wall",
        help="cpu: seconds of the processor, for machines that do other work as well",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, help="folder of the table; default .bench")
    chosen = parser.parse_args(arguments)
    unknown = set(chosen.names) - set(available())
    if unknown:
        parser.error(f"no benchmark {sorted(unknown)}; there are {', '.join(available())}")
    torch.set_num_threads(chosen.threads)
    os.environ["MECHMEM_BENCH_CLOCK"] = chosen.clock
    options = Options(chosen.tiny, chosen.rounds, chosen.seed, not chosen.no_rivals)
    out = chosen.out or bench_folder()
    about, rows = machine(chosen.threads, chosen.clock), []
    for name in chosen.names or available():
        start = time.perf_counter()
        new = run_one(name, options)
        rows += new
        print(markdown(new), flush=True)
        print(f"({name}: {time.perf_counter() - start:.0f} s)\n", file=sys.stderr, flush=True)
        save(out, about, rows)  # after each: a long run that ends early leaves its rows
    print(f"Written to {out}/results.md and results.json.")
    missed = [row["benchmark"] for row in rows if row["holds"] is False]
    if missed and not chosen.tiny:
        print("Missed: " + "; ".join(missed))
    return int(bool(missed) and not chosen.tiny)


if __name__ == "__main__":
    sys.exit(main())
