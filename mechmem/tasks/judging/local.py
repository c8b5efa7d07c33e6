"""A judge that is a local model: anything that can continue texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from mechmem.tasks.prompts import Chat, Prompt, PromptSet


@runtime_checkable
class Writes(Protocol):
    """A model that continues prompts, such as one from `load_model`."""

    def generate(self, prompts: Any, max_new_tokens: int = ...) -> list[str]:
        """One continuation per prompt, in order."""
        ...


@dataclass(frozen=True)
class ModelJudge:
    """Judge with a local model, greedily.

    Attributes:
        model: Anything with ``.generate(prompts, max_new_tokens=)``.
        name: The model's name, under which its replies are kept.
        max_new_tokens: How long a reply may be.
        chat: For a chat model: its template and system message; a base model gets the plain text.
    """

    model: Writes
    name: str
    max_new_tokens: int = 128
    chat: Chat | None = None

    def replies(self, texts: Sequence[str]) -> list[str]:
        """One reply per text, in order."""
        prompts = PromptSet(
            Prompt(id=str(k), text=text, chat=self.chat) for k, text in enumerate(texts)
        )
        return list(self.model.generate(prompts, max_new_tokens=self.max_new_tokens))
