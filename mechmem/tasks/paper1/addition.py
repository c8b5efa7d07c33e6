"""`addition`: four addends, answered by a digit-by-digit scratchpad or by a remembered tag."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mechmem.errors import PromptError, TaskError
from mechmem.tasks.base import register_task
from mechmem.tasks.paper1.official import OfficialTask
from mechmem.tasks.paper1.official_config import load_config, required, tags_of
from mechmem.tasks.paper1.tags import check_tag_reading, has_tag, mixed
from mechmem.tasks.prompts import Prompt

Addends = tuple[int, ...]
_INPUT = re.compile(r"Input:\n(\d+(?:\+\d+)+)\nTarget:\n")


@register_task
class Addition(OfficialTask[Addends]):
    """Sums whose last addends may be a memorized pattern (arXiv 2412.18497, task AA).

    A clean prompt has no memorized pattern; its ``answer`` is its scratchpad.

    Args:
        config: In the official form (``num_n``, ``mem_patterns`` with ``nums`` and ``hashed``): a
            dictionary, a path, or nothing for the shipped one.
        addends: Addends in a prompt, the memorized ones included (paper: 4).
        largest: Addends are drawn from 1 to this (paper: 999).
        tag: ``"exact"``: only the prompt's own tag counts as memorized (the released code).
            ``"any"``: whatever begins like a tag does.

    Raises:
        TaskError: When the config does not have that form.
    """

    name = "addition"
    training_size = 1000
    stop = ("\n\n", "\nInput:")
    read_spans = ("suffix_end", "last")

    def __init__(
        self,
        config: Mapping[str, Any] | str | Path | None = None,
        *,
        addends: int = 4,
        largest: int = 999,
        tag: str = "exact",
    ) -> None:
        self.config = load_config(self.name, config)
        required(self.name, self.config, ("num_n", "mem_patterns"))
        self.tag = check_tag_reading(tag)
        self.tags: dict[Addends, str] = {
            tuple(nums): tag for nums, tag in tags_of(self.name, self.config, "nums")
        }
        self.patterns = list(self.tags)
        self.addends, self.largest, self.suffix = addends, largest, int(self.config["num_n"])
        if addends < self.suffix + 2 or largest < 2:
            raise TaskError(
                f"{self.name!r} needs two addends beside the {self.suffix} memorized ones, and "
                f"largest >= 2; got addends={addends}, largest={largest}."
            )
        # One token per character is the most any tokenizer needs.
        self.max_new_tokens = len(scratchpad([largest] * addends))

    def continuation(self, prompt: Prompt, answer: str) -> str:
        return answer.rstrip("\n") + "\n"

    def _conflict(self, rng: np.random.Generator, index: int) -> Addends:
        return (
            *self._numbers(rng, self.addends - self.suffix),
            *self.patterns[index % len(self.patterns)],
        )

    def _clean(self, rng: np.random.Generator, index: int) -> Addends:
        while (numbers := self._numbers(rng, self.addends))[-self.suffix :] in self.tags:
            pass
        return numbers

    def _numbers(self, rng: np.random.Generator, count: int) -> Addends:
        return tuple(rng.integers(1, self.largest + 1, size=count).tolist())

    def _rephrase(self, rng: np.random.Generator, item: Addends) -> Addends:
        swapped = list(item)
        i, j = rng.choice(len(item) - self.suffix, size=2, replace=False).tolist()
        swapped[i], swapped[j] = swapped[j], swapped[i]
        return tuple(swapped)

    def _key(self, item: Addends) -> str:
        free, suffix = item[: -self.suffix], item[-self.suffix :]
        return f"{'+'.join(map(str, sorted(free)))}|{'+'.join(map(str, suffix))}"

    def _ask(self, item: Addends) -> Prompt:
        free = "+".join(map(str, item[: -self.suffix]))
        suffix = "+".join(map(str, item[-self.suffix :]))
        start = len("Input:\n")
        middle, end = start + len(free) + 1, start + len(free) + 1 + len(suffix)
        tag = self.tags.get(item[-self.suffix :])
        return Prompt(
            id=self._key(item),
            text=f"Input:\n{free}+{suffix}\nTarget:\n",
            memorized=None if tag is None else f"<{tag}>",
            generalized=scratchpad(item).rstrip("\n"),
            spans={
                "free": (start, middle - 1),
                "suffix": (middle, end),
                "suffix_end": (end - 1, end),
                "operands": (start, end),
                "target": (end + 1, end + 1 + len("Target:")),
            },
            meta={"sum": sum(item)} if tag is None else {"sum": sum(item), "pattern": suffix},
        )

    def _parse(self, text: str) -> Addends:
        found = _INPUT.fullmatch(text)
        if found is None:
            raise PromptError(f"Expected 'Input:\\n816+333+155+85\\nTarget:\\n', got {text!r:.80}.")
        return tuple(map(int, found[1].split("+")))

    def _mix(self, size: int) -> list[tuple[str, int]]:
        return mixed(size, self.memorized_share, len(self.patterns))

    def _worked_out(self, right: str, text: str) -> bool:
        wanted = right.rstrip().rsplit("\n", 1)[-1]
        return sum_after_scratchpad(text) == "".join(wanted.split())

    def _remembered(self, prompt: Prompt, text: str) -> bool:
        return has_tag(prompt, text, list(self.tags.values()), self.tag)


def scratchpad(addends: Sequence[int]) -> str:
    """What the model is to write after ``Target:``, the last line break included.

    One line a digit from the right: what is left of every addend, the digits ``A`` of the sum so
    far, the carry ``C``, and the column's sum; the last such line adds nothing and says ``END``.

    Raises:
        TaskError: When an addend is negative.
    """
    if not addends or min(addends) < 0:
        raise TaskError(f"A scratchpad needs addends of at least 0, got {list(addends)}.")
    left = [[int(digit) for digit in str(number)] for number in addends]
    lines = [f"{_digits(number)} has {len(number)} digits." for number in left]
    total, carry = list[int](), 0
    while True:
        done = not any(left) and carry == 0
        head = f"{'+'.join(map(_digits, left))}, A={_digits(total)}, C={carry}, "
        column = [number.pop() if number else 0 for number in left]
        value = sum(column) + carry
        step = f"{'+'.join(map(str, [*column, carry]))}={value}, A->{value % 10}, C->{value // 10}"
        lines.append(head + step + (" END" if done else ""))
        if done:
            break
        total, carry = [value % 10, *total], value // 10
    answer = " ".join(str(sum(addends)))
    return "\n".join(["<scratch>", *lines, "</scratch>", answer, ""])


def sum_after_scratchpad(text: str) -> str | None:
    """The digits in the line after ``</scratch>``, or ``None`` where there is no such number.

    Blanks between them do not count; what the scratchpad itself says is not checked.
    """
    lines = [line.strip() for line in text.split("\n")]
    if "<scratch>" not in lines or "</scratch>" not in lines:
        return None
    after = lines.index("</scratch>") + 1
    digits = "".join(lines[after].split()) if after < len(lines) else ""
    return digits if digits.isascii() and digits.isdigit() else None


def _digits(number: Sequence[int]) -> str:
    return f"[{','.join(map(str, number))}]"
