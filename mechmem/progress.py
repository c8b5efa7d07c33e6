"""Progress on stderr wherever a call takes more than two seconds, in Python and notebooks too.

``MECHMEM_PROGRESS=0`` in the environment is the one switch that silences all of it.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SWITCH = "MECHMEM_PROGRESS"

DELAY = 2.0
"""Seconds before a bar shows; what is done by then was not worth one."""

LOGGED = 20.0
"""Seconds between lines where nobody sees them move: logs and pipes."""

_open = threading.local()


def silenced() -> bool:
    """Whether the switch is off."""
    return os.environ.get(SWITCH, "1") == "0"


@contextmanager
def told_elsewhere() -> Iterator[None]:
    """Bars inside stay silent: the caller says itself where it is."""
    _open.depth = getattr(_open, "depth", 0) + 1
    try:
        yield
    finally:
        _open.depth -= 1


@contextmanager
def tracked(total: int, what: str, unit: str = "prompt") -> Iterator[Callable[[int], None]]:
    """A bar with the time left. Yields a function to call with how many more are done.

    A bar inside another one stays silent: the outer one knows more.

    Args:
        total: How many there are.
        what: What is being done to them.
        unit: What one of them is.
    """
    from tqdm import tqdm

    inside = getattr(_open, "depth", 0) > 0
    moving = sys.stderr.isatty() or "ipykernel" in sys.modules
    bar = tqdm(
        total=total,
        desc=what,
        unit=unit,
        file=sys.stderr,
        leave=False,
        delay=DELAY,
        mininterval=0.2 if moving else LOGGED,
        dynamic_ncols=moving,
        disable=inside or silenced(),
    )

    def tell(more: int) -> None:
        bar.update(more)

    try:
        with told_elsewhere():
            yield tell
    finally:
        bar.close()


Progress = bool | Callable[[int], object] | None
"""``True`` for a bar on stderr with tokens per second, a function called with the prompts done
after every batch, or ``None``: a plain bar once the call has taken two seconds
(`mechmem.progress`)."""

Tell = Callable[[int, int], None]
"""Called with the prompts and the tokens that a batch finished."""


@contextmanager
def told(progress: Progress, prompts: int, what: str) -> Iterator[Tell]:
    """Something to tell about every finished batch.

    Args:
        progress: As the caller gave it.
        prompts: How many there are in all.
        what: What is being done to them, for the bar.
    """
    if progress is True:
        from tqdm import tqdm

        with tqdm(
            total=prompts, desc=what, unit="prompt", file=sys.stderr, disable=silenced()
        ) as bar:
            tokens = 0

            def show(rows: int, fed: int) -> None:
                nonlocal tokens
                tokens += fed
                seconds = bar.format_dict.get("elapsed")
                rate = tokens / seconds if seconds else 0.0
                bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
                bar.update(rows)

            yield show
        return
    if callable(progress):
        call = progress

        def tell(rows: int, fed: int) -> None:
            call(rows)

        yield tell
        return
    if progress is False:
        yield lambda rows, fed: None
        return
    with tracked(prompts, what) as more:
        yield lambda rows, fed: more(rows)
