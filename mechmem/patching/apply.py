"""`patched`: edits in force inside a `with` block, counted, and gone at its end."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import Tensor

from mechmem.errors import EditError
from mechmem.models.engine.batching import Feed
from mechmem.models.hooked import Model
from mechmem.models.sites import Site
from mechmem.patching.base import Change, Edit, as_edits

__all__ = ["Firing", "patched"]


@dataclass
class Firing:
    """One edit at one site, at work.

    Attributes:
        site: Where.
        edit: The edit it belongs to.
        passes: Forward passes in which its hook was called.
        applied: Passes in which it acted on at least one token.
        moved: Sum over acted passes of the mean length by which a token's activation moved.
    """

    site: Site
    edit: Edit
    change: Change = field(repr=False)
    alive: bool = True
    passes: int = 0
    applied: int = 0
    moved: float = 0.0

    def apply(self, activation: Tensor, feed: Feed) -> Tensor | None:
        """Change the activation, and count."""
        if not self.alive:
            raise EditError(
                "This patched model was used after its `with` block ended; call it inside."
            )
        self.passes += 1
        changed = self.change(activation, feed)
        if changed is not None:
            distance = (changed.float() - activation.float()).flatten(2).norm(dim=-1)
            self.applied += 1
            self.moved += float(distance.sum() / (distance > 0).sum().clamp_min(1))
        return changed


@contextmanager
def patched(model: Model, edit: Edit | Sequence[Edit]) -> Iterator[Model]:
    """A view of the model on which edits act.

    The model itself stays unedited, so that both can be compared side by side; patch the view to
    nest. Several edits compose in the order given where they meet, and in the order of the network
    otherwise. Hooks exist only while a forward pass runs.

    Args:
        model: From `load_model`, or the view of an outer `patched`.
        edit: One edit or a list.

    Yields:
        A `Model` to call ``logits``, ``generate``, ``logprobs`` on, or to hand to any function
        that takes a model.

    Raises:
        EditError: When an edit does not fit the model, or when the model ran inside the block and
            an edit's hook was never called, or never met one of its positions.
    """
    firings = []
    for item in as_edits(edit):
        item.check(model)
        changes = item.changes(model)
        if not changes:
            raise EditError(f"{type(item).__name__} has no site to act at.")
        firings += [Firing(site, item, change) for site, change in changes.items()]
    try:
        yield model.with_interventions(firings)
        _refuse_silent(firings)
    finally:
        for firing in firings:
            firing.alive = False


def _refuse_silent(firings: Sequence[Firing]) -> None:
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
