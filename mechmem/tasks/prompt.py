"""`Prompt`: one question to a model, and what each behavior would answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import index
from typing import Any
from unicodedata import category, decomposition, normalize

from mechmem.errors import PromptError, shown

_ANSWERS = ("memorized", "generalized", "answer")
_TEXTS = ("text", "group", *_ANSWERS, "label", "behavior")


def _as_json(value: dict[str, Any], what: str, *, exactly: bool = False) -> Any:
    """The value as a file gives it back; ``exactly`` refuses one that it would change."""
    try:
        kept = json.loads(json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise PromptError(
            f"{what} must be what JSON can hold, got {shown(value)} ({error}). Keep numbers, text, "
            "lists and dictionaries in it."
        ) from None
    if exactly and kept != value:
        raise PromptError(
            f"{what} must be what JSON gives back, and {shown(value)} would come back as "
            f"{shown(kept)}. Use lists, and text as keys."
        )
    return kept


@dataclass(frozen=True, slots=True, init=False)
class Chat:
    """Wrap a prompt in the tokenizer's chat template: its text becomes the user's turn.

    A template that asks for today's date is told 26 July 2024, so that a prompt is the same tokens
    on every day; where it takes one (``date_string=`` for Llama 3), say another.

    Args:
        system: The system message, or ``None`` for no system turn.
        assistant_prefix: Text that the assistant's answer already begins with.
        template: What else the template is given, by name; also as keywords:
            ``Chat(enable_thinking=False)``, ``tools=``, ``documents=``. As JSON holds it.
    """

    system: str | None
    assistant_prefix: str
    template: Mapping[str, Any] = field(hash=False)

    def __init__(
        self,
        system: str | None = None,
        assistant_prefix: str = "",
        template: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        given = {**(template or {}), **more}
        kept = _as_json(given, "Arguments of a chat template")
        for name, text in (("system", system), ("assistant_prefix", assistant_prefix)):
            if not (isinstance(text, str) or (text is None and name == "system")):
                raise PromptError(
                    f"{name} of a Chat must be text, got {text!r:.60}; write Chat({name}='...'), "
                    "or leave it out."
                )
        object.__setattr__(self, "system", system)
        object.__setattr__(self, "assistant_prefix", assistant_prefix)
        object.__setattr__(self, "template", kept)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question to a model, and what each behavior would answer.

    Attributes:
        id: Unique within a set.
        text: Exactly what the model reads (the tokenizer adds a beginning-of-sequence token).
        group: Ties the rephrasings of one instance together; its own id when left out.
        memorized: The answer of a model that remembers.
        generalized: The answer of a model that works it out.
        answer: The right answer, for questions without two behaviors.
        label: What the prompt asks for (say ``"reasoning"`` or ``"memory"``).
        behavior: What a model did on it, once observed.
        spans: Named character ranges ``(start, end)`` of ``text``, usable as positions.
        chat: Set to wrap the text in the tokenizer's chat template.
        meta: Anything else worth keeping.
    """

    id: str
    text: str
    group: str = ""
    memorized: str | None = None
    generalized: str | None = None
    answer: str | None = None
    label: str | None = None
    behavior: str | None = None
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    chat: Chat | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id.strip():
            raise PromptError(
                f"A prompt's id must be a non-empty string, got {self.id!r}; "
                "write for example Prompt(id='q1', text=...)."
            )
        for name in _TEXTS:
            self._check_text(name, getattr(self, name))
        if not self.group:
            object.__setattr__(self, "group", self.id)
        if not (self.chat is None or isinstance(self.chat, Chat)):
            raise PromptError(
                f"Prompt {self.id!r}: chat must be a Chat or None, got {self.chat!r:.60}; write "
                "chat=Chat()."
            )
        self._check_keys("spans", self.spans)
        self._check_keys("meta", self.meta)
        _as_json(dict(self.meta), f"Prompt {self.id!r}: meta", exactly=True)
        spans = {name: self._span(name, span) for name, span in self.spans.items()}
        object.__setattr__(self, "spans", spans)

    def _check_text(self, name: str, value: object) -> None:
        if name == "text" and not isinstance(value, str):
            raise PromptError(
                f"Prompt {self.id!r}: text must be a string, got {type(value).__name__}; "
                "write for example text='What is 1+1?'."
            )
        if value is not None and not isinstance(value, str):
            raise PromptError(
                f"Prompt {self.id!r}: {name} must be a string or None, got "
                f"{type(value).__name__} {value!r:.40}; write {name}={str(value)!r:.40}."
            )
        if (
            isinstance(value, str)
            and not value.strip()
            and name in (*_ANSWERS, "label", "behavior")
        ):
            raise PromptError(
                f"Prompt {self.id!r}: {name} is an empty text or blanks, and nothing that is "
                "written could be told by it; leave it out."
            )

    def _check_keys(self, name: str, value: object) -> None:
        # A file keeps every key as text, so that another one would not come back as it was.
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise PromptError(
                f"Prompt {self.id!r}: {name} must be a dictionary whose keys are text, got "
                f"{shown(value, 80)}."
            )

    def _span(self, name: str, span: Any) -> tuple[int, int]:
        try:
            start, end = map(index, span)
        except (TypeError, ValueError):
            raise PromptError(
                f"Prompt {self.id!r}: span {name!r} is {span!r:.80}; a span is a pair "
                "(start, end) of characters of the text."
            ) from None
        if not 0 <= start < end <= len(self.text):
            raise PromptError(
                f"Prompt {self.id!r}: span {name!r} is ({start}, {end}), but the text has "
                f"{len(self.text)} characters; a span needs 0 <= start < end <= length."
            )
        return start, end

    @property
    def same_text(self) -> str:
        """What every writing of this question has in common, with the chat's own words: characters
        composed and of one width, without marks that nobody sees, white space single and none
        around. Prompts that share it leak into one another. Case and raised digits are part of a
        text: of ``2²`` and ``22``, or two letters of a cipher, neither is the other.
        """
        chat = self.chat
        said = [self.text]
        if chat is not None:  # what else its template is told, such as a date, is not the question
            said += ["chat", chat.system or "", chat.assistant_prefix]
        return "\x1f".join(map(_bare, said))


def _bare(text: str) -> str:
    """One form of every writing of a text."""
    wide = ("<wide>", "<narrow>")
    seen = "".join(
        normalize("NFKC", char) if decomposition(char).startswith(wide) else char
        for char in text
        if category(char) != "Cf"
    )
    return " ".join(normalize("NFC", seen).split())
