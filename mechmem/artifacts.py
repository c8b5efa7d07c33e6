"""Results on disk: tensors as safetensors beside a JSON manifest, written whole or not at all."""

from __future__ import annotations

import importlib.metadata
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from mechmem.errors import ArtifactError

__all__ = ["load_artifact", "save_artifact", "versions", "write_text"]

FORMAT = 1
_PACKAGES = ("mechmem", "transformer-lens", "torch", "transformers", "numpy")


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def save_artifact(
    path: str | Path, kind: str, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]
) -> Path:
    """Write ``path.safetensors`` and ``path.json``.

    Args:
        path: Path without a suffix (``.safetensors`` or ``.json`` is dropped).
        kind: What it is; `load_artifact` checks it.
        tensors: Stored as they are, made contiguous.
        about: Everything else, JSON-ready.

    Returns:
        The path of the JSON manifest.

    Raises:
        ArtifactError: When the folder cannot be written. Files that were there stay as they were.
    """
    stem = _stem(path)
    manifest = {"format": FORMAT, "kind": kind, "versions": versions(), **about}
    partial = stem.with_name(f".{stem.name}.partial-{os.getpid()}")
    try:
        stem.parent.mkdir(parents=True, exist_ok=True)
        save_file({name: value.detach().contiguous() for name, value in tensors.items()}, partial)
        partial.chmod(_usual_mode(stem.parent))  # safetensors writes for the owner alone
        os.replace(partial, stem.with_name(stem.name + ".safetensors"))
    except (OSError, SafetensorError) as error:
        partial.unlink(missing_ok=True) if stem.parent.is_dir() else None
        raise ArtifactError(
            f"Cannot write {stem}.safetensors: {error}. Choose a folder you can write to."
        ) from error
    text = json.dumps(manifest, indent=1, ensure_ascii=False, allow_nan=False)
    return write_text(stem.with_name(stem.name + ".json"), text + "\n")


def load_artifact(path: str | Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_artifact` wrote. Nothing is ever unpickled.

    Raises:
        ArtifactError: When a file is missing, cut off, or holds something else.
    """
    stem = _stem(path)
    data, note = stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")
    try:
        about = json.loads(note.read_text(encoding="utf-8"))
        tensors = load_file(data)
    except FileNotFoundError as error:
        raise ArtifactError(
            f"{error.filename} is missing; an artifact is two files, {data.name} and {note.name}."
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(f"{stem} cannot be read, it may be cut off: {error}") from error
    if about.get("kind") != kind:
        raise ArtifactError(f"{note} holds {about.get('kind')!r}, not {kind!r}.")
    if about.get("format") != FORMAT:
        raise ArtifactError(
            f"{note} has format {about.get('format')!r}; this mechmem reads format {FORMAT}."
        )
    return tensors, about


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file whole or not at all.

    Raises:
        ArtifactError: When it cannot be written.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, target)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {target}: {error.strerror or error}. Choose a folder you can write to."
        ) from error
    finally:
        if target.parent.is_dir():
            partial.unlink(missing_ok=True)
    return target


def _usual_mode(folder: Path) -> int:
    """The permissions that a new file gets here."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        probe = Path(scratch) / "probe"
        probe.touch()
        return probe.stat().st_mode & 0o777


def _stem(path: str | Path) -> Path:
    target = Path(path)
    return target.with_suffix("") if target.suffix in (".safetensors", ".json") else target
