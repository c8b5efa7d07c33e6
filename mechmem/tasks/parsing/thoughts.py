"""What a model thinks aloud is not its answer: `<think> ... </think>` and its relatives."""

from __future__ import annotations

import regex

_STEMS = (
    r"(?:think|thought|reason|reflect|analy|rationale|deliberat|scratch_?pad|monologue|cot\b"
    r"|chain_of_thought)\w*"
)
# <think>, </think>, <thinking>, <seed:think>, [THINK], ◁think▷, <|begin_of_thought|>
_TAG = regex.compile(
    r"<\|?(?<end>/?)(?:\w+[:_-])*?" + _STEMS + r"(?:\s[^<>\n]{0,80})?\s*\|?>"
    r"|\[(?<end>/?)THINK(?:ING)?\]|◁(?<end>/?)think(?:ing)?▷",
    regex.IGNORECASE,
)
_ENDING = regex.compile(r"<\|?/?(?:end|stop|close)[:_-]", regex.IGNORECASE)
_FINAL = regex.compile(r"<\|channel\|>\s*final\s*<\|message\|>")


def without_thoughts(completion: str) -> str:
    """The completion without what stands between the tags of a thought.

    Behind a closing tag alone (the template has opened it) all that came before is thought; behind
    an opening tag alone (the limit came first) all that follows is, so nothing is left to read.
    """
    text = _FINAL.split(completion)[-1]
    kept: list[str] = []
    start, thinking = 0, False
    for tag in _TAG.finditer(text):
        closing = bool(tag["end"]) or _ENDING.match(tag[0]) is not None
        if closing and not thinking:
            kept.clear()
        elif not closing and not thinking:
            kept.append(text[start : tag.start()])
        thinking = not closing
        start = tag.end()
    if not thinking:
        kept.append(text[start:])
    return "\n".join(kept)
