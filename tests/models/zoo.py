"""Tiny random models of every family that is checked, and a tokenizer, built without the hub."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

__all__ = ["CAPPED", "FAMILIES", "SLIDING", "VOCAB", "WINDOW", "build", "tokenizer"]

VOCAB = 64
WINDOW = 6
"""Sliding window of the families that have one: prompts of the tests are longer."""

_SHAPE = {
    "num_hidden_layers": 2,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": VOCAB,
    "max_position_embeddings": 48,
    "pad_token_id": 1,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
_NO_GROUPS = {key: value for key, value in _SHAPE.items() if key != "num_key_value_heads"}

FAMILIES: dict[str, Callable[[], Any]] = {
    "gpt2": lambda: GPT2Config(
        n_layer=2,
        n_embd=32,
        n_head=4,
        vocab_size=VOCAB,
        n_positions=48,
        bos_token_id=2,
        eos_token_id=3,
    ),
    "gpt_neox": lambda: GPTNeoXConfig(**_NO_GROUPS),
    "llama": lambda: LlamaConfig(**_SHAPE),
    "mistral": lambda: MistralConfig(**_SHAPE, sliding_window=WINDOW),
    "gemma2": lambda: Gemma2Config(**_SHAPE, head_dim=8, sliding_window=WINDOW),
    "gemma3": lambda: Gemma3TextConfig(
        **_SHAPE,
        head_dim=8,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "qwen2": lambda: Qwen2Config(**_SHAPE),
    "qwen3": lambda: Qwen3Config(**_SHAPE, head_dim=8),
    "olmo2": lambda: Olmo2Config(**_SHAPE),
    "phi3": lambda: Phi3Config(**_SHAPE),
}
SLIDING = ("mistral", "gemma2", "gemma3")
CAPPED = ("gemma2",)
"""Their scores go through a tanh, which no fused kernel does, transformers' neither."""


def build(family: str, dtype: torch.dtype = torch.float32, seed: int = 0) -> Any:
    """A plain ``transformers`` model of the family, eager attention, evaluation mode.

    Every weight is drawn anew, norms and biases too, so that none of them is a silent identity.
    """
    config = FAMILIES[family]()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim == 1:
                    parameter.add_(0.2 * torch.randn_like(parameter))
                else:
                    parameter.copy_(torch.randn_like(parameter) * 0.6 / parameter.shape[-1] ** 0.5)
    return model.to(dtype).eval()


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Numbers are words; no BOS is added by itself."""
    words = {"<unk>": 0, "<pad>": 1, "<bos>": 2, "<eos>": 3}
    words |= {str(number): number + 4 for number in range(VOCAB - 4)}
    core = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
    )
