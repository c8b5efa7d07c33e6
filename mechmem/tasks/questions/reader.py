"""From the rows of a question set to prompts in the paper's extraction form."""

from __future__ import annotations

import hashlib
import unicodedata
from collections import Counter
from typing import Any

from mechmem.errors import PromptError, did_you_mean, listed
from mechmem.tasks.prompts import Prompt, PromptSet
from mechmem.tasks.questions.labels import LABELS, THRESHOLD, checked_score, label_of
from mechmem.tasks.questions.options import known_names
from mechmem.tasks.questions.rows import FILE, language_of, load_rows
from mechmem.tasks.questions.sources import SOURCES, Item

SCORE_COLUMNS = ("memory_reason_score", "score")


def extraction_text(question: str) -> str:
    r"""``Q: {question}\nA: `` as in arXiv 2503.23084: no options, no examples."""
    return f"Q: {question}\nA: "


def read_questions(
    data: Any,
    source: str = "questions",
    *,
    split: str | None = None,
    config: str | None = None,
    threshold: float = THRESHOLD,
    english: Any = None,
) -> PromptSet:
    r"""Prompts ``Q: {question}\nA: `` with id, group, label, answer, span ``question`` and meta.

    The label comes from a score (``memory_reason_score`` or ``score``, above ``threshold`` is
    reasoning), from a column ``label``, or from the set (GSM8K: reasoning; PopQA: memory).
    The meta holds ``source, question, kind, options, aliases, category, src, solution, language,
    score`` where they exist. Equal questions share a group, whatever set they come from; so do the
    variants of a GSM-Symbolic question (with the GSM8K question they were made from) and the
    translations of an MGSM question.

    Args:
        data: A file, a folder, a hub id, a data set, a table or rows (`load_rows`).
        source: What the columns mean; a key of `SOURCES`.
        split, config: Of a hub data set or a saved one.
        threshold: A score above it is reasoning.
        english: For MGSM, the English part in any form that ``data`` may have: ties every
            translation to the English question, and so to GSM8K.

    Raises:
        PromptError: When a row lacks what its set must have; the message names the row.
    """
    if source not in SOURCES:
        raise PromptError(
            f"Unknown source {source!r}; known are {listed(SOURCES)}."
            f"{did_you_mean(source, SOURCES)} Your own questions are 'questions'."
        )
    rows = load_rows(data, split=split, config=config)
    if english is not None:
        rows = _beside_english(rows, english, source)
    prompts = []
    counted: Counter[str] = Counter()
    for index, row in enumerate(rows):
        where = f"{source}, row {index}"
        row = known_names(row, where) if source == "questions" else row
        part = language_of(row) or str(row.get(FILE, ""))
        item = SOURCES[source].read(row, where, counted[part])
        counted[part] += 1
        prompts.append(_prompt(item, row, source, index, where, threshold))
    return PromptSet(prompts)


def _prompt(
    item: Item, row: dict[str, Any], source: str, index: int, where: str, threshold: float
) -> Prompt:
    question = item.question
    score = next((row[name] for name in SCORE_COLUMNS if row.get(name) not in (None, "")), None)
    meta = {
        "source": source,
        "question": question,
        "kind": item.kind,
        "options": list(item.options),
        "aliases": list(item.aliases),
        "category": item.category,
        "solution": item.solution,
        "language": item.language,
        "score": None if score is None else checked_score(score, where),
        **{key: _plain(value) for key, value in item.extra.items()},
    }
    return Prompt(
        id=f"{source}-{item.key or index}",
        text=extraction_text(question),
        group=item.group or _group(item.twin or question),
        answer=item.answer,
        label=_label(item, row, meta["score"], where, threshold),
        spans={"question": (3, 3 + len(question))},
        meta={key: value for key, value in meta.items() if value not in (None, "", [])},
    )


def _label(item: Item, row: dict[str, Any], score: Any, where: str, threshold: float) -> str | None:
    said = str(row.get("label", "")).strip().casefold() or None
    if said is not None and said not in LABELS:
        raise PromptError(
            f"{where}: label {row['label']!r:.40} is not one of {listed(LABELS)}; the right option "
            f"goes in a column 'answer'.{did_you_mean(said, LABELS)}"
        )
    scored = None if score is None else label_of(score, threshold)
    if said is not None and scored is not None and said != scored:
        raise PromptError(
            f"{where}: label {said!r} contradicts score {score} (above {threshold} is reasoning). "
            "Keep one of the two columns, or pass another threshold."
        )
    return said or scored or item.label


def _group(question: str) -> str:
    """The same for the same question, spacing and case aside."""
    plain = " ".join(unicodedata.normalize("NFKC", question).casefold().split())
    return "q-" + hashlib.sha256(plain.encode()).hexdigest()[:16]


def _beside_english(rows: list[dict[str, Any]], english: Any, source: str) -> list[dict[str, Any]]:
    if source != "mgsm":
        raise PromptError(f"english= is for the source 'mgsm', not {source!r}.")
    others = load_rows(english)
    if len(others) != len(rows):
        raise PromptError(
            f"The English part has {len(others)} rows and this one {len(rows)}; row k must be the "
            "same problem in both."
        )
    return [
        {**row, "english": other.get("question")} for row, other in zip(rows, others, strict=True)
    ]


def _plain(value: Any) -> Any:
    """Numbers of NumPy as Python's, so that they can be written as JSON."""
    return value.item() if hasattr(value, "item") else value
