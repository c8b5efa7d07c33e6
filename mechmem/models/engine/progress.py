"""Progress: a bar with tokens per second, or the caller's own function."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["Progress", "Tell", "told"]

Progress = bool | Callable[[int], object] | None
"""``True`` for a bar on stderr, or a function called with the prompts done after every batch."""
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

        with tqdm(total=prompts, desc=what, unit="prompt", file=sys.stderr) as bar:
            tokens = 0

            def show(rows: int, fed: int) -> None:
                nonlocal tokens
                tokens += fed
                seconds = bar.format_dict["elapsed"]
                rate = tokens / seconds if seconds else 0.0
                bar.set_postfix_str(f"{rate:,.0f} tokens/s", refresh=False)
                bar.update(rows)

            yield show
        return
    call = progress if callable(progress) else None

    def tell(rows: int, fed: int) -> None:
        if call is not None:
            call(rows)

    yield tell
