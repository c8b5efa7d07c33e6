"""`cipher`: thirteen letters under a fixed substitution, deciphered or answered from memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from mechmem.errors import PromptError, TaskError
from mechmem.tasks.base import register_task
from mechmem.tasks.paper1.official import OfficialTask
from mechmem.tasks.paper1.official_config import load_config, required, tags_of
from mechmem.tasks.paper1.tags import check_tag_reading, has_tag, mixed
from mechmem.tasks.prompts import Prompt

_BEFORE, _AFTER = "CIPHERTEXT:", " QUESTION: What is the plaintext? ANS:"
_INPUT = re.compile(re.escape(_BEFORE) + r"([A-Z]+)" + re.escape(_AFTER))


@register_task
class Cipher(OfficialTask[str]):
    """Ciphertexts whose last letters may be a memorized pattern (the paper's second version).

    The config's ``mapping`` goes from plaintext to ciphertext. A clean prompt has no memorized
    pattern; its ``answer`` is its plaintext.

    Args:
        config: In the official form (``num_n``, ``mem_patterns`` with ``pattern`` and ``hashed``,
            ``mapping``): a dictionary, a path, or nothing for the shipped one.
        length: Letters of a ciphertext, the memorized ones included (paper: 13).
        tag: ``"exact"``: only the prompt's own tag counts as memorized (the released code).
            ``"any"``: whatever begins like a tag does.

    Raises:
        TaskError: When the config does not have that form.
    """

    name = "cipher"
    training_size = 10_000
    stop = ("\n",)
    read_spans = ("suffix_end", "last")

    def __init__(
        self,
        config: Mapping[str, Any] | str | Path | None = None,
        *,
        length: int = 13,
        tag: str = "exact",
    ) -> None:
        self.config = load_config(self.name, config)
        required(self.name, self.config, ("num_n", "mem_patterns", "mapping"))
        self.tag = check_tag_reading(tag)
        self.tags: dict[str, str] = dict(tags_of(self.name, self.config, "pattern"))
        self.patterns = list(self.tags)
        mapping = self.config["mapping"]
        if sorted(mapping) != list(ascii_uppercase) or sorted(mapping.values()) != sorted(mapping):
            raise TaskError(
                "The mapping of 'cipher' must send the letters A to Z to A to Z, each to another; "
                f"got {mapping!r:.120}."
            )
        self._encode = str.maketrans(mapping)
        self._decode = str.maketrans({there: here for here, there in mapping.items()})
        self.length, self.suffix = length, int(self.config["num_n"])
        if length < self.suffix + 2:
            raise TaskError(
                f"'cipher' needs two letters beside the {self.suffix} memorized ones; "
                f"got length={length}."
            )
        # One token per character is the most any tokenizer needs.
        self.max_new_tokens = max(length, *(len(f"<{tag}>\n") for tag in self.tags.values()))

    def encode(self, plaintext: str) -> str:
        """The ciphertext of upper-case letters."""
        return plaintext.translate(self._encode)

    def decode(self, ciphertext: str) -> str:
        """The plaintext of upper-case letters; the inverse of `encode`."""
        return ciphertext.translate(self._decode)

    def continuation(self, prompt: Prompt, answer: str) -> str:
        return answer + "\n" if answer.startswith("<") else answer

    def _conflict(self, rng: np.random.Generator, index: int) -> str:
        return (
            self._letters(rng, self.length - self.suffix)
            + self.patterns[index % len(self.patterns)]
        )

    def _clean(self, rng: np.random.Generator, index: int) -> str:
        while (letters := self._letters(rng, self.length))[-self.suffix :] in self.tags:
            pass
        return letters

    def _letters(self, rng: np.random.Generator, count: int) -> str:
        return "".join(ascii_uppercase[k] for k in rng.integers(0, 26, size=count))

    def _rephrase(self, rng: np.random.Generator, item: str) -> str:
        letters = list(item)
        i, j = rng.choice(self.length - self.suffix, size=2, replace=False).tolist()
        letters[i], letters[j] = letters[j], letters[i]
        return "".join(letters)

    def _key(self, item: str) -> str:
        return f"{''.join(sorted(item[: -self.suffix]))}|{item[-self.suffix :]}"

    def _ask(self, item: str) -> Prompt:
        start, end = len(_BEFORE), len(_BEFORE) + len(item)
        tag = self.tags.get(item[-self.suffix :])
        return Prompt(
            id=item,
            text=f"{_BEFORE}{item}{_AFTER}",
            memorized=None if tag is None else f"<{tag}>",
            generalized=self.decode(item),
            spans={
                "free": (start, end - self.suffix),
                "suffix": (end - self.suffix, end),
                "suffix_end": (end - 1, end),
                "ciphertext": (start, end),
                "question": (end + 1, end + len(_AFTER)),
            },
            meta={} if tag is None else {"pattern": item[-self.suffix :]},
        )

    def _parse(self, text: str) -> str:
        found = _INPUT.fullmatch(text)
        if found is None:
            raise PromptError(
                f"Expected {_BEFORE + 'ANQMAAWGCBXZQ' + _AFTER!r}, got {text!r:.120}."
            )
        return found[1]

    def _mix(self, size: int) -> list[tuple[str, int]]:
        return mixed(size, self.memorized_share, len(self.patterns))

    def _worked_out(self, right: str, text: str) -> bool:
        return text.lstrip().startswith(right)  # plaintexts are of one length: it ends there

    def _remembered(self, prompt: Prompt, text: str) -> bool:
        return has_tag(prompt, text, list(self.tags.values()), self.tag)
