"""Reading a multiple-choice answer: the letter that the completion last states, or nothing."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence

from mechmem.errors import TaskError
from mechmem.tasks.parsing.statements import Reading, plain_answer, statements

_FILLER = re.compile(
    r"(?:\s|:|\b(?:therefore|thus|then|indeed|clearly|probably|likely|most|simply|just|actually|"
    r"hence|so|the|letter|option|choice|answer|either|both|is|要?选择?|选项)\b|选项|选择?)*",
    re.I,
)
_BRACKETED = re.compile(r"[\"'$]?\s*[(\[]\s*([A-Za-z])\s*[)\]]")
_SEVERAL_INSIDE = re.compile(r"[\"'$]?\s*[(\[]\s*[A-Za-z](?:\s*(?:[,/&]|and|or)?\s*[A-Z])+\s*[)\]]")
_BARE = re.compile(r"[\"'$]?\s*([A-Z])(?![A-Za-z0-9_+#^°]|-\w|'\w|\.[\w]|\s*[=<>*+])")
_BARE_END = re.compile(
    r"\s*$|\s*\n|\s*[)\]\"'$,;:!?。、(]|\.[\"')\]]*(?:\s*$|\s*\n|\s+(?![a-z])|\s+(?:because|since)\b)"
    r"|\s+(?:because|since|as|for|with|which|but|and|or)\b|\s*/|\s+-|\s*&|\s*[\u3040-\u9fff]"
)
_SECOND = re.compile(
    r"\s*[)\].,\"']*\s*(?:,|/|&|-|\bor\b|\band\b|或|和|及|、)\s*"
    r"(?:or\s+|and\s+|also\s+|possibly\s+|maybe\s+|perhaps\s+)?(?:option\s+|choice\s+)?"
    r"(?:[(\[]\s*[A-Za-z]\s*[)\]]|(I{2,3}|IV|VI{0,3}|[AI](?!\s+[a-z])|[B-HJ-Z])(?![A-Za-z0-9']))"
)
_DISMISSED = re.compile(
    r"[\s,]*(?:(?:is|was|are|seems|cannot\s+be|can't\s+be)\s+"
    r"(?:clearly\s+|therefore\s+)?(?:not|wrong|incorrect|false|impossible|ruled\s+out)\b"
    r"|(?:选?项)?(?:是|为)?(?:错|不))",
    re.I,
)
_LETTER = r"(?:\(([A-Za-z])\)|(?<![A-Za-z0-9(])([A-Z]))"
_REVERSED = (
    re.compile(
        rf"{_LETTER}\s+is\s+the\s+(?:(?:only|most|correct|right|best|likely|final)\s+)*"
        r"(?:answer|option|choice)\b"
    ),
    re.compile(rf"(?:[Oo]ption|[Cc]hoice)\s+{_LETTER}\s+is\s+(?:the\s+)?(?:correct|right|best)\b"),
)
_TWO_BEFORE = re.compile(
    r"[A-J]\)?\s*(?:\band\b|\bor\b|,|/|&)\s*(?:[Oo]ption\s+|[Cc]hoice\s+)?\(?$"
)
_IF_BEFORE = re.compile(
    r"\b(?:if|whether|unless|not|think|doubt|say)\s+(?:that\s+)?(?:[Oo]ption\s+|[Cc]hoice\s+)?$",
    re.I,
)
_CHINESE = re.compile(r"(?<!不)(?<!不应)(?:故|应|应该|所以|因此|因而|正确答案)选(?!项)择?\s*:?")
_ALONE = re.compile(r"[\"'$]?\s*(?:\(\s*([A-Za-z])\s*\)|([A-Z])\s*[).:]?|\[([A-Z])\])[\"'$.]*")
_LEADING = re.compile(r"\s*(?:\(\s*([A-Za-z])\s*\)|([A-Z])\s*[).:])\s*(\S.*)")


NO_STATEMENT = "no statement of an answer"


def read_choice(completion: str, options: int | Sequence[str] = 10) -> Reading:
    r"""The option letter that a completion states.

    The last complete statement wins (*the answer is (C)*, *Answer: C*, *option C is correct*,
    ``\boxed{C}``, *故选C*). It is unparsed when that statement names two letters, a letter beyond
    the options, or a letter beside another option's text. Without a statement only a first line
    that is a letter, alone or before that option's own text, counts. Nothing is ever guessed from
    letters elsewhere, and an option's text without its letter is not read.

    Args:
        completion: What the model wrote.
        options: How many options there are, or their texts in order.

    Returns:
        A `Reading` whose value is an upper-case letter or ``None``.
    """
    texts = [] if isinstance(options, int) else [_squeezed(option) for option in options]
    count = options if isinstance(options, int) else len(options)
    if not 1 <= count <= 26:
        raise TaskError(f"A question has 1 to 26 options, got {count}.")
    text = plain_answer(completion)
    stated = sorted([*_forward(text, texts), *_backward(text)], key=lambda pair: pair[0])
    if stated:
        return _within(stated[-1][1], count, "the last statement")
    return _first_line(text, texts, count)


def read_choice_paper(completion: str) -> Reading:
    r"""The reading of arXiv 2503.23084: the first match of ``answer is \(?([A-J])\)?``.

    It reads *the answer is A matter of taste* as A and *the answer is C6H12O6* as C. For
    comparison with the paper only; and what it cannot read is unparsed, where the released code
    drew a random letter.
    """
    found = re.search(r"answer is \(?([A-J])\)?", completion)
    return Reading(found[1] if found else None, "the paper's expression")


def _forward(text: str, texts: Sequence[str]) -> list[tuple[int, str | None]]:
    places = [(s.start, s.tail) for s in statements(text, "answer|option|choice")]
    places += [(m.start(), text[m.end() :]) for m in _CHINESE.finditer(text)]
    out: list[tuple[int, str | None]] = []
    for start, tail in places:
        rest = tail[_FILLER.match(tail).end() :]  # type: ignore[union-attr]
        if _SEVERAL_INSIDE.match(rest):
            out.append((start, None))
            continue
        found = _BRACKETED.match(rest) or _bare(rest, texts)
        if found is None:
            continue
        letter, after = found[1].upper(), rest[found.end() :]
        if _DISMISSED.match(after) or re.match(r"[^.!\n]{0,40}\?", after):
            continue
        out.append((start, None if _unclear(letter, rest, after, texts) else letter))
    return out


def _bare(rest: str, texts: Sequence[str]) -> re.Match[str] | None:
    found = _BARE.match(rest)
    if found is None:
        return None
    after = rest[found.end() :]
    if _BARE_END.match(after) or _follows(after, _option(texts, found[1])):
        return found
    return None


def _unclear(letter: str, rest: str, after: str, texts: Sequence[str]) -> bool:
    """Two letters, or a letter beside the text of another option."""
    if _SECOND.match(after):
        return True
    said = {_squeezed(part.split("\n")[0]) for part in (rest, after)}
    others = [option for k, option in enumerate(texts) if string.ascii_uppercase[k] != letter]
    own = _option(texts, letter)
    return any(option and option != own and option in said for option in others)


def _backward(text: str) -> list[tuple[int, str | None]]:
    out: list[tuple[int, str | None]] = []
    for pattern in _REVERSED:
        for found in pattern.finditer(text):
            line = text.rfind("\n", 0, found.start()) + 1
            before = text[max(line, found.start() - 40) : found.start()]
            if _IF_BEFORE.search(before) or re.match(r"[^.!\n]{0,40}\?", text[found.end() :]):
                continue
            letter = next(group for group in found.groups() if group).upper()
            out.append((found.start(), None if _TWO_BEFORE.search(before) else letter))
    return out


def _first_line(text: str, texts: Sequence[str], count: int) -> Reading:
    lines = [line.strip() for line in text.strip().splitlines()]
    alone = [_ALONE.fullmatch(line) for line in lines]
    letters = {next(g for g in m.groups() if g).upper() for m in alone if m}
    if alone and alone[0]:
        if len(letters) > 1:
            return Reading(None, "several letters, each on a line of its own")
        return _within(letters.pop(), count, "the first line")
    found = _LEADING.fullmatch(lines[0]) if lines else None
    if found:
        letter = (found[1] or found[2]).upper()
        if _squeezed(found[3]) == _option(texts, letter) != "":
            return _within(letter, count, "the first line, with the option's text")
    return Reading(None, NO_STATEMENT)


def _within(letter: str | None, count: int, where: str) -> Reading:
    if letter is None:
        return Reading(None, f"{where} is ambiguous")
    if string.ascii_uppercase.index(letter) >= count:
        return Reading(None, f"{where} names {letter}, but there are {count} options")
    return Reading(letter, where)


def _option(texts: Sequence[str], letter: str) -> str:
    index = string.ascii_uppercase.index(letter.upper())
    return texts[index] if index < len(texts) else ""


def _follows(after: str, option: str) -> bool:
    return bool(option) and _squeezed(after).startswith(option)


def _squeezed(text: str) -> str:
    """Lower case, single blanks, no punctuation around it."""
    return " ".join(plain_answer(text).casefold().split()).strip(" .,:;)(\"'$")
