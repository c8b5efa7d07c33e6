"""What every command shares: the app, its usual options, the progress bar."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from mechmem.cli.config import Command, configured
from mechmem.cli.output import clean, say

SILENCE = 20.0
"""Seconds after which a step that goes on is told again where nobody sees a bar."""

app = typer.Typer(
    name="mechmem",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Is this language model remembering or thinking, where does it decide, can we turn it?",
    epilog=(
        "Results go to stdout, everything else to stderr. Exit status: 0 done; 1 an error, in one "
        "line (with --debug, its traceback); 2 a wrong option or configuration; 3 a site was "
        "refused (check); 130 stopped; 141 nobody read on."
    ),
)


def command(name: str | None = None) -> Callable[[Command], Command]:
    """Put a function on the list of commands; it also reads ``--config``."""
    return lambda function: app.command(name)(configured(function))


def _version(asked: bool) -> bool:
    if asked:
        say(f"mechmem {sys.modules['mechmem'].__version__}")
        raise typer.Exit
    return bool(asked)


@app.callback()
def _top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print and stop.")
    ] = False,
) -> None:
    pass


Seed = Annotated[int, typer.Option(help="Keys splits, controls and resampling.")]


@contextmanager
def progress_bar(text: str) -> Iterator[Any]:
    """A progress bar on stderr, with the bars and log lines of the libraries below kept quiet."""
    from tqdm import tqdm

    from mechmem.models.quiet import quiet_transformers
    from mechmem.progress import silenced, told_elsewhere

    if silenced() or not sys.stderr.isatty():
        with quiet_transformers(), told_elsewhere():
            yield _Lines(text, silent=silenced())
        return
    shape = "{desc:<60} {n_fmt} {elapsed}"
    with quiet_transformers(), tqdm(desc=text, file=sys.stderr, bar_format=shape) as bar:
        yield bar


def step_of(line: str) -> str:
    """What a line of progress says, without the settings of the edit, which may follow."""
    return clean(line.partition(", {")[0].partition(": {")[0][:60])


class _Lines:
    """A bar for logs and pipes: every step once, on its own line, and a count for long ones."""

    def __init__(self, text: str, silent: bool = False) -> None:
        self.n, self._silent = 0, silent
        self._said, self._when = "", time.monotonic()
        self.set_description_str(text)

    def set_description_str(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._tell(text)

    def update(self, more: int = 1) -> None:
        self.n += more
        if time.monotonic() - self._when > SILENCE:
            self._tell(f"{self._said}: {self.n}")

    def _tell(self, text: str) -> None:
        self._when = time.monotonic()
        if not self._silent:
            say(text, err=True)
