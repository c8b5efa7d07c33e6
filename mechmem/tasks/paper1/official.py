"""What the three tasks of "Think or Remember?" (arXiv 2412.18497) share: drawing and reading items.

An *instance* is what one question is about (addends, a ciphertext, a story). Each subclass says how
to draw, rephrase and write one; here items are keyed by seed and number, kept distinct, and divided
into a training side and a held-out side by their content.
"""

from __future__ import annotations

import hashlib
import itertools
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from string import ascii_lowercase
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from mechmem.errors import PromptError, TaskError
from mechmem.seeding import keyed_order, keyed_rng
from mechmem.tasks.base import Task
from mechmem.tasks.paper1.official_files import read_items, read_rows
from mechmem.tasks.parsing.thoughts import without_thoughts
from mechmem.tasks.prompts import Prompt, PromptSet

T = TypeVar("T")
TRIES = 10_000
HELD_OUT = 8


class TrainingText(NamedTuple):
    """One training item.

    Attributes:
        prompt: What stands before the answer.
        target: Exactly what follows it, white space included.
        kind: ``"memorized"``, ``"other"`` (worked out) or ``"agreeing"`` (both at once).
    """

    prompt: str
    target: str
    kind: str

    @property
    def text(self) -> str:
        """The whole instance: prompt and target."""
        return self.prompt + self.target


class OfficialTask(Task, Generic[T]):
    """A paper task on one config.

    Attributes:
        training_size: Items of one epoch in the paper.
        memorized_share: How many of them carry a memorized pattern.
        fresh_each_epoch: Whether the paper draws new items every epoch (`training` takes both).
        config: The config in use, in the official JSON form.
    """

    training_size: ClassVar[int]
    memorized_share: ClassVar[float] = 0.07
    fresh_each_epoch: ClassVar[bool] = False
    config: dict[str, Any]

    def conflicts(self, n: int, seed: int = 0) -> PromptSet:
        """``n`` test items on which remembering and working it out give different answers.

        All are held out: `training` never makes them, under any seed.
        """
        items = self._distinct(n, seed, "conflict", self._conflict)
        return PromptSet(
            self._named(self._ask(item), f"{self.name}-conflict-{seed}-{k}", item)
            for k, item in enumerate(items)
        )

    def pairs(self, n: int, seed: int = 0) -> PromptSet:
        """``n`` pairs of rephrasings of held-out conflict items, two prompts to a group.

        A pair whose two members would be the same text is rejected and another one drawn; the
        first member's ``meta["rejected"]`` says how often (`rejected_pairs` adds it up).
        """
        rejected = [0] * max(n, 0)
        others: dict[int, T] = {}

        def draw(rng: np.random.Generator, index: int) -> T | None:
            item = self._conflict(rng, index)
            if not held_out(self._key(item)):
                return None
            others[index] = self._rephrase(rng, item)
            if self._ask(item).text == self._ask(others[index]).text:
                rejected[index] += 1
                return None
            return item

        members: list[Prompt] = []
        for k, item in enumerate(self._distinct(n, seed, "pair", draw)):
            name = f"{self.name}-pair-{seed}-{k}"
            members.append(self._named(self._ask(item), f"{name}a", item, rejected=rejected[k]))
            members.append(self._named(self._ask(others[k]), f"{name}b", others[k]))
        return PromptSet(members)

    def clean_prompts(self, n: int, seed: int = 0) -> PromptSet:
        """``n`` held-out items without a conflict, with ``answer`` set; see the task for which."""
        items = self._distinct(n, seed, "clean", self._clean)
        prompts = []
        for k, item in enumerate(items):
            asked = self._named(self._ask(item), f"{self.name}-clean-{seed}-{k}", item)
            prompts.append(
                replace(asked, memorized=None, generalized=None, answer=asked.generalized)
            )
        return PromptSet(prompts)

    def training(self, n: int | None = None, seed: int = 0, epoch: int = 0) -> list[TrainingText]:
        """Training items in a shuffled order.

        Args:
            n: How many; the paper's number when left out. Patterns share the memorized ones evenly.
            seed: Which items.
            epoch: Other values give other items; keep it at 0 to train on one fixed set.
        """
        size = self.training_size if n is None else n
        if size < 1:
            raise TaskError(f"Training needs at least 1 item, got n={n}.")
        made = {f"{kind} {k}": self._train(kind, k, seed, epoch) for kind, k in self._mix(size)}
        return [made[name] for name in keyed_order(made, seed, self.name, "order", epoch)]

    def read(self, path: str | Path) -> PromptSet:
        """Prompts of an official JSON file: test items, or pairs of them.

        Pairs with identical members are rejected and counted as in `pairs`; so are items that
        contradict themselves (1 to 2 % of the released color items imply two colors), which
        ``meta["contradicting"]`` of the first prompt counts once more by themselves.

        Raises:
            PromptError: When the file is not in the official form, or was made with another config.
        """
        stem, prompts, rejected, contradicting = Path(path).stem, list[Prompt](), 0, 0
        for k, rephrasings in enumerate(read_items(path, self._parse, self._ask)):
            if rephrasings is None:
                contradicting += 1
                continue
            texts = {prompt.text for _, prompt in rephrasings}
            if len(texts) < len(rephrasings):
                rejected += 1
                continue
            for j, (item, prompt) in enumerate(rephrasings):
                letter = ascii_lowercase[j] if len(rephrasings) > 1 else ""
                prompts.append(self._named(prompt, f"{self.name}-{stem}-{k}{letter}", item))
        if not prompts:
            raise PromptError(
                f"{path} holds no item to ask ({rejected} pairs have equal members, "
                f"{contradicting} items contradict themselves); give another file."
            )
        counts = {"rejected": rejected + contradicting, "contradicting": contradicting}
        said = {name: count for name, count in counts.items() if count}
        if said:
            prompts[0] = replace(prompts[0], meta={**prompts[0].meta, **said})
        return PromptSet(prompts)

    def read_training(self, path: str | Path) -> list[TrainingText]:
        """Training items of an official JSON file (``train.json``), in its order.

        Raises:
            PromptError: When the file is not in the official form.
        """
        texts = []
        for row in itertools.chain.from_iterable(read_rows(path)):
            target = row["output"].removeprefix(row["input"])
            kind = "memorized" if target.startswith("<mem-") else "other"
            texts.append(TrainingText(row["input"], target, kind))
        return texts

    def classify(self, prompt: Prompt, completion: str) -> str:
        """One of ``memorized``, ``generalized``, ``other``.

        On a clean prompt the right answer reads as ``generalized``.

        Raises:
            TaskError: When the prompt carries neither `generalized` nor `answer`.
        """
        right = prompt.answer if prompt.generalized is None else prompt.generalized
        if right is None:
            raise TaskError(
                f"Prompt {prompt.id!r} carries neither `generalized` nor `answer`: {self.name!r} "
                "cannot tell what would be right. Take prompts from the task, or set one of them."
            )
        text = without_thoughts(completion).replace("\r\n", "\n")
        if self._remembered(prompt, text):
            return "memorized"
        return "generalized" if self._worked_out(right, text) else "other"

    @abstractmethod
    def _conflict(self, rng: np.random.Generator, index: int) -> T:
        """Draw a test instance."""

    @abstractmethod
    def _clean(self, rng: np.random.Generator, index: int) -> T:
        """Draw an instance without a conflict."""

    @abstractmethod
    def _rephrase(self, rng: np.random.Generator, item: T) -> T:
        """The same instance in other words."""

    @abstractmethod
    def _key(self, item: T) -> str:
        """The same text for an instance and all its rephrasings."""

    @abstractmethod
    def _ask(self, item: T) -> Prompt:
        """The prompt of an instance, both answers and named spans included."""

    @abstractmethod
    def _parse(self, text: str) -> T | None:
        """The instance that an official ``input`` asks about; ``None`` when it says two things."""

    @abstractmethod
    def _mix(self, size: int) -> list[tuple[str, int]]:
        """Kind and number of every item of a training set."""

    @abstractmethod
    def _worked_out(self, right: str, text: str) -> bool:
        """Whether the completion gives the right answer."""

    @abstractmethod
    def _remembered(self, prompt: Prompt, text: str) -> bool:
        """Whether the completion gives the memorized answer."""

    def _train(self, kind: str, index: int, seed: int, epoch: int) -> TrainingText:
        rng = keyed_rng(seed, self.name, "training", epoch, kind, index)
        draw = self._conflict if kind == "memorized" else self._clean
        for _ in range(TRIES):
            item = draw(rng, index)
            if not held_out(self._key(item)):
                prompt = self._ask(item)
                answer = prompt.memorized if kind == "memorized" else prompt.generalized
                return TrainingText(prompt.text, self.continuation(prompt, str(answer)), kind)
        raise TaskError(f"{self.name!r} has too few instances to train on; use a larger config.")

    def _distinct(
        self,
        n: int,
        seed: int,
        purpose: str,
        draw: Callable[[np.random.Generator, int], T | None],
    ) -> list[T]:
        """Held-out instances, no two alike; a larger ``n`` only adds to a smaller one."""
        if n < 1:
            raise TaskError(f"{self.name!r} makes at least 1 item, got n={n}.")
        taken: dict[str, T] = {}
        for index in range(n):
            rng = keyed_rng(seed, self.name, purpose, index)
            for _ in range(TRIES):
                item = draw(rng, index)
                if item is None:
                    continue
                key = self._key(item)
                if held_out(key) and key not in taken:
                    taken[key] = item
                    break
            else:
                raise TaskError(
                    f"{self.name!r} found only {index} different items of the {n} asked for; "
                    "ask for fewer, or use a larger config."
                )
        return list(taken.values())

    def _named(self, prompt: Prompt, name: str, item: T, **meta: Any) -> Prompt:
        group = f"{self.name}:{self._key(item)}"
        return replace(prompt, id=name, group=group, meta={**prompt.meta, **meta})


def held_out(key: str) -> bool:
    """Whether an instance belongs to the side that training never sees: every eighth does."""
    return hashlib.sha256(key.encode()).digest()[0] % HELD_OUT == 0


def rejected_pairs(prompts: PromptSet) -> int:
    """How many pairs with identical members, or items that contradict themselves, were left out."""
    return sum(int(prompt.meta.get("rejected", 0)) for prompt in prompts)
