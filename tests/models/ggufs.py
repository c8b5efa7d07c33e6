"""Small GGUF files, written with llama.cpp's own package from plain models."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import gguf
import numpy as np

LETTERS = "abcdefghijklmnopqrstuvwxyz"
WORDS = ["<pad>", "<s>", "</s>", *(f"\u0120{x}" for x in LETTERS), *LETTERS, "\u0120"]
WORDS += [f"<{n}>" for n in range(len(WORDS), 64)]


def write_gguf(
    model: Any,
    file: Path,
    *,
    kind: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F32,
    architecture: str = "qwen2",
    leave_out: tuple[str, ...] = (),
    **changes: int,
) -> dict[str, np.ndarray]:
    """Write a Qwen 2 model; the weights as they are stored, unpacked again by llama.cpp's rule.

    Args:
        changes: Sizes in its header that the model has not.
    """
    config = copy.deepcopy(model.config)
    for key, value in changes.items():
        setattr(config, key, value)
    writer = gguf.GGUFWriter(file, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("qwen2")
    writer.add_token_list(WORDS)
    writer.add_token_types([3, 3, 3] + [1] * (len(WORDS) - 3))
    writer.add_token_merges([f"\u0120 {letter}" for letter in LETTERS])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_pad_token_id(0)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.QWEN2, model.config.num_hidden_layers)
    stored = {}
    for name, value in model.state_dict().items():
        if name in leave_out:
            continue
        weights = value.float().numpy()
        packed = gguf.quants.quantize(weights, kind) if weights.ndim == 2 else weights
        stored[name] = gguf.quants.dequantize(packed, kind) if weights.ndim == 2 else weights
        target = names.get_name(name, try_suffixes=(".weight", ".bias"))
        writer.add_tensor(target, packed, raw_dtype=kind if weights.ndim == 2 else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored
