"""Options of a multiple choice and its right letter, from the columns that question sets use."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from mechmem.errors import PromptError, listed
from mechmem.numeric import natural
from mechmem.tasks.questions.rows import listed_cell
from mechmem.tasks.tables import is_missing

_OPTIONS = (
    "options choices choice candidates alternatives answer_choices choices_text option_texts"
).split()
_INDICES = (
    "answer_index answer_idx answer_id correct_answer_index correct_index correct_idx gold_index"
).split()
_ANSWERS = (
    "answer answer_key answer_letter answer_label correct_answer correct correct_option "
    "correct_choice correct_letter right_answer gold gold_answer target"
).split() + _INDICES
_OTHERS = (
    "question aliases possible_answers category id group kind language label score "
    "memory_reason_score solution answers target_scores"
).split()
_NAMES = {name.replace("_", ""): name for name in (*_OPTIONS, *_ANSWERS, *_OTHERS)}
_LETTER = re.compile(r"(?:option|choice)?([a-z])")
# Options in columns of their own, which no rule could put in order.
_APART = re.compile(
    r"(?:distractor|incorrectanswer|wronganswer|option|choice|ending|sol|op)s?(?:\d|[a-e])"
    r"|(?:distractors|incorrectanswers|wronganswers|endings|mc\dtargets)"
)


def known_names(row: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The row with its columns under the names that are read, however they are written: *Answer*,
    *answerKey*, *Option A*, *(a)*.

    Raises:
        PromptError: When two columns have one name and different cells.
    """
    out: dict[str, Any] = {}
    unasked = row.get("kind") not in (None, "", "choice")
    for key, value in row.items():
        bare = _bare(key)
        letter = _LETTER.fullmatch(bare)
        name = _NAMES.get(bare, key)
        if letter and bare not in _NAMES and not (unasked and str(key).islower()):
            name = letter[1].upper()
        if name in out and str(out[name]) != str(value):
            raise PromptError(
                f"{where}: two columns are called {name!r}, one of them {key!r}, and they say "
                f"{out[name]!r:.40} and {value!r:.40}. Keep one of them."
            )
        out[name] = value
    return out


@lru_cache(maxsize=1024)
def _bare(name: str) -> str:
    return re.sub(r"[\W_]+", "", str(name).casefold())


def own_options(row: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], str | None]:
    """Options and the letter of the right one; none at all for a question without options.

    Options are a list in ``options``, ``choices``, ``candidates``, ... (also as JSON text, as
    ``{"text": [...], "label": [...]}``, as such rows, or as ``{"A": ..., "B": ...}``), or the
    columns ``A``, ``B``, ``C``, ... The right one is said by its letter or label, by a whole number
    counted from 0, or by its text, in ``answer``, ``answerKey``, ``gold``, ...

    Raises:
        PromptError: When the options are in other columns, or the answer names none or two of them.
    """
    labels, options = _options(row, where)
    if not options:
        _refuse_unread(row, where)
        return (), None
    letters = string.ascii_uppercase[: len(options)]
    meant: dict[str, str] = {}
    for name in given_answers(row):
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
        meant[name] = letters[found.pop()]
    if len(set(meant.values())) > 1:
        said_so = ", ".join(f"{name} {row[name]!r:.40} is {meant[name]}" for name in meant)
        raise PromptError(f"{where}: its answers contradict one another: {said_so}. Keep one.")
    if not meant and row.get("answers", row.get("target_scores")) is not None:
        _refuse_unread({**row, "kind": None}, where)
    return options, next(iter(meant.values()), None)


def given_answers(row: Mapping[str, Any]) -> list[str]:
    """Columns that say which answer is right; a mark (*correct: True*) beside one does not."""
    found = [name for name in _ANSWERS if not _empty(row.get(name)) and str(row[name]).strip()]
    marks = [n for n in found if n != "answer" and isinstance(row[n], (bool, np.bool_))]
    return [name for name in found if name not in marks]


def answer_in_row(row: Mapping[str, Any], where: str) -> Any:
    """The answer of a question without options, as its cell holds it; ``None`` without one.

    Raises:
        PromptError: When two columns say different ones, or one counts options that are not there.
    """
    names = given_answers(row)
    counted = [name for name in names if name in _INDICES]
    if counted:
        raise PromptError(
            f"{where}: {counted[0]} {row[counted[0]]!r:.40} counts options, and there are none. "
            "Put them in a list in a column 'options', or write the right answer in 'answer'."
        )
    if len({str(row[name]).strip().casefold() for name in names}) > 1:
        said = ", ".join(f"{name} is {row[name]!r:.40}" for name in names)
        raise PromptError(f"{where}: its answers contradict one another: {said}. Keep one.")
    return row[names[0]] if names else None


def _refuse_unread(row: Mapping[str, Any], where: str) -> None:
    """Refuse columns that may hold options, or the right one, in a way that nobody reads."""
    if row.get("kind") not in (None, "", "choice"):
        return
    apart = [name for name in row if _APART.fullmatch(_bare(name))]
    answers = [row[name] for name in given_answers(row)]
    apart += [
        name
        for name in ("answers", "target_scores")
        if not _empty(row.get(name)) and not answers and name not in apart
    ]
    apart += [
        name
        for name, cell in row.items()
        if name not in (*_NAMES.values(), *apart)
        and any(_could_name(answer, cell) for answer in answers)
    ]
    if apart:
        raise PromptError(
            f"{where}: the columns {listed(apart)} look like options, and their order is not "
            "known. Put them in one list in a column 'options', with the letter of the right "
            "one in 'answer', and other right answers in 'aliases'; or set kind='short' or "
            "'number' to ask without options."
        )


def _could_name(answer: Any, cell: Any) -> bool:
    """Whether a cell is a list, and the answer may be one of it."""
    try:
        texts = [str(x) for x in cell.values()] if isinstance(cell, Mapping) else None
        if texts is None and not isinstance(cell, str):
            texts = [str(x) for x in cell] if isinstance(cell, (list, tuple, np.ndarray)) else []
        elif texts is None:
            texts = listed_cell(cell, "") if cell.lstrip().startswith("[") else []
    except PromptError:
        return False
    labels = list(string.ascii_uppercase[: len(texts)])
    return len(texts) > 1 and bool(_named(answer, labels, tuple(texts), only_index=False))


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
    found = {
        name: _listed(row[name], where, name) for name in _OPTIONS if not _empty(row.get(name))
    }
    if len({options for _, options in found.values()}) > 1:
        raise PromptError(f"{where}: {listed(found)} hold different options. Keep one of them.")
    return next(iter(found.values())) if found else _lettered(row, where)


def _lettered(row: Mapping[str, Any], where: str) -> tuple[list[str], tuple[str, ...]]:
    """Options in columns of their own, A, B, C, ..., without a gap."""
    there = [letter for letter in string.ascii_uppercase[:10] if not _empty(row.get(letter))]
    asked = {str(row[name]).strip("(). ").upper() for name in given_answers(row)}
    if len(there) < 2 and not (there and asked <= {*there}):
        return [], ()
    labels = list(string.ascii_uppercase[: len(there)])
    if labels != there or len(there) < 2:
        gap = next(letter for letter in string.ascii_uppercase if letter not in there)
        raise PromptError(
            f"{where}: of the options {listed(there)} are filled and {gap!r} is empty. Fill it, or "
            "write the options as a list in a column 'options'."
        )
    while len(labels) < 26 and not _empty(row.get(string.ascii_uppercase[len(labels)])):
        labels.append(string.ascii_uppercase[len(labels)])
    cells = [row[letter] for letter in labels]
    return labels, tuple(listed_cell(cells, f"{where}: options"))


def _listed(cell: Any, where: str, name: str) -> tuple[list[str], tuple[str, ...]]:
    """Labels and texts of one cell that holds all options."""
    if isinstance(cell, str) and cell.strip().startswith(("{", "[")):
        try:
            cell = json.loads(cell)
        except (json.JSONDecodeError, RecursionError):
            raise PromptError(
                f"{where}: {name} is neither a list nor JSON: {cell!r:.80}."
            ) from None
    if isinstance(cell, np.ndarray):
        cell = cell.tolist()
    labels: list[str] = []
    if isinstance(cell, (list, tuple)) and all(
        isinstance(x, Mapping) and "text" in x for x in cell
    ):
        labels = [str(x["label"]) for x in cell if x.get("label") is not None]
        cell = [x["text"] for x in cell]
    elif isinstance(cell, Mapping):
        texts = cell.get("text", cell)
        labels = list(map(str, cell.get("label", ()))) if "text" in cell else list(map(str, cell))
        cell = list(texts.values()) if isinstance(texts, Mapping) else texts
        while isinstance(cell, list) and cell and is_missing(cell[-1]) and len(labels) == len(cell):
            cell, labels = cell[:-1], labels[:-1]  # tables give every row the longest one's keys
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
