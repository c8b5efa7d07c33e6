"""Replies of judges on disk: one line each, written at once, readable after a kill."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from typing import Any, BinaryIO

from mechmem.errors import ArtifactError
from mechmem.manifests import LARGEST, checked, is_whole, json_text, parsed, regular, sealed

_ROW = {"key": str, "judge": str, "reply": (str, float)}
_BEGIN = b'{"key": "'


class JudgeCache:
    """Replies of one judge by the text that it was shown.

    Several judges may share a file. A last line that was cut off in the middle is not read, and
    goes when the next reply is kept: opening changes nothing.

    Args:
        path: A JSON lines file, made when absent; ``None`` keeps replies in memory only.
        judge: Whose replies.

    Raises:
        ArtifactError: When the file is something else, or cannot be written.
    """

    def __init__(self, path: str | Path | None, judge: str) -> None:
        self.path = None if path is None else Path(path)
        self.judge = judge
        self._replies: dict[str, str | float] = {}
        self._unended = (0, b"", False)  # where the last line begins, what it is, whether it is cut
        if self.path is not None:
            self._load(self.path)

    def __contains__(self, text: str) -> bool:
        return self._key(text) in self._replies

    def __getitem__(self, text: str) -> str | float:
        return self._replies[self._key(text)]

    def __len__(self) -> int:
        return len(self._replies)

    def add(self, text: str, reply: str | float) -> None:
        """Keep a reply, on disk before this returns."""
        key = self._key(text)
        self._replies[key] = reply
        if self.path is None:
            return
        line = json_text(sealed({"key": key, "judge": self.judge, "reply": reply}))
        try:
            with self.path.open("a+b") as handle:
                self._end_line(handle)
                handle.write(line.encode() + b"\n")
                handle.flush()
                os.fsync(handle.fileno())
        except OSError as error:
            raise ArtifactError(
                f"Cannot write {self.path}: {error.strerror or error}. Give another cache=."
            ) from error

    def _end_line(self, handle: BinaryIO) -> None:
        """See to the last line, unless somebody has done so since it was read."""
        start, line, cut = self._unended
        self._unended = (0, b"", False)
        handle.seek(start)
        if line and handle.read(len(line) + 1) == line:
            if cut:
                handle.truncate(start)
            else:
                handle.write(b"\n")

    def _key(self, text: str) -> str:
        asked = f"{self.judge}\x1f{text}".encode("utf-8", "surrogatepass")
        return hashlib.sha256(asked).hexdigest()[:24]

    def _load(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            raw = regular(path, LARGEST).read_bytes() if path.exists() else b""
        except OSError as error:
            raise ArtifactError(
                f"Cannot read {path}: {error.strerror or error}. Give another cache=."
            ) from error
        start = raw.rfind(b"\n") + 1
        last, cut = raw[start:], _is_cut_off(raw[start:])
        self._unended = (start, last, cut)
        for number, line in enumerate((raw[:start] if cut else raw).splitlines(), start=1):
            where = f"{path}, line {number}"
            row = _row(line, where)
            if row is None:
                raise ArtifactError(
                    f"{where} is not a reply of a judge, or was changed after it was written; give "
                    "another cache=, or delete that line."
                )
            self._replies[row["key"]] = row["reply"]


def _row(line: bytes, where: str) -> Any:
    """The entries of a line, ``None`` where it is none of a cache."""
    try:
        row = checked(parsed(line, where), _ROW, where)
    except ArtifactError:
        return None
    return row if is_whole(row) else None


def _is_cut_off(line: bytes) -> bool:
    """Whether it is the beginning of a row, and nothing that ever was whole."""
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return line[: len(_BEGIN)] == _BEGIN[: len(line)]
    return False
