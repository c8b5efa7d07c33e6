"""Where a result came from, and what it has seen: the memory that keeps evaluations honest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from mechmem.errors import LeakageError, ModelError, listed
from mechmem.manifests import shape_of
from mechmem.models.model import Model, ModelInfo
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.tasks.prompts import Prompt, PromptSet

PROVENANCE = {
    "model": shape_of(ModelInfo),
    "seen": {"groups": [str], "digests": [str], "ids": [str]},
    "positions": Any,
    "by": str,
    "counts": [[str, int]],
}
"""What a manifest must say about where a result came from."""


@dataclass(frozen=True)
class Seen:
    """Groups, token ids and texts (hashed), and prompt ids that something was fitted or chosen on.

    Groups, token ids and texts decide what is refused; prompt ids are kept for the record, since
    other sets may use the same ones. A text counts as the same however its characters and blanks
    are written, and whatever date a chat template puts before it.
    """

    groups: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()

    @classmethod
    def of(cls, prompts: PromptSet, tokenized: Iterable[TokenizedPrompt]) -> Seen:
        """What fitting on these prompts has seen."""
        digests = {item.digest for item in tokenized} | {text_digest(p) for p in prompts}
        return cls(frozenset(prompts.groups), frozenset(digests), frozenset(prompts.ids))

    @classmethod
    def of_ids(cls, prompts: PromptSet, token_ids: Iterable[tuple[int, ...]]) -> Seen:
        """The same from token ids, one tuple per prompt."""
        pairs = zip(prompts.ids, token_ids, strict=True)
        return cls.of(prompts, [TokenizedPrompt(name, ids, {}) for name, ids in pairs])

    def __or__(self, other: Seen) -> Seen:
        return Seen(self.groups | other.groups, self.digests | other.digests, self.ids | other.ids)

    def refuse(
        self, prompts: PromptSet, tokenized: Iterable[TokenizedPrompt], purpose: str
    ) -> None:
        """Raise when one of the prompts, or a rephrasing of one, was seen.

        Raises:
            LeakageError: Naming the prompts and what they share.
        """
        shared = [p.id for p in prompts if p.group in self.groups]
        same = {item.id for item in tokenized if item.digest in self.digests}
        same |= {p.id for p in prompts if text_digest(p) in self.digests}
        if shared or same:
            both = [p.id for p in prompts if p.id in {*shared, *same}]
            raise LeakageError(
                f"Cannot {purpose} on {len(both)} prompts that fitting or choosing has seen "
                f"({len(shared)} by group, {len(same)} by the same text): {listed(both, 5)}. "
                "Split by group first: train, validation, test = prompts.split(...)."
            )

    def as_dict(self) -> dict[str, list[str]]:
        """JSON-ready."""
        return {
            "groups": sorted(self.groups),
            "digests": sorted(self.digests),
            "ids": sorted(self.ids),
        }

    @classmethod
    def from_dict(cls, data: dict[str, list[str]]) -> Seen:
        """The inverse of `as_dict`."""
        return cls(frozenset(data["groups"]), frozenset(data["digests"]), frozenset(data["ids"]))


def text_digest(prompt: Prompt) -> str:
    """A short hash of what a prompt says, told apart from hashes of token ids."""
    said = prompt.same_text.encode("utf-8", "surrogatepass")
    return f"text-{hashlib.sha256(said).hexdigest()[:16]}"


@dataclass(frozen=True)
class Provenance:
    """The model a result belongs to, and what it has seen.

    Attributes:
        model: Facts of the model.
        seen: Groups and prompts it was fitted on.
        positions: Where in the text the states were read, as typed.
        by: ``"behavior"`` (what the model did) or ``"label"`` (what the prompt asks for).
        counts: Examples of each class.
    """

    model: ModelInfo
    seen: Seen
    positions: Any
    by: str = ""
    counts: tuple[tuple[str, int], ...] = ()

    def check_model(self, model: Model, what: str) -> None:
        """Refuse a result of another model.

        Raises:
            ModelError: Naming both fingerprints and the processing of both.
        """
        mine, other = self.model, model.info
        if mine.fingerprint != other.fingerprint:
            raise ModelError(
                f"{what} was made on model {mine.name!r} (fingerprint {mine.fingerprint}, "
                f"{mine.processing}, {mine.dtype}) but is used on {other.name!r} (fingerprint "
                f"{other.fingerprint}, {other.processing}, {other.dtype}). Make it again on this "
                "model, or pass force=True if the two are meant to be comparable."
            )

    def as_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "model": asdict(self.model),
            "seen": self.seen.as_dict(),
            "positions": self.positions,
            "by": self.by,
            "counts": [list(pair) for pair in self.counts],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Provenance:
        """The inverse of `as_dict`."""
        return cls(
            ModelInfo(**data["model"]),
            Seen.from_dict(data["seen"]),
            data["positions"],
            data["by"],
            tuple((str(name), int(count)) for name, count in data["counts"]),
        )
