"""Whether TransformerLens computes what transformers does, tried once before a model is used."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor

from mechmem.errors import ModelError
from mechmem.models.architectures import text_config
from mechmem.models.engine.backends import backend_for, held, is_out_of_memory, model_device
from mechmem.models.engine.capabilities import FAILURES, apart, without_hooks
from mechmem.seeding import caller_state_kept, keyed_rng

_TOKENS = 8
_USUAL = {"_attn_implementation_internal": "sdpa", "_output_attentions": False}

Sample = tuple[Tensor, Tensor]
"""Random ids, and the plain model's logits of every one of them."""


def sampled(plain: Any, *, usual: bool = False) -> Sample | None:
    """What a plain ``transformers`` model says on a few random tokens; ``None`` where it cannot run
    or gives NaN, of which later checks have more to say.

    Args:
        plain: In evaluation mode.
        usual: With the attention that transformers takes by itself, not the one it was loaded with.
    """
    try:
        vocabulary = int(plain.get_input_embeddings().weight.shape[0])
        ids = torch.from_numpy(keyed_rng(0, "faithful").integers(0, vocabulary, (1, _TOKENS)))
        ids = ids.to(model_device(plain))
        attends = _usual_attention(plain) if usual else nullcontext()
        with held(plain), torch.no_grad(), without_hooks(plain), attends:
            logits = plain(ids, use_cache=False).logits.detach().clone()
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        return None
    return (ids, logits) if bool(torch.isfinite(logits).all()) else None


@contextmanager
def _usual_attention(plain: Any) -> Iterator[None]:
    """TransformerLens loads with eager attention, which gives other numbers for some (ALiBi in
    Falcon)."""
    whole = plain.config
    text = whole.get_text_config(decoder=True) if hasattr(whole, "get_text_config") else whole
    configs = [whole, text] if getattr(plain, "_supports_sdpa", False) else []
    before = [{name: getattr(config, name, None) for name in _USUAL} for config in configs]
    try:
        for config in configs:
            config.__dict__.update(_USUAL)
        yield
    finally:
        for config, values in zip(configs, before, strict=True):
            config.__dict__.update(values)


def check_faithful(bridge: Any, sample: Sample | None, name: str) -> None:
    """Compare the model under TransformerLens with what it said before.

    Raises:
        ModelError: When the logits differ by more than rounding.
    """
    if sample is None:
        return
    ids, plain = sample
    try:
        with held(bridge), torch.no_grad(), without_hooks(bridge):
            here = ids.to(model_device(bridge))
            found, _ = backend_for(bridge).forward(here, torch.ones_like(here))
    except FAILURES as error:
        if is_out_of_memory(error):
            raise
        return  # it cannot run; the first pass says so
    off, allowed = apart(found, plain)
    if math.isnan(off):
        raise ModelError(
            f"{name} computes numbers that are not finite: some of its weights are NaN or "
            "infinite. Save the model again, or give other files."
        )
    if not off <= allowed:
        raise ModelError(
            f"TransformerLens {version('transformer-lens')} does not compute {name} as "
            f"transformers does: on {_TOKENS} random tokens the logits differ by {off:.2g} of "
            f"their size, and rounding would be below {allowed:.2g}. It does not support this "
            "configuration of the architecture; try another version of it, or another model."
        )


_HIDDEN = {
    "falcon": {
        "hidden_size": 64, "num_attention_heads": 4, "num_kv_heads": 4, "ffn_hidden_size": 256,
        "num_hidden_layers": 2,
    },
    "openai-gpt": {"n_embd": 64, "n_head": 4, "n_layer": 2},
}  # fmt: skip
"""Kinds of models that TransformerLens computes wrongly by less than half precision may be off (3 %
of the logits; bfloat16 12 %), and sizes of a small one. Falcon only with ALiBi."""


def small_of_its_kind(bridge: Any) -> Any:
    """A small float32 model of the same kind, to be compared in its place: where half precision is
    so coarse that it hides what float32 shows to be wrong. ``None`` for every other model."""
    config = text_config(bridge)
    kind = getattr(config, "model_type", "")
    half = next(bridge.parameters()).dtype not in (torch.float32, torch.float64)
    if not half or kind not in _HIDDEN or not getattr(config, "alibi", True):
        return None
    own = {**config.to_diff_dict(), **_HIDDEN[kind], "output_attentions": False}
    with caller_state_kept():
        torch.manual_seed(0)  # transformers draws new weights from torch's own generator
        plain: Any = type(bridge.original_model)
        usual = {"attn_implementation": "sdpa"} if plain._supports_sdpa else {}
        made = plain._from_config(type(config)(**own), **usual)
        return made.float().eval()
