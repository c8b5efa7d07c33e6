"""Prompts as rows: JSON lines, CSV, Parquet and pandas, without losing a field."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd

from mechmem.errors import ArtifactError, PromptError, listed

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
            value = {"system": value.system, "assistant_prefix": value.assistant_prefix}
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
    """The inverse of `record_from_prompt`; keys that are no field are kept in ``meta``."""
    known = {item.name for item in fields(prompt_class)}  # type: ignore[arg-type]
    values = {key: value for key, value in row.items() if value is not None}
    if "text" not in values:
        raise PromptError(
            f"Row {index} has no 'text'; its columns are {listed(row)}. "
            "Rename the column that holds the prompt to 'text'."
        )
    nested = {name: _decoded(values.pop(name, None), name, index) for name in NESTED}
    extra = {key: values.pop(key) for key in list(values) if key not in known}
    spans = {name: (int(span[0]), int(span[1])) for name, span in (nested["spans"] or {}).items()}
    chat = chat_class(**nested["chat"]) if nested["chat"] is not None else None
    meta = {**(nested["meta"] or {}), **extra}
    values = {key: str(value) for key, value in values.items()}
    values.setdefault("id", str(index))
    return prompt_class(**values, spans=spans, chat=chat, meta=meta)


def _decoded(value: Any, name: str, index: int) -> Any:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise PromptError(
                f"Row {index}: column {name!r} is not JSON: {value!r:.80} ({error.msg}). "
                "Write it as a JSON object, or leave it empty."
            ) from None
    if value is not None and not isinstance(value, Mapping):
        raise PromptError(f"Row {index}: column {name!r} must be an object, got {value!r:.80}.")
    return value


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """JSON lines as dictionaries; an error names the line."""
    rows: list[dict[str, Any]] = []
    with _existing(path).open(encoding="utf-8") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise PromptError(f"{path}, line {number}: not JSON ({error.msg}).") from None
            if not isinstance(row, dict):
                raise PromptError(f"{path}, line {number}: expected an object, got {row!r:.60}.")
            rows.append(row)
    return rows


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """One JSON object a line."""
    text = "".join(json.dumps(row, ensure_ascii=False, sort_keys=False) + "\n" for row in rows)
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ArtifactError(f"Cannot write {target}: {error.strerror}.") from error
    return target


def records_from_frame(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows of a table, empty cells left out."""
    return [
        {str(key): value for key, value in row.items() if not _is_empty(value)}
        for row in frame.to_dict(orient="records")
    ]


def _is_empty(value: Any) -> bool:
    return value is None or value == "" or (pd.api.types.is_scalar(value) and bool(pd.isna(value)))


def frame_from_records(rows: Iterable[Mapping[str, Any]]) -> pd.DataFrame:
    """A table whose nested cells are JSON text."""
    flat = [
        {
            key: json.dumps(value, ensure_ascii=False) if key in NESTED else value
            for key, value in row.items()
        }
        for row in rows
    ]
    return pd.DataFrame(flat)


def read_csv(path: str | Path) -> pd.DataFrame:
    """A CSV file, every cell as text."""
    return pd.read_csv(_existing(path), dtype=str, keep_default_na=False)


def read_parquet(path: str | Path) -> pd.DataFrame:
    """A Parquet file."""
    return pd.read_parquet(_existing(path))


def write_frame(frame: pd.DataFrame, path: str | Path, kind: str) -> Path:
    """Write a table as ``csv`` or ``parquet``."""
    target = Path(path)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if kind == "csv":
            frame.to_csv(target, index=False)
        else:
            frame.to_parquet(target, index=False)
    except OSError as error:
        raise ArtifactError(f"Cannot write {target}: {error.strerror}.") from error
    return target


def _existing(path: str | Path) -> Path:
    source = Path(path)
    if not source.is_file():
        raise PromptError(f"No file {source}; give the path of an existing file of prompts.")
    return source
