"""Results on stdout, as a table for people, or as JSON or CSV for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from enum import StrEnum
from textwrap import fill
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Format", "Output", "is_first", "is_shared", "print_result"]


class Format(StrEnum):
    """How a result is printed."""

    table = "table"
    json = "json"
    csv = "csv"


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


def print_result(
    table: pd.DataFrame,
    output: Format,
    *,
    said: str = "",
    notes: Iterable[str] = (),
    float_format: str = "{:.4g}",
) -> None:
    """One table, and what is said about it.

    CSV is the table alone, JSON has all: ``{"answer": ..., "notes": [...], "table": [...]}``, or
    the list of rows where nothing is said. Numbers are printed whole in both.
    """
    if output is Format.csv:
        typer.echo(table.to_csv(index=False), nl=False)
    elif output is Format.json:
        rows: Any = json.loads(table.to_json(orient="records"))
        whole = {"answer": said, "notes": list(notes), "table": rows} if said else rows
        typer.echo(json.dumps(whole, indent=1, ensure_ascii=False))
    else:
        typer.echo(table.to_string(index=False, na_rep="", float_format=float_format.format))
        if said:
            typer.echo("\n" + fill(said, 100))
        for note in notes:
            typer.echo(fill(note, 100, initial_indent="- ", subsequent_indent="  "))
