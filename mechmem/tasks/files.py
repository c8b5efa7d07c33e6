"""Prompts as rows: JSON lines, CSV, Parquet and pandas, without losing a field."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from mechmem.artifacts import json_text, whole_file, write_text
from mechmem.errors import PromptError, listed
from mechmem.manifests import once_each
from mechmem.tasks import tables

NESTED = ("spans", "chat", "meta")
T = TypeVar("T")


def record_from_prompt(prompt: Any) -> dict[str, Any]:
    """The fields that are set, as JSON-ready values."""
    row: dict[str, Any] = {}
    for item in fields(prompt):
        value = getattr(prompt, item.name)
        if value is None or (item.name in NESTED and not value):
            continue
        if item.name == "chat":
            more = {"template": dict(value.template)} if value.template else {}
            value = {"system": value.system, "assistant_prefix": value.assistant_prefix, **more}
        elif item.name == "spans":
            value = {name: list(span) for name, span in value.items()}
        elif item.name == "meta":
            value = dict(value)
        row[item.name] = value
    return row


def prompt_from_record(
    prompt_class: Callable[..., T],
    chat_class: Callable[..., Any],
    row: Mapping[str, Any],
    index: int,
) -> T:
    """The inverse of `record_from_prompt`; keys that are not a field are kept in ``meta``."""
    known = {item.name for item in fields(prompt_class)}  # type: ignore[arg-type]
    if not isinstance(row, Mapping):
        raise PromptError(
            f"Row {index} must be a mapping with a 'text', got {row!r:.80}. "
            "Plain strings go into PromptSet.from_texts."
        )
    values = {key: value for key, value in row.items() if not tables.is_missing(value)}
    if "text" in row and "text" not in values:
        raise PromptError(
            f"Row {index} has an empty cell in its column 'text'; write the prompt there, or leave "
            "the row out."
        )
    if "text" not in values:
        whole = str(next(iter(row), ""))
        mark = next((mark for mark in (";", "\t") if len(row) == 1 and mark in whole), None)
        apart = f" Its cells seem to be parted by {mark!r}: save it with commas." if mark else ""
        raise PromptError(
            f"Row {index} has no 'text'; its columns are {listed(row)}. "
            f"Rename the column that holds the prompt to 'text'.{apart}"
        )
    nested = {name: _decoded(values.pop(name, None), name, index) for name in NESTED}
    extra = {key: values.pop(key) for key in list(values) if key not in known}
    spans = {
        name: _span(value, name, index)
        for name, value in (nested["spans"] or {}).items()
        if value is not None
    }
    chat = None if nested["chat"] is None else _chat(chat_class, nested["chat"], index)
    meta = {**(nested["meta"] or {}), **_plain(extra, index)}
    for key, value in values.items():
        if not isinstance(value, (str, int, float, np.number)) or isinstance(value, bool):
            raise PromptError(
                f"Row {index}: column {key!r} must be text or a number, got a "
                f"{type(value).__name__}: {value!r:.80}. Make one row of every prompt, write the "
                "cell as text, or rename the column."
            )
    # A number is text from here on, 1.0 the same as 1 where it is a name; an empty cell is one that
    # was left out.
    values = {
        key: str(
            int(value)
            if key in ("id", "group") and isinstance(value, float) and value.is_integer()
            else tables.finite_cell(value, f"Row {index}: column {key!r}")
        )
        for key, value in values.items()
        if key == "text" or value != ""
    }
    values.setdefault("id", str(index))
    return prompt_class(**values, spans=spans, chat=chat, meta=meta)


def _plain(extra: Mapping[str, Any], index: int) -> dict[str, Any]:
    """Cells of unknown columns as JSON holds them: lists for arrays and tuples, text for times."""

    def said(value: Any) -> Any:
        return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)

    try:
        found: dict[str, Any] = json.loads(json.dumps(dict(extra), default=said))
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(
            f"Row {index}: columns {listed(extra, 4)} must be what JSON can hold ({error})."
        ) from None
    return found


def _span(value: Any, name: str, index: int) -> tuple[int, int]:
    try:
        start, end = value
        return int(start), int(end)
    except (TypeError, ValueError):
        raise PromptError(
            f"Row {index}: span {name!r} is {value!r:.80}; a span is [start, end] in characters."
        ) from None


def _chat(chat_class: Callable[..., Any], value: Mapping[str, Any], index: int) -> Any:
    allowed = [item.name for item in fields(chat_class)]  # type: ignore[arg-type]
    unknown = [key for key in value if key not in allowed]
    if unknown:
        raise PromptError(
            f"Row {index}: column 'chat' has unknown {listed(unknown)}; allowed are "
            f"{listed(allowed)}."
        )
    return chat_class(**{key: given for key, given in value.items() if given is not None})


def _decoded(value: Any, name: str, index: int) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value, object_pairs_hook=once_each)
        except (ValueError, RecursionError) as error:
            why = _why(error)
            raise PromptError(
                f"Row {index}: column {name!r} is not JSON: {value!r:.80} ({why}). "
                "Write it as a JSON object, or leave it empty."
            ) from None
    if value is not None and not isinstance(value, Mapping):
        raise PromptError(f"Row {index}: column {name!r} must be an object, got {value!r:.80}.")
    return value


def _why(error: Exception) -> str:
    deep = isinstance(error, RecursionError)
    return "nested too deeply" if deep else str(getattr(error, "msg", error))


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """JSON lines as dictionaries; an error names the line."""
    rows: list[dict[str, Any]] = []
    with _readable(path, "JSON lines") as source, source.open(encoding="utf-8-sig") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line, object_pairs_hook=once_each)
            except (ValueError, RecursionError) as error:
                why = _why(error)
                raise PromptError(
                    f"{path}, line {number}: not JSON ({why}). Mend or remove that line."
                ) from None
            if not isinstance(row, dict):
                raise PromptError(
                    f"{path}, line {number}: expected an object, got {row!r:.60}; "
                    'write {"text": "..."}.'
                )
            rows.append(row)
    return rows


def read_user_json(path: str | Path) -> Any:
    """What a JSON file of somebody else's holds."""
    with _readable(path, "JSON") as source:
        return json.loads(source.read_text(encoding="utf-8-sig"))


def read_lines(path: str | Path, kind: str) -> list[str]:
    """The lines of a text file that are not blank; ``kind`` is what an error calls it."""
    with _readable(path, kind) as source:
        lines = source.read_text(encoding="utf-8-sig").split("\n")
    return [line.rstrip("\r") for line in lines if line.strip()]


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One JSON object a line."""
    return write_text(path, "".join(_json(row, row) + "\n" for row in rows))


def records_from_frame(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table, empty cells left out (an empty text is a text), empty rows too."""
    return tables.filled(tables.frame_rows(frame))


def frame_from_records(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A table whose nested cells are JSON text."""
    flat = [
        {key: _json(value, row) if key in NESTED else value for key, value in row.items()}
        for row in rows
    ]
    for row in flat:
        for value in row.values():
            _check_encodable(value, row)
    return pd.DataFrame(flat, columns=None if flat else ["id", "text"])


def _check_encodable(value: Any, row: Mapping[str, Any]) -> None:
    try:
        str(value).encode()
    except UnicodeEncodeError as error:
        raise PromptError(
            f"Prompt {row.get('id')!r} has {error.object[error.start]!r}, which is not a "
            "character of UTF-8, so no table holds it. Remove it, or keep the prompts as JSON "
            "lines: to_jsonl keeps it."
        ) from None


def read_csv(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a CSV file, every cell as text, empty cells and rows left out.

    Raises:
        PromptError: With the line where a row cannot be read as it was meant (`tables.csv_rows`).
    """
    with _readable(path, "CSV") as source:
        header, rows = tables.csv_rows(source)
    return tables.filled([dict(zip(header, row, strict=True)) for row in rows])


def read_parquet(path: str | Path) -> list[dict[str, Any]]:
    """Rows of a Parquet file, empty cells and rows left out."""
    with _readable(path, "Parquet") as source:
        return tables.filled(tables.parquet_rows(source))


def write_frame(frame: pd.DataFrame, path: str | Path, kind: str) -> Path:
    """Write a table as ``csv`` or ``parquet``."""
    with whole_file(path) as partial:
        if kind == "csv":
            # Every cell quoted: a lone carriage return would otherwise end its row.
            frame.to_csv(partial, index=False, quoting=csv.QUOTE_ALL)
        else:
            frame.to_parquet(partial, index=False)
    return Path(path)


def inert(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with an apostrophe before every text that a spreadsheet would run as a formula."""

    def cell(value: Any) -> Any:
        runs = isinstance(value, str) and value.lstrip(" ").startswith(tuple("=+-@\t\r\n"))
        return f"'{value}" if runs else value

    return frame.map(cell)


def _json(value: Any, row: Mapping[str, Any]) -> str:
    try:
        return json_text(value)
    except (TypeError, ValueError) as error:
        raise PromptError(
            f"Prompt {row.get('id')!r} cannot be written as JSON: {error}. "
            "Keep numbers, text, lists and dictionaries in its meta."
        ) from None


_READABLE = {
    "JSON": "Save it as JSON, in UTF-8.",
    "JSON lines": "Save it as UTF-8, one JSON object a line.",
    "TSV": "Give a table in UTF-8 with a tabulator between its cells.",
    "CSV": "Give a CSV file in UTF-8 with a header row and as many cells in every row.",
    "Parquet": "Give a Parquet file, or CSV or JSON lines.",
}


@contextmanager
def _readable(path: str | Path, kind: str) -> Iterator[Path]:
    source = Path(path)
    if not source.is_file():
        raise PromptError(f"No file {source}; give the path of an existing file of prompts.")
    try:
        yield source
    except PromptError:
        raise
    except (ValueError, OSError, RecursionError) as error:
        raise PromptError(
            f"{source} cannot be read as {kind}: {str(error).splitlines()[0]}. {_READABLE[kind]}"
        ) from error
