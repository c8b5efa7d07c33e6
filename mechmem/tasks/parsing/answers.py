"""Where an answer begins and ends in a text. Every reading of every task asks here.

The question is always the same: the characters of an answer stand in a text; is that the answer, or
the beginning of another one (``12`` in ``12.5``, ``1`` in ``1/2``, ``Don`` in ``Don't``)? Unicode
says what a letter, a mark or a script is; what makes a number go on is said in `_GOES_ON`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from functools import lru_cache
from typing import NamedTuple

import regex

from mechmem.tasks.parsing.thoughts import without_thoughts

_MINUS = dict.fromkeys("\u2010\u2011\u2012\u2013\u2212\ufe63\uff0d", "-")
_APOSTROPHE = dict.fromkeys("\u2018\u2019\u201b\u02bc\u2032\uff07`\u00b4", "'")
_PLAIN = str.maketrans(_MINUS | _APOSTROPHE)
_WORD = r"[\p{L}\p{N}_]"
# Scripts that write word after word without a blank; a run of katakana is one word.
_SPLIT = regex.compile(r"[\p{Han}\p{Hiragana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_KATAKANA = regex.compile(r"\p{Script_Extensions=Katakana}")
# A mark belongs to the letter before it; the two joiners hold a word together.
_MARK = regex.compile(r"[\p{M}\u200c\u200d]")
_GOES_ON = regex.compile(
    rf"(?:-|/|&|@){_WORD}"  # Jean-Paul, 5-6, 1/2, km/h, AT&T
    r"|'(?!s(?![\p{L}\p{M}]))\p{L}"  # Don't, but John's answer is John
    r"|[+\#^]"  # C++, C#, 10^5
    r"|[\p{No}\p{Nl}\u207a\u207b\u208a\u208b]"  # 5², H₂O, 1½, Na⁺
    r"|\.(?:jsx?|tsx?|py|rb|rs|go|cpp|hpp|java|cs|php|html?|css|json|xml|ya?ml|toml|txt|md|csv|pdf"
    r"|docx?|xlsx?|png|jpe?g|gif|exe|sh|com|net|org|edu|gov|io|ai|dev)(?![\p{L}\p{M}\p{N}])",
    regex.VERBOSE,
)
SCALE_WORDS = (
    *(f"{word}s?" for word in ("hundred", "thousand", "million", "billion", "trillion", "dozen")),
    "lakhs?", "lacs?", "crores?", "mn", "bn", "tn", "mio", "mrd", "mill?i?ard(?:en?|s)?",
    "tausend", "million(?:en|es|i)?", "mill[oó]n(?:es)?", "milhão", "milhões", "mil", "mille",
    "milioni?", "miliard[ioya]*", "billion(?:en|es)?", "bill[oó]n(?:es)?", "тысяч[аи]?",
    "миллион(?:а|ов)?", "миллиард(?:а|ов)?",  # noqa: RUF001
)  # fmt: skip
"""Words that make another number of the one before them, as alternatives of an expression."""

_NUMBER_GOES_ON = regex.compile(
    r"[.,:']\p{Nd}"  # 1.5, 1,000, 1:30, 1'000
    r"|[\u066b\u066c\u066a]\p{Nd}|\{,\}\p{Nd}|\\[,;!: ]\p{Nd}"  # 5{,}000, 5\,000
    r"|\s?\p{No}"  # 1 ½
    r"|\s\p{Nd}{3}(?!\p{Nd})"  # 1 000
    # 3 × 10^5, 1 / 2, 5 - 6, 5 ± 1, 2√3, 5 x 10
    r"|\s*(?:\*\*|[*×·⋅✕∙÷/\u2044\u2215\u2236:+^±∓√~\u301c\uff5e\u2014-])\s*[\p{Nd}(]"
    r"|\s*[xX]\s*\p{Nd}"
    r"|\s*\\(?:times|cdot|div|frac|pm|sqrt|pi|alpha|beta|gamma|theta|lambda|mu|sigma|omega|phi|rho"
    r"|tau|ln|log|sin|cos|tan)(?!\p{L})"
    rf"|\s*(?:{'|'.join(SCALE_WORDS)})(?![\p{{L}}\p{{M}}])"
    r"|\s*[百千万萬亿億兆]",
    regex.IGNORECASE,
)
# Byte order marks, marks of direction, soft hyphens and blanks of no width; the two joiners stay.
_UNSEEN = regex.compile(r"[\ufeff\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\u00ad]")
_INITIALS = regex.compile(r"(?<![\p{L}\p{M}\p{N}])\p{L}$")
_INSIDE_WORD = regex.compile(rf"(?:{_WORD}|\p{{M}})[-/&@]$")
_INSIDE_NUMBER = regex.compile(
    rf"(?:\p{{Nd}}[.,:×^*·±~√\u2014\u2044\u2215\u2236\u066b\u066c\u301c\uff5e]|(?<!{_WORD})[-.])$"
)


def folded(text: str) -> str:
    """The characters in which answers are compared: composed, of one width, with one minus, one
    apostrophe, the same digits and single blanks, without marks that nobody sees. Case stays.
    """
    composed = unicodedata.normalize("NFC", text).translate(_PLAIN)
    if not composed.isascii():
        composed = _UNSEEN.sub("", "".join(map(_one_width, composed)))
    return " ".join(composed.split())


@lru_cache(maxsize=4096)
def _one_width(char: str) -> str:
    if char.isdecimal():
        return str(unicodedata.decimal(char))
    wide = unicodedata.decomposition(char).startswith(("<wide>", "<narrow>"))
    return unicodedata.normalize("NFKC", char) if wide else char


def starts_with_answer(completion: str, answer: str, *, case: bool = False) -> bool:
    """Whether the completion begins with the answer, and the answer ends there.

    Args:
        completion: What was written; thoughts and outer white space do not count.
        answer: What is looked for; an empty one is never found.
        case: Whether upper and lower case must agree.
    """
    return _end(folded(without_thoughts(completion)), answer, case) is not None


def which_answer(
    completion: str, answers: Mapping[str, str | None], *, case: bool = False
) -> str | None:
    """The name of the answer that the completion begins with, or ``None``.

    Where one answer begins another (*white*, *white whale*) the longer one that is there counts;
    two that cannot be told apart are none.

    Args:
        completion: What was written.
        answers: Answers by name; ``None`` is not looked for.
        case: Whether upper and lower case must agree.
    """
    text = folded(without_thoughts(completion))
    ends = {
        name: end
        for name, answer in answers.items()
        if answer is not None and (end := _end(text, answer, case)) is not None
    }
    longest = [name for name, end in ends.items() if end == max(ends.values())]
    return longest[0] if len(longest) == 1 else None


def same_answer(one: str, other: str) -> bool:
    """Whether no completion could tell the two answers apart."""
    return folded(one).casefold() == folded(other).casefold()


class Word(NamedTuple):
    """A word or number of a folded text, in lower case, and where it stands."""

    text: str
    start: int
    end: int


_WORDS = regex.compile(
    rf"{_SPLIT.pattern}\p{{M}}*"
    r"|\p{Nd}+(?:[.,:/^×-]\p{Nd}+)+"
    rf"|(?:(?!{_SPLIT.pattern})[\p{{L}}\p{{N}}][\p{{M}}\u200c\u200d]*)+[+\#]*"
)


def words(text: str) -> list[Word]:
    """The words and numbers of a folded text; single characters of scripts without blanks."""
    return [Word(m[0].casefold(), m.start(), m.end()) for m in _WORDS.finditer(text)]


def _end(text: str, answer: str, case: bool) -> int | None:
    """Where the answer ends in a folded text that begins with it."""
    wanted = folded(answer)
    flags = 0 if case else regex.IGNORECASE | regex.FULLCASE
    found = regex.match(regex.escape(wanted, literal_spaces=True), text, flags) if wanted else None
    return found.end() if found and ends_at(text, found.end()) else None


def ends_at(text: str, at: int) -> bool:
    """Whether an answer that reaches up to ``at`` in a folded text ends there."""
    before, rest = text[:at], text[at:]
    if not rest or not before:
        return True
    if _MARK.match(rest):
        return False
    last = before.rstrip("\u200c\u200d")[-1:]
    if regex.search(r"(?<!\p{L})\p{L}\.$", before) and regex.match(r"\p{L}\.", rest):
        return False  # the U.S. of U.S.A.
    if not (last.isalnum() or last == "_" or _MARK.match(last)):
        return not (last in "+#" and rest[0] in "+#")
    if last.isdecimal() and _NUMBER_GOES_ON.match(rest):
        return False
    if regex.match(_WORD, rest):
        return not _together(last, rest[0])
    if rest[0] == "." and _INITIALS.search(before) and regex.match(r"\.\p{L}(?!\p{L})", rest):
        return False  # U.S.A.
    return not _GOES_ON.match(rest)


def starts_at(text: str, at: int) -> bool:
    """Whether an answer that begins at ``at`` in a folded text begins there."""
    before, first = text[:at], text[at : at + 1]
    if not before or not first:
        return True
    last = before[-1]
    if last.isalnum() or last in "_\u200c\u200d" or _MARK.match(last):
        return not _together(last, first)
    if first.isdecimal() and _INSIDE_NUMBER.search(before):
        return False  # the 5 of 1.5, of .5 and of -5
    return not _INSIDE_WORD.search(before)


def _together(one: str, other: str) -> bool:
    """Whether two letters or digits that touch belong to one word or number."""
    if _SPLIT.match(one) or _SPLIT.match(other):
        return False
    return bool(_KATAKANA.match(one)) == bool(_KATAKANA.match(other))
