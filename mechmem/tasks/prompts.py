"""`Prompt` and `PromptSet`: what is asked, of whom nothing has been computed yet."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from operator import index
from pathlib import Path
from typing import Any, NamedTuple, overload
from unicodedata import normalize

import pandas as pd

from mechmem.errors import PromptError, listed
from mechmem.seeding import keyed_order
from mechmem.tasks import files


@dataclass(frozen=True, slots=True, init=False)
class Chat:
    """Wrap a prompt in the tokenizer's chat template: its text becomes the user's turn.

    A template that asks for today's date is told 26 July 2024, so that a prompt is the same tokens
    on every day; where it takes one (``date_string=`` for Llama 3), say another.

    Args:
        system: The system message, or ``None`` for no system turn.
        assistant_prefix: Text that the assistant's answer already begins with.
        template: What else the template is given, by name; also as keywords:
            ``Chat(enable_thinking=False)``, ``tools=``, ``documents=``. As JSON holds it.
    """

    system: str | None
    assistant_prefix: str
    template: Mapping[str, Any] = field(hash=False)

    def __init__(
        self,
        system: str | None = None,
        assistant_prefix: str = "",
        template: Mapping[str, Any] | None = None,
        **more: Any,
    ) -> None:
        given = {**(template or {}), **more}
        try:
            kept = json.loads(json.dumps(given, allow_nan=False))
        except (TypeError, ValueError) as error:
            raise PromptError(
                f"Arguments of a chat template must be what JSON can hold, got {given!r:.200} "
                f"({error})."
            ) from None
        object.__setattr__(self, "system", system)
        object.__setattr__(self, "assistant_prefix", assistant_prefix)
        object.__setattr__(self, "template", kept)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One question to a model, and what each behavior would answer.

    Attributes:
        id: Unique within a set.
        text: Exactly what the model reads (the tokenizer adds a beginning-of-sequence token).
        group: Ties the rephrasings of one instance together; its own id when left out.
        memorized: The answer of a model that remembers.
        generalized: The answer of a model that works it out.
        answer: The right answer, for questions without two behaviors.
        label: What the prompt asks for (say ``"reasoning"`` or ``"memory"``).
        behavior: What a model did on it, once observed.
        spans: Named character ranges ``(start, end)`` of ``text``, usable as positions.
        chat: Set to wrap the text in the tokenizer's chat template.
        meta: Anything else worth keeping.
    """

    id: str
    text: str
    group: str = ""
    memorized: str | None = None
    generalized: str | None = None
    answer: str | None = None
    label: str | None = None
    behavior: str | None = None
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    chat: Chat | None = None
    meta: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.id, str) or not self.id:
            raise PromptError(
                f"A prompt's id must be a non-empty string, got {self.id!r}; "
                "write for example Prompt(id='q1', text=...)."
            )
        for name in _TEXTS:
            self._check_text(name, getattr(self, name))
        if not self.group:
            object.__setattr__(self, "group", self.id)
        if not (self.chat is None or isinstance(self.chat, Chat)):
            raise PromptError(
                f"Prompt {self.id!r}: chat must be a Chat or None, got {self.chat!r:.60}; write "
                "chat=Chat()."
            )
        self._check_keys("spans", self.spans)
        self._check_keys("meta", self.meta)
        spans = {name: self._span(name, span) for name, span in self.spans.items()}
        object.__setattr__(self, "spans", spans)

    def _check_text(self, name: str, value: object) -> None:
        if name == "text" and not isinstance(value, str):
            raise PromptError(
                f"Prompt {self.id!r}: text must be a string, got {type(value).__name__}; "
                "write for example text='What is 1+1?'."
            )
        if value is not None and not isinstance(value, str):
            raise PromptError(
                f"Prompt {self.id!r}: {name} must be a string or None, got "
                f"{type(value).__name__} {value!r:.40}; write {name}={str(value)!r:.40}."
            )
        if value == "" and name in _ANSWERS:
            raise PromptError(
                f"Prompt {self.id!r}: {name} is an empty text, and nothing that is written could "
                "be told by it; leave it out."
            )

    def _check_keys(self, name: str, value: object) -> None:
        # A file keeps every key as text, so that another one would not come back as it was.
        if not isinstance(value, Mapping) or not all(isinstance(key, str) for key in value):
            raise PromptError(
                f"Prompt {self.id!r}: {name} must be a dictionary whose keys are text, got "
                f"{value!r:.80}."
            )

    def _span(self, name: str, span: Any) -> tuple[int, int]:
        try:
            start, end = map(index, span)
        except (TypeError, ValueError):
            raise PromptError(
                f"Prompt {self.id!r}: span {name!r} is {span!r:.80}; a span is a pair "
                "(start, end) of characters of the text."
            ) from None
        if not 0 <= start < end <= len(self.text):
            raise PromptError(
                f"Prompt {self.id!r}: span {name!r} is ({start}, {end}), but the text has "
                f"{len(self.text)} characters; a span needs 0 <= start < end <= length."
            )
        return start, end

    @property
    def same_text(self) -> str:
        """What every writing of this question has in common: characters composed, white space
        single, none around; with the chat's own words. Prompts that share it leak into one another.
        """
        said = (self.text,) if self.chat is None else (self.text, repr(self.chat))
        return "\x1f".join(" ".join(normalize("NFC", part).split()) for part in said)


_ANSWERS = ("memorized", "generalized", "answer")
_TEXTS = ("text", "group", *_ANSWERS, "label", "behavior")


class Splits(NamedTuple):
    """Three sets of prompts that share no group."""

    train: PromptSet
    validation: PromptSet
    test: PromptSet


class PromptSet(Sequence[Prompt]):
    """Prompts in a fixed order, with unique ids. Immutable: every method returns a new set.

    Args:
        prompts: The prompts, in the order in which results will come back.

    Raises:
        PromptError: When an id occurs twice, or something is not a `Prompt`.
    """

    def __init__(self, prompts: Iterable[Prompt] = ()) -> None:
        self._prompts = tuple(prompts)
        for item in self._prompts:
            if not isinstance(item, Prompt):
                raise PromptError(
                    f"A PromptSet holds Prompt objects, got {type(item).__name__} {item!r:.60}. "
                    "Wrap plain text as Prompt(id=..., text=...) or use PromptSet.from_texts."
                )
        counts = Counter(prompt.id for prompt in self._prompts)
        twice = [name for name, count in counts.items() if count > 1]
        if twice:
            raise PromptError(
                f"Prompt ids must be unique; more than once: {listed(twice)}. "
                "Rename them, or use `group` to tie rephrasings together."
            )

    def __len__(self) -> int:
        return len(self._prompts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> PromptSet: ...
    def __getitem__(self, index: int | slice) -> Prompt | PromptSet:
        if isinstance(index, slice):
            return PromptSet(self._prompts[index])
        return self._prompts[index]

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptSet) and self._prompts == other._prompts

    def __hash__(self) -> int:
        return hash(tuple(self.ids))

    def __add__(self, other: PromptSet) -> PromptSet:
        return PromptSet((*self, *other))

    def __repr__(self) -> str:
        return f"PromptSet({len(self)} prompts, {len(set(self.groups))} groups)"

    @property
    def ids(self) -> list[str]:
        """Ids, in order."""
        return [prompt.id for prompt in self]

    @property
    def groups(self) -> list[str]:
        """The group of every prompt, in order."""
        return [prompt.group for prompt in self]

    def require(self, purpose: str) -> PromptSet:
        """Itself, or a `PromptError` that says what an empty set was wanted for."""
        if not self._prompts:
            raise PromptError(
                f"No prompts to {purpose}: the set is empty. Add prompts, or look at the filter, "
                "split or file that it came from."
            )
        return self

    def filter(self, keep: Callable[[Prompt], bool]) -> PromptSet:
        """The prompts for which ``keep`` is true, in order."""
        return PromptSet(prompt for prompt in self if keep(prompt))

    def select(self, ids: Iterable[str]) -> PromptSet:
        """The prompts with these ids, in the order asked for."""
        by_id = {prompt.id: prompt for prompt in self}
        wanted = list(ids)
        missing = [name for name in wanted if name not in by_id]
        if missing:
            raise PromptError(
                f"No prompt with id {listed(missing)} in {self!r}; its ids are {listed(by_id, 5)}."
            )
        return PromptSet(by_id[name] for name in wanted)

    def by_group(self) -> dict[str, list[Prompt]]:
        """Prompts of each group, both in order of first appearance."""
        out: dict[str, list[Prompt]] = {}
        for prompt in self:
            out.setdefault(prompt.group, []).append(prompt)
        return out

    def pairs(self) -> list[tuple[Prompt, Prompt]]:
        """Consecutive rephrasings of each group: first with second, third with fourth, ..."""
        return [
            pair
            for members in self.by_group().values()
            for index, pair in enumerate(pairwise(members))
            if index % 2 == 0
        ]

    def with_behaviors(self, behaviors: Mapping[str, str | None]) -> PromptSet:
        """A copy whose prompts carry the observed behavior under their id."""
        return PromptSet(
            replace(prompt, behavior=behaviors.get(prompt.id, prompt.behavior)) for prompt in self
        )

    def split(
        self,
        *,
        train: float = 0.0,
        validation: float = 0.0,
        test: float = 0.0,
        seed: int = 0,
    ) -> Splits:
        """Divide by **group**, so that no rephrasing of one instance lands on two sides.

        Args:
            train, validation, test: Shares of the groups, each in [0, 1], together at most 1.
                What is left over belongs to no part.
            seed: Which division. It depends on the group names only, not on their order.

        Returns:
            `Splits` with fields ``train``, ``validation`` and ``test``; a share of 0 is empty.

        Raises:
            PromptError: When the shares are not shares, or a share above 0 gets no group.
        """
        shares = {"train": train, "validation": validation, "test": test}
        if any(not 0 <= share <= 1 for share in shares.values()) or sum(shares.values()) > 1 + 1e-9:
            raise PromptError(
                f"Shares must lie in [0, 1] and add up to at most 1, got {shares}; "
                "for example split(train=0.5, validation=0.2, test=0.3)."
            )
        order = keyed_order(self.groups, seed, "split")
        parts: dict[str, PromptSet] = {}
        start, total = 0, 0.0
        for name, share in shares.items():
            total += share
            end = round(total * len(order))
            chosen = set(order[start:end])
            if share > 0 and not chosen:
                raise PromptError(
                    f"{name}={share} of {len(order)} groups is less than one group; "
                    "use more groups or a larger share."
                )
            parts[name] = self.filter(lambda prompt, chosen=chosen: prompt.group in chosen)  # type: ignore[misc]
            start = end
        return Splits(**parts)

    @classmethod
    def from_texts(cls, texts: Iterable[str]) -> PromptSet:
        """Plain strings as prompts with ids ``"0"``, ``"1"``, ..."""
        if isinstance(texts, str):
            raise PromptError(
                f"from_texts takes a list of texts, got one text {texts!r:.60}; write [text]."
            )
        return cls(Prompt(id=str(index), text=text) for index, text in enumerate(texts))

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]]) -> PromptSet:
        """Rows with at least ``text``; ``id`` defaults to the row number, other keys go to meta."""
        return cls(
            files.prompt_from_record(Prompt, Chat, row, index) for index, row in enumerate(records)
        )

    def to_records(self) -> list[dict[str, Any]]:
        """One JSON-ready dictionary per prompt; `from_records` is its inverse."""
        return [files.record_from_prompt(prompt) for prompt in self]

    @classmethod
    def from_jsonl(cls, path: str | Path) -> PromptSet:
        """Read JSON lines, one prompt each."""
        return cls.from_records(files.read_jsonl(path))

    def to_jsonl(self, path: str | Path) -> Path:
        """Write JSON lines."""
        return files.write_jsonl(path, self.to_records())

    @classmethod
    def from_pandas(cls, frame: pd.DataFrame) -> PromptSet:
        """Read a table; empty cells count as left out."""
        return cls.from_records(files.records_from_frame(frame))

    def to_pandas(self) -> pd.DataFrame:
        """One row per prompt, nested fields as JSON text."""
        return files.frame_from_records(self.to_records())

    @classmethod
    def from_csv(cls, path: str | Path) -> PromptSet:
        """Read a CSV file with a header row; every cell is text, ``007`` stays ``007``."""
        return cls.from_records(files.read_csv(path))

    def to_csv(self, path: str | Path) -> Path:
        """Write a CSV file."""
        return files.write_frame(self.to_pandas(), path, "csv")

    @classmethod
    def from_parquet(cls, path: str | Path) -> PromptSet:
        """Read a Parquet file (needs ``pyarrow``)."""
        return cls.from_records(files.read_parquet(path))

    def to_parquet(self, path: str | Path) -> Path:
        """Write a Parquet file (needs ``pyarrow``)."""
        return files.write_frame(self.to_pandas(), path, "parquet")

    @classmethod
    def from_datasets(cls, dataset: Any) -> PromptSet:
        """Read a Hugging Face ``datasets.Dataset`` (any iterable of rows will do)."""
        return cls.from_records(dict(row) for row in dataset)

    def to_datasets(self) -> Any:
        """A Hugging Face ``datasets.Dataset`` (needs ``datasets``)."""
        from datasets import Dataset  # type: ignore[import-untyped,unused-ignore]

        return Dataset.from_pandas(self.to_pandas(), preserve_index=False)
