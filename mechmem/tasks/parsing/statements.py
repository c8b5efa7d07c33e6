r"""Where every reading of a completion starts: plain characters, and places that state an answer.

A *statement* is a phrase that says "this is my answer" (``the answer is``, ``Answer:``, ``####``,
``\boxed{}``, ``答案是``, ``Die Antwort ist``, ...). Nothing else in a completion counts as one.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from mechmem.tasks.parsing.thoughts import without_thoughts


@dataclass(frozen=True, slots=True)
class Reading:
    """What a parser made of a completion.

    Attributes:
        value: The answer in its canonical form, or ``None`` when it is unparsed.
        why: In words, where the value comes from or what prevented one.
    """

    value: str | None
    why: str


@dataclass(frozen=True, slots=True)
class Statement:
    """One place that says what the answer is.

    Attributes:
        start: Where it begins in the plain text.
        tail: The text from the stated value on.
        mark: ``"word"`` (*the answer is*), ``"colon"`` (*Answer:*) or ``"hash"`` (*####*).
    """

    start: int
    tail: str
    mark: str


_SUPERSCRIPT = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_MINUS = str.maketrans(dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\u2014\u2015\ufe63\uff0d", "-"))
_NEXT_QUESTION = re.compile(
    r"(?:^|\n)[ \t]*(?:Q\s*:|Questions?\s*\d*\s*:|Human\s*:|User\s*:|(?:问题|题目)\s*[:\uff1a])"
)
_LATEX = (
    (re.compile(r"\{,\}(?=\d)"), ","),
    (re.compile(r"\${2,}"), ""),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|mathit|mathsf)\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[dt]?frac\s*\{\s*([^{}]+?)\s*\}\s*\{\s*([^{}]+?)\s*\}"), r" \1/\2"),
    (re.compile(r"(?<=[\d)])(?:\*\*|\s\*\*\s)(?=[\d(-])"), "^"),  # a power, no emphasis
    (re.compile(r"(?<=\d)!(?=\s*\})"), " factorial"),
    (re.compile(r"\\boxed\s*\{([^{}]*)\}"), r" the answer is \1\n"),
    (re.compile(r"<answer>\s*(.*?)\s*</answer>", re.S | re.I), r" the answer is \1\n"),
    (re.compile(r"<<[^<>]*>>"), ""),  # GSM8K's calculator notes
    (re.compile(r"\\[,;!: ]|~"), " "),
    (re.compile(r"\\([$%#&])"), r"\1"),
    (re.compile(r"\\times\b|\\cdot\b"), "×"),
    (re.compile(r"\\[()\[\]]"), ""),
    (re.compile(r"\*\*|__|`"), ""),
)


def own_answer(completion: str) -> str:
    """The completion without thoughts, up to the next question that the model asks itself."""
    text = without_thoughts(completion)
    found = _NEXT_QUESTION.search(text)
    return text[: found.start()] if found else text


def plain_answer(completion: str) -> str:
    """The model's own answer in plain characters.

    Full-width forms, digits of every script, vulgar fractions, superscripts, dashes, markdown
    emphasis and the usual LaTeX become what a person would type.
    """
    out = []
    for char in own_answer(completion):
        if char.translate(_SUPERSCRIPT) != char:
            out.append("^" + char.translate(_SUPERSCRIPT))
        elif "VULGAR FRACTION" in unicodedata.name(char, ""):
            out.append(" " + unicodedata.normalize("NFKC", char))
        elif char.isdecimal():
            out.append(str(unicodedata.decimal(char)))
        else:
            out.append(char)
    text = unicodedata.normalize("NFKC", "".join(out)).replace("\u2044", "/").replace("’", "'")
    text = text.translate(_MINUS).replace("\u066b", ".").replace("\u066c", ",")
    for pattern, replacement in _LATEX:
        text = pattern.sub(replacement, text)
    return text


_QUALITY = r"(?:(?:final|correct|best|right|most\s+likely|numeric(?:al)?)\s+)*"
_VERB = r"(?:is|are|was|would\s+be|should\s+be|must\s+be|will\s+be|has\s+to\s+be|equals)\b"
_MIDDLE = r"(?:\s+(?:here|to\s+(?:the|this)\s+(?:question|problem)|choice|option|letter))?"
_WORDS = (
    rf"\b{_QUALITY}(?:{{nouns}}){_MIDDLE}\s*{_VERB}",
    r"\bAntwort\s+(?:ist|lautet|beträgt)\b",
    r"\brespuesta\s+(?:final\s+|correcta\s+)?es\b",
    r"\bréponse\s+(?:finale\s+|correcte\s+)?est\b",
    r"\bjibu\s+(?:la\s+mwisho\s+)?ni\b",
    r"\bответ\s*(?:-|равен\b)",  # noqa: RUF001
    r"答案\s*(?:是|为|為|应为|选)",
    r"答え\s*は",
    r"คำตอบ\s*คือ",
    r"উত্তর\s*(?:হল|হলো|হচ্ছে|হ'ল)",
    r"సమాధానం(?!\s*:)",
)
_COLONS = (
    rf"\b(?:{_QUALITY}(?:{{nouns}})|ans|Antwort|respuesta|réponse|jibu|ответ)\s*[:=](?!=)",
    r"(?:答案|答え|คำตอบ|উত্তর|సమాధానం)\s*:",
    r"(?:^|(?<=\n))[ \t]*A:(?=[ \t]*\S)",  # how GSM8K's published completions end
)
_HYPOTHETICAL = re.compile(
    r"\b(?:if|whether|unless|suppose|assume|assuming|imagine)\s+(?:that\s+)?"
    r"(?:(?:the|our|your|its|my)\s+)?$",
    re.I,
)
_DENIED = re.compile(
    r"(?:\bnot|n't|\bnever|\bcannot|\bdoubt)[ \t]+"
    r"(?:(?:think|believe|say|mean|claim|sure|certain|clear|know|see|mean|imply)\b[^.,;\n]{0,20}\s)?"
    r"(?:that\s+|why\s+|how\s+)?(?:(?:the|our|your|its|my)\s+)?$",
    re.I,
)
_NEGATED = re.compile(r"\s*(?:not\b|n't\b|never\b|neither\b|不)", re.I)


@lru_cache(maxsize=8)
def _patterns(nouns: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    def joined(parts: tuple[str, ...]) -> re.Pattern[str]:
        pattern = "|".join(part.replace("{nouns}", nouns) for part in parts)
        return re.compile(unicodedata.normalize("NFKC", pattern), re.I)

    return (
        ("word", joined(_WORDS)),
        ("colon", joined(_COLONS)),
        ("hash", re.compile(r"(?:^|(?<=[\s.]))####(?=[ \t]*\S)")),
    )


def statements(text: str, nouns: str = "answer") -> Iterator[Statement]:
    """Where plain text states an answer, in order; denied and hypothetical ones are left out.

    Args:
        text: From `plain_answer`.
        nouns: What may be stated, as alternatives of a regular expression.
    """
    found = []
    for mark, pattern in _patterns(nouns):
        for match in pattern.finditer(text):
            line = text.rfind("\n", 0, match.start()) + 1  # a line does not deny the next
            before = text[max(line, match.start() - 60) : match.start()]
            tail = text[match.end() :]
            if _HYPOTHETICAL.search(before) or _DENIED.search(before) or _NEGATED.match(tail):
                continue
            found.append(Statement(match.start(), tail, mark))
    yield from sorted(found, key=lambda statement: statement.start)
