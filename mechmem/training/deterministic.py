"""What every lab recipe shares."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

StepProgress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@contextmanager
def deterministic() -> Iterator[None]:
    """One thread and deterministic kernels inside; afterwards as before."""
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(strict)
