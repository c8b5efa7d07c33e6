"""`training.json`: which run a folder holds, and which files of it are the run's."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mechmem.digests import Digests
from mechmem.errors import ArtifactError, TaskError, listed
from mechmem.manifests import check_digests, checked, file_digest, is_whole, read_json, sealed
from mechmem.writing import inside, write_text, written_to

AGAIN = "Train again with resume=False."

_WEIGHTS = ("*.safetensors", "*.bin", "*.gguf")
_SHAPE = {
    "task": str,
    "settings": dict,
    "files?": [str],
    "digests?": {str: str},
    "kept?": {str: float},
    "rows?": int,
    "versions?": {str: str},
}


def source_of(model: Any, tokenizer: Any) -> dict[str, Any]:
    """What a run starts from: the model's name or configuration, and hashes of the weights of a
    model in memory or in a folder and of a tokenizer."""
    weights: str | dict[str, str] | None = None
    if isinstance(model, torch.nn.Module):
        weights = Digests().of(model.state_dict())
    elif isinstance(model, (str, Path)) and Path(model).is_dir():
        files = (file for kind in _WEIGHTS for file in Path(model).glob(kind))
        weights = {file.name: file_digest(file) for file in sorted(files)}
    return {"model": _model_name(model), "weights": weights, "tokenizer": _tokenizer(tokenizer)}


def same_run(path: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """The record of a finished run of the same kind; an unfinished one is gone on with.

    Raises:
        ArtifactError: When the record is of another run, or cannot be read.
    """
    if not path.exists():
        return None
    there: dict[str, Any] = checked(read_json(path, "the record of a run"), _SHAPE, path)
    if not is_whole(there):
        raise ArtifactError(f"{path} was changed after it was written. {AGAIN}")
    different = [
        name for name, value in json.loads(json.dumps(record)).items() if there.get(name) != value
    ]
    if different:
        raise ArtifactError(
            f"{path.parent} holds a training run with another {listed(different)}. Choose another "
            "folder, or start over there with resume=False."
        )
    if "kept" not in there:
        return None
    checked(there, {"kept": {"step": float}, "digests": dict}, path)
    check_digests(path.parent, there["digests"], AGAIN)
    return there


def write_record(
    path: Path, record: dict[str, Any], digests: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Write a record with its digest, and those of the files that a finished run must keep."""
    whole = sealed(record if digests is None else {**record, "digests": digests})
    write_text(path, json.dumps(whole, indent=1) + "\n")
    return whole


def refuse_links(work: Path) -> None:
    """Refuse a work folder that is a link, or holds one: what lies behind it is not the run's, and
    would be written over or removed.

    Raises:
        ArtifactError: Naming the link.
    """
    for path in (work, *(sorted(work.iterdir()) if work.is_dir() else ())):
        if path.is_symlink():
            raise ArtifactError(f"{path} is a link, which no run makes. Remove it.")


def earlier_files(path: Path) -> list[str]:
    """Files beside a record that the runs so far have written, as far as it can be read."""
    try:
        named = checked(read_json(path), {"files": [str]}, path)["files"]
    except ArtifactError:
        return []
    return [name for name in named if inside(path.parent, name) is not None]


def put_in_place(made: Path, folder: Path, files: list[str], earlier: list[str]) -> None:
    """Move files into the folder, and remove those of an earlier run that are not among them.

    Raises:
        ArtifactError: When the folder cannot be written.
    """
    with written_to(folder):
        for name in files:
            if inside(folder, name) is None:
                raise OSError(f"{name} leads out of the folder by a link")
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            os.replace(made / name, folder / name)
        for name in set(earlier) - set(files):
            (folder / name).unlink(missing_ok=True)
            for parent in (folder / name).parents:
                if parent == folder or not parent.is_dir() or any(parent.iterdir()):
                    break
                parent.rmdir()


def _model_name(model: Any) -> str:
    if isinstance(model, (str, Path)):
        return str(model)
    config = model if hasattr(model, "to_json_string") else getattr(model, "config", None)
    return str(config.to_json_string()) if config is not None else repr(model)


def _tokenizer(tokenizer: Any) -> str | None:
    """How to cut texts as it was given; of a tokenizer a hash of all that it does to a text."""
    if tokenizer is None or isinstance(tokenizer, (str, Path)):
        return None if tokenizer is None else str(tokenizer)
    if not hasattr(tokenizer, "get_vocab"):
        raise TaskError(
            f"tokenizer must be a transformers tokenizer or how to cut texts, got "
            f"{tokenizer!r:.80}; for example tokenizer='characters'."
        )
    core = getattr(tokenizer, "backend_tokenizer", None)
    about = json.loads(core.to_str()) if core is not None else tokenizer.get_vocab()
    if core is not None:  # what the last call asked for, and no part of the tokenizer
        about = {name: about[name] for name in about if name not in ("padding", "truncation")}
    about = [
        type(tokenizer).__qualname__,
        about,
        {name: str(value) for name, value in tokenizer.special_tokens_map.items()},
        tokenizer.model_max_length,
    ]
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:24]
