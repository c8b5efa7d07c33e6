"""How much goes into one forward pass: rows under a budget of tokens, and of pairs of them."""

from __future__ import annotations

from mechmem.errors import ModelError
from mechmem.numeric import whole_number

MAX_BATCH_ROWS = 512

MAX_PAIRS = 1 << 22
"""Most pairs of a token and a token it may attend to in one batch, which bounds the attention
scores: 0.5 GB per layer with 32 heads in 4 bytes. One prompt always fits."""


MOST_TOKENS = 1 << 62
"""A budget of so many is no limit; more tokens than that are no number that a machine counts."""


def check_budget(token_budget: int) -> None:
    """Refuse what is no number of tokens.

    Raises:
        ModelError: Naming it.
    """
    whole_number(token_budget, "token_budget", most=MOST_TOKENS, error=ModelError)


def rows_that_fit(token_budget: int, width: int, keys: int | None = None) -> int:
    """How many rows of ``width`` tokens, each attending to ``keys`` of them, make one batch.

    Raises:
        ModelError: For a budget that is not a number of tokens.
    """
    check_budget(token_budget)
    pairs = width * (width if keys is None else keys)
    return max(1, min(MAX_BATCH_ROWS, token_budget // width, MAX_PAIRS // pairs))
