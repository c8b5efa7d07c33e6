"""Who works on what: workers that share a folder, come when they like and go without a word.

A worker takes a unit of work by making its claim, a file that only one can make, and touches it
while it works. A claim that nobody touches any more, or whose process is gone, may be taken over.
Where two take the same unit (clocks that disagree, a worker that slept), both write the same bytes.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from mechmem.errors import ArtifactError
from mechmem.manifests import LARGEST, regular
from mechmem.writing import HERE, clock_of, gone

T = TypeVar("T")

STALE_CLAIM = 60.0
"""Seconds after which a claim that was not touched is free."""
TOUCHED_EVERY = 10.0
LOOKED_EVERY = 0.5


def claim_of(unit: Path) -> Path:
    """The claim on a file that is to be made."""
    return unit.with_name(f"{unit.name}.claim")


@contextmanager
def claimed(unit: Path) -> Iterator[bool]:
    """Inside, the unit is this worker's; or somebody else's, and then the value is False.

    Raises:
        ArtifactError: When the folder cannot be written, or the claim is a link to nothing.
    """
    claim = claim_of(unit)
    if not _take(claim):
        yield False
        return
    done = threading.Event()

    def touch() -> None:
        while not done.wait(TOUCHED_EVERY):
            with suppress(OSError):
                os.utime(claim)

    hand = threading.Thread(target=touch, daemon=True)
    hand.start()
    try:
        yield True
    finally:
        done.set()
        hand.join()
        claim.unlink(missing_ok=True)


def shared_out(
    units: Iterable[T], path: Callable[[T], Path], missing: Callable[[T], bool]
) -> Generator[T, None, None]:
    """Units for this worker, one by one, until none is missing; each is claimed until the next one
    is asked for. At the end it waits for what others have claimed, and takes over what they left.

    Args:
        path: The file that a unit's claim is named after.
        missing: Whether a unit is still to be made.
    """
    left = list(units)
    while left := [unit for unit in left if missing(unit)]:
        took = False
        for unit in left:
            if missing(unit):
                with claimed(path(unit)) as mine:
                    if mine and missing(unit):
                        took = True
                        yield unit
        if not took:
            time.sleep(LOOKED_EVERY)


@contextmanager
def in_turn(unit: Path) -> Iterator[None]:
    """Inside, no other worker is at the unit; it is waited for until none is.

    Raises:
        ArtifactError: When the folder cannot be written.
    """
    while True:
        with claimed(unit) as mine:
            if mine:
                yield
                return
        time.sleep(LOOKED_EVERY)


def is_stale(claim: Path) -> bool:
    """Whether a claim is free again: its process is gone from this machine, or it was not touched
    for `STALE_CLAIM` seconds by the clock of its file system, whatever this machine's says.

    Raises:
        ArtifactError: For a claim that is no file, and can be neither read nor taken over.
    """
    try:
        age = clock_of(claim.parent) - regular(claim, LARGEST).stat().st_mtime
    except OSError:
        return False  # it went
    try:
        said = json.loads(claim.read_bytes() or b"{}")
    except (OSError, ValueError, RecursionError):
        said = None  # it is being written, or is somebody else's
    if age > STALE_CLAIM or not isinstance(said, dict):
        return age > STALE_CLAIM
    return gone(str(said.get("host")), str(said.get("pid")))


def _take(claim: Path) -> bool:
    about = json.dumps({"host": HERE, "pid": os.getpid()})
    try:
        claim.parent.mkdir(parents=True, exist_ok=True)
        if claim.exists() and is_stale(claim):
            claim.unlink(missing_ok=True)
        with claim.open("x", encoding="utf-8") as file:
            file.write(about)
    except FileExistsError:
        if claim.is_symlink() and not claim.exists():
            raise ArtifactError(
                f"{claim} is a link to a file that does not exist, which no worker gives back. "
                "Remove it."
            ) from None
        return False
    except OSError as error:
        raise ArtifactError(
            f"Cannot write {claim}: {error.strerror or error}. Choose a folder you can write to."
        ) from error
    return True
