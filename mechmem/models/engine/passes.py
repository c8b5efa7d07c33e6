"""From a plan to forward passes: batches made ready, shared beginnings run when first needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from mechmem.errors import ModelError
from mechmem.models.engine.backends import Backend, model_device
from mechmem.models.engine.batching import Batch
from mechmem.models.engine.plan import Plan, Prefix, Work, make_plan
from mechmem.models.engine.prefix import Root, continues_truly, limits, lone_prompts, run_root
from mechmem.models.engine.truth import wired
from mechmem.models.engine.wiring import Intervention, Reader, StopForward
from mechmem.models.tokens import TokenizedPrompt

__all__ = ["Passes", "Ready", "pass_cost", "plan_passes", "running"]

Readers = Callable[[tuple[Prefix, ...]], Sequence[Reader]]


def plan_passes(
    backend: Backend,
    prompts: Sequence[TokenizedPrompt],
    token_budget: int,
    *,
    interventions: Sequence[Intervention] = (),
    extra: int = 0,
    share: bool = True,
    own: Sequence[TokenizedPrompt] | None = None,
) -> Plan:
    """The plan for these prompts on this model.

    Args:
        prompts: What will be fed.
        token_budget: Most tokens in one batch, padding included.
        interventions: Edits in force; what they touch is not shared.
        extra: Tokens that every row will grow by (generation).
        share: Whether prompts that begin alike run their beginning once.
        own: The prompts without what follows them, when ``prompts`` carry more (answers).
    """
    allowed = limits(backend, own or prompts, interventions, extra) if share else None
    cost = pass_cost(backend)
    plan = make_plan(prompts, token_budget, extra=extra, limits=allowed, pass_cost=cost)
    if plan.roots and not continues_truly(backend):
        plan = make_plan(prompts, token_budget, extra=extra, pass_cost=cost)
    return plan


def pass_cost(backend: Backend) -> float:
    """What starting a forward pass costs on this model, in tokens.

    Python's work for every block and one reading of the weights, against the arithmetic of a token,
    with round numbers for a CPU core and for a datacenter GPU. It need not be exact, but it must be
    the same for every process that works on one plan.
    """
    cfg, device = backend.model.cfg, model_device(backend.model)
    width, d_mlp = int(cfg.d_model), int(cfg.d_mlp or 4 * cfg.d_model)
    weights = int(cfg.n_layers) * (4 * width * width + 3 * width * d_mlp)
    bytes_per_second, flops = (1e10, 1.5e11) if device.type == "cpu" else (2e12, 2e14)
    start = int(cfg.n_layers) * 1.2e-3 + 4 * weights / bytes_per_second
    return start / (2 * weights / flops)


@dataclass
class Ready:
    """One batch, about to run.

    Attributes:
        work: What it was made from.
        batch: Its tokens, without those that were run already.
        mask: Over everything its rows attend to.
        cache: Keys and values of the shared beginnings; ``None`` when nothing is shared.
        seen: What the readers of the beginnings' pass saw.
    """

    work: Work
    batch: Batch
    mask: Int[Tensor, "row key"]
    cache: Any
    seen: Sequence[Reader] = ()


class Passes:
    """Makes the batches of a plan ready.

    Args:
        backend: The model.
        prompts: What was planned.
        pad_id: Any token; it is masked.
        side: Where batches are padded.
        grows: Whether a batch's keys and values are needed after its pass.
        readers: Given the beginnings, who reads in their pass.
        stop_early: Leave that pass after its deepest reader.
    """

    def __init__(
        self,
        backend: Backend,
        prompts: Sequence[TokenizedPrompt],
        pad_id: int,
        *,
        side: str = "left",
        grows: bool = False,
        readers: Readers | None = None,
        stop_early: bool = False,
    ) -> None:
        self.backend, self.prompts, self.pad_id = backend, prompts, pad_id
        self.side, self.grows, self.readers, self.stop = side, grows, readers, stop_early
        self.device = model_device(backend.model)
        self._last: tuple[tuple[Prefix, ...], Root, Sequence[Reader]] | None = None

    def ready(self, work: Work) -> Ready:
        """The batch, after its beginnings have been run."""
        batch = Batch.collate(
            self.prompts, work.rows, self.pad_id, self.device, self.side, work.skip
        )
        if not work.prefixes:
            return Ready(work, batch, batch.mask, None)
        root, seen = self._root(work.prefixes)
        mask = root.mask(work.root_of, batch.mask)
        return Ready(work, batch, mask, root.cache(work.root_of, self.grows), seen)

    def _root(self, prefixes: tuple[Prefix, ...]) -> tuple[Root, Sequence[Reader]]:
        if self._last is None or self._last[0] != prefixes:
            self._last = None  # free it before the next one is made
            alone = lone_prompts(self.prompts, prefixes)
            batch = Batch.collate(alone, range(len(alone)), self.pad_id, self.device)
            readers = () if self.readers is None else self.readers(prefixes)

            def run(cache: Any) -> None:
                hooks = wired(self.backend, batch.feed(), (), readers, self.stop)
                with running(self.backend), hooks, suppress(StopForward):
                    self.backend.forward(batch.ids, batch.mask, cache=cache, last_only=True)

            self._last = (prefixes, run_root(batch, run), readers)
        return self._last[1], self._last[2]


@contextmanager
def running(backend: Backend) -> Iterator[None]:
    """No gradients, and no dropout unseen."""
    if getattr(backend.model, "training", False):
        raise ModelError(
            "The model is in train mode, where dropout makes every pass different; "
            "call model.eval() on it first."
        )
    with torch.no_grad():
        yield
