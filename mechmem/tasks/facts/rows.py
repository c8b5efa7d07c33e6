"""Facts with a false object beside the true one, from the formats in which people have them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import pandas as pd

from mechmem.errors import PromptError, listed
from mechmem.tasks import files, tables

FACT_FILES = (".json", ".jsonl", ".csv", ".parquet")
FACT_COLUMNS = "subject, relation or template, true, other"


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact, and what a prompt may falsely say instead.

    Attributes:
        subject: Ties facts together that must not be divided.
        question: The text after which the object stands, such as ``Paris is the capital of``.
        true: The object that holds.
        other: The object that does not.
    """

    subject: str
    question: str
    true: str
    other: str


def shipped_rows() -> list[dict[str, Any]]:
    """CounterFact rows that ship with mechmem (MIT, see the licence beside them)."""
    path = resources.files("mechmem.tasks.facts") / "data" / "counterfact.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def read_facts(data: Any) -> tuple[list[Fact], Counter[str]]:
    """Facts, and how many rows were left out for which reason.

    Args:
        data: A file (JSON, JSON lines, CSV, Parquet), a table, or rows with ``subject``,
            ``relation`` (the words behind the subject) or ``template`` (with ``{}`` for it),
            ``true`` and ``other``. CounterFact's rows (``requested_rewrite``), comp-mech's
            (``base_prompt``) and JuICE's (``Clean Prompt``) are read too.

    Raises:
        PromptError: For another file or rows without these columns, naming the row.
    """
    facts: dict[str, Fact] = {}
    out: Counter[str] = Counter()
    for number, row in enumerate(_rows(data)):
        fact = _fact(row, f"Row {number}")
        reason = _unusable(fact)
        if not reason and fact.question in facts:
            reason = "asked before"
        if reason:
            out[reason] += 1
        else:
            facts[fact.question] = fact
    if not facts:
        raise PromptError(
            f"No fact can be asked: {dict(out) or 'there is no row'}. Rows need {FACT_COLUMNS}."
        )
    return list(facts.values()), out


def _unusable(fact: Fact) -> str:
    """Why a fact tells nothing: its answer can be copied, or there is no conflict."""
    subject, true, other = (t.casefold() for t in (fact.subject, fact.true, fact.other))
    if true in subject:
        return "the subject contains the true answer"
    if other in subject:
        return "the subject contains the other answer"
    return "both answers are the same" if true == other else ""


def _rows(data: Any) -> Iterator[Mapping[str, Any]]:
    if isinstance(data, (str, Path)):
        data = _file(Path(data))
    if isinstance(data, pd.DataFrame):
        data = files.records_from_frame(data)
    if isinstance(data, Mapping):
        data = [data]
    if not isinstance(data, Iterable):
        raise PromptError(
            f"Facts come as a file, a table or rows, not as {type(data).__name__}; rows need "
            f"{FACT_COLUMNS}."
        )
    for row in data:
        if not isinstance(row, Mapping):
            raise PromptError(f"A fact is a row with {FACT_COLUMNS}, got {row!r:.80}.")
        inner = [value for value in row.values() if isinstance(value, list)]
        if len(inner) == len(row) and all(isinstance(v, Mapping) for one in inner for v in one):
            for rows in inner:  # JuICE's files: lists of rows by relation
                yield from rows
        else:
            yield row


def _file(path: Path) -> Any:
    kind = path.suffix.lower()
    if kind not in FACT_FILES:
        raise PromptError(f"Facts come as {listed(FACT_FILES)}, not as {str(path)!r}.")
    if kind == ".jsonl":
        return files.read_jsonl(path)
    if kind != ".json":
        return files.read_csv(path) if kind == ".csv" else files.read_parquet(path)
    return files.read_user_json(path)


def _target(given: Any) -> Any:
    """CounterFact has targets as ``{"str": ...}``, copies of it as texts."""
    return given.get("str") if isinstance(given, Mapping) else given


def _fact(row: Mapping[str, Any], where: str) -> Fact:
    if isinstance(row.get("requested_rewrite"), Mapping):
        inner = row["requested_rewrite"]
        row = {
            "subject": inner.get("subject"),
            "template": inner.get("prompt"),
            "true": _target(inner.get("target_true")),
            "other": _target(inner.get("target_new")),
        }
    elif "base_prompt" in row:
        row = {
            "subject": row.get("subject"),
            "question": row["base_prompt"],
            "true": row.get("target_true"),
            "other": row.get("target_new"),
        }
    elif "Clean Prompt" in row:
        answer = row.get("Answer")
        row = {
            "subject": row.get("Subject"),
            "question": row["Clean Prompt"],
            "true": answer[0] if isinstance(answer, list) and answer else answer,
            "other": row.get("Distracted Token"),
        }
    subject, true, other = (_text(row, name, where) for name in ("subject", "true", "other"))
    return Fact(subject, _question(row, subject, where), true, other)


def _question(row: Mapping[str, Any], subject: str, where: str) -> str:
    if row.get("question") and not tables.is_missing(row["question"]):
        return _text(row, "question", where)
    if row.get("template") and not tables.is_missing(row["template"]):
        template = _text(row, "template", where)
        if template.count("{}") != 1:
            raise PromptError(
                f"{where}: a template has one {{}} where the subject stands, got {template!r:.80}."
            )
        return template.replace("{}", subject)
    return f"{subject} {_text(row, 'relation', where)}"


def _text(row: Mapping[str, Any], name: str, where: str) -> str:
    value = row.get(name)
    if tables.is_missing(value) or not str(value).strip():
        raise PromptError(
            f"{where} has no {name!r}; rows need {FACT_COLUMNS}. It has {listed(row)}."
        )
    return str(value).strip()
