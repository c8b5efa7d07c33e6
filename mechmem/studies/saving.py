"""Folders of studies: written beside what is there, then moved into place, whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mechmem.errors import ArtifactError
from mechmem.manifests import checked, file_digest, json_text, read_json, sealed
from mechmem.writing import draft_in, inside, write_text

_NOTE, _DRAFT = "manifest.json", "study"


def write_whole(parts: Callable[[Path], None], folder: str | Path) -> Path:
    """Let ``parts`` write a report into a folder of its own, then move its files into place.

    Files of an earlier report, named in its ``manifest.json``, are replaced; others stay. Its
    ``manifest.json`` is taken away before anything moves and the new one put there when everything
    else is in place. So a process that is killed before the move leaves the earlier report, and one
    that is killed during it a folder without a manifest, which `load_study` refuses; saving there
    again makes it whole.

    Returns:
        The folder.

    Raises:
        ArtifactError: When the folder cannot be written; what was there stays as it was.
    """
    target = Path(folder)
    with draft_in(target, _DRAFT) as draft:
        parts(draft)
        _move_in(draft, target)
    return target


def write_manifest(manifest: dict[str, Any], draft: Path) -> None:
    """Write ``manifest.json`` with the names of all files of the report, the digests of those that
    are read again (all but pages), and its own."""
    found = {path.relative_to(draft).as_posix(): path for path in _files(draft)}
    found.pop(_NOTE, None)
    digests = {n: file_digest(path) for n, path in found.items() if path.suffix != ".html"}
    seal_manifest({**manifest, "files": [*sorted(found), _NOTE], "digests": digests}, draft)


def seal_manifest(entries: Mapping[str, Any], folder: Path) -> None:
    """Write ``manifest.json``, with the digest of what it says."""
    text = json_text(sealed(entries, default=str), indent=1)
    write_text(folder / _NOTE, text + "\n")


def _move_in(draft: Path, target: Path) -> None:
    """Move every file into place; on a failure put back what was there.

    The old manifest goes first and the new one comes last: after a kill in between there is none.
    """
    kept, note = draft / "kept", Path(_NOTE)
    fresh = {path.relative_to(draft) for path in _files(draft)}
    stale = {path for path in _earlier(target) if path not in fresh}
    done: list[Path] = []
    try:
        for relative in [note, *sorted((stale | fresh) - {note}), note]:
            there = target / relative
            if inside(target, relative) is None:
                raise OSError(f"{there.parent} is a link that leads out of the folder")
            if there.is_dir() and not there.is_symlink():
                raise IsADirectoryError(f"{there} is a folder of its own")
            if there.exists() or there.is_symlink():
                (kept / relative).parent.mkdir(parents=True, exist_ok=True)
                os.replace(there, kept / relative)
            done.append(relative)
            if relative in fresh and (relative != note or done.count(note) == 2):
                there.parent.mkdir(parents=True, exist_ok=True)
                os.replace(draft / relative, there)
    except OSError:
        for relative in reversed(list(dict.fromkeys(done))):
            (target / relative).unlink(missing_ok=True)
            if (kept / relative).exists():
                os.replace(kept / relative, target / relative)
        raise


def _earlier(target: Path) -> list[Path]:
    """Files that an earlier report in this folder, or one killed there, says are its own."""
    paths: list[Path] = []
    drafts = f".{_DRAFT}.partial-*"
    for note in [target / _NOTE, *target.glob(f"{drafts}/{_NOTE}"),
                 *target.glob(f"{drafts}/kept/{_NOTE}")]:  # fmt: skip
        with suppress(ArtifactError):
            said = checked(read_json(note), {"files": [str]}, note)["files"]
            paths += [Path(name) for name in said]
    return [path for path in paths if _own(target, path)]


def _own(target: Path, path: Path) -> bool:
    """Whether it is a file of this folder, whatever a manifest calls it."""
    there = inside(target, path)
    return there is not None and (there.is_symlink() or there.is_file())


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]
