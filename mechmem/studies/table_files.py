"""Tables as CSV files that come back as they were saved."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pandas as pd
from pandas.api.types import is_bool_dtype, is_numeric_dtype

from mechmem.writing import csv_text, write_text

COLUMNS_FILE = "columns.json"
"""Beside the tables: which columns hold text, and whether an empty cell there is a missing one."""


def write_tables(tables: Mapping[str, pd.DataFrame], folder: Path) -> None:
    """Write every table as ``<name>.csv``, and what of them is text as ``columns.json``.

    Raises:
        ArtifactError: When a file cannot be written.
    """
    for name, table in tables.items():
        write_text(folder / f"{name}.csv", csv_text(table))
    kinds = {name: _texts(table) for name, table in tables.items()}
    write_text(folder / COLUMNS_FILE, json.dumps(kinds, indent=1, ensure_ascii=False) + "\n")


def read_table(file: Path) -> pd.DataFrame:
    """A table that `write_tables` wrote: text is text, numbers are numbers, what is missing is NaN.

    Where a text column had both empty and missing texts, both come back empty. A file that
    ``columns.json`` does not name is read by what its cells look like; only empty cells are missing
    there.

    Raises:
        OSError: When it cannot be read.
        ValueError: When it, or ``columns.json``, is not what was written.
    """
    try:
        kinds = json.loads((file.parent / COLUMNS_FILE).read_text(encoding="utf-8")).get(
            file.stem, {}
        )
    except AttributeError as error:
        raise ValueError(f"{COLUMNS_FILE} holds no columns") from error
    if not isinstance(kinds, dict):
        raise ValueError(f"{COLUMNS_FILE} says {kinds!r:.60} of the columns of {file.name}")
    header = pd.read_csv(file, nrows=0).columns
    return pd.read_csv(
        file,
        dtype={name: str for name in header if name in kinds},
        keep_default_na=False,
        na_values={name: [""] for name in header if kinds.get(name) != "text"},
    )


def _texts(table: pd.DataFrame) -> dict[str, str]:
    """Columns with texts: ``"text"``, or ``"text or missing"`` where an empty cell is missing."""
    kinds = {}
    for name, column in table.items():
        there = column.dropna()
        typed = is_numeric_dtype(column.dtype) or is_bool_dtype(column.dtype)
        if not typed and any(isinstance(value, str) for value in there):
            lacking = len(there) < len(column) and not (there.astype(str) == "").any()
            kinds[str(name)] = "text or missing" if lacking else "text"
    return kinds
