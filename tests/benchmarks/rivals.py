"""Runs in the rivals' environment, without mechmem: their ways to last-token states of all layers.

    python rivals.py FOLDER ROUNDS THREADS [RIVAL ...]

FOLDER holds a model, its tokenizer and texts.json; seconds.json and states.npz are written there.
Every rival is run at several batch sizes where it has one and there are several texts, and the
fastest counts.
"""

from __future__ import annotations

import gc
import importlib.metadata
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

FLOOR_BATCH = 16


clock = time.process_time if os.environ.get("MECHMEM_BENCH_CLOCK") == "cpu" else time.perf_counter


def floor(hf: Any, tokenizer: Any, texts: list[str]) -> Callable[[], None]:
    """The trunk alone on batches of 16 sorted by length and padded before; nothing is kept."""
    ids = sorted((tokenizer(text)["input_ids"] for text in texts), key=len, reverse=True)
    batches = [
        tokenizer.pad({"input_ids": ids[k : k + FLOOR_BATCH]}, return_tensors="pt")
        for k in range(0, len(ids), FLOOR_BATCH)
    ]

    @torch.no_grad()
    def run() -> None:
        for batch in batches:
            hf.base_model(
                batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
            )

    return run


def steering_vectors(hf: Any, tokenizer: Any, texts: list[str], batch: int) -> torch.Tensor:
    """Its recording of activations for pairs of texts."""
    from steering_vectors.train_steering_vector import extract_activations

    pairs = list(zip(texts[::2], texts[1::2], strict=True))
    first, second = extract_activations(hf, tokenizer, pairs, batch_size=batch)
    halves = [
        torch.stack(
            [
                torch.cat([part.reshape(-1, part.shape[-1]) for part in half[k]])
                for k in sorted(half)
            ],
            1,
        )
        for half in (first, second)
    ]
    return torch.stack(halves, dim=1).flatten(0, 1)


def nnsight(lm: Any, texts: list[str], batch: int) -> torch.Tensor:
    """Traces with the last token's output of every block saved."""
    out, blocks = [], lm.transformer.h if hasattr(lm, "transformer") else lm.model.layers
    for k in range(0, len(texts), batch):
        with torch.no_grad(), lm.trace(texts[k : k + batch]):
            saved = list().save()  # noqa: C408 (nnsight documents it so)
            for block in blocks:
                found = block.output
                saved.append((found[0] if isinstance(found, tuple) else found)[:, -1])
        out.append(torch.stack(list(saved), dim=1))
    return torch.cat(out)


def repeng(hf: Any, tokenizer: Any, texts: list[str], batch: int) -> torch.Tensor:
    """Its reading of hidden states."""
    from repeng.extract import batched_get_hiddens

    layers = list(range(hf.config.num_hidden_layers))
    found = batched_get_hiddens(hf, tokenizer, texts, layers, batch)
    return torch.stack([torch.as_tensor(found[layer]) for layer in layers], dim=1)


def interp_engine(engine: Any, hf: Any, tokenizer: Any, texts: list[str], batch: int) -> Any:
    """Captures of its eager backend; the whole prompt is kept until the last token is taken."""
    from interp_engine import capture

    layers, out = range(hf.config.num_hidden_layers), []
    for k in range(0, len(texts), batch):
        fed = tokenizer(texts[k : k + batch], padding=True, return_tensors="pt")
        found = capture(
            engine,
            fed["input_ids"],
            [f"resid_post.{layer}" for layer in layers],
            attention_mask=fed["attention_mask"],
        )
        out.append(torch.stack([found[f"resid_post.{layer}"][:, -1] for layer in layers], dim=1))
    return torch.cat(out)


def main(folder: Path, rounds: int, threads: int, asked: list[str]) -> None:
    torch.set_num_threads(threads)
    hf = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_file=str(folder / "tokenizer.json"),
        unk_token="w0",
        pad_token="w0",
        eos_token="<end>",
        padding_side="left",
        model_input_names=["input_ids", "attention_mask"],  # GPT-2 would embed token types
    )
    texts = json.loads((folder / "texts.json").read_text())
    bare = floor(hf, tokenizer, texts)
    layers = list(range(hf.config.num_hidden_layers))

    from interp_engine import load_model
    from nnsight import LanguageModel

    engine = load_model(str(folder), backend="eager", device="cpu", dtype="float32")
    lm = LanguageModel(AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer=tokenizer)
    ways: dict[str, tuple[Callable[[int], torch.Tensor], list[int], list[int]]] = {
        "steering-vectors": (
            lambda batch: steering_vectors(hf, tokenizer, texts, batch), [1, 4, 16], layers
        ),
        "nnsight": (lambda batch: nnsight(lm, texts, batch), [1, 16], layers),
        "interp-engine": (
            lambda batch: interp_engine(engine, hf, tokenizer, texts, batch), [1, 16], layers
        ),
        # The last block's state is behind the final norm there, so it is not compared.
        "repeng": (lambda batch: repeng(hf, tokenizer, texts, batch), [1, 16, 32], layers[:-1]),
    }  # fmt: skip
    done, states = {}, {}
    for name in asked or ways:
        run, sizes, own = ways[name]
        sizes = [size for size in sizes if size <= len(texts)]
        seconds: dict[int, list[float]] = {size: [] for size in sizes}
        base: list[float] = []
        bare()
        states[name] = run(sizes[0]).float().numpy()[:, own]
        for _ in range(rounds):
            for size in [0, *sizes]:
                gc.collect()
                start = clock()
                if size:
                    run(size)
                else:
                    bare()
                (seconds[size] if size else base).append(clock() - start)
        best = min(sizes, key=lambda size: statistics.median(seconds[size]))
        versions = [f"{pkg} {importlib.metadata.version(pkg)}" for pkg in (name, "transformers")]
        done[name] = {
            "seconds": seconds[best],
            "floor": base,
            "layers": own,
            "versions": ", ".join(versions),
            "setting": f"best of batch sizes {sizes}: {best}",
        }
    (folder / "seconds.json").write_text(json.dumps(done))
    np.savez(folder / "states.npz", **states)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
