"""Is a completion right? The one call of a task that has questions; its parsers are next door."""

from __future__ import annotations

from collections.abc import Sequence

from mechmem.errors import TaskError, did_you_mean, listed
from mechmem.tasks.parsing.choice import read_choice, read_choice_paper
from mechmem.tasks.parsing.number import (
    gold_number,
    read_number,
)
from mechmem.tasks.parsing.short import match_short, match_short_paper
from mechmem.tasks.parsing.statements import Reading

KINDS = ("choice", "number", "short")
READINGS = ("strict", "paper")


def judge_completion(
    completion: str,
    kind: str,
    answer: str,
    *,
    options: Sequence[str] = (),
    aliases: Sequence[str] = (),
    language: str = "en",
    reading: str = "strict",
) -> tuple[str, Reading]:
    """``correct``, ``wrong`` or ``unparsed``, with what was read.

    Args:
        kind: ``choice`` (the answer is a letter), ``number`` or ``short``.
        answer: The right answer; a number in any form that `gold_number` reads.
        options: The option texts of a choice; ten unnamed ones when left out.
        aliases: Other right answers of a short one.
        language: Number format of the completion and of the answer (`read_number`).
        reading: ``strict``, or ``paper`` for the expressions of arXiv 2503.23084 (letters and
            short answers; its number expression misses negative numbers and commas, so numbers
            are always read strictly).

    Raises:
        TaskError: For an unknown kind or reading, or a number task whose answer is none.
    """
    for name, value, allowed in (("kind", kind, KINDS), ("reading", reading, READINGS)):
        if value not in allowed:
            raise TaskError(
                f"{name} must be one of {listed(allowed)}, got {value!r}."
                f"{did_you_mean(value, allowed)}"
            )
    if kind == "short":
        match = match_short if reading == "strict" else match_short_paper
        outcome = match(completion, [answer, *aliases])
        return outcome, Reading(None if outcome == "unparsed" else outcome, f"{reading} matching")
    if kind == "choice":
        if reading == "strict":
            read = read_choice(completion, list(options) or 10)
        else:
            read = read_choice_paper(completion)
        wanted: str | None = answer.strip().strip("()").upper()
    else:
        read = read_number(completion, language)
        wanted = gold_number(answer, language)
        if wanted is None:
            within = "" if language == "en" else f" in language {language!r}"
            raise TaskError(
                f"The answer {answer!r:.80} is no number{within}; set kind='short' instead, or "
                "write it without separators of thousands."
            )
    if read.value is None:
        return "unparsed", read
    return ("correct" if read.value == wanted else "wrong"), read
