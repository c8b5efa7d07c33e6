"""`patched`: edits in force inside a `with` block, counted, and gone at its end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from mechmem.errors import EditError
from mechmem.models.engine.batching import Feed
from mechmem.models.engine.hooks import Intervention
from mechmem.models.model import Model
from mechmem.models.positions import Positions
from mechmem.models.sites import Site
from mechmem.patching.base import Change, Edit, Watcher, as_edits
from mechmem.patching.report import EditReport, Fired

_MANY = 1 << 16
"""Tokens whose lengths are kept before they are added up."""


@dataclass
class Firing:
    """One edit at one site, at work.

    Attributes:
        site: Where.
        edit: The edit it belongs to.
        passes: Forward passes in which its hook was called.
        applied: Passes in which it met at least one of its positions.
        moved: Tokens whose activation it changed, as far as they have been added up.
        distance: Sum over those tokens of the length by which the activation moved.
        length: Sum over those tokens of the activation's length before.
        relative: Sum over those tokens of the one divided by the other.
    """

    site: Site
    edit: Edit
    change: Change = field(repr=False)
    alive: bool = True
    passes: int = 0
    applied: int = 0
    moved: int = 0
    distance: float = 0.0
    length: float = 0.0
    relative: float = 0.0
    _lengths: list[tuple[Tensor, Tensor]] = field(default_factory=list, repr=False)
    _waiting: int = 0

    @property
    def where(self) -> Positions | None:
        """The tokens that may come out changed."""
        return self.edit.where

    def apply(self, activation: Tensor, feed: Feed) -> Tensor | None:
        """Change the activation, and count."""
        if not self.alive:
            raise EditError(
                "This patched model was used after its `with` block ended; call it inside."
            )
        self.passes += 1
        changed = self.change(activation, feed)
        if changed is not None:
            self.applied += 1
            self._measure(activation.detach().flatten(2), changed.detach().flatten(2))
        return changed

    def _measure(self, before: Tensor, after: Tensor) -> None:
        wide = torch.promote_types(before.dtype, torch.float32)
        before, after = before.to(wide), after.to(wide)
        # Summed up much later: reading a number here would make an accelerator wait at every site.
        distance = torch.linalg.vector_norm(after - before, dim=-1)
        self._lengths.append((distance, torch.linalg.vector_norm(before, dim=-1)))
        self._waiting += distance.numel()
        if self._waiting >= _MANY:
            self._add_up()

    def _add_up(self) -> None:
        if not self._lengths:
            return
        distance, length = (
            torch.cat([pair[k].flatten() for pair in self._lengths]).cpu().double() for k in (0, 1)
        )
        self._lengths, self._waiting = [], 0
        distance, length = distance[distance > 0], length[distance > 0]
        relative = distance / length.clamp_min(torch.finfo(torch.float32).tiny)
        self.moved += distance.numel()
        self.distance += float(distance.sum())
        self.length += float(length.sum())
        self.relative += float(relative.sum())

    def fired(self) -> Fired:
        """What has happened so far."""
        self._add_up()
        return Fired(
            edit=type(self.edit).__name__,
            site=self.site,
            passes=self.passes,
            applied=self.applied,
            tokens=self.moved,
            closed=int(getattr(self.change, "closed", 0)),
            distance=self.distance / self.moved if self.moved else 0.0,
            length=self.length / self.moved if self.moved else 0.0,
            relative=self.relative / self.moved if self.moved else 0.0,
        )


@dataclass(frozen=True)
class PatchedModel(Model):
    """A model on which edits act: every method of `Model`, and what the edits did so far."""

    @classmethod
    def view(cls, model: Model) -> PatchedModel:
        """A view that shares everything with the model."""
        if isinstance(model, PatchedModel):
            return model
        return cls(**{part.name: getattr(model, part.name) for part in fields(model) if part.init})

    def with_interventions(self, interventions: Iterable[Intervention]) -> PatchedModel:
        """A view on which further interventions act, after those already there."""
        # What only looks has to see what all the others did at its site.
        both = [*self.interventions, *interventions]
        ordered = sorted(both, key=lambda item: isinstance(item, Watcher))
        return replace(self, interventions=tuple(ordered))

    def edit_report(self) -> EditReport:
        """Where every edit in force fired since its block began, and how far it moved activations.

        Inner and outer edits of nested blocks are both listed, in the order in which they act where
        they meet. It can still be read after the block.
        """
        return EditReport(
            tuple(item.fired() for item in self.interventions if isinstance(item, Firing))
        )


@contextmanager
def patched(model: Model, edit: Edit | Sequence[Edit]) -> Iterator[PatchedModel]:
    """A view of the model on which edits act.

    The model itself stays unedited, so that both can be compared side by side; patch the view to
    nest. Edits act in the order in which the network computes their sites; at one site in the order
    given, those of an outer block first. Hooks exist only while a forward pass runs.

    Args:
        model: From `load_model`, or the view of an outer `patched`.
        edit: One edit or a list.

    Yields:
        A `PatchedModel` to call ``logits``, ``generate``, ``logprobs`` on, or to hand to any
        function that takes a model; its ``edit_report()`` says what the edits did.

    Raises:
        EditError: When an edit does not fit the model, or when the model ran inside the block and
            an edit's hook was never called, or never met one of its positions.
    """
    firings: list[Firing] = []
    watchers: list[Watcher] = []
    for item in as_edits(edit):
        item.check(model)
        changes = item.changes(model)
        if not changes:
            raise EditError(f"{type(item).__name__} has no site to act at.")
        firings += [Firing(site, item, change) for site, change in changes.items()]
        found = [getattr(change, "watches", None) for change in changes.values()]
        watchers += [watcher for watcher in found if watcher is not None]
    try:
        yield PatchedModel.view(model).with_interventions([*firings, *watchers])
        refuse_silent(firings)
    finally:
        for firing in firings:
            firing.alive = False


@contextmanager
def patched_each(
    model: Model, edits: Sequence[Edit | Sequence[Edit]]
) -> Iterator[list[PatchedModel]]:
    """One view of the model per edit, as `patched` makes it; they can be run side by side.

    Args:
        model: From `load_model`, or the view of an outer `patched`.
        edits: Each an edit, or a list that composes.

    Raises:
        EditError: As `patched` does, for any of them.
    """
    with ExitStack() as stack:
        with model.backend.identity.held(model.backend.processing):
            views = [stack.enter_context(patched(model, edit)) for edit in edits]
        yield views


def refuse_silent(firings: Sequence[Firing]) -> None:
    """Refuse results of edits that never acted.

    Raises:
        EditError: When the model ran and an edit was never called, or never met its positions.
    """
    if not any(firing.passes for firing in firings):
        return  # the model was never run in this block
    silent = [firing for firing in firings if firing.applied == 0]
    if silent:
        names = ", ".join(f"{type(f.edit).__name__} at {f.site}" for f in silent)
        why = "was never called" if not silent[0].passes else "never met one of its positions"
        raise EditError(
            f"The hook of {names} {why}, so the results are those of the unedited model there. "
            "Check the site and positions of the edit."
        )
