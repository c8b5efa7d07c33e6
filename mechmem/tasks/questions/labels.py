"""Labels are data: reasoning scores of questions, who gave them, saved, versioned, and compared.

A score lies in [0, 1]: 0 is recalled, 1 is worked out. Above the threshold (0.5, arXiv 2503.23084)
an item is labeled ``"reasoning"``, at or below it ``"memory"``.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mechmem.errors import ArtifactError, PromptError, listed
from mechmem.manifests import checked
from mechmem.tasks import files
from mechmem.tasks.prompts import Prompt, PromptSet

LABELS = ("reasoning", "memory")
THRESHOLD = 0.5
FORMAT = 1
_HEAD = {"judge": str, "version": str, "about": dict}
_ROW = {"id": str, "score": (float, None), "question": str}


def checked_score(value: Any, where: str) -> float:
    """A score in [0, 1].

    Raises:
        PromptError: When it is not a number, or lies outside.
    """
    try:
        score = float(value)
    except (TypeError, ValueError):
        score = math.nan
    if not 0 <= score <= 1:
        raise PromptError(
            f"{where}: a reasoning score is a number from 0 (memory) to 1 (reasoning), "
            f"got {value!r:.40}."
        )
    return score


def label_of(score: float, threshold: float = THRESHOLD) -> str:
    """``"reasoning"`` above the threshold, ``"memory"`` at or below it."""
    return "reasoning" if score > threshold else "memory"


def question_digest(prompt: Prompt) -> str:
    """A short hash of what was asked, the same in every prompt form."""
    question = str(prompt.meta.get("question", prompt.text))
    asked = " ".join(question.split()).encode("utf-8", "surrogatepass")
    return hashlib.sha256(asked).hexdigest()[:16]


@dataclass(frozen=True)
class Labels:
    """Scores of questions by their ids.

    Attributes:
        judge: Who gave them: a model's name, ``"people"``, ...
        scores: Score of every id; ``None`` where the judge gave none that could be read.
        digests: `question_digest` of what each id asked, so that labels never move to another
            question of the same id.
        about: Anything else worth keeping, such as the version of the judge's prompt.
    """

    judge: str
    scores: Mapping[str, float | None]
    digests: Mapping[str, str]
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fields = {"judge": self.judge, **{f"the id {name!r:.40}": name for name in self.scores}}
        for what, value in fields.items():
            if not isinstance(value, str):
                raise PromptError(f"{what} must be text, got {value!r:.40}.")
        for name, score in self.scores.items():
            if score is not None:
                number = not isinstance(score, (str, bool))
                checked_score(score if number else math.nan, f"Id {name!r}")
        if without := [name for name in self.scores if name not in self.digests]:
            raise PromptError(
                f"{listed(without, 5)} have a score and no digest of their question; make them "
                "with question_digest(prompt)."
            )

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        return f"Labels({len(self)} by {self.judge!r}, {self.unread} unread, {self.version})"

    @property
    def unread(self) -> int:
        """How many ids have no score."""
        return sum(score is None for score in self.scores.values())

    @cached_property
    def version(self) -> str:
        """A hash of the judge, every score and every question: other labels, other version."""
        parts = [[name, self.scores[name], self.digests[name]] for name in sorted(self.scores)]
        text = json.dumps([self.judge, dict(self.about), parts], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]

    @classmethod
    def of(cls, prompts: PromptSet, judge: str = "data set") -> Labels:
        """The scores that prompts carry in ``meta["score"]``."""
        scored = [prompt for prompt in prompts if prompt.meta.get("score") is not None]
        return cls(
            judge,
            {p.id: checked_score(p.meta["score"], f"Prompt {p.id!r}") for p in scored},
            {p.id: question_digest(p) for p in scored},
        )

    def apply(
        self, prompts: PromptSet, *, threshold: float = THRESHOLD, missing: str = "error"
    ) -> PromptSet:
        """The prompts with label, ``meta["score"]`` and the labels' version in ``meta["labels"]``.

        Args:
            threshold: A score above it is reasoning.
            missing: For prompts without a score: ``"error"``, ``"drop"``, or ``"keep"`` without
                a label.

        Raises:
            PromptError: For prompts without a score, or an id that asked something else.
        """
        if missing not in ("error", "drop", "keep"):
            raise PromptError(f"missing must be 'error', 'drop' or 'keep', got {missing!r}.")
        without = [p.id for p in prompts if self.scores.get(p.id) is None]
        if without and missing == "error":
            raise PromptError(
                f"{len(without)} prompts have no score by {self.judge!r}: {listed(without, 5)}. "
                "Judge them, or say missing='drop' or missing='keep'."
            )
        out = []
        for prompt in prompts:
            score = self.scores.get(prompt.id)
            if score is None:
                if missing == "keep":
                    out.append(replace(prompt, label=None))
                continue
            if question_digest(prompt) != self.digests.get(prompt.id):
                raise PromptError(
                    f"The score of {prompt.id!r} belongs to another question than "
                    f"{prompt.meta.get('question', prompt.text)!r:.60}; judge this one."
                )
            meta = {**prompt.meta, "score": score, "labels": self.version}
            out.append(replace(prompt, label=label_of(score, threshold), meta=meta))
        return PromptSet(out)

    def save(self, path: str | Path) -> Path:
        """Write JSON lines: one that says who judged, then one per question."""
        head = {
            "kind": "labels",
            "format": FORMAT,
            "version": self.version,
            "judge": self.judge,
            "about": dict(self.about),
        }
        rows = [
            {"id": name, "score": score, "question": self.digests[name]}
            for name, score in self.scores.items()
        ]
        return files.write_jsonl(path, [head, *rows])

    @classmethod
    def load(cls, path: str | Path) -> Labels:
        """Read what `save` wrote.

        Raises:
            ArtifactError: When it is something else, or was changed by hand.
        """
        rows = files.read_jsonl(path)
        head = rows[0] if rows else {}
        if head.get("kind") != "labels" or head.get("format") != FORMAT:
            raise ArtifactError(
                f"{path} holds no labels of format {FORMAT}; its first line says {head!r:.80}."
            )
        checked(head, _HEAD, path, "line 1")
        for number, row in enumerate(rows[1:], start=2):
            checked(row, _ROW, path, f"line {number}")
        labels = cls(
            str(head.get("judge")),
            {str(row.get("id")): row.get("score") for row in rows[1:]},
            {str(row.get("id")): str(row.get("question")) for row in rows[1:]},
            head.get("about") or {},
        )
        if labels.version != head.get("version"):
            raise ArtifactError(
                f"{path} says version {head.get('version')!r}, but its scores are of version "
                f"{labels.version!r}: it was cut off or changed. Judge again, or save anew."
            )
        return labels
