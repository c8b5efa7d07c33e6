"""`ActivationStore`: `Activations` larger than memory, read through the page cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mechmem.artifacts import TensorFile
from mechmem.caching.activations import (
    Activations,
    class_names,
    refuse_other_texts,
    row_numbers,
)
from mechmem.caching.moments import Moments
from mechmem.caching.parts import Part, parts_of
from mechmem.caching.provenance import Provenance, Seen
from mechmem.errors import ArtifactError, PromptError, SiteError, listed
from mechmem.models.sites import Site
from mechmem.tasks.prompts import PromptSet

Rows = int | slice | Sequence[int] | Tensor


class ActivationStore:
    """States on disk, made by `extract_activations`.

    ``store["resid_post", 3]`` is a `StoredStates`, ``[example, position, *feature]``, of which only
    the rows that are asked for are read. `take`, `select` and `chunks` give `Activations`.

    Args:
        folder: Where the shards are.
        verify: Compare every site of a shard with its digest when it is first read, which reads
            all of its rows once. Without it a store of terabytes gives a row at the price of a
            row, and what a disk has changed is not found out.

    Raises:
        ArtifactError: When there are none, or they were changed.
    """

    def __init__(self, folder: str | Path, *, verify: bool = True) -> None:
        self.folder, self.verify = Path(folder), verify
        self.parts: list[Part] = parts_of(folder)
        if not self.parts or self.parts[0].settings.get("what") != "activations":
            raise ArtifactError(
                f"{folder} holds no stored activations; make them with "
                "mm.extract_activations(model, prompts, folder)."
            )
        self._open: dict[tuple[int, int], TensorFile] = {}
        self._whole: set[tuple[int, int, Site]] = set()

    def __len__(self) -> int:
        return sum(len(part.prompts) for part in self.parts)

    def __repr__(self) -> str:
        state = "complete" if self.complete else f"{len(self.missing)} shards missing"
        return f"ActivationStore({str(self.folder)!r}: {len(self)} examples, {state})"

    @property
    def sites(self) -> list[Site]:
        """The sites, in the order asked for."""
        return [Site.from_key(key) for key in self.parts[0].settings["sites"]]

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the positions."""
        return tuple(self.parts[0].index["columns"])

    @property
    def missing(self) -> list[Path]:
        """Shards that are still to be made."""
        return [part.path(shard) for part in self.parts for shard in part.missing()]

    @property
    def complete(self) -> bool:
        """Whether every shard is there."""
        return not self.missing

    @cached_property
    def prompts(self) -> PromptSet:
        """The examples, in the order in which they were handed over."""
        return PromptSet(prompt for part in self.parts for prompt in part.prompts)

    @cached_property
    def token_ids(self) -> tuple[tuple[int, ...], ...]:
        """What the model was fed, per example."""
        return tuple(ids for part in self.parts for ids in part.token_ids)

    @cached_property
    def provenance(self) -> Provenance:
        """Model, positions and what was seen."""
        first = self.parts[0].provenance
        return replace(first, seen=Seen.of_ids(self.prompts, self.token_ids))

    def __getitem__(self, site: tuple[str, int]) -> StoredStates:
        if tuple(site) not in self.sites:
            raise SiteError(
                f"No states of {site!r} here; there are {listed(map(str, self.sites))}. "
                "Ask for it when extracting: sites=[...]."
            )
        return StoredStates(self, Site(*site))

    def take(self, rows: Sequence[int]) -> Activations:
        """Some examples, in memory."""
        wanted = row_numbers(rows, len(self))
        prompts = PromptSet(self.prompts[row] for row in wanted)
        ids = tuple(self.token_ids[row] for row in wanted)
        return Activations(
            {site: self[site][wanted] for site in self.sites},
            prompts,
            self.columns,
            ids,
            replace(self.parts[0].provenance, seen=Seen.of_ids(prompts, ids)),
        )

    def select(self, prompts: PromptSet) -> Activations:
        """The examples of these prompts, whose behaviors and labels replace the stored ones."""
        at = {name: row for row, name in enumerate(self.prompts.ids)}
        missing = [name for name in prompts.ids if name not in at]
        if missing:
            raise PromptError(f"No states of prompts {listed(missing, 5)} here.")
        refuse_other_texts(prompts, (self.prompts[at[name]] for name in prompts.ids))
        return replace(self.take([at[name] for name in prompts.ids]), prompts=prompts)

    def load(self) -> Activations:
        """Everything, in memory."""
        return self.take(range(len(self)))

    def chunks(self) -> Iterator[Activations]:
        """All examples, a shard at a time, in the order in which they lie on disk."""
        start = 0
        for part in self.parts:
            for rows in part.rows:
                yield self.take([start + row for row in rows])
            start += len(part.prompts)

    def classes(self, by: str) -> list[str | None]:
        """Class of every example: its observed ``behavior`` or its ``label``."""
        return class_names(self.prompts, by)

    def moments(self, by: str) -> Moments:
        """Statistics per class, a shard at a time."""
        moments = Moments(replace(self.provenance, by=by), self.columns)
        for acts in self.chunks():
            moments.update(acts.states, class_names(acts.prompts, by))
        if not moments.classes:
            raise PromptError(f"None of {len(self)} prompts carries a {by}.")
        return moments

    @cached_property
    def _where(self) -> tuple[Tensor, list[tuple[int, int]]]:
        """``[example, 2]`` shard and place of every example; part and shard of every number."""
        where, start = torch.empty((len(self), 2), dtype=torch.long), 0
        shards: list[tuple[int, int]] = []
        for number, part in enumerate(self.parts):
            for shard, rows in enumerate(part.rows):
                at = torch.tensor(rows) + start
                where[at, 0], where[at, 1] = len(shards), torch.arange(len(rows))
                shards.append((number, shard))
            start += len(part.prompts)
        return where, shards

    def _tensor(self, number: int, site: Site) -> Tensor:
        """One site of a shard, mapped from disk."""
        part, shard = self._where[1][number]
        own = self.parts[part]
        if (part, shard) not in self._open:
            self._open[part, shard] = own.opened(shard)
        held = self._open[part, shard]
        tensor = held.tensor(site.key)
        if list(tensor.shape[:2]) != [len(own.rows[shard]), len(self.columns)]:
            raise ArtifactError(
                f"{held.path} holds {site} as {list(tensor.shape)}, and its plan says "
                f"{len(own.rows[shard])} prompts at {len(self.columns)} positions. Remove it and "
                "run the extraction again."
            )
        if self.verify and (part, shard, site) not in self._whole:
            held.verify(site.key, tensor)
            self._whole.add((part, shard, site))
        return tensor


class StoredStates:
    """One site of a store: indexed by example like a tensor, read when indexed."""

    def __init__(self, store: ActivationStore, site: Site) -> None:
        self.store, self.site = store, site

    def __len__(self) -> int:
        return len(self.store)

    def __repr__(self) -> str:
        return f"StoredStates({self.site}, shape {list(self.shape)}, {self.dtype})"

    @property
    def shape(self) -> torch.Size:
        """``[example, position, *feature]``."""
        return torch.Size([len(self), *self.store._tensor(0, self.site).shape[1:]])

    @property
    def dtype(self) -> torch.dtype:
        """Of the stored numbers."""
        return self.store._tensor(0, self.site).dtype

    def __getitem__(self, rows: Rows) -> Tensor:
        """Copies of some examples, in the order asked for."""
        asked: Any = rows
        single = hasattr(asked, "__index__") and getattr(asked, "ndim", 0) == 0
        kind = str(getattr(asked, "dtype", "")).removeprefix("torch.")
        if isinstance(asked, slice):
            asked = range(len(self))[asked]
        elif kind == "bool" and tuple(asked.shape) == (len(self),):
            asked = np.flatnonzero(asked)
        wanted = row_numbers([asked] if single else asked, len(self))
        place = self.store._where[0][wanted]
        out = torch.empty((len(place), *self.shape[1:]), dtype=self.dtype)
        for number in sorted(set(place[:, 0].tolist())):
            here = (place[:, 0] == number).nonzero()[:, 0]
            out[here] = self.store._tensor(number, self.site)[place[here, 1]]
        return out[0] if single else out

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> npt.NDArray[Any]:
        """Everything, in memory."""
        states = self[:]  # NumPy has no bfloat16
        found = states.float() if states.dtype == torch.bfloat16 else states
        return np.asarray(found, dtype=dtype)
