"""Options of a multiple choice and its right letter, from the columns that question sets use."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from typing import Any

import numpy as np

from mechmem.errors import PromptError, listed
from mechmem.kinds import natural
from mechmem.tasks.questions.rows import listed_cell

_OPTIONS = ("options", "choices")
_ANSWERS = ("answer", "answerKey", "answer_key", "answer_index", "answer_idx", "correct_answer")
_INDICES = ("answer_index", "answer_idx")
# Options in columns of their own, which no rule could put in order.
_APART = re.compile(
    r"(?:distractor|incorrect_answer|wrong_answer|option|choice|ending|sol|op)s?_?(?:\d|[a-e])"
    r"|(?:distractors|incorrect_answers|wrong_answers|endings|mc\d_targets)",
    re.I,
)


def own_options(row: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], str | None]:
    """Options and the letter of the right one; none at all for a question without options.

    Options are a list in ``options`` or ``choices`` (also as JSON text, as ``{"text": [...],
    "label": [...]}``, or as ``{"A": ..., "B": ...}``), or the columns ``A``, ``B``, ``C``, ... The
    right one is said by its letter or label, by a whole number counted from 0, or by its text.

    Raises:
        PromptError: When the options are in other columns, or the answer names none or two of them.
    """
    labels, options = _options(row, where)
    if not options:
        apart = [name for name in row if _APART.fullmatch(str(name))]
        if apart and row.get("kind") in (None, "", "choice"):
            raise PromptError(
                f"{where}: the columns {listed(apart)} look like options, and their order is not "
                "known. Put them in one list in a column 'options', with the letter of the right "
                "one in 'answer'; or set kind='short' to ask without options."
            )
        return (), None
    letters = string.ascii_uppercase[: len(options)]
    name = next((n for n in _ANSWERS if n in row and str(row[n]).strip()), None)
    if name is None:
        return options, None
    said = row[name]
    if isinstance(said, (bool, np.bool_)):
        raise PromptError(f"{where}: {name} {said!r} is not an option of {listed(options, 6)}.")
    found = _named(said, labels, options, only_index=name in _INDICES)
    if len(found) != 1:
        what = "names none" if not found else f"could be {listed(letters[k] for k in found)}"
        raise PromptError(
            f"{where}: {name} {said!r:.60} is not a letter of its {len(options)} options; it "
            f"{what} of {listed(options, 6)}. Write the letter of the right one."
        )
    return options, letters[found.pop()]


def _named(said: Any, labels: list[str], options: tuple[str, ...], only_index: bool) -> set[int]:
    """Every option that the answer could mean."""
    number = isinstance(said, (int, np.integer)) or (
        isinstance(said, (float, np.floating)) and float(said).is_integer()
    )
    text = str(int(said)) if number else str(said).strip()
    place = natural(text)
    index = {place} if place is not None and place < len(options) else set()
    if number or (only_index and text.isdecimal()):
        own = any(label.isdecimal() for label in labels)
        return {k for k, label in enumerate(labels) if label == text} if own else index
    bare = text.strip("(). ")
    letters = {k for k, label in enumerate(labels) if label.casefold() == bare.casefold()}
    same = {k for k, option in enumerate(options) if option.strip() == text}
    # A letter is a letter, even where another option is that letter; digits may be either.
    return letters or (same | index if text.isdecimal() else same)


def _options(row: Mapping[str, Any], where: str) -> tuple[list[str], tuple[str, ...]]:
    name = next((n for n in _OPTIONS if not _empty(row.get(n))), None)
    if name is None:
        columns = []
        for letter in string.ascii_uppercase:
            if _empty(row.get(letter)):
                break
            columns.append(str(row[letter]))
        return (
            (list(string.ascii_uppercase[: len(columns)]), tuple(columns))
            if columns[1:]
            else ([], ())
        )
    cell = row[name]
    if isinstance(cell, str) and cell.strip().startswith("{"):
        try:
            cell = json.loads(cell)
        except (json.JSONDecodeError, RecursionError):
            raise PromptError(
                f"{where}: {name} is neither a list nor JSON: {cell!r:.80}."
            ) from None
    if isinstance(cell, Mapping):
        texts = cell.get("text", cell)
        labels = list(map(str, cell.get("label", ()))) if "text" in cell else list(map(str, cell))
        cell = list(texts.values()) if isinstance(texts, Mapping) else texts
    else:
        labels = []
    options = tuple(listed_cell(cell, f"{where}: {name}"))
    if not 1 <= len(options) <= len(string.ascii_uppercase):
        raise PromptError(f"{where}: {len(options)} {name}; a question has 1 to 26 of them.")
    if labels and len(labels) != len(options):
        raise PromptError(f"{where}: {len(options)} {name} have {len(labels)} labels.")
    return labels or list(string.ascii_uppercase[: len(options)]), options


def _empty(cell: Any) -> bool:
    if isinstance(cell, np.ndarray):
        return cell.size == 0
    return cell is None or cell == "" or (isinstance(cell, float) and cell != cell)
