"""Where a result came from, and what it has seen: the memory that keeps evaluations honest."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from mechmem.errors import LeakageError, ModelError, listed
from mechmem.manifests import shape_of
from mechmem.models.hooked import Model, ModelInfo
from mechmem.models.tokens import TokenizedPrompt
from mechmem.tasks.prompts import PromptSet

__all__ = ["Provenance", "Seen"]


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
    """Groups, token ids (hashed) and prompt ids that something was fitted or chosen on.

    Groups and token ids decide what is refused; prompt ids are kept for the record, since other
    sets may use the same ones.
    """

    groups: frozenset[str] = frozenset()
    digests: frozenset[str] = frozenset()
    ids: frozenset[str] = frozenset()

    @classmethod
    def of(cls, prompts: PromptSet, tokenized: Iterable[TokenizedPrompt]) -> Seen:
        """What fitting on these prompts has seen."""
        digests = frozenset(item.digest for item in tokenized)
        return cls(frozenset(prompts.groups), digests, frozenset(prompts.ids))

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
        same = [item.id for item in tokenized if item.digest in self.digests]
        if shared or same:
            both = list(dict.fromkeys([*shared, *same]))
            raise LeakageError(
                f"Cannot {purpose} on {len(both)} prompts that fitting or choosing has seen "
                f"({len(shared)} by group, {len(same)} by identical token ids): {listed(both, 5)}. "
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
