"""`PromptSet`: what is asked, of whom nothing has been computed yet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, overload

import pandas as pd

from mechmem.errors import PromptError, listed
from mechmem.seeding import keyed_order
from mechmem.tasks import files, tables
from mechmem.tasks.prompt import Chat as Chat
from mechmem.tasks.prompt import Prompt as Prompt


class Splits(NamedTuple):
    """Three sets of prompts that share no group."""

    train: PromptSet
    validation: PromptSet
    test: PromptSet


class _NoSuchPrompt(PromptError, IndexError):
    """Both: what reads a sequence to its end waits for an IndexError."""


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
            return self._part(self._prompts[index])
        try:
            return self._prompts[index]
        except IndexError:
            raise _NoSuchPrompt(
                f"There is no prompt {index}: the set has {len(self)}. By its id it is found with "
                "select([id])."
            ) from None

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._prompts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PromptSet) and self._prompts == other._prompts

    def __hash__(self) -> int:
        return hash(tuple(self.ids))

    def __add__(self, other: PromptSet) -> PromptSet:
        return self._part((*self, *other))

    def __repr__(self) -> str:
        return f"PromptSet({len(self)} prompts, {len(set(self.groups))} groups)"

    def _part(self, prompts: Iterable[Prompt]) -> PromptSet:
        """A set of some of these prompts, or of theirs and others."""
        return PromptSet(prompts)

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
        return self._part(prompt for prompt in self if keep(prompt))

    def select(self, ids: Iterable[str]) -> PromptSet:
        """The prompts with these ids, in the order asked for."""
        by_id = {prompt.id: prompt for prompt in self}
        wanted = list(ids)
        missing = [name for name in wanted if name not in by_id]
        if missing:
            raise PromptError(
                f"No prompt with id {listed(missing)} in {self!r}; its ids are {listed(by_id, 5)}."
            )
        return self._part(by_id[name] for name in wanted)

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
        """A copy whose prompts carry the observed behavior under their id.

        Raises:
            PromptError: For an id that no prompt has.
        """
        unknown = set(behaviors) - set(self.ids)
        if unknown:
            raise PromptError(
                f"No prompt has the id {listed(sorted(map(str, unknown)), 5)}; ids are "
                f"{listed(self.ids, 5)}."
            )
        return self._part(
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
        tables.refuse_table(texts)
        return cls(Prompt(id=str(index), text=text) for index, text in enumerate(texts))

    @classmethod
    def from_records(cls, records: Iterable[Mapping[str, Any]]) -> PromptSet:
        """Rows with at least ``text``; ``id`` defaults to the row number, other keys go to meta."""
        rows: Sequence[Mapping[str, Any]] = list(records)
        if all(isinstance(row, Mapping) for row in rows):
            rows = tables.whole(rows)
        return cls(
            files.prompt_from_record(Prompt, Chat, row, index) for index, row in enumerate(rows)
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

    def to_csv(self, path: str | Path, *, formulas: bool = True) -> Path:
        """Write a CSV file.

        Args:
            path: Where to.
            formulas: False puts an apostrophe before every cell that a spreadsheet would run as a
                formula (one that begins with ``=``, ``+``, ``-``, ``@``, a tab or a line break).
                Such a file is for people to open; it does not read back as it was.
        """
        frame = self.to_pandas()
        return files.write_frame(frame if formulas else files.inert(frame), path, "csv")

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
        if isinstance(dataset, Mapping) or not isinstance(dataset, Iterable):
            splits = f" with {listed(dataset)}" if isinstance(dataset, Mapping) else ""
            raise PromptError(
                f"from_datasets takes one Dataset, got {type(dataset).__name__}{splits}; choose a "
                "split, dataset['train']."
            )
        tables.refuse_table(dataset)
        return cls.from_records(dict(row) for row in dataset)

    def to_datasets(self) -> Any:
        """A Hugging Face ``datasets.Dataset`` (needs ``datasets``)."""
        from datasets import Dataset  # type: ignore[import-untyped,unused-ignore]

        return Dataset.from_pandas(self.to_pandas(), preserve_index=False)
