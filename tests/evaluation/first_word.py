"""A task for tests: it reads the parity of the first word's number."""

from __future__ import annotations

from helpers import sentence

import mechmem as mm

__all__ = ["PAIRS", "TASK"]


class FirstWord(mm.Task):
    name = "first-word"
    max_new_tokens = 3

    def pairs(self, n: int, seed: int = 0) -> mm.PromptSet:
        return mm.PromptSet(
            mm.Prompt(
                id=f"{g}.{k}",
                text=sentence(2 + (3 * g + k) % 7, seed + 10 * g + k),
                group=f"q{g}",
                memorized="w2",
                generalized="w3",
            )
            for g in range(n)
            for k in range(2)
        )

    def classify(self, prompt: mm.Prompt, completion: str) -> str:
        word = completion.split()[0] if completion.split() else ""
        if not word.startswith("w"):
            return "other"
        return ("memorized", "generalized")[int(word[1:]) % 2]


TASK = FirstWord()
PAIRS = TASK.pairs(20)
