"""Rivals that need another transformers: an environment of their own, made when first needed.

It lies in `.bench/` beside the Makefile, which ignores itself. The same weights and texts go there
as files; `rivals.py` runs there, measures its own floor in the same rounds, and sends back states.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.setting import tokenizer_of

__all__ = ["HERE", "ROOT", "Found", "Rivals", "bench_folder"]

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
PINS = HERE / "rivals.txt"


@dataclass(frozen=True)
class Found:
    """What a rival did.

    Attributes:
        ratio: Its seconds over the bare trunk's in the same environment, median over rounds, at its
            best batch size.
        states: ``[prompt, layer, d]`` for the layers it gives.
        layers: Which layers of `resid_post` those are.
        versions, setting: Said in the table.
    """

    ratio: float
    states: Tensor
    layers: list[int]
    versions: str
    setting: str


def bench_folder() -> Path:
    """Where environments and results lie; git does not see it."""
    folder = Path(os.environ.get("MECHMEM_BENCH", ROOT / ".bench"))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".gitignore").write_text("*\n")
    return folder


class Rivals:
    """The rivals' environment."""

    @staticmethod
    def python() -> Path:
        """Its interpreter; the environment is made if it is missing or its pins have changed."""
        home = bench_folder() / "rivals"
        python = home / "bin" / "python"
        stamp = home / "installed.txt"
        if stamp.exists() and stamp.read_text() == PINS.read_text():
            return python
        home.mkdir(parents=True, exist_ok=True)
        print(f"Making the rivals' environment in {home}; this downloads PyTorch.", file=sys.stderr)
        venv.EnvBuilder(with_pip=True, clear=True).create(home)
        pip = [python, "-m", "pip", "--disable-pip-version-check", "install", "--quiet"]
        subprocess.run([*pip, "-r", PINS], check=True)
        stamp.write_text(PINS.read_text())
        return python

    @classmethod
    def measure(
        cls, hf: Any, texts: list[str], rounds: int, names: Sequence[str] = ()
    ) -> dict[str, Found]:
        """Every rival, or those of these names, on the same weights and texts."""
        python = cls.python()
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            hf.save_pretrained(folder)
            tokenizer_of(hf).save_pretrained(folder)
            (folder / "texts.json").write_text(json.dumps(texts))
            subprocess.run(
                [python, HERE / "rivals.py", folder, str(rounds), str(torch.get_num_threads()),
                 *names],
                check=True,
                env={**os.environ, "PYTHONPATH": "", "HF_HUB_OFFLINE": "1"},
            )  # fmt: skip
            done = json.loads((folder / "seconds.json").read_text())
            arrays = np.load(folder / "states.npz")
            return {
                key: Found(
                    statistics.median(
                        a / b for a, b in zip(one["seconds"], one["floor"], strict=True)
                    ),
                    torch.from_numpy(arrays[key]),
                    one["layers"],
                    one["versions"],
                    one["setting"],
                )
                for key, one in done.items()
            }
