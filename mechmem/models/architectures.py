"""What is odd about some model families: all of it in this file, no other room knows a name.

The engine asks questions about lengths, caches and modules; it never asks for a family.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

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
