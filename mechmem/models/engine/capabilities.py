"""What a model can do, tried once on random tokens and remembered as long as the model lives.

A model that fails a trial runs the plain way, so a trial may be strict.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from mechmem.errors import MechmemError, ModelError
from mechmem.models.architectures import architecture, keeps_all_keys
from mechmem.models.engine.attention import calls
from mechmem.models.engine.backends import (
    Backend,
    held,
    is_out_of_memory,
    model_device,
    refuse_training,
)
from mechmem.seeding import keyed_rng

T = TypeVar("T")

_KNOWN: WeakKeyDictionary[Backend, dict[Hashable, Any]] = WeakKeyDictionary()

FAILURES = (RuntimeError, TypeError, ValueError, AttributeError, IndexError, KeyError)
"""What models raise that cannot do what they are asked."""

_log = logging.getLogger(__name__)


def tried(backend: Backend, question: Hashable, test: Callable[[], T]) -> T:
    """The answer to a question about a model; the test runs at most once, without gradients and as
    if nobody had hooked the model.

    Raises:
        ModelError: In train mode, where nothing can be compared.
    """
    known = _KNOWN.setdefault(backend, {})
    if question not in known:
        refuse_training(backend)
        with held(backend.model), torch.no_grad(), without_hooks(backend.model):
            known[question] = test()
    return known[question]  # type: ignore[no-any-return]


def forget(backend: Backend) -> None:
    """Ask everything anew."""
    _KNOWN.pop(backend, None)


def holds(what: str, test: Callable[[], bool]) -> bool:
    """Whether a test passes; a model that raises does not. Running out of memory says nothing about
    the model, so it is raised.

    Args:
        what: For the log, at level INFO, where the answer is no.
    """
    try:
        good = test()
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        _log.info("%s: no, %s: %s", what, type(error).__name__, error)
        return False
    if not good:
        _log.info("%s: no, the numbers differ", what)
    return good


def check_runs(backend: Backend) -> None:
    """Let no work begin on a model that cannot run at all, or that a mask of ones misleads.

    Raises:
        ModelError: When a pass over a few tokens ends in an error of the libraries below, or gives
            other logits than the same pass without a mask.
    """

    def test() -> bool:
        ids = _random_ids(backend, "first pass", 1, 4)
        try:
            found, _ = backend.forward(ids, torch.ones_like(ids))
        except FAILURES as error:
            if is_out_of_memory(error) or isinstance(error, MechmemError):
                raise
            raise ModelError(
                f"This {type(backend.model).__name__} of {architecture(backend.model)} cannot run: "
                f"{type(error).__name__}: {str(error).rstrip('.')}. TransformerLens may "
                "not support this configuration of the architecture; try another version of it, "
                "or another model."
            ) from error
        if not _ones_change_nothing(backend, ids, found):
            raise ModelError(
                f"This {type(backend.model).__name__} of {architecture(backend.model)} gives other "
                "logits with an attention mask of ones than without one. TransformerLens does not "
                "support this configuration of the architecture; try another version of it, or "
                "another model."
            )
        return True

    tried(backend, "runs", test)


def _ones_change_nothing(backend: Backend, ids: Tensor, found: Tensor) -> bool:
    """Whether the logits are those of a pass without a mask, where such a pass can be made."""
    # What is not finite is refused by `finite` at the first use, which can say why.
    if backend.kind != "TransformerBridge" or not bool(torch.isfinite(found).all()):
        return True
    try:
        bare = backend.model(ids, return_type="logits", use_cache=False)
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        return True
    off, allowed = apart(found, bare)
    return off <= allowed


def choose_attention(backend: Backend) -> None:
    """From here on attention is done by the device's fused kernel, if on this model that gives what
    the bridge computes when it writes every pattern out."""
    if backend.kind == "TransformerBridge":
        backend.fuses = tried(
            backend, "fuses", lambda: holds("fused attention", lambda: _try_fusing(backend))
        )


def honors_padding(backend: Backend) -> bool:
    """Whether padding before a prompt leaves its logits as they are: RWKV reads it like any token,
    and some attention gives NaN for rows that begin with masked ones."""
    return tried(backend, "pads", lambda: holds("padding", lambda: _try_padding(backend)))


def cache_continues(backend: Backend) -> bool:
    """Whether text can be continued from what the model kept of it.

    Keys and values of every layer are enough wherever attention is all that connects tokens, so a
    cache that holds just these is believed. Recurrent and hybrid models keep states as well, and
    whether those survive the way through TransformerLens is tried.
    """

    def test() -> bool:
        if backend.kind != "TransformerBridge":
            return True
        layers = int(backend.model.cfg.n_layers)
        return holds("continuing text", lambda: _try_cache(backend, layers))

    return tried(backend, "caches", test)


def bytes_per_token(backend: Backend) -> int:
    """What the model keeps of a token: keys and values of all layers."""

    def test() -> int:
        ids, tokens = _random_ids(backend, "cache size", 1, 4), 4
        try:
            _, cache = backend.forward(ids, torch.ones_like(ids), use_cache=True, last_only=True)
        except FAILURES as error:
            if is_out_of_memory(error):
                raise
            cache = None
        layers = getattr(cache, "layers", None) or []
        parts = [getattr(layer, name, None) for layer in layers for name in ("keys", "values")]
        sizes = [part.nbytes for part in parts if isinstance(part, Tensor)]
        if sizes:
            return sum(sizes) // tokens
        cfg, size = backend.model.cfg, int(next(backend.model.parameters()).element_size())
        heads = int(getattr(cfg, "n_key_value_heads", None) or cfg.n_heads)
        return 2 * int(cfg.n_layers) * heads * int(cfg.d_head) * size

    return tried(backend, "bytes per token", test)


def _random_ids(backend: Backend, name: str, rows: int, tokens: int) -> Tensor:
    rng = keyed_rng(0, name)
    ids = rng.integers(0, int(backend.model.cfg.d_vocab), size=(rows, tokens))
    return torch.from_numpy(ids).to(model_device(backend.model))


def _try_fusing(backend: Backend) -> bool:
    """Two prompts, one of them padded and not, read at once and in three steps."""
    ids = _random_ids(backend, "attention check", 2, 12)
    padded = torch.ones_like(ids)
    padded[1, :3] = 0
    # A model that reads padding never gets any, and one that cannot continue never continues.
    masks = [torch.ones_like(ids), *([padded] if honors_padding(backend) else [])]
    # A beginning, several tokens behind it, and one: the three forms that a mask takes.
    steps = ((0, 7), (7, 11), (11, 12)) if cache_continues(backend) else ()

    def run() -> list[Tensor]:
        out = []
        for mask in masks:
            # What a model gives on padding is nobody's number.
            out.append(backend.forward(ids, mask)[0][mask.bool()])
            cache: object = None
            for start, end in steps:
                found, cache = backend.forward(
                    ids[:, start:end], mask[:, :end], cache=cache, use_cache=True
                )
                out.append(found[mask[:, start:end].bool()])
        return out

    backend.fuses = False
    plain, before = run(), calls()
    backend.fuses = True
    try:
        quick = run()
    finally:
        backend.fuses = False
    return calls() > before and all(map(same_logits, quick, plain))


def _try_padding(backend: Backend) -> bool:
    """A prompt beside a longer one, against the prompt alone."""
    ids = _random_ids(backend, "padding check", 2, 7)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    plain, _ = backend.forward(ids[1:, 3:], mask[1:, 3:])
    found, _ = backend.forward(ids, mask)
    return same_logits(found[1:, 3:], plain)


def _try_cache(backend: Backend, layers: int) -> bool:
    """A padded and an unpadded prompt, continued token by token, against whole passes."""
    ids = _random_ids(backend, "cache check", 2, 12)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    if not honors_padding(backend):
        ids, mask = ids[:1], mask[:1]
    cache: object = None
    for start, end in ((0, 7), *((k, k + 1) for k in range(7, 12))):
        found, cache = backend.forward(
            ids[:, start:end], mask[:, :end], cache=cache, use_cache=True, last_only=True
        )
        if not start and keeps_all_keys(cache, layers):
            return True
        plain, _ = backend.forward(ids[:, :end], mask[:, :end], last_only=True)
        if cache is None or not same_logits(found, plain):
            return False
    return True


def always_fails(run: Callable[[], object], error: Exception) -> bool:
    """Whether running again ends in the same error: only what is so of the model is a finding,
    not what befell one pass (memory, a device, an interruption)."""
    if is_out_of_memory(error) or isinstance(error, MechmemError):
        return False
    try:
        run()
    except type(error) as again:
        return str(again) == str(error)
    return False


def same_logits(found: Tensor, plain: Tensor) -> bool:
    """Whether ``[..., vocab]`` logits are equal up to rounding: 1e-4, or 16 units of it in half
    precision, of their distance from their mean, which large common parts do not count for."""
    allowed = max(1e-4, 16 * torch.finfo(plain.dtype).eps)
    want = plain.double() - plain.double().mean(-1, keepdim=True)
    got = found.double() - found.double().mean(-1, keepdim=True)
    return bool(((got - want).norm(dim=-1) <= allowed * want.norm(dim=-1)).all())


def apart(found: Tensor, plain: Tensor) -> tuple[float, float]:
    """How far ``[..., vocab]`` logits are from others, as a share of their size, and what rounding
    explains: less strict than `same_logits`, for a model is refused by it."""
    want, got = (x.double() - x.double().mean(-1, keepdim=True) for x in (plain, found.to(plain)))
    off = ((got - want).norm(dim=-1) / want.norm(dim=-1).clamp_min(1e-12)).flatten()
    eps = torch.finfo(plain.dtype).eps
    # TF32 keeps ten bits: 2**-6 is 16 units of its rounding, as for the other dtypes.
    tf32 = plain.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
    # Half precision sends single tokens of a mixture to other experts, so most tokens decide.
    share = off.median() if eps > 1e-6 else off.max()
    return float(share), max(1e-3, 16 * eps, 2**-6 if tf32 else 0.0)


@contextmanager
def without_hooks(model: nn.Module) -> Iterator[None]:
    """Run as if nobody had hooked the model: every hook but the libraries' own is set aside and
    put back untouched, so that neither side notices the other."""
    from transformer_lens.hook_points import HookPoint

    aside: list[tuple[nn.Module, str, Any]] = []
    try:
        for module in _modules(model):
            for kind in ("_forward_hooks", "_forward_pre_hooks"):
                hooks = getattr(module, kind)
                keep = {
                    key: hook
                    for key, hook in hooks.items()
                    if getattr(hook, "part_of_model", False)
                    # `add_hook` wraps a user's function in one of TransformerLens's, so at a hook
                    # point the home of a function does not say whose it is.
                    or (not isinstance(module, HookPoint) and _is_internal(hook))
                }
                if len(keep) < len(hooks):
                    aside.append((module, kind, hooks))
                    # A new dictionary: torch's handles go on pointing into the old one.
                    setattr(module, kind, type(hooks)(keep))
        yield
    finally:
        for module, kind, hooks in aside:
            # What the libraries added meanwhile (they wire some hooks at the first pass) stays.
            hooks.update(getattr(module, kind))
            setattr(module, kind, hooks)


def has_hooks(model: Any) -> bool:
    """Whether somebody other than the libraries themselves has hooked the model."""
    with held(model):  # the hooks of our own passes in other threads are nobody else's
        # Hook points by their own lists: what is registered there with torch is the wrapper.
        return any(
            not _is_internal(hook)
            for module in _modules(model)
            for hook in (*module._forward_hooks.values(), *module._forward_pre_hooks.values())
        ) or any(point.fwd_hooks for point in model.hook_dict.values())


def _modules(model: nn.Module) -> Iterator[nn.Module]:
    """All of the model's modules, those of the transformers model inside a bridge too: a bridge
    names that one beside its own modules, not among them."""
    seen = set()
    for root in (model, getattr(model, "original_model", None)):
        for module in root.modules() if isinstance(root, nn.Module) else ():
            if id(module) not in seen:
                seen.add(id(module))
                yield module


def _is_internal(hook: Any) -> bool:
    """Whether a hook belongs to the libraries themselves, or was put there by us for good."""
    home = str(getattr(hook, "__module__", "")).split(".")[0]
    libraries = ("transformer_lens", "transformers", "accelerate", "torch")
    return getattr(hook, "part_of_model", False) or home in libraries
