"""Results on stdout, as a table for people, or as JSON or CSV for programs."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable
from enum import StrEnum
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

_COMMANDS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
"""What a terminal would obey instead of showing it: controls, and marks that turn the writing."""


class Format(StrEnum):
    """How a result is printed."""

    table = "table"
    json = "json"
    csv = "csv"
    spreadsheet = "spreadsheet"


Output = Annotated[Format, typer.Option("--format", help="How to print the result.")]


def is_first() -> bool:
    """Whether this process prints and writes the result: of those that share the work (torchrun),
    rank 0 does."""
    from mechmem.caching.shards import share_of_work

    return share_of_work()[0] == 0


def is_shared() -> bool:
    """Whether other processes do a part of the work."""
    from mechmem.caching.shards import share_of_work

    return share_of_work()[1] > 1


def clean(text: object) -> str:
    r"""The text with everything that a terminal would obey written out, ``\x1b`` for an escape."""
    return _COMMANDS.sub(lambda found: ascii(found.group())[1:-1], str(text))


def say(text: object, *, err: bool = False) -> None:
    """A line for people: names, answers and tables may come from strangers."""
    typer.echo(clean(text), err=err)


def print_result(
    table: pd.DataFrame,
    output: Format,
    *,
    said: str = "",
    notes: Iterable[str] = (),
    float_format: str = "{:.4g}",
) -> None:
    """One table, and what is said about it.

    CSV is the table alone (no cell of it a formula for a spreadsheet), JSON has all: ``{"answer":
    ..., "notes": [...], "table": [...]}``, or the list of rows where nothing is said. Numbers are
    printed whole in both. What a terminal would obey is written out; only CSV that another program
    reads keeps it as it is.
    """
    if output in (Format.csv, Format.spreadsheet):
        from mechmem.tasks.files import inert
        from mechmem.writing import csv_text

        text = csv_text(inert(table) if output is Format.spreadsheet else table)
        typer.echo(clean(text) if sys.stdout.isatty() else text, nl=False)
    elif output is Format.json:
        rows: Any = json.loads(table.to_json(orient="records"))
        whole = {"answer": said, "notes": list(notes), "table": rows} if said else rows
        text = json.dumps(whole, indent=1, ensure_ascii=False)
        typer.echo(_COMMANDS.sub(lambda found: json.dumps(found.group())[1:-1], text))
    else:
        say(table.to_string(index=False, na_rep="", float_format=float_format.format))
        if said:
            say("\n" + fill(said, 100))
        for note in notes:
            say(fill(note, 100, initial_indent="- ", subsequent_indent="  "))
