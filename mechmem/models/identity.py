"""Which model this is: a hash of every weight, and a glance that shows whether it changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.utils import align_module_device
from torch import Tensor, nn

_WORDS = 2048
"""Columns of the table that the words of a tensor are laid out in, to be summed."""
_ROWS = 512
"""Rows of it that are summed at a time."""
_FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9

_BY_LENGTH = ("dynamic", "longrope")
"""Kinds of rotation whose frequencies depend on the longest prompt so far."""

_SETTINGS = (
    "activation activation_function alibi apply_residual_connection_post_layernorm "
    "attention_chunk_size attention_layers attention_multiplier attn_logit_softcapping attn_scale "
    "attn_temperature_tuning clip_qkv embedding_multiplier final_logit_softcapping floor_scale "
    "head_dim hidden_act hidden_activation layer_norm_eps layer_norm_epsilon layer_types "
    "logit_scale logits_scaling max_window_layers multi_query n_group n_head "
    "new_decoder_architecture no_rope_layers norm_eps norm_topk_prob num_attention_heads "
    "num_experts_per_tok num_key_value_heads parallel_attn partial_rotary_factor "
    "query_pre_attn_scalar residual_multiplier rms_norm_eps rope_interleave rope_parameters "
    "rope_theta routed_scaling_factor scale_attn_by_inverse_layer_idx scale_attn_weights "
    "scale_embedding sliding_window time_step_limit topk_group use_parallel_residual use_qk_norm "
    "use_sliding_window window_size"
).split()
"""Of a configuration: what is computed with the weights, and leaves no mark on them."""


class Identity:
    """The fingerprint of a TransformerLens model, and whether it is still the same model.

    Args:
        model: The TransformerLens model.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self._places: dict[tuple[str, torch.Size], Tensor] = {}
        self._known: tuple[Any, str] | None = None
        self._held: str | None = None

    @contextmanager
    def held(self, processing: str) -> Iterator[None]:
        """Inside, the model is looked at once: for many checks with nothing run in between."""
        outer = self._held
        self._held = self.fingerprint(processing)
        try:
            yield
        finally:
            self._held = outer

    def fingerprint(self, processing: str, anew: bool = False) -> str:
        """A hash of the name, shape, dtype and every value of all weights and of the buffers that
        they are used with (rotation, scale of the embedding), of `processing` and of the settings
        that say what is computed with them.

        Integers are summed, so that a model has one fingerprint on every device and however it is
        placed. Some 3 GB a second on one core; asked for again, it takes a glance only, 1 ms for a
        lab model and 17 ms for one of 135 million weights, unless it shall be read ``anew``.
        """
        if self._held is not None:
            return self._held
        glance = self._glance(processing)
        if anew or self._known is None or self._known[0] != glance:
            digest = hashlib.sha256(f"{processing} {self._settings()}".encode())
            for name, value in sorted(_weights(self.model), key=lambda item: item[0]):
                told = f"{name}:{tuple(value.shape)}:{value.dtype}:{_sum(value)};"
                digest.update(told.encode())
            self._known = glance, digest.hexdigest()[:16]
        return self._known[1]

    def _glance(self, processing: str) -> tuple[Any, ...]:
        """What differs after a change of weights: a draw of values that meets every row and every
        column of every matrix, and where and how often PyTorch knows them to have been written.

        A change of a few single weights through ``.data`` may escape it, and weights that are
        offloaded to disk are not looked at.
        """
        seen: list[Any] = [processing, self._settings()]
        drawn: dict[Any, list[Tensor]] = {}
        for name, value in _tensors(self.model):
            version = 0 if value.is_inference() else value._version
            seen.append((name, value.data_ptr(), version, value.dtype, value.shape))
            if value.device.type != "meta" and value.numel():
                flat = value.detach().reshape(-1)
                drawn.setdefault((value.dtype, value.device), []).append(
                    flat[self._drawn(name, value)]
                )
        seen += [hashlib.sha256(_bytes(torch.cat(part))).digest() for part in drawn.values()]
        return tuple(seen)

    def _drawn(self, name: str, value: Tensor) -> Tensor:
        """Where a tensor is looked at; every matrix of a stack of them in all rows and columns."""
        key = name, value.shape
        if key not in self._places or self._places[key].device != value.device:
            self._places[key] = _places(name, value.shape).to(value.device)
        return self._places[key]

    def _settings(self) -> str:
        source = getattr(self.model, "original_model", None)
        config = getattr(source, "config", None) or self.model.cfg
        config = getattr(config, "get_text_config", lambda: config)()
        known = {name: getattr(config, name, None) for name in _SETTINGS}
        known = {name: value for name, value in known.items() if value is not None}
        return json.dumps(known, default=str, sort_keys=True)


def settle_weights(model: Any) -> None:
    """Have done now what a first pass does to weights for good: RWKV divides those of its later
    blocks in place. So the weights that are hashed are those that are run."""
    plain = getattr(model, "original_model", None)
    for module in (model if plain is None else plain).modules():
        divide = getattr(module, "_rescale_layers", None)
        if callable(divide) and not module.training:
            divide()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Every weight where it is, and what `_buffers` says."""
    done = set()
    for prefix, module in model.named_modules():
        for name, value in (*module._parameters.items(), *_buffers(module)):
            if value is not None and id(value) not in done:
                done.add(id(value))
                yield f"{prefix}.{name}", value


def _weights(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """The same, also where a weight is kept aside until its module is run."""
    done = set()
    for prefix, module in model.named_modules():
        own = dict(module.named_parameters(recurse=False))
        if any(value.device.type == "meta" for value in own.values()):
            with align_module_device(module, "cpu"):
                own = {n: p.detach().clone() for n, p in module.named_parameters(recurse=False)}
        for name, value in (*own.items(), *_buffers(module)):
            full = f"{prefix}.{name}"
            if id(value) not in done:
                yield full, value
            done.add(id(value))


def _buffers(module: nn.Module) -> list[tuple[str, Tensor]]:
    """Numbers of a module that a pass is computed with beside its weights; not masks, and nothing
    that a pass itself writes: tables that grow with it, frequencies set by a prompt's length."""
    if not module._buffers:
        return []
    by_length = any(word in str(getattr(module, "rope_type", "")) for word in _BY_LENGTH)
    return [
        (name, value)
        for name, value in module._buffers.items()
        if value is not None
        and value.is_floating_point()
        and value.device.type != "meta"
        and not name.endswith("_cached")
        and not (by_length and name.endswith("inv_freq") and "original" not in name)
    ]


def _sum(value: Tensor) -> int:
    """A sum of all words of a tensor, each times a number of its row and one of its column, modulo
    2**64: any change that is not made to fit these numbers changes it."""
    words = _bits(value.detach())
    if words.device.type not in ("cpu", "cuda"):
        words = words.cpu()
    rest = -len(words) % _WORDS
    table = (nn.functional.pad(words, (0, rest)) if rest else words).reshape(-1, _WORDS)
    columns = _numbers(_WORDS, _FIRST).to(words.device)
    rows = _numbers(len(table), _SECOND).to(words.device)
    total = 0
    for start in range(0, len(table), _ROWS):
        part = table[start : start + _ROWS].long().mul_(columns).sum(1)
        total += int(part.mul_(rows[start : start + _ROWS]).sum())
    return total % 2**64


def _bytes(value: Tensor) -> Any:
    return value.contiguous().view(torch.uint8).cpu().numpy()


def _bits(value: Tensor) -> Tensor:
    """A tensor as 32-bit integers, padded with zeros."""
    raw = value.contiguous().reshape(-1).view(torch.uint8)
    rest = -len(raw) % 4
    return (nn.functional.pad(raw, (0, rest)) if rest else raw).view(torch.int32)


def _numbers(n: int, seed: int) -> Tensor:
    """``n`` odd 64-bit integers without a pattern (SplitMix64), the same on every machine."""
    x = torch.arange(n, dtype=torch.int64).mul_(_signed(_FIRST)).add_(_signed(seed))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> shift & (1 << 64 - shift) - 1)) * _signed(factor)
    return (x ^ (x >> 31 & (1 << 33) - 1)) | 1


def _signed(number: int) -> int:
    return (number + 2**63) % 2**64 - 2**63


def _places(name: str, shape: torch.Size) -> Tensor:
    """Indices into the flat tensor: for every row a column, and for every column a row."""
    seed = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")
    height, width = (shape[-2], shape[-1]) if len(shape) > 1 else (1, shape.numel())
    stack = shape.numel() // (height * width)
    if height == 1 or width == 1:
        return torch.arange(shape.numel())
    drawn = _numbers(stack * (height + width), seed).reshape(stack, -1).bitwise_right_shift(2)
    columns = torch.arange(height) * width + drawn[:, :height] % width
    rows = drawn[:, height:] % height * width + torch.arange(width)
    start = torch.arange(stack)[:, None] * height * width
    return (start + torch.cat([columns, rows], dim=1)).reshape(-1)
