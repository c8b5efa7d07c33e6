"""Attention by the device's fused kernel, inside TransformerLens's own blocks.

A bridge writes every score and every weight of its patterns out, for its hook points; where nobody
looks there, that is most of the cost of a long prompt. Here keys are handed to its code as things
that stand for tensors: their product with queries, scaled, masked, normalized and multiplied with
values, is one call of `torch.nn.functional.scaled_dot_product_attention`. Whatever else is done to
them (a soft cap, a sink, a bias) makes the tensors themselves, and the bridge goes on as written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_INSIDE = ("hook_attn_scores", "hook_pattern")
# The index by which transformers' `repeat_kv` gives shared heads an axis to be repeated on.
_SPREAD = (slice(None), slice(None), None, slice(None), slice(None))


class _Deferred:
    """Stands for a tensor, which is made when anything but attention asks for it."""

    _made: Tensor | None = None

    def made(self) -> Tensor:
        """The tensor itself; from then on there is nothing but it."""
        if self._made is None:
            self._made = self.make()
        return self._made

    def make(self) -> Tensor:
        raise NotImplementedError

    @classmethod
    def __torch_function__(
        cls, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if function in _STEPS:
            found = _STEPS[function](*args, **kwargs)
            if found is not None:
                return found
        return function(*map(_whole, args), **{key: _whole(v) for key, v in kwargs.items()})

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.made(), name)

    def __getitem__(self, index: Any) -> Any:
        return self.made()[index]

    def __add__(self, other: Any) -> Any:
        return self.made() + _whole(other)

    def __mul__(self, other: Any) -> Any:
        return self.made() * _whole(other)

    def __truediv__(self, other: Any) -> Any:
        return self.made() / _whole(other)


def _whole(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(map(_whole, value))
    return value.made() if isinstance(value, _Deferred) else value


class _Heads(_Deferred):
    """Keys or values ``[row, head, key, d]``, each to be used by several query heads.

    Args:
        own: One per head that there is.
        groups: How many query heads share one.
        form: "heads"; "spread", with an axis for those that share; "turned", for the product.
    """

    def __init__(self, own: Tensor, groups: int = 1, form: str = "heads") -> None:
        self.own, self.groups, self.form = own, groups, form

    @property
    def dtype(self) -> torch.dtype:
        return self.own.dtype

    @property
    def shape(self) -> torch.Size:
        rows, heads, keys, width = self.own.shape
        if self.form == "spread":
            return torch.Size((rows, heads, self.groups, keys, width))
        last = (width, keys) if self.form == "turned" else (keys, width)
        return torch.Size((rows, heads * self.groups, *last))

    def make(self) -> Tensor:
        if self.form == "spread":
            return self.own[:, :, None].expand(self.shape)
        out = self.own.repeat_interleave(self.groups, 1) if self.groups > 1 else self.own
        return out.transpose(-2, -1) if self.form == "turned" else out

    def __getitem__(self, index: Any) -> Any:
        if self.form == "heads" and self.groups == 1 and index == _SPREAD:
            return _Heads(self.own, form="spread")
        return super().__getitem__(index)

    def expand(self, *sizes: int) -> Any:
        if self.form == "spread" and (*sizes[:2], *sizes[3:]) == tuple(self.own.shape):
            return _Heads(self.own, sizes[2], "spread")
        return self.made().expand(*sizes)

    def reshape(self, *sizes: int) -> Any:
        together = _Heads(self.own, self.groups)
        if self.form == "spread" and sizes == tuple(together.shape):
            return together
        return self.made().reshape(*sizes)

    def repeat_interleave(self, repeats: int, dim: int | None = None) -> Any:
        if self.form == "heads" and self.groups == 1 and dim == 1:
            return _Heads(self.own, repeats)
        return self.made().repeat_interleave(repeats, dim=dim)

    def transpose(self, one: int, other: int) -> Any:
        if self.form == "heads" and {one % 4, other % 4} == {2, 3}:
            return _Heads(self.own, self.groups, "turned")
        return self.made().transpose(one, other)


class _Scores(_Deferred):
    """Queries times keys ``[row, head, query, key]``, scaled and masked."""

    def __init__(self, queries: Tensor, keys: _Heads, scale: float = 1.0) -> None:
        self.queries, self.keys, self.scale = queries, keys, scale
        # The same mask twice: `masked` is the bridge's own code, for scores that are written out;
        # `mask` and `causal` are what the kernel takes.
        self.masked: Callable[[Tensor], Tensor] | None = None
        self.mask: Tensor | None = None
        self.causal = False

    @property
    def dtype(self) -> torch.dtype:
        return self.queries.dtype

    def make(self) -> Tensor:
        scores = torch.matmul(self.queries, self.keys.made()) * self.scale
        return scores if self.masked is None else self.masked(scores)

    def __mul__(self, other: Any) -> Any:
        # The kernel scales before it masks, so only a scale that comes first may wait.
        if isinstance(other, float) and self.masked is None and self._made is None:
            return _Scores(self.queries, self.keys, self.scale * other)
        return super().__mul__(other)


class _Pattern(_Deferred):
    """Scores, normalized."""

    def __init__(self, scores: _Scores, dtype: torch.dtype | None) -> None:
        self.scores, self.dtype = scores, dtype or scores.dtype

    def make(self) -> Tensor:
        return self.scores.made().softmax(-1, dtype=torch.float32).to(self.dtype)

    def to(self, *args: Any, **kwargs: Any) -> Any:
        wanted = kwargs.get("dtype", args[0] if args else None)
        if isinstance(wanted, torch.dtype) and self._made is None:
            return _Pattern(self.scores, wanted)
        return self.made().to(*args, **kwargs)


def _product(left: Any, right: Any) -> Any:
    """The two products of attention; ``None`` for any other."""
    if isinstance(right, _Heads) and right._made is None:
        if isinstance(left, Tensor) and right.form == "turned" and left.dtype == right.dtype:
            return _Scores(left, right)
        if isinstance(left, _Pattern) and right.form == "heads" and left._made is None:
            return _attend(left, right)
    return None


def _attend(pattern: _Pattern, values: _Heads) -> Tensor | None:
    scores = pattern.scores
    queries, keys, mask = scores.queries, scores.keys.own, scores.mask
    # Scores that never met the bridge's mask may be anybody's: nothing says who sees whom.
    if scores.masked is None or scores._made is not None or keys.shape[:3] != values.own.shape[:3]:
        return None
    if not queries.dtype == values.dtype == pattern.dtype:
        return None
    if scores.keys.groups != values.groups or queries.shape[1] != scores.keys.shape[1]:
        return None
    rows, heads, asked, _ = queries.shape
    held, grouped = values.own, False
    if values.groups > 1 and asked == 1:  # all that share keys are queries of them
        queries = queries.reshape(rows, heads // values.groups, values.groups, -1)
    elif values.groups > 1 and mask is None:
        grouped = True
    elif values.groups > 1:
        keys, held = (part.repeat_interleave(values.groups, 1) for part in (keys, held))
    if mask is not None and mask.dtype != torch.bool:
        mask = mask.to(queries.dtype)
    out = F.scaled_dot_product_attention(
        queries, keys, held, mask, is_causal=scores.causal, scale=scores.scale, enable_gqa=grouped
    )
    _COUNT[0] += 1
    return out.reshape(rows, heads, asked, -1)


def _normalized(scores: Any, dim: Any = None, _stacklevel: int = 3, dtype: Any = None) -> Any:
    if isinstance(scores, _Scores) and scores._made is None and dim == -1:
        return _Pattern(scores, dtype)
    return None


def _dropped(value: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
    return None if training else value


_STEPS: dict[Any, Callable[..., Any]] = {
    torch.matmul: _product,
    F.softmax: _normalized,
    F.dropout: _dropped,
}
# Without it a kernel that never ran would pass the trial: its numbers are the bridge's own.
_COUNT = [0]


def calls() -> int:
    """How often attention has been done here by the fused kernel, ever."""
    return _COUNT[0]


def looked_into(model: Any) -> bool:
    """Whether anybody has hooked what the fused kernel never makes: scores or patterns."""
    return any(
        point is not None and (point._forward_hooks or point._backward_hooks)
        for attention in _attentions(model)
        for point in (getattr(attention, name, None) for name in _INSIDE)
    )


@contextmanager
def fused(model: Any) -> Iterator[None]:
    """Inside, a bridge's attention is done by the fused kernel wherever its code allows. A pass
    inside a pass, of an edit that asks its own model, changes nothing more."""
    configs = _configs(model)
    before = [config._attn_implementation_internal for config in configs]
    changed = [
        part for part in _attentions(model)
        if hasattr(part, "_update_kv_cache") and "_update_kv_cache" not in vars(part)
    ]  # fmt: skip
    try:
        for config in configs:  # by this transformers makes the masks: none, or of truth values
            # By its hidden name: the public setter reaches configurations that nobody puts back.
            config._attn_implementation_internal = "sdpa"
        for attention in changed:
            _defer(attention)
        yield
    finally:
        for attention in changed:
            for name in ("_update_kv_cache", "_apply_reconstruct_attention_mask"):
                attention.__dict__.pop(name, None)
        for config, value in zip(configs, before, strict=True):
            config._attn_implementation_internal = value


def _attentions(model: Any) -> Iterator[Any]:
    for block in model.blocks:
        attention = getattr(block, "attn", None)
        if attention is not None:
            yield attention


def _configs(model: Any) -> list[Any]:
    whole: Any = getattr(model.original_model, "config", None)
    text = whole.get_text_config(decoder=True) if hasattr(whole, "get_text_config") else None
    found = {id(config): config for config in (whole, text) if config is not None}
    return [c for c in found.values() if hasattr(c, "_attn_implementation_internal")]


def _defer(attention: Any) -> None:
    # Keys and values pass here last before scores are made: rotated, earlier steps included.
    known, masks = attention._update_kv_cache, attention._apply_reconstruct_attention_mask

    def keep(keys: Tensor, values: Tensor, *args: Any, **kwargs: Any) -> Any:
        keys, values = known(keys, values, *args, **kwargs)
        return _Heads(keys), _Heads(values)

    def mask(
        attn_scores: Any, attention_mask: Any, seq_len: int, q_seq_len: int | None = None
    ) -> Any:
        asked = seq_len if q_seq_len is None else q_seq_len
        # Only a mask of four axes says by itself who sees whom; others TransformerLens completes.
        fits = attention_mask is None or attention_mask.ndim == 4
        if not isinstance(attn_scores, _Scores) or attn_scores._made is not None or not fits:
            return masks(_whole(attn_scores), attention_mask, seq_len, q_seq_len)
        scores = _Scores(attn_scores.queries, attn_scores.keys, attn_scores.scale)
        scores.masked = lambda plain: masks(plain, attention_mask, seq_len, q_seq_len)
        if attention_mask is not None:
            # As TransformerLens cuts a mask over the whole text: the queries are its last rows.
            scores.mask = attention_mask[..., -asked:, :seq_len]
        elif attention.is_causal and not attention.is_cross_attention and asked > 1:
            # `is_causal` lets the first query see the first key only: right where no key was known.
            scores.causal = asked == seq_len
            if not scores.causal:
                sees = torch.ones(asked, seq_len, dtype=torch.bool, device=scores.queries.device)
                scores.mask = sees.tril(seq_len - asked)
        return scores

    attention.__dict__["_update_kv_cache"] = keep
    attention.__dict__["_apply_reconstruct_attention_mask"] = mask
