"""Tables as they come: every row as it was written, or an error that names the row."""

from __future__ import annotations

import csv
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechmem.errors import PromptError, listed

_LIMIT = threading.Lock()


def csv_rows(path: Path) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a CSV file, every cell as text; rows without any text are left out.

    Raises:
        PromptError: With the line, for a row of another length than the header, for a quote that
            is never closed or closed within a cell, and for a header with a name twice or none.
    """
    header: list[str] = []
    rows: list[list[str]] = []
    raw: list[str] = []
    with path.open(encoding="utf-8-sig", newline="") as handle, _long_cells():
        reader = csv.reader(_kept_beside(handle, raw), strict=True)
        line = 1
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                raise PromptError(
                    f"{path}, line {line}: the row that begins here has a quote that is not closed "
                    f"where its cell ends ({error}). Close it, and write a quote inside a cell "
                    'twice: "He said ""hi""".'
                ) from None
            if cells is None:
                break
            if not header:
                cells = list(map(str.strip, cells))
                header = _names(cells, path) if any(cells) else header
            elif any(map(str.strip, cells)):
                kept = _fitted(cells, header, f"{path}, line {line}")
                _refuse_swallowed("".join(raw), len(cells), path, line)
                rows.append(kept[: sum(map(bool, header))])
            line = reader.line_num + 1
            raw.clear()
    if not header:
        raise PromptError(f"{path} is empty; give a CSV file whose first row names its columns.")
    return [name for name in header if name], rows


def _names(cells: list[str], path: Path) -> list[str]:
    """Column names; empty ones at the end stay, for empty columns that a spreadsheet wrote."""
    named = [name for name in cells if name]
    twice = list(dict.fromkeys(name for name in named if named.count(name) > 1))
    if twice or "" in cells[: len(named)]:
        what = f"{listed(twice)} more than once" if twice else "a column without a name"
        raise PromptError(f"{path} has {what} in its first row; give every column one name.")
    return cells


def _fitted(cells: list[str], header: list[str], where: str) -> list[str]:
    names = [name for name in header if name]
    if len(cells) == len(header) and not any(cells[len(names) :]):
        return cells
    raise PromptError(
        f"{where}: {len(cells)} cells where the header has {len(names)} ({listed(names, 6)}): "
        f"{listed(cells, 6)}. "
        + (
            "A cell that holds a comma goes in quotes; a comma at the end begins a cell."
            if len(cells) > len(names)
            else "Fill the row up with commas."
        )
    )


def _kept_beside(lines: Iterable[str], raw: list[str]) -> Iterator[str]:
    """The lines, each of them also put into a list."""
    for line in lines:
        raw.append(line)
        yield line


def _refuse_swallowed(row: str, width: int, path: Path, line: int) -> None:
    """Refuse a cell that holds whole rows: its quote was opened by mistake and closed rows later.

    Only a last cell of three columns and more is looked at, where no other is quoted, and only
    lines without a blank behind their commas, for prose has one.
    """
    lines = row.rstrip("\r\n").splitlines()
    if len(lines) < 2 or width < 3 or row.count('"') != 2 or not lines[-1].endswith('"'):
        return
    inside = [one.replace('"', "").split(",") for one in lines[1:]]
    if all(len(cells) == width and all(c and c[0] != " " for c in cells) for cells in inside):
        raise PromptError(
            f"{path}, line {line}: a quote that opens here closes in line {line + len(lines) - 1}, "
            f"and the lines between are whole rows: {lines[1]!r:.60}. Close it where its cell "
            "ends; where the cell is meant so, put every cell of its row in quotes."
        )


@contextmanager
def _long_cells() -> Iterator[None]:
    """The csv module refuses cells above 131,072 characters; that limit is the process's own."""
    with _LIMIT:
        before = csv.field_size_limit(sys.maxsize)
        try:
            yield
        finally:
            csv.field_size_limit(before)


def parquet_rows(path: Path) -> list[dict[str, Any]]:
    """Rows of a Parquet file with the kinds of values it was written with.

    Raises:
        PromptError: Without the package that reads Parquet.
    """
    try:
        import pyarrow.parquet as pq
    except ImportError:
        raise PromptError(
            "Parquet files need the package `pyarrow`: pip install 'mechmem[parquet]', or give a "
            "CSV or JSON lines file."
        ) from None
    rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
    # The row numbers that pandas writes beside a table are not part of it.
    return whole(
        [
            {key: value for key, value in row.items() if not key.startswith("__index_level_")}
            for row in rows
        ]
    )


def refuse_table(value: Any) -> None:
    """Let no table pass for a list: what it gives one by one are the names of its columns.

    Raises:
        PromptError: For a table of pandas.
    """
    if isinstance(value, pd.DataFrame):
        raise PromptError(
            f"A table with the columns {listed(value.columns)} is not a list of texts; write "
            "PromptSet.from_pandas(table)."
        )


def frame_rows(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a pandas table; an index that has a name is a column.

    Raises:
        PromptError: When a column occurs twice.
    """
    index = {k: name for k, name in enumerate(frame.index.names) if name is not None}
    names = [str(name).strip() for name in (*index.values(), *frame.columns)]
    twice = list(dict.fromkeys(name for name in names if names.count(name) > 1))
    if twice:
        raise PromptError(
            f"The table has {listed(twice)} more than once; give every column one name."
        )
    columns = [frame.index.get_level_values(level).tolist() for level in index]
    columns += [frame.iloc[:, k].tolist() for k in range(frame.shape[1])]
    return whole([dict(zip(names, row, strict=True)) for row in zip(*columns, strict=True)])


def whole(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Copies of the rows. Pandas turns a column of whole numbers into floats where a cell is empty;
    that is turned back."""
    out = [dict(row) for row in rows]
    for key in dict.fromkeys(key for row in out for key in row):
        holders = [row for row in out if key in row]
        known = [row[key] for row in holders if not is_missing(row[key])]
        if len(known) < len(holders) and all(
            isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53 for cell in known
        ):
            for row in holders:
                row[key] = None if is_missing(row[key]) else int(row[key])
    return out


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: ``None``, NaN, pandas' ``NA`` or ``NaT``."""
    return value is None or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def finite_cell(value: Any, where: str) -> Any:
    """A cell that becomes a text.

    Raises:
        PromptError: For an infinite number, which no answer is.
    """
    if isinstance(value, (float, np.floating)) and np.isinf(value):
        raise PromptError(f"{where} is {value!r}, no answer; write it as text, or leave it out.")
    return value


def filled(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows without their empty cells (that of ``text`` stays: a text, or an error that names
    it), empty rows left out."""
    out = []
    for row in rows:
        cells = {
            key: value
            for key, value in row.items()
            if key == "text" or not (is_missing(value) or (isinstance(value, str) and not value))
        }
        if any(
            not is_missing(value) and (not isinstance(value, str) or value.strip())
            for value in cells.values()
        ):
            out.append(cells)
    return out
