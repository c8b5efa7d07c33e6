"""Does a site hold what its name says, and does an edit there act? Proved by numbers, in one pass.

One batch of random tokens holds a plain prompt, the same prompt with padding before it, and one more
copy per layer, edited at that layer only. What the hooks gave is compared with what the model's own
modules were handed, so that a hook point that is wired wrongly cannot vouch for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor

from mechmem.errors import SiteError
from mechmem.models.engine.anatomy import Anatomy, anatomy, end_of_blocks, overheard, without_hooks
from mechmem.models.engine.backends import Backend, model_device
from mechmem.models.engine.batching import Batch, Feed
from mechmem.models.engine.wiring import Intervention, Reader, connected, hook_name
from mechmem.models.sites import STREAMS, Site
from mechmem.models.tokens import TokenizedPrompt
from mechmem.seeding import keyed_rng

__all__ = ["Finding", "examine", "vouch", "wired"]

Listeners = list[tuple[torch.nn.Module, Callable[[Tensor], None]]]

TOLERANCE = 1e-4
"""Largest relative error, beyond the rounding of the sums that are compared."""
_CAP = 0.3  # a missing term or edit is an error of about 1, whatever the rounding
_PAD = 2


@dataclass(frozen=True)
class Finding:
    """The verdict on one site.

    Attributes:
        site: Where.
        read_error: Distance of what is read from what the model computes, in units of the length
            of the tensor itself (largest over tokens).
        edit_error: Distance of what follows from what the edit should make of it, in units of the
            change that the edit should make.
        effect: Change of the last token's logits by the edit, in units of their length.
        reason: Why the site is refused; empty when reading and editing are truthful.
    """

    site: Site
    read_error: float = float("nan")
    edit_error: float = float("nan")
    effect: float = float("nan")
    reason: str = ""


@contextmanager
def wired(
    backend: Backend,
    feed: Feed,
    interventions: Sequence[Intervention] = (),
    readers: Sequence[Reader] = (),
    stop_early: bool = False,
) -> Iterator[None]:
    """Attach interventions and readers for one forward pass, at sites that have been proved.

    Args: as for `mechmem.models.engine.wiring.connected`.

    Raises:
        SiteError: For a site that cannot be read or edited truthfully on this model.
    """
    vouch(backend, [item.site for item in (*interventions, *readers)])
    with connected(backend, feed, interventions, readers, stop_early):
        yield


def vouch(backend: Backend, sites: Sequence[Site]) -> None:
    """Examine every stream on its first use, and refuse sites that are not what they are called.

    Raises:
        SiteError: Naming the site and the reason.
    """
    for stream in {site.stream for site in sites}:
        if Site(stream, 0) not in backend.verdicts:
            backend.verdicts.update({found.site: found for found in examine(backend, stream)})
    for site in sites:
        reason = backend.verdicts[site].reason if site in backend.verdicts else ""
        if reason:
            raise SiteError(
                f"{site} cannot be read or edited truthfully on this model: {reason}. "
                "Use another stream; `mechmem check` lists those that hold."
            )


@torch.no_grad()
def examine(backend: Backend, stream: str) -> list[Finding]:
    """Prove or refuse one stream at every layer by a single small forward pass.

    Users' hooks are set aside meanwhile, no random number is drawn, and nothing stays behind.
    """
    blocks = anatomy(backend)
    sites = [Site(stream, layer) for layer in range(len(blocks))]
    if stream == "resid_mid" and any(block.parallel for block in blocks):
        why = (
            "attention and MLP read the same input here (parallel blocks), so there is no stream "
            "between them; use resid_pre, attn_out or resid_post"
        )
        return [Finding(site, reason=why) for site in sites]
    known = backend.model.hook_dict
    missing = sorted({hook_name(site) for site in sites} - set(known))
    if missing:
        why = f"there is no hook point {missing[0]!r}"
        return [Finding(site, reason=why) for site in sites]
    helping = {s for s in STREAMS if hook_name(Site(s, 0)) in known}
    trace = _Trace(stream, len(blocks))
    nudges = [_Nudge(site) for site in sites]
    seen = [_See(Site(s, k)) for s in helping | {stream} for k in range(len(blocks))]
    batch = _batch(backend, len(blocks))
    with without_hooks(backend.model):
        with (
            overheard(trace.listeners(blocks, end_of_blocks(backend))),
            connected(backend, batch.feed(), nudges, seen),
        ):
            logits, _ = backend.forward(batch.ids, batch.mask)
        trace.values = {look.site: look.value for look in seen if look.value is not None}
        judge = _Judge(trace, blocks, logits.detach())
        return [judge.verdict(nudge) for nudge in nudges]


def _batch(backend: Backend, n_layers: int) -> Batch:
    """Row 0 plain, row 1 the same but padded, rows 2 + layer to be edited at that layer."""
    cfg = backend.model.cfg
    length = min(8, int(getattr(cfg, "n_ctx", 0) or 8))
    rng = keyed_rng(0, "site check")
    ids = tuple(int(token) for token in rng.integers(0, int(cfg.d_vocab), size=length))
    pad = min(_PAD, length - 1)
    prompts = [TokenizedPrompt("plain", ids, {}), TokenizedPrompt("padded", ids[: length - pad], {})]
    prompts += [TokenizedPrompt("edited", ids, {})] * n_layers
    return Batch.collate(prompts, range(len(prompts)), ids[0], model_device(backend.model))


def _rows(layer: int) -> list[int]:
    return [0, 1, 2 + layer]


@dataclass
class _See:
    """Keeps a layer's plain, padded and edited row as they leave its hook."""

    site: Site
    value: Tensor | None = None

    def read(self, activation: Tensor, feed: Feed) -> None:
        self.value = activation[_rows(self.site.layer)].detach()


@dataclass
class _Nudge:
    """Moves a layer's edited row by a random step of half its length, and keeps both."""

    site: Site
    before: Tensor | None = None
    after: Tensor | None = None

    def apply(self, activation: Tensor, feed: Feed) -> Tensor:
        row = 2 + self.site.layer
        rng = keyed_rng(0, "nudge", self.site.key)
        step = torch.as_tensor(rng.standard_normal(tuple(activation.shape[1:])))
        size = activation[row].double().square().mean().sqrt().cpu()
        moved = activation.clone()
        moved[row] += (0.5 * size * step).to(activation)
        self.before = activation[_rows(self.site.layer)].detach()
        self.after = moved[_rows(self.site.layer)].detach()
        return moved


@dataclass
class _Trace:
    """What the modules were handed, and what the hooks gave."""

    stream: str
    n_layers: int
    entering: dict[int, Tensor] = field(default_factory=dict)
    leaving: dict[int, Tensor] = field(default_factory=dict)
    attn_in: dict[int, Tensor] = field(default_factory=dict)
    mlp_in: dict[int, Tensor] = field(default_factory=dict)
    values: Mapping[Site, Tensor] = field(default_factory=dict)

    def listeners(self, blocks: list[Anatomy], ends: list[torch.nn.Module]) -> Listeners:
        """Pairs of a module and what to do with its input."""
        out = []
        for layer, block in enumerate(blocks):
            out.append((block.block, lambda value, k=layer: self._block(k, value)))
            for module, kept in ((block.attn_reader, self.attn_in), (block.mlp_reader, self.mlp_in)):
                if module is not None:
                    out.append((module, lambda value, k=layer, to=kept: self._keep(to, k, value)))
        for end in ends:
            out.append((end, lambda value: self._keep(self.leaving, self.n_layers - 1, value)))
        return out

    def _block(self, layer: int, value: Tensor) -> None:
        self._keep(self.entering, layer, value)
        if layer:
            self._keep(self.leaving, layer - 1, value)

    def _keep(self, to: dict[int, Tensor], layer: int, value: Tensor) -> None:
        if layer not in to:
            to[layer] = value[_rows(layer)].clone()

    def at(self, stream: str, layer: int) -> Tensor | None:
        return self.values.get(Site(stream, layer))


@dataclass(frozen=True)
class _Law:
    """Something that must be equal, before and after the edit.

    Attributes:
        found, expected: ``[plain | padded | edited, token, *feature]``.
        own: The tensor in whose length the error of reading is measured.
        change: By how much the edit changes ``expected``.
    """

    found: Tensor
    expected: Tensor
    own: Tensor
    change: Tensor | None


class _Judge:
    """Turns the trace of one pass into verdicts."""

    def __init__(self, trace: _Trace, blocks: list[Anatomy], logits: Tensor) -> None:
        self.trace, self.blocks, self.logits = trace, blocks, logits
        self.unit = float(torch.finfo(logits.dtype).eps)
        for value in trace.values.values():
            self.unit = max(self.unit, float(torch.finfo(value.dtype).eps))

    def verdict(self, nudge: _Nudge) -> Finding:
        site = nudge.site
        if nudge.before is None or nudge.after is None:
            return Finding(site, reason="its hook point is never called")
        laws = self._laws(site, nudge.before, nudge.after)
        acting = [law for law in laws if law.change is not None]
        read = [self._off(law, law.own, slice(0, 2)) for law in laws]
        edit = [self._off(law, law.change, slice(2, 3)) for law in acting if law.change is not None]
        effect = self._effect(site.layer)
        found = Finding(site, _largest(read), _largest(edit), effect)
        padding = self._padding()
        reason = ""
        if not read or not edit:
            reason = "the modules around it are not known, so it cannot be proved"
        elif not padding <= max(10 * TOLERANCE, 16 * self.unit):
            reason = (
                f"padding before a prompt moves its logits by {padding:.2g} of their length, so the "
                "model does not use the attention mask"
            )
        elif not all(error <= allowed for error, allowed in read):
            reason = (
                f"what is read is not what the model computes there; it is off by "
                f"{found.read_error:.2g} of its own length"
            )
        elif not all(error <= allowed for error, allowed in edit):
            reason = (
                f"an edit does not act on what follows; it is off by {found.edit_error:.2g} of the "
                "change it should make"
            )
        elif not effect > 0 and any(bool(law.change.any()) for law in acting if law.change is not None):
            reason = "an edit there changes no logit"
        return Finding(site, found.read_error, found.edit_error, effect, reason)

    def _laws(self, site: Site, before: Tensor, after: Tensor) -> list[_Law]:
        stream, layer = site
        block, trace, moved = self.blocks[layer], self.trace, _wide(after) - _wide(before)
        start, end = trace.entering.get(layer), trace.leaving.get(layer)
        middle = None if block.parallel else trace.mlp_in.get(layer)
        attn, mlp = trace.at("attn_out", layer), trace.at("mlp_out", layer)
        if mlp is None and getattr(block.block, "mlp", None) is None and attn is not None:
            mlp = torch.zeros_like(attn)  # an attention-only block
        laws: list[_Law] = []

        def law(found: Tensor | None, *parts: Tensor | None, own: Tensor | None = None,
                change: Tensor | None = None) -> None:  # fmt: skip
            terms = [_wide(part) for part in parts if part is not None]
            if found is not None and len(terms) == len(parts):
                expected = sum(terms[1:], terms[0])
                laws.append(_Law(_wide(found), expected, _wide(found if own is None else own), change))

        if stream == "resid_pre":
            law(before, start)
            law(trace.attn_in.get(layer), after, change=moved)
            if middle is not None:
                law(middle, after, attn, change=moved)
            else:
                law(end, after, attn, mlp, change=moved)
        elif stream == "resid_post":
            law(before, *((middle, mlp) if middle is not None else (start, attn, mlp)))
            law(end, after, change=moved)
        elif stream == "resid_mid":
            law(before, middle)
            law(before, start, attn)
            law(end, after, mlp, change=moved)
            was, now = (self._written(block.mlp_branch, value) for value in (before, after))
            if was is not None and now is not None:
                law(mlp, now, change=_wide(now) - _wide(was))
        elif stream == "attn_out":
            if middle is not None:
                law(middle, start, after, own=after, change=moved)
            else:
                law(before, self._written(block.attn_write, trace.at("z", layer)))
                law(end, start, after, mlp, own=after, change=moved)
        elif stream == "mlp_out":
            if middle is not None:
                law(end, middle, after, own=after, change=moved)
            else:
                law(before, self._written(block.mlp_write, trace.at("mlp_post", layer)))
                law(end, start, attn, after, own=after, change=moved)
        else:
            write, out = (
                (block.attn_write, attn) if stream == "z" else (block.mlp_write, mlp)
            )
            was, now = (self._written(write, value) for value in (before, after))
            if was is not None and now is not None:
                law(out, now, change=_wide(now) - _wide(was))
        return laws

    @staticmethod
    def _written(write: object, value: Tensor | None) -> Tensor | None:
        if not callable(write) or value is None:
            return None
        result: Tensor = write(value)
        return result

    def _off(self, law: _Law, scale: Tensor, rows: slice) -> tuple[float, float]:
        """Largest relative error over tokens, and what rounding allows."""
        real = torch.ones(law.found.shape[:2], dtype=torch.bool)
        real[1, : self._pad()] = False
        error = (law.found - law.expected).norm(dim=-1)[rows][real[rows]]
        whole = law.expected.norm(dim=-1)[rows][real[rows]]
        size = scale.norm(dim=-1)[rows][real[rows]]
        size = torch.where(size > 0, size, whole).clamp_min(torch.finfo(torch.float64).tiny)
        allowed = TOLERANCE + 8 * self.unit * float((whole / size).max())
        return float((error / size).max()), min(allowed, _CAP)

    def _pad(self) -> int:
        return min(_PAD, self.logits.shape[1] - 1)

    def _effect(self, layer: int) -> float:
        plain, edited = self.logits[0, -1].double(), self.logits[2 + layer, -1].double()
        return float((edited - plain).norm() / plain.norm())

    def _padding(self) -> float:
        plain, padded = self.logits[0, -1 - self._pad()].double(), self.logits[1, -1].double()
        return float((padded - plain).norm() / plain.norm())


def _largest(errors: list[tuple[float, float]]) -> float:
    values = [error for error, _ in errors]
    return next((v for v in values if v != v), max(values, default=float("nan")))


def _wide(value: Tensor) -> Tensor:
    return value.flatten(2).to("cpu", torch.float64)
