"""The official JSON files of "Think or Remember?" as rows, checked for their form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from mechmem.errors import PromptError
from mechmem.tasks import files
from mechmem.tasks.prompts import Prompt

T = TypeVar("T")


def read_rows(path: str | Path) -> list[list[dict[str, Any]]]:
    """Items of an official file, each as the list of its rephrasings (one row in ``val.json``).

    Raises:
        PromptError: When the file is missing, or not a JSON list of such items.
    """
    source = Path(path)
    loaded = files.read_user_json(source)
    if not isinstance(loaded, list):
        raise PromptError(f"{source} must hold a JSON list, got {type(loaded).__name__}.")
    items = [entry if isinstance(entry, list) else [entry] for entry in loaded]
    for index, rows in enumerate(items):
        for row in rows:
            if not isinstance(row, dict) or not all(
                isinstance(row.get(key), str) for key in ("input", "output")
            ):
                raise PromptError(
                    f"{source}, item {index}: expected an object with the texts 'input' and "
                    f"'output' (or a list of such), got {row!r:.80}."
                )
    return items


def read_items(
    path: str | Path, parse: Callable[[str], T | None], ask: Callable[[T], Prompt]
) -> list[list[tuple[T, Prompt]] | None]:
    """Every item's rephrasings, read by a task and checked against what the task would write.

    ``None`` stands for an item that the task says contradicts itself.

    Args:
        path: An official JSON file.
        parse: The instance that an ``input`` asks about.
        ask: The prompt of an instance under the task's config.

    Raises:
        PromptError: When the file is not in the official form, or was made with another config.
    """
    out: list[list[tuple[T, Prompt]] | None] = []
    for index, rows in enumerate(read_rows(path)):
        items = [parse(row["input"]) for row in rows]
        if any(item is None for item in items):
            out.append(None)
            continue
        pairs = [(item, ask(item)) for item in items if item is not None]
        for row, (_, prompt) in zip(rows, pairs, strict=True):
            gold, tag = row["output"].removeprefix(row["input"]), row.get("mem_pattern_hashed")
            for what, there, here in (
                ("output", gold.strip(), prompt.generalized),
                ("mem_pattern_hashed", tag and f"<{tag}>", tag and prompt.memorized),
            ):
                if there != here:
                    raise PromptError(
                        f"{path}, item {index}: its {what} says {there!r:.80}, this config gives "
                        f"{here!r:.80}. Pass the config that belongs to the file."
                    )
        out.append(pairs)
    return out
