"""`HookedTransformer` models of TransformerLens 3.9 from the plain models of the zoo.

3.9 finds its configurations by hub name, so they are written out here; the weights go through its
own conversion.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import torch
from models.zoo import VOCAB, WINDOW, build

try:
    from transformer_lens import HookedTransformer
    from transformer_lens.config.hooked_transformer_config import HookedTransformerConfig
except ImportError:  # TransformerLens 4
    HookedTransformer = None

__all__ = ["HAS_HOOKED_TRANSFORMER", "HOOKED_FAMILIES", "hooked_from", "hooked_transformer"]

HAS_HOOKED_TRANSFORMER = HookedTransformer is not None

_ALL = {
    "d_model": 32, "n_heads": 4, "d_head": 8, "n_layers": 2, "n_ctx": 48, "d_vocab": VOCAB,
    "init_weights": False, "device": "cpu", "use_attn_scale": True,
}  # fmt: skip
_ROTARY = {
    "d_mlp": 48, "eps": 1e-6, "normalization_type": "RMS", "final_rms": True, "gated_mlp": True,
    "positional_embedding_type": "rotary", "rotary_adjacent_pairs": False, "rotary_dim": 8,
    "rotary_base": 10000, "act_fn": "silu", "n_key_value_heads": 2,
}  # fmt: skip

HOOKED_FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("gpt2", {
        "d_mlp": 128, "eps": 1e-5, "act_fn": "gelu_new", "normalization_type": "LN",
        "original_architecture": "GPT2LMHeadModel",
    }),
    "gpt_neox": ("neox", {
        "d_mlp": 48, "eps": 1e-5, "act_fn": "gelu", "normalization_type": "LN",
        "parallel_attn_mlp": True, "positional_embedding_type": "rotary",
        "rotary_adjacent_pairs": False, "rotary_dim": 2,
        "original_architecture": "GPTNeoXForCausalLM",
    }),
    "llama": ("llama", {**_ROTARY, "original_architecture": "LlamaForCausalLM"}),
    "mistral": ("mistral", {
        **_ROTARY, "window_size": WINDOW, "attn_types": ["local"] * 2, "use_local_attn": True,
        "original_architecture": "MistralForCausalLM",
    }),
    "qwen2": ("qwen2", {**_ROTARY, "original_architecture": "Qwen2ForCausalLM"}),
    "gemma2": ("gemma", {
        **_ROTARY, "act_fn": "gelu_pytorch_tanh", "window_size": WINDOW, "use_local_attn": True,
        "attn_types": ["local", "global"], "use_normalization_before_and_after": True,
        "attn_scale": 16.0, "attn_scores_soft_cap": 50.0, "output_logits_soft_cap": 30.0,
        "original_architecture": "Gemma2ForCausalLM",
    }),
}  # fmt: skip


def hooked_transformer(
    family: str, dtype: torch.dtype = torch.float32, *, processed: bool = False
) -> Any:
    """The zoo's model of a family as a `HookedTransformer`, raw or with TransformerLens's default
    processing (LayerNorm folded, writing weights and unembedding centered, value biases folded)."""
    module, settings = HOOKED_FAMILIES[family]
    convert = getattr(
        importlib.import_module("transformer_lens.pretrained.weight_conversions"),
        f"convert_{module}_weights",
    )
    settings = dict(settings)
    if processed and settings["normalization_type"] in ("LN", "RMS"):
        settings["normalization_type"] += "Pre"
    cfg = HookedTransformerConfig(**_ALL, **settings, dtype=dtype)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(cfg)
    model.load_and_process_state_dict(
        convert(build(family, dtype), cfg),
        fold_ln=processed,
        center_writing_weights=processed,
        center_unembed=processed,
        fold_value_biases=processed,
    )
    return model.eval()


def hooked_from(hf: Any, family: str) -> Any:
    """A raw `HookedTransformer` with the weights of a tiny GPT-2 or Llama of any size."""
    module, settings = HOOKED_FAMILIES[family]
    convert = getattr(
        importlib.import_module("transformer_lens.pretrained.weight_conversions"),
        f"convert_{module}_weights",
    )
    config = hf.config
    heads = config.num_attention_heads
    sizes = {
        "d_model": config.hidden_size,
        "n_heads": heads,
        "d_head": config.hidden_size // heads,
        "n_layers": config.num_hidden_layers,
        "n_ctx": config.max_position_embeddings,
        "d_vocab": config.vocab_size,
        "d_mlp": getattr(config, "intermediate_size", None) or 4 * config.hidden_size,
    }
    if family == "llama":
        sizes["rotary_dim"] = sizes["d_head"]
    cfg = HookedTransformerConfig(**{**_ALL, **settings, **sizes})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model = HookedTransformer(cfg)
    model.load_and_process_state_dict(
        convert(hf, cfg),
        fold_ln=False,
        center_writing_weights=False,
        center_unembed=False,
        fold_value_biases=False,
    )
    return model.eval()
