"""Does a site hold what its name says, and does an edit there act? Proved by numbers, in one pass.

One batch of random tokens holds a plain prompt, the same prompt with padding before it, and one
more copy per layer, edited at that layer only. What the hooks gave is compared with what the
model's own modules were handed, so that a hook point that is wired wrongly cannot vouch for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from mechmem.errors import SiteError
from mechmem.models.architectures import block_modules, end_of_blocks, module_inputs
from mechmem.models.check.invariants import (
    PAD,
    Finding,
    InvariantCheck,
    ProbeEdit,
    ProbeReader,
    Trace,
)
from mechmem.models.engine.backends import Backend, held, model_device, refuse_training
from mechmem.models.engine.batching import Batch, Feed
from mechmem.models.engine.capabilities import FAILURES, always_fails, without_hooks
from mechmem.models.engine.hooks import (
    Intervention,
    Reader,
    hook_name,
    hooks_attached,
    misses_stream,
)
from mechmem.models.sites import STREAMS, Site
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.seeding import keyed_rng


@contextmanager
def checked_hooks(
    backend: Backend,
    feed: Feed,
    interventions: Sequence[Intervention] = (),
    readers: Sequence[Reader] = (),
    stop_early: bool = False,
) -> Iterator[Callable[[Feed], None]]:
    """Attach interventions and readers for forward passes, at sites that have been proved.

    Args and Yields: as for `mechmem.models.engine.hooks.hooks_attached`.

    Raises:
        SiteError: For a site that cannot be read or edited truthfully on this model.
    """
    require_sites(
        backend, [edit.site for edit in interventions] + [reader.site for reader in readers]
    )
    with hooks_attached(backend, feed, interventions, readers, stop_early) as follow:
        yield follow


def require_sites(backend: Backend, sites: Sequence[Site]) -> None:
    """Examine every stream on its first use, and refuse sites that are not what they are called.

    Raises:
        SiteError: Naming the site and the reason.
        ModelError: When a stream would have to be examined in train mode.
    """
    for stream in {site.stream for site in sites}:
        if Site(stream, 0) not in backend.findings:
            backend.findings.update({found.site: found for found in check_stream(backend, stream)})
    for site in sites:
        reason = backend.findings[site].reason if site in backend.findings else ""
        if reason:
            raise SiteError(
                f"{site} cannot be read or edited truthfully on this model: {reason}. "
                "Use another stream; `mechmem check` lists those that hold."
            )


@torch.no_grad()
def check_stream(backend: Backend, stream: str) -> list[Finding]:
    """Prove or refuse one stream at every layer by a single small forward pass.

    Users' hooks are set aside meanwhile, no random number is drawn, and nothing stays behind.

    Raises:
        ModelError: In train mode, where nothing can be proved.
    """
    refuse_training(backend)
    blocks = block_modules(backend)
    sites = [Site(stream, layer) for layer in range(len(blocks))]
    if stream == "resid_mid" and any(block.parallel for block in blocks):
        why = (
            "attention and MLP read the same input here (parallel blocks), so there is no stream "
            "between them; use resid_pre, attn_out or resid_post"
        )
        return [Finding(site, reason=why) for site in sites]
    known = backend.model.hook_dict
    needed = {hook_name(site) for site in sites}
    if any(misses_stream(backend, site) for site in sites):  # an edit is carried past the MLP
        needed |= {hook_name(Site("mlp_out", site.layer)) for site in sites}
    missing = sorted(needed - set(known))
    if missing:
        why = f"there is no hook point {missing[0]!r}"
        return [Finding(site, reason=why) for site in sites]
    helping = {s for s in STREAMS if hook_name(Site(s, 0)) in known}
    trace = Trace(stream, len(blocks))
    probes = [ProbeEdit(site) for site in sites]
    # The other streams too: a stream is proved by the sums in which it stands.
    seen = [ProbeReader(Site(s, k)) for s in helping | {stream} for k in range(len(blocks))]
    batch = _check_batch(backend, len(blocks))

    def edited() -> Tensor:
        with (
            module_inputs(backend, trace.listeners(blocks, end_of_blocks(backend))),
            hooks_attached(backend, batch.feed(), probes, seen),
        ):
            return backend.forward(batch.ids, batch.mask)[0]

    with held(backend.model), without_hooks(backend.model):
        try:
            logits = edited()
        except FAILURES as error:
            if not always_fails(edited, error):
                raise
            why = f"a pass with an edit there ends in {type(error).__name__}: {error}"
            return [Finding(site, reason=why.rstrip(".")) for site in sites]
        trace.values = {look.site: look.value for look in seen if look.value is not None}
        checks = InvariantCheck(trace, blocks, logits.detach())
        return [checks.verdict(probe) for probe in probes]


def _check_batch(backend: Backend, n_layers: int) -> Batch:
    """Row 0 plain, row 1 the same but padded, rows 2 + layer to be edited at that layer."""
    cfg = backend.model.cfg
    length = min(8, int(getattr(cfg, "n_ctx", 0) or 8))
    rng = keyed_rng(0, "site check")
    ids = tuple(int(token) for token in rng.integers(0, int(cfg.d_vocab), size=length))
    pad = min(PAD, length - 1)
    prompts = [
        TokenizedPrompt("plain", ids, {}),
        TokenizedPrompt("padded", ids[: length - pad], {}),  # shorter, so the batch pads it
    ]
    prompts += [TokenizedPrompt("edited", ids, {})] * n_layers
    return Batch.collate(prompts, range(len(prompts)), ids[0], model_device(backend.model))
