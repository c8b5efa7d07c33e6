"""Prompts as the model reads them: encoded once, handed on, parts and answers with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Any

from mechmem.errors import PromptError
from mechmem.tasks.prompts import Prompt, PromptSet
from mechmem.tasks.tables import refuse_table

PromptsLike = PromptSet | Prompt | str | Iterable[Prompt | str]


@dataclass(frozen=True)
class TokenizedPrompt:
    """A prompt as the model reads it.

    Attributes:
        id: The prompt's id.
        ids: Token ids, special tokens included.
        spans: Token indices of every named span.
        straddling: Spans whose first or last token reaches beyond the span's characters.
        group: The prompt's group, so that an edit can tell another instance from a rephrasing.
        cut: Tokens that were cut to fit the context, where that was asked for.
    """

    id: str
    ids: tuple[int, ...]
    spans: Mapping[str, tuple[int, ...]]
    straddling: tuple[str, ...] = ()
    group: str = ""
    cut: int = 0

    @property
    def digest(self) -> str:
        """A short hash of the token ids: two prompts with the same one are the same input."""
        return hashlib.sha256(",".join(map(str, self.ids)).encode()).hexdigest()[:16]


def as_prompts(prompts: PromptsLike) -> PromptSet:
    """A `PromptSet` from what users hand over: a set, one prompt, one text, or a list of either."""
    if isinstance(prompts, PromptSet):
        return prompts
    if isinstance(prompts, (str, Prompt)):
        prompts = [prompts]
    if not isinstance(prompts, Iterable) or isinstance(prompts, (bytes, Mapping, Set)):
        raise PromptError(
            "prompts must be a PromptSet, a Prompt, a text, or a list of prompts or texts; got "
            f"{type(prompts).__name__} {prompts!r:.60}."
        )
    refuse_table(prompts)
    items: list[Any] = list(prompts)
    return PromptSet(
        Prompt(id=str(index), text=item) if isinstance(item, str) else item
        for index, item in enumerate(items)
    )


class EncodedPrompts(PromptSet):
    """Prompts with their token ids, as `mechmem.models.model.Model.encode` makes them: what every
    function that asks a model takes, and hands on.

    Parts of it (`split`, `filter`, `select`, a slice) and copies with behaviors keep their ids.

    Attributes:
        rows: Every prompt as the model reads it, in order.
        tokens: The `Tokens` that encoded them; another model's encodes them again.
    """

    def __init__(
        self,
        prompts: Iterable[Prompt],
        rows: Iterable[TokenizedPrompt],
        tokens: Any,
        following: dict[tuple[str, str], tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__(prompts)
        self.rows, self.tokens = tuple(rows), tokens
        self._following = {} if following is None else following

    def following(self, row: int, text: str) -> tuple[int, ...]:
        """Ids of a text behind one of the prompts (`Tokens.continuation`), encoded when first asked
        for and kept, in parts as well: before and after an edit the answers are the same."""
        key = (self[row].id, text)
        if key not in self._following:
            ids: tuple[int, ...] = self.tokens.continuation(self[row], text, self.rows[row])
            self._following[key] = ids
        return self._following[key]

    def __add__(self, other: PromptSet) -> PromptSet:
        both = super().__add__(other)
        if not isinstance(other, EncodedPrompts) or other.tokens is not self.tokens:
            return both
        known = {**self._following, **other._following}
        return EncodedPrompts(both, (*self.rows, *other.rows), self.tokens, known)

    def _part(self, prompts: Iterable[Prompt]) -> PromptSet:
        part = PromptSet(prompts)
        known = {prompt.id: k for k, prompt in enumerate(self)}
        rows = []
        for prompt in part:
            k = known.get(prompt.id)
            if k is None or _read_as(prompt) != _read_as(self[k]):
                return part
            rows.append(self.rows[k])
        return EncodedPrompts(part, rows, self.tokens, self._following)


def _read_as(prompt: Prompt) -> tuple[Any, ...]:
    """All of a prompt that its `TokenizedPrompt` depends on."""
    return prompt.text, prompt.chat, prompt.spans, prompt.group
