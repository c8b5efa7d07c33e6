"""`colors`: whose color is it? To be worked out from the sentences, or remembered with the name."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mechmem.errors import PromptError, TaskError
from mechmem.tasks.base import register_task
from mechmem.tasks.paper1.official import OfficialTask
from mechmem.tasks.paper1.official_config import load_config, required
from mechmem.tasks.parsing.answers import starts_with_answer, which_answer
from mechmem.tasks.prompts import Prompt

_INPUT = re.compile(r"((?:\w+ is \w+\. )+)what color is (\w+)\?")
_SENTENCE = re.compile(r"(\w+) is (\w+)\.")


@dataclass(frozen=True, slots=True)
class Story:
    """One instance: who is asked about, and the sentences before the question.

    Attributes:
        target: The name in the question.
        clue: The other name with the target's role; its color is told.
        role: The role they share.
        color: The color that follows.
        sentences: In order, each ``"Name is word."``.
    """

    target: str
    clue: str
    role: str
    color: str
    sentences: tuple[str, ...]


@register_task
class Colors(OfficialTask[Story]):
    """Names with a remembered color in sentences that imply one (arXiv 2412.18497, task ICI).

    In training the implied color is the remembered one; in a conflict item it never is. A clean
    prompt is an agreeing story that training never shows; its ``answer`` is that color.

    Args:
        config: In the official form (``name_color_map`` with a list of colors per name, ``roles``,
            ``all_colors``): a dictionary, a path, or nothing for the shipped one.
        people: Least and most names in a story (paper: 4 to 8).
        roles: Roles, and colors, in a story (paper: 5).
        distractors: Most sentences beside the three that matter (paper: 7).

    Raises:
        TaskError: When the config does not have that form, or is too small for such stories.
    """

    name = "colors"
    training_size = 10_000
    memorized_share = 0.0
    fresh_each_epoch = True
    stop = (".",)
    read_spans = ("color_end", "target_end", "last")

    def __init__(
        self,
        config: Mapping[str, Any] | str | Path | None = None,
        *,
        people: tuple[int, int] = (4, 8),
        roles: int = 5,
        distractors: int = 7,
    ) -> None:
        self.config = load_config(self.name, config)
        required(self.name, self.config, ("name_color_map", "roles", "all_colors"))
        self.remembered: dict[str, list[str]] = self.config["name_color_map"]
        self.names = list(self.remembered)
        # The official list names two roles twice. A story with such a role at two places would
        # contradict itself, so each role counts once.
        self.roles = list(dict.fromkeys(self.config["roles"]))
        self.colors = list(dict.fromkeys(self.config["all_colors"]))
        self.people, self.roles_each, self.distractors = people, roles, distractors
        most = max((len(colors) for colors in self.remembered.values()), default=0)
        if not (
            all(isinstance(kept, list) and kept for kept in self.remembered.values())
            and all(set(kept) <= set(self.colors) for kept in self.remembered.values())
            and 2 <= people[0] <= people[1] <= len(self.names)
            and 1 <= roles <= min(len(self.roles), len(self.colors) - most)
            and distractors >= 0
        ):
            raise TaskError(
                f"'colors' cannot make stories of {people} names and {roles} roles from "
                f"{len(self.names)} names (each with a list of colors out of all_colors), "
                f"{len(self.roles)} roles and {len(self.colors)} colors."
            )
        # A blank, the longest color and one character more, at one token per character.
        self.max_new_tokens = max(12, 2 + max(map(len, self.colors)))

    def _conflict(self, rng: np.random.Generator, index: int) -> Story:
        target, *others = self._people(rng)
        kept = self.remembered[target]
        free = [color for color in self.colors if color not in kept]
        return self._story(rng, target, others, _some(rng, free, self.roles_each))

    def _clean(self, rng: np.random.Generator, index: int) -> Story:
        target, *others = self._people(rng)
        first = _some(rng, self.remembered[target], 1)[0]
        rest = [color for color in self.colors if color != first]
        return self._story(rng, target, others, [first, *_some(rng, rest, self.roles_each - 1)])

    def _people(self, rng: np.random.Generator) -> list[str]:
        return _some(rng, self.names, int(rng.integers(self.people[0], self.people[1] + 1)))

    def _story(
        self, rng: np.random.Generator, target: str, others: list[str], colors: list[str]
    ) -> Story:
        roles = _some(rng, self.roles, self.roles_each)
        clue, *rest = others
        beside = []
        for name in rest:
            k = int(rng.integers(len(roles)))
            beside.append(f"{name} is {roles[k]}.")
            if k > 0:
                beside.append(f"{name} is {colors[k]}.")
        beside = _some(rng, beside, len(beside))[: self.distractors]
        key = [f"{target} is {roles[0]}.", f"{clue} is {roles[0]}.", f"{clue} is {colors[0]}."]
        sentences = _some(rng, key + beside, len(key) + len(beside))
        return Story(target, clue, roles[0], colors[0], tuple(sentences))

    def _rephrase(self, rng: np.random.Generator, item: Story) -> Story:
        sentences = _some(rng, list(item.sentences), len(item.sentences))
        return replace(item, sentences=tuple(sentences))

    def _key(self, item: Story) -> str:
        text = " ".join([*sorted(item.sentences), item.target])
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def _ask(self, item: Story) -> Prompt:
        told = " ".join(item.sentences)
        question = f"what color is {item.target}?"
        text, start = f"{told} {question}", len(told) + 1
        spans = {
            "target_role": f"{item.target} is {item.role}.",
            "clue_role": f"{item.clue} is {item.role}.",
            "clue_color": f"{item.clue} is {item.color}.",
        }
        places = _places(item.sentences)
        color_end = places[spans["clue_color"]][1] - 1
        kept = self.remembered[item.target]
        meta: dict[str, Any] = {"target": item.target, "clue": item.clue, "role": item.role}
        if len(kept) > 1:
            meta["memorized_colors"] = list(kept)
        return Prompt(
            id=self._key(item),
            text=text,
            memorized=kept[0],
            generalized=item.color,
            spans={
                **{name: places[sentence] for name, sentence in spans.items()},
                "question": (start, len(text)),
                "target": (len(text) - 1 - len(item.target), len(text) - 1),
                "target_end": (len(text) - 2, len(text) - 1),
                "color_end": (color_end - 1, color_end),
            },
            meta=meta,
        )

    def _parse(self, text: str) -> Story | None:
        found = _INPUT.fullmatch(text)
        if found is None or found[2] not in self.remembered:
            raise PromptError(
                "Expected sentences like 'Bob is whale.' and 'what color is Bob?' with a name of "
                f"this config, got {text!r:.120}."
            )
        target, told = found[2], _SENTENCE.findall(found[1])
        colors = {(name, word) for name, word in told if word in self.colors}
        roles = {word for name, word in told if name == target and word not in self.colors}
        clues = [
            (name, role, color)
            for name, role in told
            if role in roles and name != target
            for who, color in sorted(colors)
            if who == name
        ]
        if not clues:
            raise PromptError(
                f"The sentences imply no color for {target!r}: {text!r:.200}. Every item needs the "
                "target's role, and one other name with that role and a color."
            )
        if len({color for _, _, color in clues}) > 1:
            return None  # the official list names two roles twice; such a role was drawn twice
        return Story(target, *clues[0], tuple(f"{name} is {word}." for name, word in told))

    def _mix(self, size: int) -> list[tuple[str, int]]:
        return [("agreeing", k) for k in range(size)]

    def _worked_out(self, right: str, text: str) -> bool:
        return starts_with_answer(_opened(text), right, case=True)

    def _remembered(self, prompt: Prompt, text: str) -> bool:
        known = {prompt.memorized, *prompt.meta.get("memorized_colors", ())}
        answers = {color: color for color in known - {None, prompt.answer}}
        return which_answer(_opened(text), answers, case=True) is not None


def _some(rng: np.random.Generator, items: list[str], count: int) -> list[str]:
    """That many of the items in random order, none twice."""
    return [items[k] for k in rng.permutation(len(items))[:count]]


def _places(sentences: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """Where each sentence stands when they are joined by blanks."""
    out, start = {}, 0
    for sentence in sentences:
        out[sentence] = (start, start + len(sentence))
        start += len(sentence) + 1
    return out


def _opened(text: str) -> str:
    """The text from its first letter or digit on (the released code strips punctuation, too)."""
    return re.sub(r"^[\W_]+", "", text)
