"""Results on disk: tensors as safetensors beside a JSON manifest, written whole or not at all."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mechmem.errors import ArtifactError

__all__ = [
    "check_writable",
    "json_text",
    "load_artifact",
    "save_artifact",
    "versions",
    "whole_file",
    "write_text",
]

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
    """Write ``path.safetensors`` and ``path.json``, both or neither.

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
    data, note = _files(path)
    held = {name: value.detach().contiguous() for name, value in tensors.items()}
    manifest = {"format": FORMAT, "kind": kind, "versions": versions(), **about}
    manifest["pair"] = pair = _pair(held, json_text(manifest, allow_nan=False))
    with whole_file(data) as partial:
        try:
            save_file(held, partial, metadata={"pair": pair})
        except SafetensorError as error:
            raise OSError(str(error)) from error
        partial.chmod(_usual_mode(data.parent))  # safetensors writes for the owner alone
        # Inside, so that the tensors move into place only once the manifest is on disk as well.
        write_text(note, json_text(manifest, indent=1, allow_nan=False) + "\n")
    return note


def load_artifact(path: str | Path, kind: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_artifact` wrote. Nothing is ever unpickled.

    Raises:
        ArtifactError: When a file is missing, cut off, or holds something else; a missing entry of
            either file raises when it is asked for.
    """
    data, note = _files(path)
    try:
        about = json.loads(note.read_text(encoding="utf-8"))
        with safe_open(data, framework="pt") as opened:
            pair = (opened.metadata() or {}).get("pair")
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    except FileNotFoundError as error:
        missing = note if not note.is_file() else data
        raise ArtifactError(
            f"{missing} is missing; an artifact is two files, {data.name} and {note.name}."
        ) from error
    except (OSError, ValueError, SafetensorError) as error:
        raise ArtifactError(
            f"{data} or {note.name} cannot be read, it may be cut off: {error}. Save it again. "
            "Nothing is ever unpickled."
        ) from error
    if not isinstance(about, dict):
        raise ArtifactError(
            f"{note} holds a {type(about).__name__}, not a manifest. Save it again."
        )
    if about.get("kind") != kind:
        raise ArtifactError(
            f"{note} holds {about.get('kind')!r}, not {kind!r}; load it as what it is."
        )
    if about.get("format") != FORMAT:
        raise ArtifactError(
            f"{note} has format {about.get('format')!r}; this mechmem reads format {FORMAT}. Make "
            "it again, or use the mechmem that wrote it."
        )
    if pair is not None and about.get("pair", pair) != pair:
        raise ArtifactError(f"{data} and {note} come from two different saves. Save it again.")
    return _Entries(tensors, data), _Entries(about, note)


class _Entries(dict[str, Any]):
    """A dictionary that says from which file an entry is missing."""

    def __init__(self, entries: Mapping[str, Any], home: Path) -> None:
        super().__init__(entries)
        self.home = home

    def __missing__(self, key: str) -> Any:
        raise ArtifactError(
            f"{self.home} has no {key!r}; it was changed or cut off. Save it again."
        )


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file whole or not at all.

    Raises:
        ArtifactError: When it cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A file to write beside ``path``, moved there at the end; gone after a failure.

    Raises:
        ArtifactError: When it cannot be written; what was there stays as it was.
    """
    target = Path(path)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_dir():
            raise IsADirectoryError("it is a folder")
        yield partial
        os.replace(partial, target)
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {target}: {error.strerror or error}. Choose a folder you can write to."
        ) from error
    except UnicodeEncodeError as error:
        raise ArtifactError(
            f"Cannot write {target}: {error.object[error.start]!r} is no character of UTF-8. "
            "Remove it from the text."
        ) from error
    finally:
        with suppress(OSError):
            partial.unlink()


def check_writable(folder: str | Path) -> None:
    """Find out before long work, and leave no trace.

    Raises:
        ArtifactError: When nothing can be written there.
    """
    target = Path(folder)
    made = [path for path in (target, *target.parents) if not path.exists()]
    probe = write_text(target / f".mechmem-{os.getpid()}", "")
    probe.unlink()
    for path in made:
        with suppress(OSError):  # somebody else has put something there meanwhile
            path.rmdir()


def json_text(value: Any, **options: Any) -> str:
    """JSON that UTF-8 can hold: escaped only where the text has lone surrogates."""
    text = json.dumps(value, ensure_ascii=False, **options)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, ensure_ascii=True, **options)
    return text


def _pair(tensors: Mapping[str, torch.Tensor], manifest: str, samples: int = 64) -> str:
    """Ties the two files of one save together; cheap at any size."""
    digest = hashlib.sha256(manifest.encode())
    for name, value in tensors.items():
        digest.update(f"{name}:{tuple(value.shape)}:{value.dtype}".encode())
        flat = value.reshape(-1)
        chosen = flat[:: max(1, flat.numel() // samples)][:samples]
        digest.update(repr(chosen.tolist()).encode())
    return digest.hexdigest()[:16]


def _usual_mode(folder: Path) -> int:
    """The permissions that a new file gets here."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        probe = Path(scratch) / "probe"
        probe.touch()
        return probe.stat().st_mode & 0o777


def _files(path: str | Path) -> tuple[Path, Path]:
    target = Path(path)
    stem = target.with_suffix("") if target.suffix in (".safetensors", ".json") else target
    return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")
