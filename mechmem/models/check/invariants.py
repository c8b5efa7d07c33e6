"""From what one pass of random tokens gave to a finding on every site."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from mechmem.models.architectures import BlockModules
from mechmem.models.engine.batching import Feed
from mechmem.models.engine.capabilities import always_fails
from mechmem.models.sites import Site
from mechmem.seeding import keyed_rng

Listeners = list[tuple[torch.nn.Module, Callable[[Tensor], None]]]

PAD = 2
"""Tokens of padding before the padded row."""


def kept_rows(layer: int) -> list[int]:
    """The plain row, the padded one, and the one that is edited at this layer."""
    return [0, 1, 2 + layer]


@dataclass
class ProbeReader:
    """Keeps a layer's plain, padded and edited row as they leave its hook."""

    site: Site
    value: Tensor | None = None

    def read(self, activation: Tensor, feed: Feed) -> None:
        self.value = activation[kept_rows(self.site.layer)].detach()


@dataclass
class ProbeEdit:
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
        # In units of the state, so that what follows moves by far more than rounding.
        moved[row] += (0.5 * size * step).to(activation)
        self.before = activation[kept_rows(self.site.layer)].detach()
        self.after = moved[kept_rows(self.site.layer)].detach()
        return moved


@dataclass
class Trace:
    """What the modules were handed, and what the hooks gave."""

    stream: str
    n_layers: int
    entering: dict[int, Tensor] = field(default_factory=dict)
    leaving: dict[int, Tensor] = field(default_factory=dict)
    attn_in: dict[int, Tensor] = field(default_factory=dict)
    mlp_in: dict[int, Tensor] = field(default_factory=dict)
    values: Mapping[Site, Tensor] = field(default_factory=dict)

    def listeners(self, blocks: list[BlockModules], ends: list[torch.nn.Module]) -> Listeners:
        """Pairs of a module and what to do with its input."""
        out: Listeners = []
        for layer, block in enumerate(blocks):
            out.append((block.block, partial(self._block, layer)))
            for module, kept in (
                (block.attn_reader, self.attn_in),
                (block.mlp_reader, self.mlp_in),
            ):
                if module is not None:
                    out.append((module, partial(self._keep, kept, layer)))
        out += [(end, partial(self._keep, self.leaving, self.n_layers - 1)) for end in ends]
        return out

    def _block(self, layer: int, value: Tensor) -> None:
        self._keep(self.entering, layer, value)
        if layer:
            self._keep(self.leaving, layer - 1, value)

    def _keep(self, to: dict[int, Tensor], layer: int, value: Tensor) -> None:
        # The first counts: the final norm hears the stream, the unembedding behind it no more.
        if layer not in to:
            to[layer] = value[kept_rows(layer)].clone()

    def at(self, stream: str, layer: int) -> Tensor | None:
        return self.values.get(Site(stream, layer))


TOLERANCE = 1e-4
"""Largest relative error, beyond the rounding of the sums that are compared."""

_CAP = 0.3  # a missing term or edit is an error of about 1, whatever the rounding


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


@dataclass(frozen=True)
class Invariant:
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


class InvariantCheck:
    """Turns the trace of one pass into verdicts."""

    def __init__(self, trace: Trace, blocks: list[BlockModules], logits: Tensor) -> None:
        self.trace, self.blocks, self.logits = trace, blocks, logits
        self.unit = float(torch.finfo(logits.dtype).eps)
        for value in trace.values.values():
            # The coarsest of all dtypes on the way: logits may be of a finer one than the stream.
            self.unit = max(self.unit, float(torch.finfo(value.dtype).eps))

    def verdict(self, probe: ProbeEdit) -> Finding:
        site = probe.site
        if probe.before is None or probe.after is None:
            return Finding(site, reason="its hook point is never called")
        invariants = self._invariants(site, probe.before, probe.after)
        changes = [invariant.change for invariant in invariants if invariant.change is not None]
        read = [self._off(invariant, invariant.own, slice(0, 2)) for invariant in invariants]
        edit = [
            self._off(invariant, invariant.change, slice(2, 3))
            for invariant in invariants
            if invariant.change is not None
        ]
        effect = self._effect(site.layer)
        found = Finding(site, _largest(read), _largest(edit), effect)
        padding = self._padding()
        reason = ""
        # The end of a block with an edited middle is put right by us; its MLP must witness too.
        if not read or len(edit) < 1 + (site.stream == "resid_mid"):
            reason = "the modules around it are not known, so it cannot be proved"
        elif padding != padding:
            reason = "a prompt with padding before it gives NaN instead of logits"
        elif not padding <= max(10 * TOLERANCE, 16 * self.unit):
            reason = (
                f"padding before a prompt moves its logits by {padding:.2g} of their length, so "
                "the model does not use the attention mask"
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
        # A state of zeros is moved by nothing, and then no logit has to change.
        elif not effect > 0 and any(bool(change.any()) for change in changes):
            reason = "an edit there changes no logit"
        return Finding(site, found.read_error, found.edit_error, effect, reason)

    def _invariants(self, site: Site, before: Tensor, after: Tensor) -> list[Invariant]:
        stream, layer = site
        block, trace, moved = self.blocks[layer], self.trace, _wide(after) - _wide(before)
        start, end = trace.entering.get(layer), trace.leaving.get(layer)
        middle = None if block.parallel else trace.mlp_in.get(layer)
        attn, mlp = trace.at("attn_out", layer), trace.at("mlp_out", layer)
        if mlp is None and getattr(block.block, "mlp", None) is None and attn is not None:
            mlp = torch.zeros_like(attn)  # an attention-only block
        invariants: list[Invariant] = []

        def invariant(found: Tensor | None, *parts: Tensor | None, own: Tensor | None = None,
                change: Tensor | None = None) -> None:  # fmt: skip
            terms = [_wide(part) for part in parts if part is not None]
            if found is None or len(terms) < len(parts):
                return
            if all(term.shape == _wide(found).shape for term in terms):
                # Of another width is a stream that a projection leads to or from (OPT-350m).
                expected = sum(terms[1:], terms[0])
                invariants.append(
                    Invariant(_wide(found), expected, _wide(found if own is None else own), change)
                )

        if stream == "resid_pre":
            invariant(before, start)
            invariant(trace.attn_in.get(layer), after, change=moved)
            if middle is not None:
                invariant(middle, after, attn, change=moved)
            else:
                invariant(end, after, attn, mlp, change=moved)
        elif stream == "resid_post":
            invariant(before, *((middle, mlp) if middle is not None else (start, attn, mlp)))
            invariant(end, after, change=moved)
        elif stream == "resid_mid":
            invariant(before, middle)
            invariant(before, start, attn)
            invariant(end, after, mlp, change=moved)
            was, now = (self._written(block.mlp_branch, value) for value in (before, after))
            if was is not None and now is not None:
                invariant(mlp, now, change=_wide(now) - _wide(was))
        elif stream == "attn_out":
            if middle is not None:
                invariant(middle, start, after, own=after, change=moved)
            else:
                invariant(before, self._written(block.attn_write, trace.at("z", layer)))
                invariant(end, start, after, mlp, own=after, change=moved)
        elif stream == "mlp_out":
            if middle is not None:
                invariant(end, middle, after, own=after, change=moved)
            else:
                invariant(before, self._written(block.mlp_write, trace.at("mlp_post", layer)))
                invariant(end, start, attn, after, own=after, change=moved)
        else:
            write, out = {
                "z": (block.attn_write, attn),
                "attn_module": (block.attn_norm or _as_it_is, attn),
                "mlp_module": (block.mlp_norm or _as_it_is, mlp),
                "mlp_post": (block.mlp_write, mlp),
            }[stream]
            was, now = (self._written(write, value) for value in (before, after))
            if was is not None and now is not None:
                invariant(out, now, change=_wide(now) - _wide(was))
        return invariants

    @staticmethod
    def _written(write: object, value: Tensor | None) -> Tensor | None:
        if not callable(write) or value is None:
            return None
        try:
            result: Tensor = write(value)
        except (TypeError, RuntimeError) as error:
            # Modules that are called in a way of their own, or by their block only.
            if not always_fails(lambda: write(value), error):
                raise
            return None
        return result

    def _off(self, invariant: Invariant, scale: Tensor, rows: slice) -> tuple[float, float]:
        """Largest relative error over tokens, and what rounding allows."""
        real = torch.ones(invariant.found.shape[:2], dtype=torch.bool)
        real[1, : self._pad()] = False  # what stands on padding is nobody's state
        error = (invariant.found - invariant.expected).norm(dim=-1)[rows][real[rows]]
        whole = invariant.expected.norm(dim=-1)[rows][real[rows]]
        size = scale.norm(dim=-1)[rows][real[rows]]
        size = torch.where(size > 0, size, whole).clamp_min(torch.finfo(torch.float64).tiny)
        # A sum is rounded in units of its own size, and a small branch is measured in its own.
        allowed = TOLERANCE + 8 * self.unit * float((whole / size).max())
        return float((error / size).max()), min(allowed, _CAP)

    def _pad(self) -> int:
        return min(PAD, self.logits.shape[1] - 1)

    def _effect(self, layer: int) -> float:
        plain, edited = self.logits[0, -1].double(), self.logits[2 + layer, -1].double()
        return float((edited - plain).norm() / plain.norm())

    def _padding(self) -> float:
        plain, padded = self.logits[0, -1 - self._pad()].double(), self.logits[1, -1].double()
        return float((padded - plain).norm() / plain.norm())


def _as_it_is(value: Tensor) -> Tensor:
    return value


def _largest(errors: list[tuple[float, float]]) -> float:
    values = [error for error, _ in errors]
    # `max` would pass NaN over unless it came first.
    return next((v for v in values if v != v), max(values, default=float("nan")))


def _wide(value: Tensor) -> Tensor:
    return value.flatten(2).to("cpu", torch.float64)
