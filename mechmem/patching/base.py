"""What an edit is, and the helpers that every kind of edit places its change with.

How to write one: docs/how-to/edit.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from mechmem.caching.provenance import Provenance, Seen
from mechmem.errors import EditError, PositionError, listed
from mechmem.models.engine.batching import Feed
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.sites import Site
from mechmem.numeric import finite_number
from mechmem.patching.writers import Writers
from mechmem.seeding import keyed_rng

T = TypeVar("T")

Change = Callable[[Tensor, Feed], Tensor | None]
"""From an activation ``[row, token, *feature]`` and what the pass sees to the changed activation.

A change may carry ``watches``, a `Watcher` of an earlier site of the same pass, and ``closed``, a
count of tokens that it meant to change and left alone.
"""


NOWHERE = Positions(())
"""No token at all."""


class Watcher(ABC):
    """Looks at a site, after all edits there, and changes nothing."""

    site: Site
    where: Positions | None = None
    """The tokens that it is about, as in `Edit.where`."""

    @abstractmethod
    def apply(self, activation: Tensor, feed: Feed) -> None:
        """Called in every pass with ``[row, token, *feature]``."""


_NUMBERS = (float, "float", "float | None")


class Edit(ABC):
    """An intervention as data. Subclasses are frozen dataclasses, and all there is to an edit: what
    it does, its controls, and how weights and files express it where they can."""

    force: bool

    def __post_init__(self) -> None:
        """Refuse numbers that are none before anything runs."""
        for item in fields(self):  # type: ignore[arg-type]
            value: Any = getattr(self, item.name, None)
            if item.type in _NUMBERS and not (value is None and "None" in str(item.type)):
                number = check_number(value, item.name)
                if type(value) is not type(number) and not isinstance(value, int):
                    object.__setattr__(self, item.name, number)  # NumPy's own cannot be saved

    @abstractmethod
    def changes(self, model: Model) -> dict[Site, Change]:
        """What to do at each site of this model.

        Raises:
            EditError: When the edit does not fit the model.
        """

    @property
    @abstractmethod
    def provenance(self) -> Provenance | None:
        """Where its vector came from; ``None`` for an edit that nothing was fitted for."""

    @property
    def where(self) -> Positions | None:
        """The tokens that may come out changed; what is computed for tokens before them can be
        shared between prompts. ``None`` when that is not known: then nothing is shared."""
        return None

    @property
    def seen(self) -> Seen:
        """What was seen in making it."""
        return self.provenance.seen if self.provenance is not None else Seen()

    def check(self, model: Model) -> None:
        """Refuse a model that the edit was not made for, unless ``force``."""
        if self.provenance is not None and not self.force:
            self.provenance.check_model(model, f"{type(self).__name__}")

    def describe(self) -> dict[str, Any]:
        """JSON-ready summary for tables and manifests."""
        return {"edit": type(self).__name__}

    def controls(self, model: Model, seed: int) -> dict[str, Edit]:
        """Edits of the same make and size without the contrast in them, by name.

        Raises:
            EditError: Where none are defined, or too little is left to draw from.
        """
        raise EditError(
            f"No controls are defined for {type(self).__name__}; give the class a method "
            "controls(model, seed) that returns edits by name."
        )

    @property
    def settled(self) -> frozenset[str]:
        """Names of the controls in which nothing is drawn: another seed gives the same edit."""
        return frozenset({"alpha 0"})

    def biases(self, model: Model) -> list[Site]:
        """Sites that need a bias before `bake` can write this edit into weights.

        Raises:
            EditError: For an edit that no weights can express.
        """
        raise EditError(
            f"{type(self).__name__} {self.not_weights} that weights could express; AddDirection, "
            "ProjectOut and ScaleProjection can be baked, for others use mm.patched(model, edit)."
        )

    not_weights = "is not a linear map"

    def bake(self, model: Model, writers: Writers) -> None:
        """Write the edit into the matrices of a plain model, in place; `biases` went before."""
        self.biases(model)

    def exported(self, model: Model) -> dict[Site, Tensor]:
        """The ``[d]`` vector that it adds at every position, by site, for another tool.

        Raises:
            EditError: For an edit that does more, or acts on some positions only.
        """
        raise EditError(
            f"{type(self).__name__} does not add a fixed vector, so no control vector can express "
            "it. Export AddDirection or ShiftNeurons; or write the edit into the weights."
        )

    def refuse_positions(self) -> None:
        """Refuse to export an edit that does not act at every position."""
        if str(self.where) != str(tokens_of("all")) and self.where != NOWHERE:
            raise EditError(
                f"{type(self).__name__} acts at {self.where}, and the file would be added at every "
                "position, the prompt included. Measure the edit with positions='all', then export "
                "it."
            )


def as_edits(edit: Edit | Sequence[Edit]) -> list[Edit]:
    """One edit or several, as a list.

    Raises:
        EditError: For something that is not an edit, or an empty list.
    """
    edits = [edit] if isinstance(edit, Edit) else list(edit) if isinstance(edit, Sequence) else []
    wrong = [item for item in edits if not isinstance(item, Edit)]
    if wrong or not edits:
        raise EditError(
            f"Expected an edit such as mm.ShiftNeurons(...) or a list of edits, got {edit!r:.80}."
        )
    return edits


def tokens_of(positions: PositionSpec | Positions) -> Positions:
    """Parsed positions that an edit can act at.

    Raises:
        EditError: For ``"mean"``, which names no token.
    """
    where = Positions.parse(positions)
    if where.pooled:
        raise EditError(
            "positions='mean' is for reading; an edit needs tokens, for example 'last'."
        )
    return where


def region(
    positions: PositionSpec | None, columns: Sequence[str], read_at: Any, default: PositionSpec
) -> tuple[Positions, bool]:
    """Where an edit acts whose values were read at certain positions, and whether in a window.

    Values of one position may be put anywhere. Values of several (a window) go back to their own
    positions, each to its own.

    Args:
        positions: What the user asked for.
        columns: Names of the positions of the values.
        read_at: Where they were read.
        default: Where values of one position go when nothing was asked for.

    Raises:
        EditError: For other positions than those of a window.
    """
    window = len(columns) > 1
    if window and positions is not None and Positions.parse(positions) != Positions.parse(read_at):
        raise EditError(
            f"These values have their own positions {listed(columns)}; leave positions= out, or "
            "use values of one position."
        )
    return tokens_of(read_at if window else default if positions is None else positions), window


def placed(
    activation: Tensor,
    feed: Feed,
    where: Positions,
    window: bool,
    change: Callable[[Tensor, Tensor], Tensor],
    values: Tensor,
) -> Tensor | None:
    """The activation with ``change(states, value)`` where the positions are; ``None`` for nowhere.

    Args:
        activation: ``[row, token, *feature]``.
        feed: What the pass sees.
        where: The positions.
        window: Whether the k-th position gets the k-th value; otherwise all get the only one.
        change: From states ``[..., d]`` and a value of the same dtype that broadcasts with them.
        values: ``[row or 1, position or 1, d or 1]``.

    Raises:
        PositionError: For a prompt with more or fewer tokens there than the window has values.
    """
    flat = activation.flatten(2)
    values = values.to(flat)
    if not window:
        return kept_to(feed, where, activation, lambda h: change(h, values[:, :1]))
    columns = feed.columns(where).to(flat.device)
    if not (columns >= 0).any():
        return None
    for prompt in feed.prompts:
        if (count := len(where.columns(prompt))) != values.shape[1]:
            raise PositionError(
                f"Prompt {prompt.id!r} has {count} tokens at {str(where)!r}, but this edit has "
                f"values for {values.shape[1]}, one per position; use prompts with as many, or "
                "values of one position."
            )
    own = values.expand(flat.shape[0], -1, -1)
    out = flat.clone()
    for k in range(columns.shape[1]):
        rows = (columns[:, k] >= 0).nonzero()[:, 0]
        at = columns[rows, k]
        out[rows, at] = change(flat[rows, at], own[rows, k])
    return out.reshape(activation.shape)


def kept_to(
    feed: Feed, where: Positions, activation: Tensor, change: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """The activation with ``change`` where the positions are; ``None`` for nowhere.

    Args:
        change: From states ``[row, token, d]`` to new ones; padding is handed to it as well.
    """
    covered = feed.covers(where)
    if covered is False:
        return None
    flat = activation.flatten(2)
    changed = change(flat)
    if not covered:
        changed = torch.where(feed.mask(where).to(flat.device)[..., None], changed, flat)
    return changed.reshape(activation.shape)


class CachedTensor:
    """A value, kept as it was last asked for, so that it is converted and moved once."""

    def __init__(self, value: Tensor) -> None:
        self.value = self._last = value

    def like(self, other: Tensor) -> Tensor:
        """The value in another tensor's dtype and on its device."""
        if self._last.dtype != other.dtype or self._last.device != other.device:
            self._last = self.value.to(other)
        return self._last


def site_width(model: Model, site: Site) -> int:
    """Number of coordinates of one token at a site, heads flattened."""
    cfg = model.tl.cfg
    if site.stream == "z":
        return int(cfg.n_heads * cfg.d_head)
    return int((cfg.d_mlp or 0) if site.stream == "mlp_post" else cfg.d_model)


def others(pool: Sequence[T], number: int, seed: int, name: str, what: str) -> list[T]:
    """Some of those that an edit leaves alone, for its control.

    Raises:
        EditError: When too few are left.
    """
    if len(pool) < number:
        raise EditError(
            f"A control needs {number} other {what}, but only {len(pool)} are left; edit fewer, or "
            "cache more for the source."
        )
    chosen = keyed_rng(seed, "control", name).choice(len(pool), number, replace=False)
    return [pool[int(k)] for k in chosen]


def at_random(row: Tensor, rng: np.random.Generator) -> Tensor:
    """An isotropic random direction of the same length."""
    noise = torch.from_numpy(rng.standard_normal(len(row)))
    scaled: Tensor = noise * (row.norm() / noise.norm())
    return scaled


def check_number(value: Any, name: str) -> float:
    """A finite number, of Python or of NumPy.

    Raises:
        EditError: For anything else.
    """
    return finite_number(value, name, error=EditError)


def signed(toward: str | None, first: str, second: str) -> int:
    """1 toward the first class (or none named), -1 toward the second.

    Raises:
        EditError: For a class that is neither.
    """
    if toward is None or toward == first:
        return 1
    if toward == second:
        return -1
    raise EditError(f"toward={toward!r} is neither {first!r} nor {second!r}; say one of the two.")
