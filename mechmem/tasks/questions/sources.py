"""What the columns of each question set mean. A new set is one function under its decorator."""

from __future__ import annotations

import string
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from mechmem.errors import PromptError, listed
from mechmem.tasks.parsing import bare_number, gold_number
from mechmem.tasks.questions.kinds import QUESTION_KINDS
from mechmem.tasks.questions.options import answer_in_row, own_options
from mechmem.tasks.questions.rows import FILE, language_of, listed_cell
from mechmem.tasks.registry import Registry
from mechmem.tasks.tables import finite_cell

Row = Mapping[str, Any]

CEVAL_HUMANITIES = frozenset(
    (
        "art_studies chinese_language_and_literature high_school_chinese high_school_history "
        "ideological_and_moral_cultivation law legal_professional logic middle_school_history "
        "modern_chinese_history professional_tour_guide"
    ).split()
)
"""C-Eval's own list of humanities; the paper's C-Eval-H, as far as its readers say."""


@dataclass(frozen=True)
class Item:
    """One row in the words that all sets share.

    Attributes:
        question: The question alone.
        kind: How an answer is read (`mechmem.tasks.questions.kinds.QUESTION_KINDS`); empty when it
            is not.
        answer: The right answer: a letter, a number, a text.
        options: Texts of a multiple choice.
        aliases: Other right answers.
        category: The topic.
        solution: A worked answer, for use as an example in a prompt.
        key: The row's own id, if it has one.
        group: Ties variants of one instance together; from the question's text when empty.
        twin: The question that this one is a variant of: its text makes the group.
        label: ``"reasoning"`` or ``"memory"`` where the whole set asks for one of them.
        language: Of the question, where the set has several.
        extra: Anything else worth keeping.
    """

    question: str
    kind: str = ""
    answer: str | None = None
    options: tuple[str, ...] = ()
    aliases: tuple[str, ...] = ()
    category: str = ""
    solution: str = ""
    key: str = ""
    group: str = ""
    twin: str = ""
    label: str | None = None
    language: str = "en"
    extra: Mapping[str, Any] = field(default_factory=dict)


RowReader = Callable[[Row, str, int], Item]


class QuestionSource(NamedTuple):
    """A question set: its reader, and how many worked examples its evaluation prompt has.

    The reader gets a row, its name in messages, and its number in its language or file.
    """

    read: RowReader
    shots: int


SOURCES: Registry[QuestionSource] = Registry("question set")


def register_source(name: str, shots: int = 0) -> Callable[[RowReader], RowReader]:
    """Decorator: make a reader of rows a question set, by the name that ``source=`` takes.

    Args:
        name: For example ``"gsm8k"``.
        shots: Worked examples in its evaluation prompts when nobody says how many.
    """

    def add(read: RowReader) -> RowReader:
        SOURCES.add(name, QuestionSource(read, shots))
        return read

    return add


def _text(row: Row, name: str, where: str) -> str:
    value = row.get(name)
    if value is None or not str(value).strip():
        columns = [key for key in row if key != FILE]
        raise PromptError(f"{where} has no {name!r}; its columns are {listed(columns)}.")
    return str(value)


def _kept(row: Row, *names: str) -> dict[str, Any]:
    return {name: row[name] for name in names if row.get(name) is not None}


@register_source("mmlu-pro", shots=5)
def mmlu_pro(row: Row, where: str, index: int) -> Item:
    """``question, options, answer`` (a letter), ``answer_index, category, src, cot_content``."""
    options = tuple(listed_cell(row.get("options"), f"{where}: options"))
    answer = row.get("answer")
    if not answer and row.get("answer_index") not in (None, ""):
        said = {"options": list(options), "answer_index": row["answer_index"]}
        answer = own_options(said, where)[1]
    letter = str(answer or "").strip().strip("()").upper()
    if letter not in string.ascii_uppercase[: len(options)] or len(letter) != 1:
        raise PromptError(
            f"{where}: answer {answer!r} is not a letter of its {len(options)} options."
        )
    return Item(
        _text(row, "question", where),
        "choice",
        letter,
        options=options,
        category=str(row.get("category") or ""),
        solution=str(row.get("cot_content") or ""),
        key=str(row.get("question_id", "")),
        extra=_kept(row, "src"),
    )


@register_source("gsm8k", shots=8)
def gsm8k(row: Row, where: str, index: int) -> Item:
    """``question, answer`` (a solution that ends in ``#### 18``)."""
    solution = _text(row, "answer", where)
    return Item(
        _text(row, "question", where),
        "number",
        _number(solution, where),
        category="grade-school mathematics",
        solution=solution,
        key=str(row.get("id", "")),
        label="reasoning",
    )


@register_source("gsm-symbolic", shots=8)
def gsm_symbolic(row: Row, where: str, index: int) -> Item:
    """GSM8K's columns and ``id, instance, original_question``; variants share their group."""
    parts = [str(row[name]) for name in ("id", "instance") if row.get(name) is not None]
    return replace(
        gsm8k({**row, "id": "-".join(parts)}, where, index),
        twin=str(row.get("original_question") or ""),
        group="" if row.get("original_question") or not parts else f"gsm-symbolic-{parts[0]}",
        extra=_kept(row, "instance", "original_id"),
    )


@register_source("mgsm", shots=8)
def mgsm(row: Row, where: str, index: int) -> Item:
    """``question, answer_number`` (or ``answer``); row *k* is the same problem in every language.

    Rows are counted by language (`language_of`), by file where none is said.
    """
    language = language_of(row)
    number = row.get("answer_number")
    solution = str(row.get("answer") or "")
    return Item(
        _text(row, "question", where),
        "number",
        _number(solution if number in (None, "") else number, where),
        category="grade-school mathematics",
        solution=solution,
        key=f"{language or row.get(FILE) or 'unknown'}-{index}",
        group="" if row.get("english") else f"mgsm-{index}",
        twin=str(row.get("english") or ""),
        label="reasoning",
        language=language or "en",
    )


@register_source("popqa")
def popqa(row: Row, where: str, index: int) -> Item:
    """``question, possible_answers`` (a JSON list), ``obj, prop, s_pop``."""
    answers = listed_cell(row.get("possible_answers", ""), f"{where}: possible_answers")
    if row.get("obj") and row["obj"] not in answers:
        answers.insert(0, str(row["obj"]))
    if not answers:
        raise PromptError(f"{where} has neither 'possible_answers' nor 'obj'.")
    return Item(
        _text(row, "question", where),
        "short",
        answers[0],
        aliases=tuple(answers[1:]),
        category=str(row.get("prop") or ""),
        key=str(row.get("id", "")),
        label="memory",
        extra=_kept(row, "s_pop", "o_pop"),
    )


@register_source("c-eval", shots=5)
def ceval(row: Row, where: str, index: int) -> Item:
    """``question, A, B, C, D, answer, explanation``; the file's name says the subject."""
    options = tuple(str(row[letter]) for letter in "ABCDEF" if row.get(letter) not in (None, ""))
    subject = str(row.get("category") or row.get("subject") or row.get(FILE, ""))
    for end in ("_test", "_val", "_dev"):
        subject = subject.removesuffix(end)
    answer = str(row.get("answer") or "").strip().upper()
    if answer and answer not in [*string.ascii_uppercase[: len(options)]]:
        raise PromptError(
            f"{where}: answer {answer!r} is not a letter of its {len(options)} options."
        )
    return Item(
        _text(row, "question", where),
        "choice",
        answer or None,  # the test part is published without answers
        options=options,
        category=subject,
        solution=str(row.get("explanation") or ""),
        key=f"{subject}-{row['id']}" if row.get("id") not in (None, "") else "",
        label="memory" if subject in CEVAL_HUMANITIES else None,
        language="zh",
        extra={"humanities": subject in CEVAL_HUMANITIES},
    )


@register_source("mbpp")
def mbpp(row: Row, where: str, index: int) -> Item:
    """``text`` (or ``prompt`` in the sanitized part), ``task_id``; code is never run."""
    name = "text" if row.get("text") else "prompt"
    key = str(row.get("task_id", ""))
    return Item(_text(row, name, where), category="programming", key=key)


@register_source("humaneval")
def humaneval(row: Row, where: str, index: int) -> Item:
    """``prompt`` (a function's head), ``task_id``; code is never run."""
    key = str(row.get("task_id", ""))
    return Item(_text(row, "prompt", where), category="programming", key=key)


@register_source("questions")
def own(row: Row, where: str, index: int) -> Item:
    """Your own: ``question`` and what else you have (``answer, aliases, options, category, id,
    group, kind, language``, and ``label`` or ``score``). Options and the right one among them may
    be written in several ways (`own_options`). Without ``kind`` an answer is a number where no
    words stand beside it (`bare_number`).
    """
    language = str(row.get("language") or "en")
    several = [name for name in ("aliases", "possible_answers") if row.get(name)]
    aliases = tuple(listed_cell(row[several[0]], f"{where}: {several[0]}")) if several else ()
    options, letter = own_options(row, where)
    answer = letter if options else _said(row, where)
    if answer is None and aliases:
        answer, aliases = aliases[0], aliases[1:]
    kind = str(row.get("kind") or "")
    if not kind and answer is not None:
        number = not aliases and bare_number(answer, language) is not None
        kind = "choice" if options else "number" if number else "short"
    if kind and kind not in QUESTION_KINDS:
        raise PromptError(f"{where}: kind {kind!r} is not one of {listed(QUESTION_KINDS)}.")
    if kind == "number" and isinstance(answer_in_row(row, where), float):
        exact = gold_number(
            answer_in_row(row, where)
        )  # a number, whose point is one in every language
        answer = answer if gold_number(answer, language) == exact else exact
    if kind == "choice" and answer not in [*string.ascii_uppercase[: len(options) or 10]]:
        raise PromptError(
            f"{where}: answer {answer!r} is not a letter of its {len(options)} options."
        )
    if options and kind != "choice":
        answer = None if letter is None else options[string.ascii_uppercase.index(letter)]
    return Item(
        _text(row, "question", where),
        kind,
        answer,
        options=options,
        aliases=aliases,
        category=str(row.get("category") or ""),
        solution=str(row.get("solution") or ""),
        key=str(row.get("id", "")),
        group=str(row.get("group") or ""),
        language=language,
    )


def _said(row: Row, where: str) -> str | None:
    """The answer of a question without options."""
    given = finite_cell(answer_in_row(row, where), f"{where}: answer")
    if given is None:
        return None
    if isinstance(given, (Mapping, list, tuple, bool)) or hasattr(given, "shape"):
        raise PromptError(
            f"{where}: answer {given!r:.80} is not one text or number; write one right answer, and "
            "others in 'aliases'."
        )
    return str(given)


def _number(value: Any, where: str) -> str:
    number = gold_number(value)
    if number is None:
        raise PromptError(f"{where}: no number in the answer {value!r:.80}.")
    return number
