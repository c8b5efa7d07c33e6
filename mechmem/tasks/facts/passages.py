"""Texts that a model may know by heart: beginnings, and how they go on."""

from __future__ import annotations

import json
from importlib import resources

from mechmem.tasks.prompt import Prompt
from mechmem.tasks.prompts import PromptSet


def shipped_passages(kind: str | None = None) -> PromptSet:
    """Windows of licence texts and public-domain passages, and proverbs (see the licence beside).

    `answer` is how a text goes on: 16 words, of a proverb the last one. ``meta`` has its ``kind``
    (licence, passage, proverb), ``title`` and ``part`` (opening, famous, body). Windows of one text
    share a group.

    Args:
        kind: Only those.
    """
    path = resources.files("mechmem.tasks.facts") / "data" / "recall.jsonl"
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return PromptSet(
        Prompt(
            id=f"{row['kind']} {k}",
            text=row["prefix"],
            group=row["title"] or f"proverb {k}",
            answer=row["continuation"],
            meta={name: row[name] for name in ("kind", "title", "part")},
        )
        for k, row in enumerate(rows)
        if kind in (None, row["kind"])
    )
