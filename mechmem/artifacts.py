"""Results on disk: tensors and their manifest in one file, written whole or not at all.

``path.safetensors`` holds everything: the manifest lies in it as a tensor of bytes, so that one
rename replaces both. ``path.json`` is a copy of the manifest to look at.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from mechmem.errors import ArtifactError, listed
from mechmem.manifests import (
    Entries,
    checked,
    content_digest,
    is_whole,
    opened,
    parsed,
    read_json,
    regular,
    sealed,
)
from mechmem.manifests import json_text as json_text
from mechmem.writing import check_writable as check_writable
from mechmem.writing import named_file
from mechmem.writing import whole_file as whole_file
from mechmem.writing import write_text as write_text

FORMAT = 2
MANIFEST = "mechmem/manifest"
"""Name of the tensor of bytes that holds the manifest."""

VECTORS, VECTORS_DIGEST = "mechmem vectors 2", "vectors_digest"
"""What exported vectors say of their layout, and where they hold their digest."""

UNKNOWN = "auc/"
"""How the names of tensors begin that say NaN where something was not counted."""

_PACKAGES = ("mechmem", "transformer-lens", "torch", "transformers", "numpy")
_TENSORS = {"dtype": str, "shape": [int], "digest": str}


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
    """Write ``path.safetensors``, in one step, and then its readable copy ``path.json``.

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
    text = manifest_text(kind, tensors, {"versions": versions(), **about})
    with whole_file(note) as partial:  # before the tensors move, so that a full disk is found out
        partial.write_text(text, encoding="utf-8")
        with whole_file(data) as whole:
            write_tensors(whole, tensors, text)
    return note


def manifest_text(kind: str, tensors: Mapping[str, torch.Tensor], about: Mapping[str, Any]) -> str:
    """A manifest as JSON, with the digest of every tensor and of itself.

    Raises:
        ArtifactError: For numbers that are not finite, and for what JSON cannot hold.
    """
    for name, value in tensors.items():
        _check_finite(value, name)
    entries = {"format": FORMAT, "kind": kind, **about}
    entries["tensors"] = {name: _described(value) for name, value in tensors.items()}
    try:
        return json_text(sealed(entries, allow_nan=False), indent=1) + "\n"
    except (TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(
            f"The settings of these {kind} cannot be written: {error}. Keep to text, finite "
            "numbers, lists and mappings."
        ) from error


def write_tensors(partial: Path, tensors: Mapping[str, torch.Tensor], text: str) -> None:
    """Write tensors and their manifest into a file of `whole_file`."""
    held, places = {}, set()
    for name, value in tensors.items():
        own = value.detach().contiguous()
        if (place := own.untyped_storage().data_ptr()) in places:
            own = own.clone()  # safetensors refuses two that share their memory
        held[name] = own
        places.add(place)
    held[MANIFEST] = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)
    partial.touch()
    mode = partial.stat().st_mode & 0o777
    save_file(held, partial)
    partial.chmod(mode)  # safetensors writes for the owner alone


def load_artifact(
    path: str | Path, kind: str, shape: Mapping[str, Any] | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `save_artifact` wrote, as copies in memory. Nothing is ever unpickled.

    Every tensor must be the one that was saved, bit by bit, and every entry of the manifest too;
    the readable copy may belong to another save (one that is being written), but must be whole.

    Args:
        shape: What the manifest must hold besides; see `mechmem.manifests.checked`.

    Raises:
        ArtifactError: When a file is missing, cut off, changed, or holds something else; a missing
            entry of either file raises when it is asked for.
    """
    data, note = _files(path)
    with open_tensors(data, kind) as held:
        checked(held.about, dict(shape or {}), data)
        tensors = {name: held.tensor(name).clone() for name in held.names}
        for name, value in tensors.items():
            held.verify(name, value)
    _check_copy(note, held)
    return _Tensors(tensors, data), held.about


def _opened(path: Path) -> Any:
    """The file as one save left it: safe_open reads its header, and torch then maps it by name."""
    for attempt in range(10):
        before = _identity(path)
        try:
            held = safe_open(str(path), framework="pt")
        except (RuntimeError, SafetensorError):
            if attempt == 9 or _identity(path) == before:
                raise
            continue
        if _identity(path) == before:
            return held
    raise OSError("it is written again and again")


def _identity(path: Path) -> tuple[int, ...]:
    found = regular(path).stat()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


class TensorFile:
    """An open file of tensors.

    Attributes:
        path: The file.
        about: Its manifest, checked.
    """

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path
        try:
            self._open = _opened(path)
            names = {str(name) for name in self._open.keys()}  # noqa: SIM118
            data = b""
            if MANIFEST in names:
                data = self._open.get_tensor(MANIFEST).numpy().tobytes()
        except FileNotFoundError as error:
            raise ArtifactError(
                f"{path} is missing; an artifact is two files, {path.name} and "
                f"{path.with_suffix('.json').name}, of which this one holds the numbers."
            ) from error
        except (OSError, TypeError, RuntimeError, SafetensorError) as error:
            raise ArtifactError(
                f"{path} cannot be read, it may be cut off: {error}. Save it again. Nothing is "
                "ever unpickled."
            ) from error
        if not data:
            raise ArtifactError(
                f"{path} has no manifest in it: mechmem did not write it, or an earlier one did. "
                "Make it again, or read it with mm.import_directions."
            )
        self.text = data
        self.about = opened(parsed(data, path, "a manifest"), path, kind, FORMAT)
        self._said = checked(self.about["tensors"], {str: _TENSORS}, path, "tensors")
        if names - {MANIFEST} != set(self._said):
            different = sorted(names.symmetric_difference({MANIFEST, *self._said}))
            raise ArtifactError(
                f"{path} was changed: {listed(different, 4)} is in the file or in its manifest, "
                "not in both. Save it again."
            )

    @property
    def names(self) -> list[str]:
        """Of the tensors, in the order in which they were saved."""
        return list(self._said)

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor, mapped from disk and not yet verified.

        Raises:
            ArtifactError: When there is none, or it has another dtype or shape than was saved.
        """
        if name not in self._said:
            _Tensors({}, self.path)[name]
        value: torch.Tensor = self._open.get_tensor(name)
        said = self._said[name]
        if str(value.dtype) != f"torch.{said['dtype']}" or list(value.shape) != said["shape"]:
            raise ArtifactError(
                f"{self.path} was changed: {name!r} is {value.dtype} {list(value.shape)}, and was "
                f"saved as {said['dtype']} {said['shape']}. Save it again."
            )
        return value

    def verify(self, name: str, value: torch.Tensor) -> None:
        """Refuse a tensor that is not, bit by bit, the one that was saved.

        Raises:
            ArtifactError: Naming it.
        """
        if _digest(value) != self._said[name]["digest"]:
            raise ArtifactError(
                f"{self.path} was changed: {name!r} is not what was saved. Make it again."
            )
        _check_finite(value, name, f"{self.path}: ")


def _check_finite(value: torch.Tensor, name: str, where: str = "") -> None:
    """No result of the library holds NaN or infinity, but areas that nobody counted."""
    if name.startswith(UNKNOWN):
        return
    if value.is_complex() or (value.is_floating_point() and not bool(value.isfinite().all())):
        what = "complex" if value.is_complex() else "not finite (NaN or infinity)"
        raise ArtifactError(
            f"{where}{name!r} is {what}; nothing that is made of it means anything. Make it again "
            "from finite states."
        )


@contextmanager
def open_tensors(path: str | Path, kind: str) -> Iterator[TensorFile]:
    """The tensors of a file, one at a time.

    Raises:
        ArtifactError: When it is missing, cut off or changed, or holds something else.
    """
    held = TensorFile(Path(path), kind)
    try:
        yield held
    finally:
        held._open = None


def _check_copy(note: Path, held: TensorFile) -> None:
    """Refuse a readable copy that says something its save did not."""
    try:
        same = regular(note).read_bytes() == held.text
    except FileNotFoundError:
        return  # the process was killed before it was written
    except OSError as error:
        raise ArtifactError(f"{note} cannot be read: {error.strerror or error}.") from error
    if not same:
        copy = read_json(note, "a manifest")
        if not isinstance(copy, dict) or not is_whole(copy):
            raise ArtifactError(
                f"{note} was changed{_where(copy, held.about)}. Save it again, or delete it: "
                f"{held.path.name} holds everything."
            )


def _where(copy: Any, about: Mapping[str, Any]) -> str:
    if not isinstance(copy, dict):
        return f": it holds a {type(copy).__name__}, not a manifest"
    differ = [name for name in {**about, **copy} if about.get(name) != copy.get(name)]
    return f" at {listed(differ, 4)}" if differ else ""


class _Tensors(Entries):
    """Tensors by name; says from which file one is missing."""


def vectors_digest(vectors: Mapping[str, torch.Tensor], about: Mapping[str, str]) -> str:
    """One digest of exported vectors, by name, and of the facts that go with them."""
    facts = {name: fact for name, fact in about.items() if fact and name != VECTORS_DIGEST}
    held = sorted((name, list(value.shape), _digest(value)) for name, value in vectors.items())
    return content_digest([facts, held])


def check_vectors(
    path: Path, vectors: Mapping[str, torch.Tensor], about: Mapping[str, str]
) -> None:
    """Refuse vectors of our own that are not, bit by bit, those that were exported.

    Raises:
        ArtifactError: When they, or the facts beside them, were changed.
    """
    ours = about.get("format") == VECTORS or VECTORS_DIGEST in about
    if ours and about.get(VECTORS_DIGEST) != vectors_digest(vectors, about):
        raise ArtifactError(f"{path} was changed after it was exported. Export it again.")


def _described(value: torch.Tensor) -> dict[str, Any]:
    plain = value.detach()
    return {
        "dtype": str(plain.dtype).removeprefix("torch."),
        "shape": list(plain.shape),
        "digest": _digest(plain),
    }


def _digest(value: torch.Tensor) -> str:
    """SHA-256 of the numbers' bytes, cut to 32 digits: faster than most disks."""
    flat = value.detach().cpu().contiguous().reshape(-1)
    raw: Any = flat.view(torch.uint8).numpy() if flat.numel() else b""
    return hashlib.sha256(raw).hexdigest()[:32]


def _files(path: str | Path) -> tuple[Path, Path]:
    target = named_file(path)
    stem = target.with_suffix("") if target.suffix in (".safetensors", ".json") else target
    return stem.with_name(stem.name + ".safetensors"), stem.with_name(stem.name + ".json")
