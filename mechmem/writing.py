"""Files written whole or not at all, whoever else writes there and whenever one is killed."""

from __future__ import annotations

import csv
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from mechmem.errors import ArtifactError

if TYPE_CHECKING:
    import pandas as pd

STALE = 86_400.0
"""Seconds after which a partial file of another machine counts as left behind."""


_TORCH_WRITING = ("PytorchStreamWriter", "inline_container", "iostream error")
"""What `torch.save` says of a disk that is full, in errors without a class of their own."""


def write_text(path: str | Path, text: str) -> Path:
    """Write a text file whole or not at all.

    Raises:
        ArtifactError: When it cannot be written.
    """
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8")
    return Path(path)


def csv_text(table: pd.DataFrame) -> str:
    """A table as CSV. pandas leaves a lone carriage return bare, and reads it as the row's end."""
    text = table.to_csv(index=False)
    return text if "\r" not in text else table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC)


def named_file(path: str | Path) -> Path:
    """A path that ends in a name.

    Raises:
        ArtifactError: For one that does not, or that no file can have.
    """
    target = Path(path)
    if target.name in ("", "..") or "\0" in str(target):
        raise ArtifactError(f"{str(path)!r} names no file; give for example 'out/directions'.")
    return target


@contextmanager
def written_to(target: Path) -> Iterator[None]:
    """Whatever the libraries raise when a disk is full or read-only, in one line.

    Raises:
        ArtifactError: Naming ``target``.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArtifactError(
            f"Cannot write {target}: {reason}. Choose a folder you can write to."
        ) from error
    except RuntimeError as error:
        if not any(word in str(error) for word in _TORCH_WRITING):
            raise
        raise ArtifactError(
            f"Cannot write {target}: torch could not write all of it, the disk may be full. Choose "
            "a folder you can write to."
        ) from error


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """A file to write beside ``path``, moved there at the end; gone after a failure.

    What processes that were killed have left in the folder is removed.

    Raises:
        ArtifactError: When it cannot be written; what was there stays as it was.
    """
    target = named_file(path)
    partial = target.with_name(_partial_name(target.name))
    try:
        with written_to(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_dir():
                raise IsADirectoryError("it is a folder")
            remove_leftovers(target.parent)
            _WRITING.add(partial.name)
            yield partial
            os.replace(partial, target)
    except UnicodeEncodeError as error:
        raise ArtifactError(
            f"Cannot write {target}: {error.object[error.start]!r} is not a character of UTF-8. "
            "Remove it from the text."
        ) from error
    finally:
        _remove(partial)
        _WRITING.discard(partial.name)


@contextmanager
def new_folder(path: str | Path) -> Iterator[Path]:
    """A folder to fill beside ``path``, moved there at the end if nobody else was first.

    Raises:
        FileExistsError: When there is something by now; it stays as it is.
        ArtifactError: When it cannot be written.
    """
    target = named_file(path)
    partial = target.with_name(_partial_name(target.name))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target.parent)
        _WRITING.add(partial.name)
        partial.mkdir()
        yield partial
        os.rename(partial, target)
    except OSError as error:
        if target.exists():
            raise FileExistsError(f"{target} is there already.") from error
        raise ArtifactError(
            f"Cannot write {target}: {error.strerror or error}. Choose a folder you can write to."
        ) from error
    finally:
        _remove(partial)
        _WRITING.discard(partial.name)


@contextmanager
def draft_in(folder: str | Path, name: str) -> Iterator[Path]:
    """A folder inside ``folder`` to write in first; it goes at the end, and so do those of killed
    processes.

    Raises:
        ArtifactError: When it cannot be written.
    """
    target = Path(folder)
    draft = target / _partial_name(name)
    made = [path for path in (target, *target.parents) if not path.exists()]
    _WRITING.add(draft.name)
    try:
        with written_to(target):
            draft.mkdir(parents=True)
            yield draft
            remove_leftovers(target, always=True)
    finally:
        _remove(draft)
        _WRITING.discard(draft.name)
        for path in made:
            with suppress(OSError):  # it is not empty
                path.rmdir()


@contextmanager
def whole_folder(path: str | Path, parts: Sequence[str] = ()) -> Iterator[Path]:
    """A folder to fill, whose files take their places in ``path`` at the end; others there stay.

    Args:
        path: The folder.
        parts: Patterns of files that belong together: earlier ones go before the first of the new
            ones comes, unless there is one of each, of the same name.

    Raises:
        ArtifactError: When it cannot be written; what was there stays as it was.
    """
    target = Path(path)
    with draft_in(target, "files") as draft:
        yield draft
        old, new = (
            {file.name for part in parts for file in folder.glob(part)}
            for folder in (target, draft)
        )
        for name in old if old != new or len(new) > 1 else ():
            (target / name).unlink()
        for file in sorted(file for file in draft.rglob("*") if file.is_file()):
            there = inside(target, file.relative_to(draft))
            if there is None:
                raise OSError(f"{file.relative_to(draft).parent} is a link out of the folder")
            there.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, there)


def inside(folder: str | Path, name: str | Path) -> Path | None:
    """The file of that name, unless links or dots lead out of the folder."""
    home, path = Path(folder).resolve(), Path(folder) / name
    try:
        there = path.parent.resolve()  # the name itself may be a link: it is replaced, not followed
    except (OSError, RuntimeError, ValueError):
        return None
    return path if there.is_relative_to(home) and path.name not in ("", "..") else None


def _remove(path: Path) -> None:
    """A file, or a folder with what is in it; a link goes, what it points to stays."""
    with suppress(OSError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink()


_COUNT = itertools.count()
_WRITING: set[str] = set()
_CLEANED: dict[Path, tuple[float, float]] = {}


def _here() -> str:
    """The machine and, in a container, the numbers that its processes go by."""
    name = re.sub(r"[^A-Za-z0-9]", "", socket.gethostname())[:40]
    try:
        return f"{name}{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return name or "host"


HERE = _here()
"""This machine, or container."""


def _partial_name(name: str) -> str:
    """One that no other process, thread or save uses."""
    return f".{name[:120]}.partial-{HERE}-{os.getpid()}-{next(_COUNT)}"


def remove_leftovers(folder: Path, *, always: bool = False) -> None:
    """Remove what killed processes have left; looking takes at most a hundredth of the time."""
    last, took = _CLEANED.get(folder, (0.0, 0.0))
    begun = time.monotonic()
    if last and not always and begun - last < 100 * took:
        return
    with suppress(OSError):
        for entry in os.scandir(folder):
            found = re.fullmatch(r"\..*\.partial-(\w*)-(\d+)-\d+", entry.name)
            if found and entry.name not in _WRITING and _left_behind(entry, *found.groups()):
                _remove(Path(entry.path))
    now = time.monotonic()
    _CLEANED[folder] = (now, now - begun)


def _left_behind(entry: os.DirEntry[str], host: str, pid: str) -> bool:
    if host != HERE:  # its processes cannot be seen from here
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > STALE
    if int(pid) == os.getpid():  # this process writes it not, so an earlier one of its number did
        return True
    return gone(host, pid)


def clock_of(folder: Path) -> float:
    """What time it is for the file system of a folder, in seconds; for this machine where nothing
    can be written."""
    try:
        with TemporaryFile(dir=folder) as probe:
            return os.fstat(probe.fileno()).st_mtime
    except OSError:
        return time.time()


def gone(host: str, pid: str) -> bool:
    """Whether a process is known to have ended: one of this machine."""
    if host != HERE:
        return False
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except (OSError, OverflowError, ValueError):
        return False
    return False


def check_writable(folder: str | Path) -> None:
    """Find out before long work, and leave no trace.

    Raises:
        ArtifactError: When nothing can be written there.
    """
    target = Path(folder)
    made = [path for path in (target, *target.parents) if not path.exists()]
    probe = write_text(target / _partial_name("probe"), "")
    probe.unlink()
    for path in made:
        with suppress(OSError):  # somebody else has put something there meanwhile
            path.rmdir()
