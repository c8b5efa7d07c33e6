"""Question sets that ship: real questions under free licences, with labels.

The labels are proxies. ``mmlu-pro``: by category (mathematics, physics, chemistry, engineering
against history, law, psychology, philosophy), so topic and label are one. ``mmlu-redux``: in
subjects with both kinds, by whether all four options hold a number or none does; other subjects
whole. ``gsm8k``: all reasoning. Each file's licence lies beside it.
"""

from __future__ import annotations

import json
from importlib import resources

from mechmem.errors import TaskError, did_you_mean, listed
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.reader import read_questions

SETS = {"mmlu-pro": "mmlu_pro", "mmlu-redux": "mmlu_redux", "gsm8k": "gsm8k"}


def shipped_questions(name: str) -> PromptSet:
    r"""Labeled questions as ``Q: {question}\nA: ``; ``meta["category"]`` is the subject.

    Raises:
        TaskError: For a set that does not ship.
    """
    if name not in SETS:
        raise TaskError(
            f"Unknown question set {name!r}; shipped are {listed(SETS)}.{did_you_mean(name, SETS)}"
        )
    path = resources.files("mechmem.tasks.questions") / "data" / f"{SETS[name]}.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return read_questions([{**row, "id": f"{name}-{row['id']}"} for row in rows])


def within_subjects(prompts: PromptSet, fewest: int = 2) -> PromptSet:
    """The questions of subjects that hold at least so many of either label: there the subject does
    not tell the label."""
    labels: dict[str, list[str | None]] = {}
    for prompt in prompts:
        labels.setdefault(str(prompt.meta.get("category")), []).append(prompt.label)
    both = {
        name
        for name, found in labels.items()
        if len(set(found)) > 1 and min(found.count(label) for label in set(found)) >= fewest
    }
    return prompts.filter(lambda prompt: str(prompt.meta.get("category")) in both)
