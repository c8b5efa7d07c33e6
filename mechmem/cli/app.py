"""What every command shares: the app, its usual options, the progress bar."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

__all__ = ["Seed", "app", "progress_bar"]

app = typer.Typer(
    name="mechmem",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Is this language model remembering or thinking, where does it decide, can we turn it?",
)

Seed = Annotated[int, typer.Option(help="Keys splits, controls and resampling.")]


@contextmanager
def progress_bar(text: str) -> Iterator[Any]:
    """A progress bar on stderr, with the bars and log lines of the libraries below kept quiet."""
    from tqdm import tqdm

    from mechmem.models.quiet import quiet_transformers

    shape = "{desc:<60} {n_fmt} {elapsed}"
    with quiet_transformers(), tqdm(desc=text, file=sys.stderr, bar_format=shape) as bar:
        yield bar
