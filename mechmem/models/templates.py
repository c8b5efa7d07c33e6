"""A prompt in its chat template: all of it there, on the same day every day."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any

from mechmem.errors import PromptError, listed
from mechmem.tasks.prompts import Prompt

_MARK = "\ue000\ue001\ue000"
_DIRECTIVES = "aAbBcdfGHIjmMpSuUVwWxXyYzZDeFhRT"
_PART = "'type': 'text'"


def rendered(tokenizer: Any, prompt: Prompt) -> tuple[str, int]:
    """The full text the model reads, and where the prompt's own text begins in it."""
    if prompt.chat is None:
        return prompt.text, 0
    if not getattr(tokenizer, "chat_template", None):
        raise PromptError(
            f"Prompt {prompt.id!r} asks for a chat template, but this tokenizer has none; "
            "remove `chat`, or set tokenizer.chat_template before loading."
        )
    chat = prompt.chat
    text = _templated(tokenizer, prompt, prompt.text, chat.system)
    # A mark in place of the user's text, which may occur elsewhere in the template as well.
    start = _templated(tokenizer, prompt, _MARK, chat.system).find(_MARK)
    if start < 0:
        raise PromptError(
            f"The chat template drops the text of prompt {prompt.id!r}: what the model would "
            f"read is {text!r:.200}. Use this model's own template, or remove `chat`."
        )
    if prompt.spans and not text.startswith(prompt.text, start):
        raise PromptError(
            f"The chat template rewrites the text of prompt {prompt.id!r}, so its spans "
            f"{listed(prompt.spans)} cannot be located; remove them or the template."
        )
    if prompt.text.strip() not in text:
        raise PromptError(
            f"The chat template cuts or rewrites the text of prompt {prompt.id!r}: what the model "
            f"would read is {text!r:.200}. Use this model's own template, or remove `chat`."
        )
    whole = _templated(tokenizer, prompt, prompt.text, _MARK) if chat.system else _MARK
    if chat.system and (_MARK not in whole or chat.system.strip() not in text):
        raise PromptError(
            f"The chat template drops the system message of prompt {prompt.id!r}, or part of it. "
            "Put it into the prompt's text, or leave `system` out."
        )
    return text + chat.assistant_prefix, start


def _templated(tokenizer: Any, prompt: Prompt, text: str, system: str | None) -> str:
    """The template around one user's turn; its content as a list of parts where the template
    reads nothing else."""
    assert prompt.chat is not None
    source = str(tokenizer.chat_template)
    unused = [name for name in prompt.chat.template if not re.search(rf"\b{name}\b", source)]
    if unused:
        raise PromptError(
            f"Prompt {prompt.id!r}: the chat template of this tokenizer does not use "
            f"{listed(unused)}; leave it out of Chat(...), or look at "
            "tokenizer.chat_template for its names."
        )
    turns: list[dict[str, Any]] = [{"role": "user", "content": text}]
    if system is not None:
        turns.insert(0, {"role": "system", "content": system})
    options = prompt.chat.template
    try:
        made = _apply(tokenizer, turns, options)
        if text.strip() and text.strip() not in made:
            parts = [
                {**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns
            ]
            with contextlib.suppress(Exception):
                by_parts = _apply(tokenizer, parts, options)
                # A template that prints the list as Python does has read nothing of it.
                read = by_parts.count(_PART) <= text.count(_PART) + (system or "").count(_PART)
                made = by_parts if read and text.strip() in by_parts else made
    except Exception as error:  # templates are programs of their own
        raise PromptError(
            f"The chat template refuses prompt {prompt.id!r}: {error or type(error).__name__}. "
            "Leave out what it does not take (`system` of Chat, or its other arguments), or "
            "mend tokenizer.chat_template before loading."
        ) from error
    return made


def _apply(tokenizer: Any, turns: list[dict[str, Any]], options: Mapping[str, Any]) -> str:
    template = tokenizer.get_chat_template(None, options.get("tools"))
    return str(
        tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True,
            chat_template=_clock() + template if "strftime_now" in template else template,
            **options,
        )
    )  # fmt: skip


@cache
def _clock() -> str:
    """A macro under the name by which templates ask for the time. It says the same day every day,
    in any form, and the template finds it before the real one."""
    forms = [f"%{flag}{letter}" for letter in _DIRECTIVES for flag in ("", "-")]
    said = [(form, datetime(2024, 7, 26).strftime(form)) for form in forms]
    said = [("%%", "\ue002"), *said, ("\ue002", "%")]
    replaced = " | ".join(f"replace({form!r}, {day!r})" for form, day in said)
    body = f"{{{{- format | string | {replaced} -}}}}"
    return f"{{%- macro strftime_now(format) -%}}{body}{{%- endmacro %}}\n"
