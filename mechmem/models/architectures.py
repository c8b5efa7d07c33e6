"""What is odd about some model families: all of it in this file, no other room knows a name.

The engine asks questions about lengths, caches and modules; it never asks for a family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from mechmem.models.sites import Site

# Where plain transformers models keep what writes into the stream, by the names in their state.
ATTENTION_WRITERS = (
    "self_attn.o_proj", "attn.c_proj", "attention.dense", "self_attn.dense", "attn.out_proj",
    "self_attn.out_proj", "attn.attention.out_proj",
)  # fmt: skip
MLP_WRITERS = ("mlp.down_proj", "mlp.c_proj", "mlp.dense_4h_to_h", "mlp.fc2", "mlp.fc_out", "fc2")
BLOCK_LISTS = ("model.layers", "transformer.h", "gpt_neox.layers", "model.decoder.layers")
POSITION_TABLES = ("transformer.wpe", "model.decoder.embed_positions")
NORMS_AFTER = {
    "attn_out": ("post_attention_layernorm",), "mlp_out": ("post_feedforward_layernorm",),
}  # fmt: skip

LengthClass = Callable[[int], int]
"""From the tokens of a text to a class; a model computes texts of one class by the same rule."""


def text_config(model: Any) -> Any:
    """The transformers configuration of the language model inside a bridge, or ``None``."""
    config: Any = getattr(getattr(model, "original_model", None), "config", None)
    if hasattr(config, "get_text_config"):
        config = config.get_text_config(decoder=True)
    return config


def architecture(model: Any) -> str:
    """The class of the transformers model inside, or TransformerLens's own name for it."""
    cfg = model.cfg
    return str(
        getattr(cfg, "architecture", None)
        or getattr(cfg, "original_architecture", None)
        or type(model).__name__
    )


_LENGTHS = (
    "n_positions n_ctx max_position_embeddings max_sequence_length max_seq_len seq_length "
    "context_length"
).split()


def context_length(model: Any) -> int | None:
    """Most tokens that a model reads; ``None`` for models without positions that could run out
    (BLOOM, Mamba), to which TransformerLens gives 2,048."""
    config = text_config(model)
    if config is not None and not any(getattr(config, name, None) for name in _LENGTHS):
        return None
    return int(getattr(model.cfg, "n_ctx", 0) or 0) or None


def length_class(model: Any) -> LengthClass:
    """How a model's positions depend on how long the text is.

    LongRoPE (Phi-3-128k, Phi-3.5, Phi-4-mini) turns keys and queries by other angles as soon as the
    longest row of a pass has more tokens than the model was first trained on. So rows of both sides
    of that length cannot stand in one pass, and keys that were made on one side are of no use on
    the other. All other families have one class.
    """
    limits = sorted({limit for rope in _ropes(text_config(model)) for limit in _switches(rope)})
    return lambda length: sum(length > limit for limit in limits)


def _ropes(config: Any) -> Iterator[Mapping[str, Any]]:
    """Every description of rotary positions in a configuration, one per kind of layer or one."""
    for name in ("rope_parameters", "rope_scaling"):
        found = getattr(config, name, None)
        for rope in (found, *(found.values() if isinstance(found, Mapping) else ())):
            if isinstance(rope, Mapping):
                outer = getattr(config, "original_max_position_embeddings", None)
                yield {"original_max_position_embeddings": outer, **rope}


def _switches(rope: Mapping[str, Any]) -> Iterator[int]:
    kind = str(rope.get("rope_type") or rope.get("type") or "")
    limit = rope.get("original_max_position_embeddings")
    if kind in ("longrope", "su") and limit:  # "su" is what Phi-3's first configurations call it
        yield int(limit)


def keeps_all_keys(cache: Any, layers: int) -> bool:
    """Whether a cache that a model has filled holds keys and values of every layer and nothing
    else. Recurrent and hybrid models (Mamba, RWKV, RecurrentGemma, Jamba, LFM2, Qwen3-Next, ...)
    also carry states: in layers of another kind, in a cache of their own, or inside their modules.
    """
    known = (DynamicLayer, DynamicSlidingWindowLayer)
    found = getattr(cache, "layers", None) or ()
    return len(found) == layers and all(
        type(layer) in known and layer.keys is not None for layer in found
    )


def attends_to_all(model: Any, tokens: int) -> bool:
    """Whether attention of every layer reaches back over this many tokens."""
    config = text_config(model)
    if config is None:
        return False
    kinds = getattr(config, "layer_types", None)
    # Layers that carry a state, or attend within chunks.
    if kinds is not None and not set(kinds) <= {"full_attention", "sliding_attention"}:
        return False
    window = getattr(config, "sliding_window", None)
    if "local" in getattr(config, "attention_layers", ()):  # GPT-Neo's words
        window = config.window_size
    # Qwen 2 names it without using it.
    slides = getattr(config, "use_sliding_window", True) is not False
    if kinds is not None:
        slides = "sliding_attention" in kinds
    if getattr(config, "attention_chunk_size", None) is not None:  # Llama 4
        return False
    return not slides or window is None or int(window) >= tokens


Map = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BlockModules:
    """One block.

    Attributes:
        block: The block; its input is the residual stream.
        parallel: Attention and MLP both read the block's input.
        attn_reader: Whose input is what the attention branch reads; ``None`` when unknown.
        mlp_reader: Whose input is what the MLP branch reads; ``None`` when unknown.
        attn_write: From ``z`` to ``attn_out``: output projection and post-norm.
        mlp_write: From ``mlp_post`` to ``mlp_out``: output projection and post-norm.
        mlp_branch: From ``resid_mid`` to ``mlp_out``, norms included.
        attn_norm, mlp_norm: The norm between a branch's module and the stream; ``None`` without.
    """

    block: nn.Module
    parallel: bool
    attn_reader: nn.Module | None
    mlp_reader: nn.Module | None
    attn_write: Map | None
    mlp_write: Map | None
    mlp_branch: Map | None
    attn_norm: Map | None = None
    mlp_norm: Map | None = None


def module_outputs(backend: Any) -> list[Site]:
    """Where the modules of both branches of every block hand over: ``attn_out`` and ``mlp_out``,
    or, where a norm follows the module, the place before it."""
    out = []
    for layer, block in enumerate(block_modules(backend)):
        out.append(Site("attn_out" if block.attn_norm is None else "attn_module", layer))
        out.append(Site("mlp_out" if block.mlp_norm is None else "mlp_module", layer))
    return out


def block_modules(backend: Any) -> list[BlockModules]:
    """Every block of the model, in order."""
    describe = _of_bridge if backend.kind == "TransformerBridge" else _of_hooked
    return [describe(backend.model.cfg, block) for block in backend.model.blocks]


def end_of_blocks(backend: Any) -> list[nn.Module]:
    """Modules whose input may be the residual stream after the last block, best first."""
    found = (getattr(backend.model, name, None) for name in ("ln_final", "unembed"))
    return [module for module in found if isinstance(module, nn.Module)]


@contextmanager
def module_inputs(
    backend: Any, listeners: list[tuple[nn.Module, Callable[[Tensor], None]]]
) -> Iterator[None]:
    """Tell each listener its module's first floating input, by torch's own hooks."""
    with ExitStack() as stack:
        for module, tell in listeners:
            hook = _telling(backend, tell)
            handle = module.register_forward_pre_hook(hook, with_kwargs=True)
            stack.callback(handle.remove)
        yield


def _telling(backend: Any, tell: Callable[[Tensor], None]) -> Callable[[nn.Module, Any, Any], None]:
    def hear(module: nn.Module, args: Any, kwargs: Any) -> None:
        for value in (*args, *kwargs.values()):
            if isinstance(value, Tensor) and value.is_floating_point():
                tell(by_row(value.detach(), backend.shape))
                return

    return hear


def _of_bridge(cfg: Any, block: Any) -> BlockModules:
    parts = dict(getattr(block, "submodules", {}))
    attn, mlp = parts.get("attn"), parts.get("mlp")
    parallel = bool(getattr(cfg, "parallel_attn_mlp", False)) or "Parallel" in type(block).__name__
    # TransformerLens 3.9 calls the norms after the branches ln1 and ln2 where none come before.
    renamed = getattr(block, "mlp_reads_resid_directly", False) and "ln2_post" not in parts
    before = {} if renamed else {name: parts[name] for name in ("ln1", "ln2") if name in parts}
    after = ("ln1", "ln2") if renamed else ("ln1_post", "ln2_post")
    return BlockModules(
        block,
        parallel,
        before.get("ln1", attn),
        before.get("ln2", None if parallel else mlp),
        _chain(_part(attn, "o"), parts.get(after[0])),
        _chain(_part(mlp, "out"), parts.get(after[1])),
        _branch(before.get("ln2"), mlp, parts.get(after[1])),
        parts.get(after[0]),
        parts.get(after[1]),
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


def _of_hooked(cfg: Any, block: Any) -> BlockModules:
    after = _norms_after(cfg)
    mlp = getattr(block, "mlp", None)
    return BlockModules(
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
        block.ln1 if after else getattr(block, "ln1_post", None),
        getattr(block, "ln2", None) if after else getattr(block, "ln2_post", None),
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


def by_row(value: Tensor, shape: tuple[int, ...]) -> Tensor:
    """``[row, token, ...]``, also where a module was handed rows and tokens as one axis (OPT's and
    some mixtures' MLPs)."""
    flat = value.dim() > 1 and tuple(value.shape[:2]) != shape and len(shape) == 2
    if flat and value.shape[0] == shape[0] * shape[1]:
        return value.reshape(*shape, *value.shape[1:])
    return value


def forget_patterns(bridge: Any) -> None:
    """Drop every layer's last attention pattern, which bridges of fused attention (GPT-2, NeoX,
    Phi-3) keep alive, graph included."""
    for block in bridge.blocks:
        attention = getattr(block, "attn", None)
        if attention is not None and getattr(attention, "_pattern", None) is not None:
            attention._pattern = None


def mend_rotation(bridge: Any) -> None:
    """Keep the weights' dtype through rotary embeddings.

    OLMo 2 rotates in float32 and casts back; TransformerLens (3.9 to 4.3 at least) does not cast
    back, and then a bfloat16 model cannot run at all.
    """
    dtype = next(bridge.parameters()).dtype

    def cast(module: nn.Module, args: Any, out: Tensor) -> Tensor | None:
        return None if out.dtype == dtype else out.to(dtype)

    cast.part_of_model = True  # type: ignore[attr-defined]
    for block in bridge.blocks if dtype != torch.float32 else ():
        for name in ("hook_rot_q", "hook_rot_k"):
            point = getattr(getattr(block, "attn", None), name, None)
            if isinstance(point, nn.Module):
                point.register_forward_hook(cast)


def plain_name(name: str) -> str:
    """A weight's name in the plain model, from its name under a bridge, which wraps modules."""
    return name.replace("._original_component", "")


def embedding_scale(plain: Any, d_model: int) -> float:
    """What a plain model multiplies token embeddings with: Gemma by the root of its width, OPT and
    others by what the embedding says."""
    scale = getattr(plain.get_input_embeddings(), "embed_scale", None)
    scale = 1.0 if scale is None else float(scale)
    return float(d_model) ** 0.5 if "Gemma" in type(plain).__name__ and scale == 1.0 else scale
