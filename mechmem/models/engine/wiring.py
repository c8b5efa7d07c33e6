"""How a site is read and edited through TransformerLens hook points, truthfully.

Each hook point gets one hook, which runs the edits and reads that belong there in depth order. The
one special case is ``resid_mid`` on a bridge: there the hook point is the MLP branch's input, so an
edit returned from it would miss the residual stream. It is read as ``resid_pre + attn_out`` and
edited by moving ``attn_out`` by the same amount, which is the true edit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol, runtime_checkable

from torch import Tensor

from mechmem.errors import SiteError, listed
from mechmem.models.engine.backends import Backend, attached
from mechmem.models.engine.batching import Feed
from mechmem.models.sites import STREAMS, Site

__all__ = ["Intervention", "Reader", "StopForward", "connected", "hook_name", "own_hook"]

_HOOKS = {
    "resid_pre": "hook_resid_pre",
    "z": "attn.hook_z",
    "attn_out": "hook_attn_out",
    "resid_mid": "hook_resid_mid",
    "mlp_post": "mlp.hook_post",
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
def connected(
    backend: Backend,
    feed: Feed,
    interventions: Sequence[Intervention] = (),
    readers: Sequence[Reader] = (),
    stop_early: bool = False,
) -> Iterator[None]:
    """Attach interventions and readers for one forward pass, whatever the sites may be worth; see
    `mechmem.models.engine.truth.wired`.

    Args:
        backend: The model.
        feed: What the pass will see.
        interventions: Applied in depth order, and at one site in the order given.
        readers: See the activation after the interventions at their site.
        stop_early: Leave the pass by `StopForward` after the deepest reader and intervention.

    Raises:
        SiteError: When the model has no such hook point.
    """
    programs = _programs(backend, feed, interventions, readers)
    if stop_early and readers:
        # Behind the edits as well, so that an edit deeper than what is read is not called silent.
        deepest = max((item.site for item in (*readers, *interventions)), key=lambda s: s.depth)
        programs[own_hook(backend, deepest)].stop = True
    known = backend.model.hook_dict  # a bridge makes this dictionary anew at every call
    points = {name: _hook_point(known, name) for name in programs}
    with ExitStack() as stack:
        for name, program in programs.items():
            stack.enter_context(attached(points[name], program))
        yield


class _Program:
    """What happens at one hook point during one pass."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.before: Tensor | None = None  # resid_pre of this block, once seen
        self.source: _Program | None = None  # where `before` of this block is kept
        self.keep = False
        self.stop = False
        self.here: list[tuple[Intervention | None, Reader | None]] = []
        self.mid: list[tuple[Intervention | None, Reader | None]] = []

    def __call__(self, tensor: Tensor) -> Tensor | None:
        value = self._run(self.here, tensor)
        if self.keep:
            self.before = value
        if self.mid:
            assert self.source is not None
            assert self.source.before is not None
            stream = self.source.before + value
            moved = self._run(self.mid, stream)
            if moved is not stream:
                value = value + (moved - stream)
        if self.stop:
            raise StopForward
        return None if value is tensor else value

    def _run(self, steps: list[tuple[Intervention | None, Reader | None]], value: Tensor) -> Tensor:
        for intervention, reader in steps:
            if intervention is not None:
                changed = intervention.apply(value, self.feed)
                value = value if changed is None else changed
            if reader is not None:
                reader.read(value, self.feed)
        return value


def _programs(
    backend: Backend,
    feed: Feed,
    interventions: Sequence[Intervention],
    readers: Sequence[Reader],
) -> dict[str, _Program]:
    programs: dict[str, _Program] = {}

    def at(name: str) -> _Program:
        return programs.setdefault(name, _Program(feed))

    def add(site: Site, intervention: Intervention | None, reader: Reader | None) -> None:
        program = at(own_hook(backend, site))
        if _is_derived(backend, site):
            program.mid.append((intervention, reader))
            program.source = at(hook_name(Site("resid_pre", site.layer)))
            program.source.keep = True
        else:
            program.here.append((intervention, reader))

    for intervention in interventions:
        add(intervention.site, intervention, None)
    for reader in readers:
        add(reader.site, None, reader)
    return programs


def _is_derived(backend: Backend, site: Site) -> bool:
    return site.stream == "resid_mid" and backend.kind == "TransformerBridge"


def own_hook(backend: Backend, site: Site) -> str:
    """The hook point whose program handles a site."""
    if _is_derived(backend, site):
        return hook_name(Site("attn_out", site.layer))
    return hook_name(site)


def _hook_point(known: Mapping[str, Any], name: str) -> Any:
    if name not in known:
        block = name.rsplit(".hook_", 1)[0]
        present = [s for s in STREAMS if f"{block.split('.attn')[0]}.{_HOOKS[s]}" in known]
        raise SiteError(
            f"This model has no hook point {name!r}; of the streams it has {listed(present)} there."
        )
    return known[name]
