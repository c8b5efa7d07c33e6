"""Tokens as people read them: blanks where they are, letters whole."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

_UNREADABLE = "\ufffd"
_LONGEST = 8  # tokens that spell one letter, a flag or a family of emoji included
_SHOWN = [*range(33, 127), *range(161, 173), *range(174, 256)]
_HIDDEN = [byte for byte in range(256) if byte not in _SHOWN]
# How byte-level vocabularies write a byte: as itself where it can be seen, else as 256, 257, ...
_BYTES = {chr(byte): byte for byte in _SHOWN} | {chr(256 + k): b for k, b in enumerate(_HIDDEN)}


def token_text(tokenizer: Any, token_id: int) -> str:
    """One token as text; a part of a letter as its bytes, ``<0xE8>``."""
    text = _text(tokenizer, [token_id])
    if _UNREADABLE not in text:
        return text
    raw = str(tokenizer.convert_ids_to_tokens([token_id])[0])
    if all(letter in _BYTES for letter in raw):
        return "".join(f"<0x{_BYTES[letter]:02X}>" for letter in raw)
    return raw


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """Every token as the text that it adds after the one before it, so that tokenizers which
    leave out the blank of a first word show it everywhere else.

    Tokens that are parts of one letter each show what they spell together.
    """
    out: list[str] = []
    start = 0
    while start < len(ids):
        end = start + 1
        while end < min(start + _LONGEST, len(ids)) and _torn(tokenizer, ids[start:end]):
            end += 1
        if _torn(tokenizer, ids[start:end]):
            end = start + 1
        before = _text(tokenizer, ids[start - 1 : start]) if start else ""
        both = _text(tokenizer, ids[max(start - 1, 0) : end])
        alone = (
            _text(tokenizer, ids[start:end])
            if end > start + 1
            else token_text(tokenizer, ids[start])
        )
        fits = both.startswith(before) and _UNREADABLE not in both
        out += [both[len(before) :] if fits else alone] * (end - start)
        start = end
    return out


def _torn(tokenizer: Any, ids: Sequence[int]) -> bool:
    return _text(tokenizer, ids).endswith(_UNREADABLE)


def _text(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(ids), skip_special_tokens=False))
