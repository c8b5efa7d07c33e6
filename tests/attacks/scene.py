"""What is attacked: everything that mechmem saves, and how it is read back whole."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers import bench, contrast_set, ragged
from small_study import small_study
from sweeps.test_sweep import swept
from transformers import GPT2Config

import mechmem as mm
from mechmem.manifests import file_digest
from mechmem.reports.saved import load_study
from mechmem.sweeps.store import CellStore
from mechmem.tasks.judging import judge_questions
from mechmem.tasks.questions.labels import Labels

SHARDS: Any = {"sites": ["resid_post"], "token_budget": 40, "shard_rows": 5}

Read = Callable[[Path], Any]


def states() -> mm.Activations:
    return mm.cache_activations(bench().model, contrast_set(), sites=["resid_post", "mlp_post"])


def save_directions(folder: Path) -> None:
    mm.difference_of_means(states(), toward="generalized").save(folder / "it")


def save_scores(folder: Path) -> None:
    mm.neuron_mean_difference(states()).save(folder / "it")


def save_states(folder: Path) -> None:
    states().save(folder / "it")


def save_moments(folder: Path) -> None:
    options: Any = {"by": "behavior", "sites": ["resid_post"]}
    mm.cache_moments(bench().model, contrast_set(), **options).save(folder / "it")


def save_labels(folder: Path) -> None:
    names = [f"q{k}" for k in range(9)]
    Labels("me", dict.fromkeys(names, 0.5), dict.fromkeys(names, "0f" * 8), {}).save(
        folder / "it.jsonl"
    )


def save_store(folder: Path) -> None:
    mm.extract_activations(bench().model, ragged(23), folder, **SHARDS)


def save_sweep(folder: Path) -> None:
    swept(folder=folder)


def save_study(folder: Path) -> None:
    small_study().save(folder)


def save_replies(folder: Path) -> None:
    read_replies(folder)


def read_replies(folder: Path) -> Labels:
    asked = mm.PromptSet(mm.Prompt(id=f"q{k}", text=f"Why {k}?") for k in range(5))
    return judge_questions(asked, lambda text: text[-4:-2], name="me", cache=folder / "r.jsonl")


def save_training(folder: Path) -> None:
    read_training(folder)


def read_training(folder: Path) -> list[Any]:
    """Trained where that has not been done, else read; the weights count by their digest."""
    task = mm.get_task("cipher", length=6)
    options: Any = {"steps": 2, "batch": 2, "samples": 4, "evaluate_every": 1, "save_every": 1}
    few: Any = {"evaluation_pairs": 2, "validation_items": 2, "device": "cpu", "keep": "last"}
    config = GPT2Config(n_positions=160, n_embd=8, n_layer=1, n_head=1, vocab_size=200)
    done = mm.train(task, folder, model=config, tokenizer="characters", **options, **few)
    return [done.kept, done.curves.to_csv(), file_digest(done.folder / "model.safetensors")]


def read_study(folder: Path) -> dict[str, Any]:
    study = load_study(folder)
    tables = {name: table.to_csv() for name, table in study.tables().items()}
    figures = {name: figure.to_json() for name, figure in study.figures().items()}
    fitted: list[Any] = []
    for name in study.artifacts:
        file = study.artifact(name)
        if file.suffix == ".jsonl":
            fitted.append(mm.PromptSet.from_jsonl(file))
        elif file.suffix == ".safetensors":
            kind: Any = mm.Directions if file.stem == "directions" else mm.NeuronScores
            fitted.append(kind.load(file.with_suffix("")))
    about = {"manifest": json.dumps(study.manifest), "tables": tables, "figures": figures}
    return {**about, "fitted": fitted}


def read_store(folder: Path) -> mm.Activations:
    return mm.ActivationStore(folder).load()


def read_sweep(folder: Path) -> list[Any]:
    found = swept(folder=folder)  # first: what was stopped before its plan was written goes on
    return [CellStore(folder).plans(), found]


SAVED: dict[str, tuple[Callable[[Path], None], Read]] = {
    "directions": (save_directions, lambda folder: mm.Directions.load(folder / "it")),
    "neuron scores": (save_scores, lambda folder: mm.NeuronScores.load(folder / "it")),
    "states": (save_states, lambda folder: mm.Activations.load(folder / "it")),
    "moments": (save_moments, lambda folder: mm.Moments.load(folder / "it")),
    "labels": (save_labels, lambda folder: Labels.load(folder / "it.jsonl")),
    "a store": (save_store, read_store),
    "replies": (save_replies, read_replies),
    "a training": (save_training, read_training),
    "a study": (save_study, read_study),
    "a sweep": (save_sweep, read_sweep),
}
"""How each is made in an empty folder, and read."""


def content(value: Any) -> str:
    """A digest of all that a result says: numbers to the bit."""
    mark = hashlib.sha256()
    _add(value, mark)
    return mark.hexdigest()


def _add(value: Any, mark: Any) -> None:
    if isinstance(value, torch.Tensor):
        mark.update(value.contiguous().view(torch.uint8).numpy().tobytes())
    elif isinstance(value, mm.Directions):
        _add(list(value), mark)
    elif isinstance(value, mm.PromptSet):
        _add(value.to_records(), mark)
    elif isinstance(value, np.ndarray):
        mark.update(value.tobytes())
    elif hasattr(value, "cells") and hasattr(value, "test_table"):
        _add([value.table().to_csv(), value.test_table().to_csv()], mark)
    elif is_dataclass(value):
        _add([getattr(value, field.name) for field in fields(value)], mark)
    elif isinstance(value, Mapping):
        _add([[str(key), item] for key, item in value.items()], mark)
    elif isinstance(value, (set, frozenset)):
        _add(sorted(map(str, value)), mark)
    elif isinstance(value, (list, tuple)):
        for item in value:
            _add(item, mark)
    else:
        mark.update(repr(value).encode())
