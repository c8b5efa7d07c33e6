"""`Activations`: states of every asked site at chosen positions, and whose they are."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.artifacts import load_artifact, save_artifact
from mechmem.caching.provenance import PROVENANCE, Provenance, Seen
from mechmem.errors import (
    ArtifactError,
    PositionError,
    PromptError,
    SiteError,
    did_you_mean,
    listed,
)
from mechmem.models.sites import Site
from mechmem.tasks.prompts import Prompt, PromptSet


class _NoSuchRow(PromptError, IndexError):
    """Both: what reads a sequence to its end waits for an IndexError."""


def row_numbers(rows: Iterable[Any], n: int) -> list[int]:
    """Numbers of examples, those from the end made positive.

    Raises:
        PromptError: For anything that is not the number of one of ``n`` examples; True and 1.5
            would be taken for 1.
    """
    try:
        return [_row_number(row, n) for row in rows]
    except TypeError:
        raise PromptError(
            f"Examples are asked for by their numbers, for example [0, 3], got {rows!r:.80}."
        ) from None


def _row_number(row: Any, n: int) -> int:
    if isinstance(row, (bool, np.bool_)) or getattr(row, "dtype", None) == torch.bool:
        raise PromptError(
            f"Examples are asked for by their numbers, got {row!r:.40}; of a mask give "
            "np.flatnonzero(mask)."
        )
    number = operator.index(row)
    if not -n <= number < n:
        raise _NoSuchRow(f"There is no example {number}: there are {n}, 0 to {n - 1}.")
    return number % n


_SHAPE = {
    "prompts": [dict],
    "sites": [str],
    "columns": [str],
    "token_ids": [[int]],
    "provenance": PROVENANCE,
}


@dataclass(frozen=True)
class Activations:
    """States read from a model.

    ``acts["resid_post", 3]`` is ``[example, position, *feature]``.

    Attributes:
        states: One tensor per site, on the CPU.
        prompts: The examples, in order.
        columns: Names of the positions, ``"last"`` or ``"cue[0]"``.
        token_ids: What the model was fed, per example.
        provenance: Model, positions and what was seen.
    """

    states: Mapping[Site, Tensor]
    prompts: PromptSet
    columns: tuple[str, ...]
    token_ids: tuple[tuple[int, ...], ...]
    provenance: Provenance

    def __getitem__(self, site: tuple[str, int]) -> Float[Tensor, "example position *feature"]:
        if site not in self.states:
            raise SiteError(
                f"No states of {site!r} here; there are {listed(map(str, self.states))}. "
                "Ask for it when caching: sites=[...]."
            )
        return self.states[Site(*site)]

    def __len__(self) -> int:
        return len(self.prompts)

    def __repr__(self) -> str:
        return (
            f"Activations({len(self)} examples, {len(self.states)} sites, "
            f"positions {list(self.columns)})"
        )

    @property
    def sites(self) -> list[Site]:
        """The sites, in the order asked for."""
        return list(self.states)

    @property
    def values(self) -> Float[Tensor, "example site d"]:
        """Everything as one tensor, when there is one position and one width.

        Raises:
            SiteError: When sites differ in shape or there are several positions.
        """
        shapes = {tuple(state.shape[1:]) for state in self.states.values()}
        if len(shapes) > 1 or len(self.columns) > 1:
            raise SiteError(
                f"`values` needs one position and one width; here are positions "
                f"{list(self.columns)} and shapes {sorted(shapes)}. Use acts[stream, layer]."
            )
        return torch.stack([state.flatten(1) for state in self.states.values()], dim=1)

    def at(self, column: str) -> Activations:
        """The same with one position only."""
        if column not in self.columns:
            raise PositionError(
                f"No position {column!r} here; there are {listed(self.columns)}."
                f"{did_you_mean(column, self.columns)}"
            )
        k = self.columns.index(column)
        states = {site: state[:, k : k + 1] for site, state in self.states.items()}
        return replace(self, states=states, columns=(column,))

    def take(self, rows: Sequence[int]) -> Activations:
        """Some examples only; what was seen shrinks with them."""
        wanted = row_numbers(rows, len(self.prompts))
        index = torch.as_tensor(wanted, dtype=torch.long)
        prompts = PromptSet(self.prompts[row] for row in wanted)
        ids = tuple(self.token_ids[row] for row in wanted)
        return Activations(
            {site: state[index] for site, state in self.states.items()},
            prompts,
            self.columns,
            ids,
            replace(self.provenance, seen=Seen.of_ids(prompts, ids)),
        )

    def select(self, prompts: PromptSet) -> Activations:
        """The examples of these prompts, whose behaviors and labels replace the stored ones."""
        at = {name: row for row, name in enumerate(self.prompts.ids)}
        missing = [name for name in prompts.ids if name not in at]
        if missing:
            raise PromptError(f"No states of prompts {listed(missing, 5)} here. Cache them too.")
        refuse_other_texts(prompts, (self.prompts[at[name]] for name in prompts.ids))
        return replace(self.take([at[name] for name in prompts.ids]), prompts=prompts)

    def classes(self, by: str, required: int = 2) -> list[str | None]:
        """Class of every example: its observed ``behavior`` or its ``label``.

        Raises:
            PromptError: When fewer than ``required`` classes occur, saying what was found.
        """
        names = class_names(self.prompts, by)
        present = sorted({name for name in names if name is not None})
        if len(present) < required:
            hint = (
                "observe the model first and use its flips: mm.observe(...).flips()"
                if by == "behavior"
                else "set Prompt.label"
            )
            raise PromptError(
                f"A contrast by {by} needs {required} classes, but {len(names)} prompts show "
                f"{listed(present) or 'none'}; {hint}."
            )
        return names

    def save(self, path: str | Path) -> Path:
        """Write ``path.safetensors`` and ``path.json``; `load` reads them back."""
        about = {
            "prompts": self.prompts.to_records(),
            "sites": [site.key for site in self.sites],
            "columns": list(self.columns),
            "token_ids": [list(ids) for ids in self.token_ids],
            "provenance": self.provenance.as_dict(),
        }
        tensors = {site.key: state for site, state in self.states.items()}
        return save_artifact(path, "activations", tensors, about)

    @classmethod
    def load(cls, path: str | Path) -> Activations:
        """Read what `save` wrote."""
        tensors, about = load_artifact(path, "activations", _SHAPE)
        sites = [Site.from_key(key) for key in about["sites"]]
        prompts = PromptSet.from_records(about["prompts"])
        stacked = [len(prompts), len(about["columns"])]
        for site in sites:
            found = list(tensors[site.key].shape)
            if found[:2] != stacked or len(found) < 3:
                raise ArtifactError(
                    f"{path} holds states of shape {found} at {site}, which are not those of "
                    f"{stacked[0]} prompts at {stacked[1]} positions. Save it again."
                )
        if len(about["token_ids"]) != len(prompts):
            raise ArtifactError(
                f"{path} holds token ids of {len(about['token_ids'])} prompts, not of "
                f"{len(prompts)}. Save it again."
            )
        return cls(
            {site: tensors[site.key] for site in sites},
            prompts,
            tuple(about["columns"]),
            tuple(tuple(ids) for ids in about["token_ids"]),
            Provenance.from_dict(about["provenance"]),
        )


def class_names(prompts: PromptSet, by: str) -> list[str | None]:
    """The class of every prompt by ``"behavior"`` or ``"label"``.

    Raises:
        PromptError: For any other word.
    """
    if by not in ("behavior", "label"):
        raise PromptError(f"by must be 'behavior' (what the model did) or 'label', got {by!r}.")
    return [getattr(prompt, by) for prompt in prompts]


def check_dtype(dtype: torch.dtype) -> torch.dtype:
    """Refuse a precision that would not keep states.

    Raises:
        ArtifactError: For anything but the floating-point numbers that are computed with.
    """
    if dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        raise ArtifactError(
            f"States are kept as float16, bfloat16, float32 or float64, got dtype={dtype!r:.80}; "
            "for example dtype=torch.float32."
        )
    return dtype


def refuse_other_texts(prompts: PromptSet, stored: Iterable[Prompt]) -> None:
    """Refuse prompts whose ids are those of other texts: tables often count from 0.

    Raises:
        PromptError: Naming them.
    """
    wrong = [
        one.id
        for one, other in zip(prompts, stored, strict=True)
        if (one.text, one.chat) != (other.text, other.chat)
    ]
    if wrong:
        raise PromptError(
            f"The states of {listed(wrong, 5)} are those of other texts with the same ids; cache "
            "the states of these prompts, or give them ids of their own."
        )
