"""How a site is read and edited through TransformerLens hook points, truthfully.

Each hook point gets one hook, which runs the edits and reads that belong there in the order given.
The one special case is ``resid_mid`` on a bridge: there the hook point is the MLP branch's input,
so an edit returned from it misses the residual stream. What the block hands on is then put right as
the edited stream plus ``mlp_out``, the model's own sum, before anything else sees it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from mechmem.errors import SiteError, listed
from mechmem.models.architectures import by_row
from mechmem.models.engine.backends import Backend, HookFunction, hook_attached
from mechmem.models.engine.batching import Feed
from mechmem.models.sites import STREAMS, Site

_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "z": "attn.hook_z",
    # Where a norm follows the branch, `hook_attn_out` lies behind it, and this before it.
    "attn_module": "attn.hook_out",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_post": "mlp.hook_post",
    "mlp_module": "mlp.hook_out",
    "mlp_out": "hook_mlp_out",
    "resid_post": "hook_resid_post",
}


class StopForward(Exception):
    """Raised inside the last hook that is needed, to leave the rest of the network unrun."""


@runtime_checkable
class Intervention(Protocol):
    """Something that may change an activation at one site."""

    site: Site

    def apply(self, activation: Tensor, feed: Feed) -> Tensor | None:
        """The changed activation ``[row, token, *feature]``, or ``None`` to leave it."""
        ...


@runtime_checkable
class Reader(Protocol):
    """Something that looks at an activation at one site and must not change it."""

    site: Site

    def read(self, activation: Tensor, feed: Feed) -> None:
        """Called with ``[row, token, *feature]``, after every intervention at the site."""
        ...


def hook_name(site: Site) -> str:
    """TransformerLens's name of a site's hook point."""
    return f"blocks.{site.layer}.{_HOOKS[site.stream]}"


@contextmanager
def hooks_attached(
    backend: Backend,
    feed: Feed,
    interventions: Sequence[Intervention] = (),
    readers: Sequence[Reader] = (),
    stop_early: bool = False,
) -> Iterator[Callable[[Feed], None]]:
    """Attach interventions and readers for forward passes, whatever the sites may be worth; see
    `mechmem.models.check.site_check.checked_hooks`.

    Args:
        backend: The model.
        feed: What the first pass will see.
        interventions: Applied in depth order, and at one site in the order given.
        readers: See the activation after the interventions at their site.
        stop_early: Leave the pass by `StopForward` after the deepest reader and intervention.

    Yields:
        To be told what a later pass will see, before it runs.

    Raises:
        SiteError: When the model has no such hook point.
    """
    programs = _programs(backend, feed, interventions, readers)
    if stop_early and readers:
        # Behind the edits as well, so that an edit deeper than what is read is not called silent.
        used = [reader.site for reader in readers] + [edit.site for edit in interventions]
        deepest = max(used, key=lambda site: site.depth)
        programs[hook_name(deepest)].stop = True
    known = backend.model.hook_dict  # a bridge makes this dictionary anew at every call
    points = {name: _hook_point(known, name) for name in programs}
    with ExitStack() as stack:
        for name, program in programs.items():
            for function, first in program.functions():
                stack.enter_context(hook_attached(points[name], _by_row(backend, function), first))

        def follow(later: Feed) -> None:
            for program in programs.values():
                # What came and left in one pass must not be carried into the next.
                program.feed, program.came, program.left = later, None, None

        yield follow


def _by_row(backend: Backend, function: HookFunction) -> HookFunction:
    """The function on ``[row, token, *feature]``, whatever shape the hook point is handed."""

    def call(tensor: Tensor) -> Tensor | None:
        changed = function(by_row(tensor, backend.shape))
        return None if changed is None else changed.reshape(tensor.shape)

    return call


class _Program:
    """What happens at one hook point during a pass."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.steps: list[tuple[Intervention | None, Reader | None]] = []
        self.stop = False
        self.first = False  # before the user's hooks
        self.carry: tuple[_Program, _Program] | None = None  # programs of resid_mid and mlp_out
        self.remembers = False  # what came and left is needed further on
        self.came: Tensor | None = None
        self.left: Tensor | None = None

    def functions(self) -> Iterator[tuple[Callable[[Tensor], Tensor | None], bool]]:
        """Each with whether it runs before the user's own hooks."""
        if self.carry is not None:
            # First: the user's hooks at the end of a block see it as the edit makes it.
            yield self._carried, True
        # Also without steps: the program of mlp_out only remembers what it was handed.
        if self.steps or self.stop or self.carry is None:
            yield self, self.first

    def __call__(self, tensor: Tensor) -> Tensor | None:
        value = tensor
        for intervention, reader in self.steps:
            if intervention is not None:
                changed = intervention.apply(value, self.feed)
                value = value if changed is None else changed
            if reader is not None:
                reader.read(value, self.feed)
        if self.remembers:
            self.came, self.left = tensor, value
        if self.stop:
            raise StopForward
        return None if value is tensor else value

    def _carried(self, tensor: Tensor) -> Tensor | None:
        """The edited middle stream plus what the MLP made of it, where there was an edit."""
        assert self.carry is not None
        middle, branch = self.carry
        came, left = middle.came, middle.left
        if came is None or left is None or left is came or branch.left is None:
            return None
        moved = (left + branch.left).to(tensor)  # an edit may have come in another dtype
        if moved.requires_grad:
            return moved  # an edit by nothing still has a gradient
        # What was not moved keeps the block's own sum, to the bit.
        return torch.where(left == came, tensor, moved)


def _programs(
    backend: Backend,
    feed: Feed,
    interventions: Sequence[Intervention],
    readers: Sequence[Reader],
) -> dict[str, _Program]:
    programs: dict[str, _Program] = {}

    def at(stream: str, layer: int) -> _Program:
        return programs.setdefault(hook_name(Site(stream, layer)), _Program(feed))

    for intervention in interventions:
        stream, layer = intervention.site
        at(stream, layer).steps.append((intervention, None))
        if misses_stream(backend, intervention.site):
            carried = at(stream, layer), at("mlp_out", layer)
            at("resid_post", layer).carry = carried
            for program in carried:
                program.remembers = True
    for reader in readers:
        at(*reader.site).steps.append((None, reader))
    for name, program in programs.items():
        # A user's change there reaches the MLP only; if ours came behind it, it would be carried
        # into the stream as well.
        program.first = name.endswith(_HOOKS["resid_mid"]) and backend.kind == "TransformerBridge"
    return programs


def misses_stream(backend: Backend, site: Site) -> bool:
    """Whether an edit returned at a site's hook point would not reach the residual stream."""
    return site.stream == "resid_mid" and backend.kind == "TransformerBridge"


def _hook_point(known: Mapping[str, Any], name: str) -> Any:
    if name not in known:
        block = name.rsplit(".hook_", 1)[0]
        present = [s for s in STREAMS if f"{block.split('.attn')[0]}.{_HOOKS[s]}" in known]
        raise SiteError(
            f"This model has no hook point {name!r}; of the streams it has {listed(present)} there."
        )
    return known[name]
