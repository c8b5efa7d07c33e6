"""Where a model's own modules are: the ground truth that hook points are checked against."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from mechmem.models.engine.backends import Backend, by_row, held

__all__ = [
    "Anatomy",
    "anatomy",
    "end_of_blocks",
    "has_hooks",
    "overheard",
    "without_hooks",
]

Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Anatomy:
    """One block.

    Attributes:
        block: The block; its input is the residual stream.
        parallel: Attention and MLP both read the block's input.
        attn_reader: Whose input is what the attention branch reads; ``None`` when unknown.
        mlp_reader: Whose input is what the MLP branch reads; ``None`` when unknown.
        attn_write: From ``z`` to ``attn_out``: output projection and post-norm.
        mlp_write: From ``mlp_post`` to ``mlp_out``: output projection and post-norm.
        mlp_branch: From ``resid_mid`` to ``mlp_out``, norms included.
    """

    block: nn.Module
    parallel: bool
    attn_reader: nn.Module | None
    mlp_reader: nn.Module | None
    attn_write: Map | None
    mlp_write: Map | None
    mlp_branch: Map | None


def anatomy(backend: Backend) -> list[Anatomy]:
    """Every block of the model, in order."""
    describe = _of_bridge if backend.kind == "TransformerBridge" else _of_hooked
    return [describe(backend.model.cfg, block) for block in backend.model.blocks]


def end_of_blocks(backend: Backend) -> list[nn.Module]:
    """Modules whose input may be the residual stream after the last block, best first."""
    found = (getattr(backend.model, name, None) for name in ("ln_final", "unembed"))
    return [module for module in found if isinstance(module, nn.Module)]


@contextmanager
def overheard(
    backend: Backend, listeners: list[tuple[nn.Module, Callable[[Tensor], None]]]
) -> Iterator[None]:
    """Tell each listener its module's first floating input, by torch's own hooks."""
    with ExitStack() as stack:
        for module, tell in listeners:
            hook = _telling(backend, tell)
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


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
                    or (not isinstance(module, HookPoint) and _is_internal(hook))
                }
                if len(keep) < len(hooks):
                    aside.append((module, kind, hooks))
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


def _telling(
    backend: Backend, tell: Callable[[Tensor], None]
) -> Callable[[nn.Module, Any, Any], None]:
    def hear(module: nn.Module, args: Any, kwargs: Any) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.is_floating_point():
                tell(by_row(value.detach(), backend.shape))
                return

    return hear


def _of_bridge(cfg: Any, block: Any) -> Anatomy:
    parts = dict(getattr(block, "submodules", {}))
    attn, mlp = parts.get("attn"), parts.get("mlp")
    parallel = bool(getattr(cfg, "parallel_attn_mlp", False)) or "Parallel" in type(block).__name__
    # TransformerLens 3.9 calls the norms after the branches ln1 and ln2 where none come before.
    renamed = getattr(block, "mlp_reads_resid_directly", False) and "ln2_post" not in parts
    before = {} if renamed else {name: parts[name] for name in ("ln1", "ln2") if name in parts}
    after = ("ln1", "ln2") if renamed else ("ln1_post", "ln2_post")
    return Anatomy(
        block,
        parallel,
        before.get("ln1", attn),
        before.get("ln2", None if parallel else mlp),
        _chain(_part(attn, "o"), parts.get(after[0])),
        _chain(_part(mlp, "out"), parts.get(after[1])),
        _branch(before.get("ln2"), mlp, parts.get(after[1])),
    )


def _part(module: Any, name: str) -> Any:
    return dict(getattr(module, "submodules", {})).get(name)


def _chain(projection: Any, norm: Any) -> Map | None:
    if projection is None:
        return None

    def write(value: Tensor) -> Tensor:
        out: Tensor = projection(value.flatten(2))
        return out if norm is None else _tensor(norm(out))

    return write


def _branch(norm: Any, mlp: Any, norm_after: Any) -> Map | None:
    if mlp is None:
        return None

    def run(value: Tensor) -> Tensor:
        out = mlp(value if norm is None else norm(value))
        out = out[0] if isinstance(out, tuple) else out
        out = by_row(_tensor(out), tuple(value.shape[:2]))
        return _tensor(out if norm_after is None else norm_after(out))

    return run


def _tensor(value: Any) -> Tensor:
    assert isinstance(value, Tensor)
    return value


def _of_hooked(cfg: Any, block: Any) -> Anatomy:
    after = _norms_after(cfg)
    mlp = getattr(block, "mlp", None)
    return Anatomy(
        block,
        bool(cfg.parallel_attn_mlp),
        block.attn if after else block.ln1,
        mlp if after else getattr(block, "ln2", None),
        _hooked_write(block.attn, "W_O", "b_O", getattr(block, "ln1_post", None), block.ln1, after),
        None
        if mlp is None or not hasattr(mlp, "W_out")
        else _hooked_write(
            mlp, "W_out", "b_out", getattr(block, "ln2_post", None), block.ln2, after
        ),
        None if mlp is None else _branch(None if after else block.ln2, block.apply_mlp, None),
    )


def _norms_after(cfg: Any) -> bool:
    """Whether the block's norms follow its branches, as in OLMo 2."""
    try:
        from transformer_lens.utilities.architectures import POST_NORM_ARCHITECTURES
    except ImportError:
        return False
    return getattr(cfg, "original_architecture", None) in POST_NORM_ARCHITECTURES


def _hooked_write(
    module: Any, weight: str, bias: str, norm: Any, own_norm: Any, after: bool
) -> Map:
    def write(value: Tensor) -> Tensor:
        matrix = getattr(module, weight)
        out = F.linear(
            value.flatten(2), matrix.reshape(-1, matrix.shape[-1]).T, getattr(module, bias)
        )
        out = out if norm is None else norm(out)
        result: Tensor = own_norm(out) if after else out
        return result

    return write
