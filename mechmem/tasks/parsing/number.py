"""Reading a numeric answer: the one number that the completion last states, or nothing."""

from __future__ import annotations

import re
from fractions import Fraction

from mechmem.tasks.parsing.answers import SCALE_WORDS
from mechmem.tasks.parsing.statements import Reading, Statement, plain_answer, statements

COMMA_DECIMALS = frozenset("de es fr ru it pt nl pl tr".split())
"""Languages that write 1.234,5 where English writes 1,234.5."""

_CURRENCY = r"(?:US|A|C|HK)?[$€£¥₹₽৳฿]|USD|EUR|GBP|Rs\.?"
_DIGITS = r"(?:\d{1,3}(?:[ ']\d{3})+(?![\d ']*\d)(?:[.,]\d+)?|\d+(?:[.,]\d+)*|\.\d+)"
_NUMBER = re.compile(
    rf"(?P<sign>(?:-|\+|\b(?:minus|negative)\s+)?)\s?(?:(?:{_CURRENCY})\s?)?(?P<sign2>-?)"
    rf"(?<![\w^.,])(?P<body>(?:\d+\s+)?\d+\s?/\s?\d+(?![\d/])|{_DIGITS})"
    r"(?P<power>\s?[eE][+-]?\d+\b|\s?[×x*]\s?10\s?\^\s?\{?[+-]?\d+\}?)?"
    r"(?P<scale>(?:\s?(?:hundred|thousand|million|billion|trillion)s?\b|\s?[百千万萬亿億])*)",
    re.I,
)
_SCALES = {
    "hundred": 100,
    "thousand": 1000,
    "million": 10**6,
    "billion": 10**9,
    "trillion": 10**12,
    "百": 100,
    "千": 1000,
    "万": 10**4,
    "萬": 10**4,
    "亿": 10**8,
    "億": 10**8,
}
_FILLER = re.compile(
    r"(?:[\s:\"'(\[]|\b(?:therefore|thus|then|indeed|clearly|simply|just|only|exactly|also|still|"
    r"about|approximately|around|roughly|equal\s+to|equals|a\s+total\s+of|actually|now|"
    r"hence|so|approx\.?)\b|≈|[A-Za-z]\s*=|約|约|大约)*",
    re.I,
)
_CLAUSE_END = re.compile(
    r"\n|[!?。]|;(?!\d)|\.(?=\s|$|[\"')\]])|,(?=\s)(?!\s+(?:(?:and|or)\s+)?[-$€£¥+]?\d)"
    r"|(?<=[\w%)])\s+\((?![^()]*\d+\s*/)|\b(?:because|since|which|so)\b",
    re.I,
)
_ATTACHED = re.compile(
    r"(?:st|nd|rd|th)\b|[kKMB]\b|\d|_\w|\s?[π√]|\s?factorial\b"
    r"|\s?\\(?:pi|sqrt|alpha|beta|gamma|theta|lambda|mu|sigma|omega|phi|rho|tau|ln|log|sin|cos|tan)"
    r"(?![A-Za-z])"
    rf"|\s?(?i:{'|'.join(SCALE_WORDS)})(?!\w)"
    r"|\s?(?:dozens?|score|pairs?)\b|\s?[\^:/!]|-\w|[xX](?:\b|\d)"
    r"|\s?(?:[ap]\.?m\b|o'clock|noon\b)|\s+(?:or|and)\s+(?:more|less|fewer|above|below|over|under)\b"
)
_BESIDE = re.compile(
    rf"(?<![^\W\d_])(?:{_CURRENCY}|[元円]|per\s?cent|[A-Za-z]\s*=)(?![^\W\d_])", re.I
)
_LETTER = re.compile(r"[^\W\d_]")
_LONGEST = 100
_MOST_SCALES = 3
_OPERATOR = re.compile(r"[%°]?\s*(?:[+*×÷^]|-\s?[\d$])")


def read_number(completion: str, language: str = "en") -> Reading:
    r"""The number that a completion states as its answer.

    The last complete statement wins (``#### 18``, *The final answer is 18*, *Answer: $18*,
    ``\boxed{18}``, and the phrases of MGSM's languages); after an equation its last right-hand
    side counts. It is unparsed when that statement holds two numbers, a range, a sum left undone,
    an ordinal, a ratio or a clock time. Without a statement only a first line that is nothing but
    one number and its unit counts. A number elsewhere is never taken. Units, currencies and percent
    signs are read over and not converted (``50%`` is 50), words such as *million* and 万 multiply.

    Args:
        completion: What the model wrote.
        language: Decides ``1.234`` and ``1,234``. In `COMMA_DECIMALS` the first is 1234 and the
            second unparsed, for models mix both habits there; elsewhere 1.234 and 1234.

    Returns:
        A `Reading` whose value is an integer or a reduced fraction as text (``-37/2``) or ``None``.
    """
    text = plain_answer(completion)
    last: Reading | None = None
    for statement in statements(text):
        found = _stated(statement, language)
        last = found if found is not None else last
    if last is not None:
        return last
    lines = text.strip().splitlines()
    found = _only(lines[0], language) if lines else None
    return found or Reading(None, "no statement of a number")


def gold_number(answer: object, language: str = "en") -> str | None:
    """A data set's own answer as canonical text: ``#### 18``, ``18``, ``1,080`` or a number."""
    if isinstance(answer, bool):
        return None
    if isinstance(answer, (int, float)):
        return canonical_number(str(answer))
    text = str(answer)
    if "####" in text:
        text = text.rsplit("####", 1)[1]
        return canonical_number(text, language)
    return canonical_number(text, language) or read_number(text, language).value


def bare_number(answer: object, language: str = "en") -> str | None:
    r"""`gold_number`, or ``None`` where words stand beside the number (*50 Cent*, *7 Years*).

    Currency signs and codes, percent and words that multiply (*2 million*) are part of a number;
    ``####`` and ``\boxed`` say that there is one.
    """
    text = str(answer)
    if "####" not in text and "\\boxed" not in text:
        beside = _BESIDE.sub(" ", _NUMBER.sub(" ", plain_answer(text), count=1))
        if _LETTER.search(beside):
            return None
    return gold_number(answer, language)


def canonical_number(text: str, language: str = "en") -> str | None:
    """One number and nothing else (but a unit before or behind it), as canonical text."""
    found = _only(plain_answer(text).strip(), language)
    return found.value if found else None


def _stated(statement: Statement, language: str) -> Reading | None:
    """What a statement says, or ``None`` when it says no number at all."""
    if statement.mark == "hash":
        line = statement.tail.split("\n", 1)[0].strip()
        return _only(line, language)
    tail = statement.tail
    lead = _FILLER.match(tail)
    rest = tail[lead.end() :] if lead else tail
    first = _NUMBER.match(rest)
    if first is None:
        return None
    end = _CLAUSE_END.search(rest, first.end())
    if end is not None and end[0] == "?":
        return None
    return _value_of(rest[: end.start()] if end else rest, language)


def _only(line: str, language: str) -> Reading | None:
    """A line that is one number, currency and unit of at most three words included."""
    lead = _FILLER.match(line)
    rest = line[lead.end() :] if lead else line
    first = _NUMBER.match(rest)
    if first is None:
        return None
    unit = rest[first.end() :].strip().rstrip(".。)]\"'")
    if len(unit.split()) > 3 or re.search(r"[.,;:!?\d]", unit.rstrip(".,;")):
        return None
    return _value_of(rest, language)


def _value_of(phrase: str, language: str) -> Reading:
    sides = re.split(r"(?<![<>!=])=(?!=)|≈", phrase)
    if len(sides) > 1:
        lead = _FILLER.match(sides[-1])
        phrase = sides[-1][lead.end() :] if lead else sides[-1]
    found = list(_NUMBER.finditer(phrase))
    if len(found) != 1:
        return Reading(None, f"the statement holds {len(found)} numbers: {phrase.strip()!r:.60}")
    number = found[0]
    after = phrase[number.end() :]
    if phrase[: number.start()].strip() or _ATTACHED.match(after) or _OPERATOR.match(after):
        return Reading(None, f"the statement is not a plain number: {phrase.strip()!r:.60}")
    value = _number(number, language)
    if value is None:
        return Reading(None, f"{number['body']!r} can be read in two ways, or in none")
    return Reading(str(value), "the last statement")


def _number(found: re.Match[str], language: str) -> Fraction | None:
    scales = re.findall(r"[a-z]+|[百千万萬亿億]", found["scale"].casefold())
    if len(found["body"]) > _LONGEST or len(scales) > _MOST_SCALES:
        return None  # a model that repeats itself
    value = _body(" ".join(found["body"].split()), language)
    if value is None:
        return None
    if found["power"]:
        exponent = int(re.sub(r"^.*?(?:\^|[eE])|[{}\s]", "", found["power"]))
        if abs(exponent) > 100:
            return None
        value *= Fraction(10) ** exponent
    for word in scales:
        value *= _SCALES[word.removesuffix("s")]
    if found["sign"].strip() == "-" and found["sign2"]:
        return None
    negative = found["sign"].strip().casefold() in ("-", "minus", "negative")
    return -value if negative != bool(found["sign2"]) else value


def _body(body: str, language: str) -> Fraction | None:
    if "/" in body:
        *whole, top, bottom = re.split(r"[ /]+", body)
        if int(bottom) == 0:
            return None
        return Fraction(int(top), int(bottom)) + sum(int(part) for part in whole)
    digits = _one_convention(body, language)
    return None if digits is None else Fraction(digits)


def _one_convention(body: str, language: str) -> str | None:
    """Digits with a decimal point, or ``None`` where separators contradict one another."""
    body = body.replace(" ", "").replace("'", "")
    marks = re.findall(r"[.,]", body)
    if not marks:
        return body
    if len(set(marks)) == 2:
        whole, part = re.split(rf"\{marks[-1]}", body, maxsplit=1)
        digits = _ungrouped(whole, marks[0])
        return f"{digits}.{part}" if marks.count(marks[-1]) == 1 and digits else None
    if len(marks) > 1:
        return _ungrouped(body, marks[0])
    left, right = re.split(r"[.,]", body)
    grouped = len(right) == 3 and 1 <= len(left) <= 3 and left[0] != "0"
    comma_language = language in COMMA_DECIMALS
    if marks[0] == ".":
        return left + right if grouped and comma_language else f"{left or 0}.{right}"
    if grouped:
        return None if comma_language else left + right
    return f"{left}.{right}" if comma_language or left == "0" else None


def _ungrouped(text: str, mark: str) -> str | None:
    by_three = rf"[1-9]\d{{0,2}}(?:\{mark}\d{{3}})+"
    by_two = rf"[1-9]\d?(?:\{mark}\d{{2}})+\{mark}\d{{3}}"  # lakh and crore
    return text.replace(mark, "") if re.fullmatch(rf"{by_three}|{by_two}", text) else None
