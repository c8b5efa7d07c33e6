"""One reader of the JSON that mechmem wrote: its size, kinds and digest, and the entry at fault."""

from __future__ import annotations

import hashlib
import json
import math
import stat
from collections.abc import Iterable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from mechmem.errors import ArtifactError, listed

DIGEST = "digest"
LARGEST = 1 << 30
"""Bytes of the largest JSON file that is read."""


def regular(path: str | Path, largest: int | None = None) -> Path:
    """The path of a file that can be read without waiting for somebody else.

    Raises:
        ArtifactError: For a pipe, a device or a folder, and for a file that is too large.
        FileNotFoundError: When it is missing.
    """
    file = Path(path)
    found = file.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ArtifactError(
            f"{file} is not a file but a {_sort(found.st_mode)}; it is not read. Save it again as "
            "a file."
        )
    if largest is not None and found.st_size > largest:
        raise ArtifactError(
            f"{file} has {found.st_size:,} bytes, more than the {largest:,} that are read; it is "
            "not what its name says. Make it again."
        )
    return file


def read_json(path: str | Path, what: str = "JSON") -> Any:
    """The JSON of a file.

    Raises:
        ArtifactError: When it is missing, cut off, no file, too large, nested too deeply, or has a
            name twice in one object.
    """
    try:
        data = regular(path, LARGEST).read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read as {what}: {error.strerror or error}. Give the path of one "
            "that was saved."
        ) from error
    return parsed(data, path, what)


def parsed(data: bytes | str, path: str | Path, what: str = "JSON") -> Any:
    """The same from its text; ``path`` is what an error names."""
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        return json.loads(text, object_pairs_hook=once_each)
    except RecursionError:
        why = "it is nested too deeply"
    except (ValueError, MemoryError) as error:
        why = str(error) or "it is too large"
    raise ArtifactError(
        f"{path} cannot be read as {what}, it may be cut off: {why:.300}. Save it again."
    )


def json_text(value: Any, **options: Any) -> str:
    """JSON that UTF-8 can hold: escaped only where the text has lone surrogates."""
    text = json.dumps(value, ensure_ascii=False, **options)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, ensure_ascii=True, **options)
    return text


def sealed(entries: Mapping[str, Any], **options: Any) -> dict[str, Any]:
    """The same entries as they will be read back, and the digest of all of them."""
    body = json.loads(json_text(dict(entries), **options))
    body.pop(DIGEST, None)
    return {**body, DIGEST: content_digest(body)}


def content_digest(value: Any) -> str:
    """32 hexadecimal digits that change with anything in a JSON value but its layout."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def file_digest(path: Path) -> str:
    """32 hexadecimal digits of what a file holds; never waits for one that is a pipe.

    Raises:
        ArtifactError: When it is no file, or cannot be read.
    """
    mark = hashlib.sha256()
    try:
        with regular(path).open("rb") as file:
            while part := file.read(1 << 22):
                mark.update(part)
    except OSError as error:
        raise ArtifactError(
            f"{path} cannot be read: {error.strerror or error}. Make it again."
        ) from error
    return mark.hexdigest()[:32]


def check_digests(folder: Path, said: Mapping[str, str], way: str) -> None:
    """Refuse a folder of which a file is gone, or is not, byte by byte, the one that was written.

    Args:
        folder: Where the names are.
        said: Name to `file_digest`.
        way: The way out, for the message.

    Raises:
        ArtifactError: Naming the first such file.
    """
    for name, digest in said.items():
        file = folder / name
        if not file.exists():
            raise ArtifactError(f"{file} is missing. {way}")
        if file_digest(file) != digest:
            raise ArtifactError(f"{file} was changed after it was written. {way}")


def is_whole(entries: Mapping[str, Any]) -> bool:
    """Whether the entries are those that were sealed."""
    body = {name: value for name, value in entries.items() if name != DIGEST}
    try:
        return entries.get(DIGEST) == content_digest(body)
    except RecursionError:
        return False


def opened(entries: Any, path: str | Path, kind: str, version: int) -> Entries:
    """The entries of a sealed manifest, after all checks.

    Raises:
        ArtifactError: When it is of another kind or format, or was changed after it was written.
    """
    if not isinstance(entries, dict):
        raise ArtifactError(
            f"{path} holds a {type(entries).__name__}, not a manifest. Save it again."
        )
    if entries.get("kind") != kind:
        raise ArtifactError(
            f"{path} holds {entries.get('kind')!r:.80}, not {kind!r}; load it as what it is."
        )
    if entries.get("format") != version:
        raise ArtifactError(
            f"{path} has format {entries.get('format')!r:.80}; this mechmem reads format "
            f"{version}. Make it again, or use the mechmem that wrote it."
        )
    if not is_whole(entries):
        raise ArtifactError(
            f"{path} was changed after it was written: its entries do not give its digest. Save it "
            "again."
        )
    return Entries(entries, path)


class Entries(dict[str, Any]):
    """A dictionary that says from which file an entry is missing."""

    def __init__(self, entries: Mapping[str, Any], home: str | Path) -> None:
        super().__init__(entries)
        self.home = Path(home)

    def __missing__(self, key: str) -> Any:
        raise ArtifactError(
            f"{self.home} has no {key!r}; it was changed or cut off. Save it again."
        )


def checked(value: Any, shape: Any, home: str | Path, name: str = "") -> Any:
    """``value``, if it has the kinds that ``shape`` says.

    Args:
        shape: ``str``, ``bool``, ``int`` (no bool), ``float`` (any finite number), ``dict``,
            ``list``, ``None`` or ``Any``; a tuple of alternatives; ``[kind]`` for a list of any
            length, ``[one, other]`` for one of that length; ``{str: kind}`` for a mapping;
            ``{"entry": kind, "other?": kind}`` for entries that must, and that may, be there.
        home: The file, for the error.
        name: The entry, for the error.

    Raises:
        ArtifactError: Naming the entry, what it is and what it must be.
    """
    if isinstance(shape, tuple):
        if any(_fits(value, one) for one in shape):
            return value
        nested = [one for one in shape if isinstance(one, (list, dict)) and _fits(value, type(one))]
        if nested:  # it is meant to be this one: name the entry inside
            return checked(value, nested[0], home, name)
        _refuse(value, shape, home, name)
    elif isinstance(shape, list):
        if not isinstance(value, list) or (len(shape) > 1 and len(value) != len(shape)):
            _refuse(value, shape, home, name)
        kinds = shape * len(value) if len(shape) == 1 else shape
        for index, (item, kind) in enumerate(zip(value, kinds, strict=True)):
            if not _fits(item, kind):
                checked(item, kind, home, f"{name}[{index}]")
    elif isinstance(shape, dict):
        if not isinstance(value, dict):
            _refuse(value, shape, home, name)
        if str in shape:
            for key, item in value.items():
                checked(item, shape[str], home, f"{name}.{key}" if name else str(key))
            return value
        for entry, kind in shape.items():
            key = entry.removesuffix("?")
            inside = f"{name}.{key}" if name else key
            if key in value:
                checked(value[key], kind, home, inside)
            elif key == entry:
                Entries({}, home)[inside]
    elif not _fits(value, shape):
        _refuse(value, shape, home, name)
    return value


def shape_of(cls: Any) -> dict[str, Any]:
    """What `checked` expects of a dataclass whose fields are texts and numbers."""
    kinds = {"str": str, "int": int, "float": float, "bool": bool}
    return {
        item.name + ("" if item.default is MISSING else "?"): kinds.get(str(item.type), Any)
        for item in fields(cls)
    }


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, (tuple, list)) or (isinstance(shape, dict) and shape):
        try:
            checked(value, shape, "")
        except ArtifactError:
            return False
        return True
    if shape is Any:
        return True
    if shape is None:
        return value is None
    if shape in (int, float) and isinstance(value, bool):
        return False
    if shape is float:
        return isinstance(value, (int, float)) and _finite(value)
    return isinstance(value, shape)


def _finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # an integer beyond the range of floats
        return False


def _refuse(value: Any, shape: Any, home: str | Path, name: str) -> None:
    raise ArtifactError(
        f"{home}: {name or 'the whole'} must be {_said(shape)}, got {value!r:.80}. It was changed, "
        "or another program wrote it; save it again."
    )


def _said(shape: Any) -> str:
    if isinstance(shape, tuple):
        return " or ".join(_said(one) for one in shape)
    if isinstance(shape, list):
        inside = [_said(one) for one in shape]
        return f"a list ({', '.join(inside)})" if len(shape) > 1 else f"a list, each {inside[0]}"
    if isinstance(shape, dict):
        return "a mapping" if str in shape else f"an object with {listed(shape, 4)}"
    named: dict[Any, str] = {
        None: "null", str: "text", int: "a whole number", float: "a finite number",
        bool: "true or false", dict: "an object", list: "a list",
    }  # fmt: skip
    return named.get(shape, str(shape))


def once_each(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON text, for ``object_pairs_hook``; of two values one would be lost.

    Raises:
        ValueError: When a name occurs twice.
    """
    items = list(pairs)
    out = dict(items)
    if len(out) != len(items):
        names = [name for name, _ in items]
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"{listed(twice, 3)} occurs twice in one object")
    return out


def _sort(mode: int) -> str:
    for test, word in (
        (stat.S_ISDIR, "folder"), (stat.S_ISFIFO, "pipe"), (stat.S_ISSOCK, "socket"),
        (stat.S_ISCHR, "device"), (stat.S_ISBLK, "device"),
    ):  # fmt: skip
        if test(mode):
            return word
    return "special file"
