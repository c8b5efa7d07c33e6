"""Rows of a question set, from wherever they are: a file, a folder, the hub, or memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mechmem.errors import PromptError, listed
from mechmem.tasks import files, tables

FILE = "_file"
"""Key under which a row remembers the name (without suffix) of the file it came from."""

_SUFFIXES = (".json", ".jsonl", ".csv", ".tsv", ".parquet")


def load_rows(
    data: Any, *, split: str | None = None, config: str | None = None
) -> list[dict[str, Any]]:
    """Rows as dictionaries, without empty cells and rows.

    Args:
        data: A ``.json`` (a list of objects, or one under ``data``), ``.jsonl``, ``.csv``,
            ``.tsv`` or ``.parquet`` file; a folder of them; a folder written by
            ``Dataset.save_to_disk``; a hub id such as ``"openai/gsm8k"``; a ``datasets.Dataset``;
            a pandas table; or rows.
        split: Which split, where the data have several.
        config: Which configuration of a hub data set.

    Raises:
        PromptError: When nothing is there, or it has another form.
    """
    return tables.filled(tables.whole(_loaded(data, split, config)))


def _loaded(data: Any, split: str | None, config: str | None) -> list[dict[str, Any]]:
    if isinstance(data, pd.DataFrame):
        return files.records_from_frame(data)
    if not isinstance(data, (str, Path)):
        return _from_memory(data, split)
    path = Path(data)
    if path.is_dir():
        if any((path / name).is_file() for name in ("state.json", "dataset_dict.json")):
            return _from_memory(_datasets().load_from_disk(str(path)), split, str(path))
        return _from_folder(path, split)
    if path.is_file() or path.suffix.casefold() in _SUFFIXES:
        return _from_file(path)
    if isinstance(data, str) and data.count("/") == 1 and not data.startswith((".", "/", "~")):
        return _from_hub(data, split, config)
    raise PromptError(
        f"No file or folder {str(data)!r}. Give a path to a {', '.join(_SUFFIXES)} file, or a hub "
        "id with its owner, such as 'openai/gsm8k'."
    )


def listed_cell(value: Any, where: str) -> list[str]:
    """A cell that holds several texts: a list, an array, or a list written as JSON text."""
    if isinstance(value, str):
        if not value.strip():
            return []
        try:
            value = json.loads(value)
        except (json.JSONDecodeError, RecursionError):
            raise PromptError(
                f"{where} must be a list or a list written as JSON, got {value!r:.80}."
            ) from None
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        raise PromptError(f"{where} must be a list of texts, got {value!r:.80}.")
    return [_item(item, f"{where}, item {number}") for number, item in enumerate(value)]


def _item(item: Any, where: str) -> str:
    """A text or a number; nothing else is one."""
    if isinstance(item, np.generic):
        item = item.item()
    known = isinstance(item, (str, int, float)) and not isinstance(item, bool)
    if not known or tables.is_missing(item):
        raise PromptError(f"{where} must be a text or a number, got {item!r:.80}.")
    return str(tables.finite_cell(item, where))


def language_of(row: Mapping[str, Any]) -> str:
    """The column ``language``, or the end of the file's name (``mgsm_de.tsv``), or nothing."""
    said = str(row.get("language") or "")
    _, mark, end = str(row.get(FILE, "")).rpartition("_")
    return said or (end if mark else "")


def _from_file(path: Path) -> list[dict[str, Any]]:
    suffix = path.suffix.casefold()
    if suffix == ".jsonl":
        rows = files.read_jsonl(path)
    elif suffix == ".csv":
        rows = files.read_csv(path)
    elif suffix == ".parquet":
        rows = files.read_parquet(path)
    elif suffix == ".tsv":
        rows = _from_tsv(path)
    elif suffix == ".json":
        rows = _from_json(path)
    else:
        raise PromptError(f"{path} has none of the endings {', '.join(_SUFFIXES)}.")
    return [{**row, FILE: path.stem} for row in rows]


def _from_tsv(path: Path) -> list[dict[str, Any]]:
    """With a header (PopQA) or, when there is no ``question`` in it, two columns without (MGSM)."""
    cells = [line.split("\t") for line in files.read_lines(path, "TSV")]
    header = [name.strip() for name in cells[0]] if cells else []
    header = ["question" if name.casefold() == "question" else name for name in header]
    if "question" in header:
        cells = cells[1:]
    else:
        header = ["question", "answer_number"]
    for number, row in enumerate(cells, start=1):
        if len(row) != len(header):
            raise PromptError(
                f"{path}, row {number}: {len(row)} cells where {len(header)} were expected "
                f"({listed(header, 4)})."
            )
    return [
        {key: _unquoted(cell) for key, cell in zip(header, row, strict=True) if cell}
        for row in cells
    ]


def _unquoted(cell: str) -> str:
    quoted = len(cell) > 1 and cell[0] == cell[-1] == '"'
    return cell[1:-1].replace('""', '"') if quoted else cell


def _from_json(path: Path) -> list[dict[str, Any]]:
    loaded = files.read_user_json(path)
    if isinstance(loaded, dict) and isinstance(loaded.get("data"), list):
        loaded = loaded["data"]
    return _rows(loaded, str(path))


def _from_folder(path: Path, split: str | None) -> list[dict[str, Any]]:
    found = sorted(file for file in path.iterdir() if file.suffix.casefold() in _SUFFIXES)
    if split is not None:
        found = [file for file in found if split in file.stem.replace("-", "_").split("_")]
    if not found:
        raise PromptError(
            f"No {', '.join(_SUFFIXES)} file in {path}"
            + (f" with {split!r} in its name." if split else ".")
        )
    return [row for file in found for row in _from_file(file)]


def _from_memory(data: Any, split: str | None, name: str = "the data") -> list[dict[str, Any]]:
    if isinstance(data, Mapping):  # datasets.DatasetDict
        if split is None and len(data) == 1:
            split = next(iter(data))
        if split not in data:
            raise PromptError(
                f"{name} has the splits {listed(data)}; choose one of them with split=, "
                f"got {split!r}."
            )
        data = data[split]
    return _rows(data, name)


def _from_hub(name: str, split: str | None, config: str | None) -> list[dict[str, Any]]:
    try:
        loaded = _datasets().load_dataset(name, config, split=split)
    except PromptError:
        raise
    except Exception as error:  # the library raises errors of many kinds, all of one meaning here
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise PromptError(
            f"There is no file {name!r} here, and the hub data set of that name "
            f"(config={config!r}, split={split!r}) cannot be loaded: {reason:.200} "
            "Download it elsewhere with datasets.save_to_disk and give that folder."
        ) from error
    return _from_memory(loaded, split, name)


def _datasets() -> Any:
    try:
        import datasets  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        raise PromptError(
            "Hugging Face data sets need the package `datasets`: pip install 'mechmem[hub]', or "
            "give a JSON, CSV or Parquet file."
        ) from None
    return datasets


def _rows(rows: Any, name: str) -> list[dict[str, Any]]:
    if not isinstance(rows, Iterable) or isinstance(rows, (str, bytes, Mapping)):
        raise PromptError(f"{name} must hold a list of rows, got {type(rows).__name__}.")
    out = []
    for index, row in enumerate(rows):
        if not isinstance(row, Mapping):
            raise PromptError(f"{name}, row {index}: expected an object, got {row!r:.80}.")
        out.append(dict(row))
    return out
