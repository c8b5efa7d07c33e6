"""Progress: a bar with tokens per second, or the caller's own function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from mechmem.progress import counted, silenced

__all__ = ["Progress", "Tell", "told"]

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
    with counted(prompts, what) as more:
        yield lambda rows, fed: more(rows)
