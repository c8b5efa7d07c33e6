"""Judging a short answer against its aliases, strictly by default and as the paper does by name."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mechmem.tasks.parsing.answers import Word, ends_at, folded, starts_at, words
from mechmem.tasks.parsing.statements import own_answer

_NO_ANSWER = re.compile(
    r"(?:i\s+(?:do\s+not|don't|cannot|can't)\s+(?:know|say|answer|tell|determine)"
    r"|i(?:'m|\s+am)\s+(?:not\s+(?:sure|certain)|unsure|unable|sorry)|sorry\b"
    r"|(?:it\s+is\s+|it's\s+)?(?:unknown|unclear|not\s+known)(?=\W*$)|unknown\W*$|n/a\W*$"
    r"|as\s+an\s+ai\b|none\s+of\s+the\s+above)",
    re.I,
)
_NEGATIVE = re.compile(r"-\d")
_ARTICLES = frozenset(("a", "an", "the"))
_DENIALS = frozenset(
    "not isn wasn aren weren never nor neither nicht kein keine nie pas jamais nunca niet "
    "geen не".split()
)
_DENIED = re.compile(
    r"(?:不是|并非|並非|ではなく|\bno\s+(?:es|son|era|fue|é)|\bnon\s+(?:è|sono))\W*(?:\w+\s+)?$",
    re.I,
)


def match_short(completion: str, aliases: Sequence[str]) -> str:
    """``"correct"``, ``"wrong"`` or ``"unparsed"``: an alias as whole words in the first line.

    Only the first line that says something counts, up to the next question. An alias inside
    another word does not count, nor one that is denied (*not Paris*). *Paris or London*, with one
    of them no alias, is unparsed, as are nothing at all and *I don't know*.
    """
    line = folded(first_line(completion))
    said = _said(line)
    if not said or _NO_ANSWER.match(line):
        return "unparsed"
    spoken = [word.text for word in said]
    texts = [folded(alias) for alias in aliases]
    wanted = [([word.text for word in _said(text)], bool(_NEGATIVE.match(text))) for text in texts]
    hits = [
        (at, at + len(alias))
        for alias, signed in wanted
        if alias
        for at in range(len(said) - len(alias) + 1)
        if spoken[at : at + len(alias)] == alias
        and (not signed or line[: said[at].start].endswith("-"))
        and starts_at(line, said[at].start - signed)
        and ends_at(line, said[at + len(alias) - 1].end)
        and not _denied(spoken, at)
        and not _DENIED.search(line[: said[at].start])
    ]
    if not hits:
        return "wrong"
    for at, word in enumerate(spoken):
        if word in ("or", "oder", "ou", "或"):
            sides = (any(end <= at for _, end in hits), any(start > at for start, _ in hits))
            inside = any(start <= at < end for start, end in hits)
            if not inside and sides.count(True) == 1:
                return "unparsed"
    return "correct"


def match_short_paper(completion: str, aliases: Sequence[str]) -> str:
    """PopQA's own rule, which arXiv 2503.23084 follows: any alias anywhere as a substring.

    As it is, in lower case, or capitalized, in the whole completion. *Romania* holds *Oman* and
    the next, invented question may hold the answer; nothing but silence is unparsed.
    """
    if not completion.strip():
        return "unparsed"
    hit = any(
        form in completion
        for alias in aliases
        if alias
        for form in (alias, alias.lower(), alias.capitalize())
    )
    return "correct" if hit else "wrong"


def first_line(completion: str) -> str:
    """The first line with a word or number in it, up to the next question."""
    for line in own_answer(completion).splitlines():
        text = re.sub(r"^\s*(?:A|Answer)\s*:\s*", "", line).strip()
        if any(char.isalnum() for char in text):
            return text
    return ""


def _said(text: str) -> list[Word]:
    """Words and numbers without articles."""
    return [word for word in words(text) if word.text not in _ARTICLES]


def _denied(spoken: Sequence[str], at: int) -> bool:
    return any(word in _DENIALS for word in spoken[max(0, at - 3) : at])
