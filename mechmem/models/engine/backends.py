"""The two TransformerLens classes behind one small interface, used by one thread at a time.

`TransformerBridge` (3.x and 4.x) and `HookedTransformer` (3.x) are told apart by what they can do,
never by importing a class that one of the versions does not have.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, Protocol, cast, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from mechmem.errors import ModelError
from mechmem.models.architectures import forget_patterns
from mechmem.models.engine.attention import fused, looked_into
from mechmem.models.identity import Identity
from mechmem.models.sites import Site

HookFunction = Callable[[Tensor], Tensor | None]


@runtime_checkable
class Backend(Protocol):
    """What the engine needs from a TransformerLens model."""

    kind: str
    model: Any
    findings: dict[Site, Any]
    """What the site check found, filled stream by stream on first use."""
    shape: tuple[int, ...]
    """Rows and tokens of the pass that runs: some modules are handed both as one axis."""
    identity: Identity
    fuses: bool
    """Whether attention is done by the device's fused kernel, where nobody looks inside it."""

    @property
    def processing(self) -> str:
        """``"raw"``, or how the weights were processed."""
        ...

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        cache: Any = None,
        use_cache: bool = False,
        last_only: bool = False,
        positions: Tensor | None = None,
        keep: Tensor | int | None = None,
    ) -> tuple[Tensor, Any]:
        """Logits ``[row, token, vocab]`` and the grown cache.

        Args:
            ids: ``[row, token]``.
            mask: ``[row, key]`` 1 on real tokens; or ``[row, 1, token, key]``, what is added to the
                attention scores.
            last_only: Logits of the last token only.
            positions: ``[row, token]`` with a mask of four dimensions: where tokens stand in their
                prompts.
            keep: Columns whose logits are wanted, or how many at the end; default all.
        """
        ...


class BridgeBackend:
    """A `TransformerBridge` on raw Hugging Face weights, or in compatibility mode."""

    kind = "TransformerBridge"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.findings: dict[Site, Any] = {}
        self.shape: tuple[int, ...] = ()
        self.identity = Identity(model)
        self.fuses = False

    @property
    def processing(self) -> str:
        # Compatibility mode with no_processing=True renames hooks and leaves the weights alone.
        changed = getattr(self.model, "_weights_processed", None)
        if changed is None:
            changed = getattr(self.model, "compatibility_mode", False)
        return "compatibility" if changed else "raw"

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        cache: Any = None,
        use_cache: bool = False,
        last_only: bool = False,
        positions: Tensor | None = None,
        keep: Tensor | int | None = None,
    ) -> tuple[Tensor, Any]:
        outer, self.shape = self.shape, tuple(ids.shape)
        extra: dict[str, Any] = {"use_cache": use_cache or cache is not None}
        if last_only and ids.shape[1] > 1:
            extra["logits_to_keep"] = 1  # else logits of every token are made
        if positions is not None:
            extra["position_ids"] = positions
        if keep is not None and (keep if isinstance(keep, int) else len(keep)) < ids.shape[1]:
            extra["logits_to_keep"] = keep
        quick = self.fuses and not looked_into(self.model)
        try:
            with fused(self.model) if quick else nullcontext():
                logits, grown = self.model(
                    ids,
                    attention_mask=mask,
                    return_type="logits_and_cache",
                    past_key_values=cache,
                    **extra,
                )
        finally:
            self.shape = outer  # an edit may have asked the model in the middle of a pass
            forget_patterns(self.model)
        # Right as well where a model has taken no notice of `logits_to_keep`.
        return (logits[:, -1:] if last_only else logits), grown


class HookedTransformerBackend:
    """A `HookedTransformer` of TransformerLens 3.x."""

    kind = "HookedTransformer"

    def __init__(self, model: Any) -> None:
        self.model = model
        self.findings: dict[Site, Any] = {}
        self.shape: tuple[int, ...] = ()
        self.identity = Identity(model)
        self.fuses = False

    @property
    def processing(self) -> str:
        folded = str(self.model.cfg.normalization_type or "").endswith("Pre")
        # Centering leaves no mark on the configuration, but trained weights never average to zero.
        centered = _averages_to_zero(self.model.W_E) or _averages_to_zero(self.model.W_U)
        return "processed" if folded or centered else "raw"

    def forward(
        self,
        ids: Tensor,
        mask: Tensor,
        *,
        cache: Any = None,
        use_cache: bool = False,
        last_only: bool = False,
        positions: Tensor | None = None,
        keep: Tensor | int | None = None,
    ) -> tuple[Tensor, Any]:
        if positions is not None:
            raise NotImplementedError("HookedTransformer derives positions from its mask")
        if use_cache and cache is None:
            cache = self._new_cache(ids)
        seen = mask[:, -ids.shape[1] :]  # its own cache remembers the earlier mask
        outer, self.shape = self.shape, tuple(ids.shape)
        try:
            logits = self.model(ids, attention_mask=seen, return_type="logits", past_kv_cache=cache)
        finally:
            self.shape = outer
        if keep is not None:
            logits = logits[:, -keep:] if isinstance(keep, int) else logits[:, keep]
        return (logits[:, -1:] if last_only else logits), cache

    def _new_cache(self, ids: Tensor) -> Any:
        from transformer_lens.cache.key_value_cache import (  # type: ignore[import-untyped,unused-ignore]
            TransformerLensKeyValueCache,
        )

        return TransformerLensKeyValueCache.init_cache(self.model.cfg, ids.device, ids.shape[0])


def _averages_to_zero(weight: Tensor) -> bool:
    """Whether every row of a few is centered, up to rounding."""
    rows = weight.detach()[:64].double()
    # Centering was done in the weights' dtype, so a centered row averages to its rounding only.
    rounding = 4 * torch.finfo(weight.dtype).eps
    return bool((rows.mean(-1).abs() <= rounding * rows.abs().mean(-1)).all())


def backend_for(model: Any) -> Backend:
    """The backend that drives ``model``.

    Raises:
        ModelError: When it is neither a TransformerBridge nor a HookedTransformer.
    """
    if not hasattr(model, "hook_dict") or not hasattr(model, "cfg"):
        raise ModelError(
            f"{type(model).__name__} is not a TransformerLens model; hand a TransformerBridge, a "
            "HookedTransformer (TransformerLens 3.x), a transformers model, a folder or a name to "
            "mechmem.load_model."
        )
    if hasattr(model, "original_model"):
        return BridgeBackend(model)
    return HookedTransformerBackend(model)


@contextmanager
def hook_attached(hook_point: Any, function: HookFunction, first: bool = False) -> Iterator[None]:
    """Call ``function`` on the activation at a TransformerLens hook point, after the user's hooks
    (or before them).

    Only this hook is removed at the end, whatever happened inside.
    """

    # Made anew, so that its handle is found again where one function is attached twice.
    def ours(tensor: Tensor, hook: Any) -> Tensor | None:
        return function(tensor)

    try:
        # Inside the `try`: an interruption between attaching and entering leaves no hook either.
        hook_point.add_hook(ours, prepend=first)
        yield
    finally:
        for handle in [handle for handle in hook_point.fwd_hooks if handle.user_hook is ours]:
            handle.hook.remove()
            hook_point.fwd_hooks.remove(handle)


def model_device(model: Any) -> torch.device:
    """Where token ids must go: the device of the first parameter that is not a placeholder."""
    for parameter in model.parameters():
        if parameter.device.type != "meta":  # accelerate keeps offloaded ones there
            return torch.device(parameter.device)
    return torch.device("cpu")


def model_dtype(model: Any) -> torch.dtype:
    """In which activations are computed: the dtype of the first parameter that holds fractions."""
    for parameter in model.parameters():
        if parameter.is_floating_point():
            return cast(torch.dtype, parameter.dtype)
    return torch.get_default_dtype()


_LOCKS: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_NEW_LOCK = threading.Lock()


@contextmanager
def held(model: Any) -> Iterator[None]:
    """Keep other threads out of a TransformerLens model while its hooks are ours.

    Hooks sit on the model itself, so a pass of one thread would be edited and read by the hooks of
    another. The lock belongs to the model, not to a view of it: every `Model` made from it, edited
    or not, waits for the others. A thread may enter again, as an edit does that asks its own model.
    Inside, a caller's ``torch.autocast`` has no effect.
    """
    # Two threads that meet at a new model must get one and the same lock.
    with _NEW_LOCK:
        lock = _LOCKS.setdefault(model, threading.RLock())
    # Under the caller's autocast masks overflow; who wants another dtype loads the model in it.
    with lock, torch.autocast(model_device(model).type, enabled=False):
        yield


def refuse_training(backend: Backend) -> None:
    """Let no pass begin in which dropout would go unseen.

    Raises:
        ModelError: When the model is in train mode.
    """
    if getattr(backend.model, "training", False):
        raise ModelError(
            "The model is in train mode, where dropout makes every pass different; "
            "call model.eval() on it first."
        )


def finite(values: Tensor, model: Any, what: str = "logits") -> Tensor:
    """Logits or states, handed back.

    Raises:
        ModelError: When a row of them is not a number or infinite; single logits may be minus
            infinity.
    """
    # The largest logit of a row is NaN as soon as one is, and no token is ruled out by it.
    top = values.detach().amax(-1) if what == "logits" else values.detach()
    if not bool(torch.isfinite(top).all()):
        raise ModelError(
            f"The model gives NaN or infinite {what}. Its weights hold such numbers, or "
            f"{model_dtype(model)} overflows: load it with dtype='float32' or 'bfloat16', and "
            "under an edit take a smaller strength."
        )
    return values


def additive_mask(sees: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to attention scores: 0 where a token sees a key, the lowest number else."""
    out = torch.zeros(sees.shape, dtype=dtype, device=sees.device)
    # Not minus infinity: softmax over a row that sees nothing would be NaN.
    return out.masked_fill_(~sees, torch.finfo(dtype).min)


_SAYINGS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_cpu")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an accelerator or the CPU's allocator ran out of memory."""
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    # The CPU allocator raises a plain RuntimeError and is known by its words only.
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _SAYINGS)
