"""States, edits and greedy text of plain ``transformers`` models, one prompt at a time, unpadded,
without a cache: the independent computation that everything else is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mechmem.models.sites import Site

__all__ = ["PARALLEL", "Layout", "greedy", "plain_pass"]

Change = Callable[[Tensor], Tensor]
PARALLEL = ("gpt_neox",)


class Layout(NamedTuple):
    """Module names of a family: whose input or output a stream is."""

    layers: str
    norm: str
    z: str  # the input of
    attn_out: str  # the output of
    mid: str  # the input of
    mlp_post: str  # the input of
    mlp_out: str  # the output of


_LLAMA = Layout(
    "model.layers", "model.norm", "self_attn.o_proj", "self_attn.o_proj",
    "post_attention_layernorm", "mlp.down_proj", "mlp.down_proj",
)  # fmt: skip
_GEMMA = _LLAMA._replace(
    attn_out="post_attention_layernorm",
    mid="pre_feedforward_layernorm",
    mlp_out="post_feedforward_layernorm",
)
_LAYOUTS = {
    "gpt2": Layout(
        "transformer.h", "transformer.ln_f", "attn.c_proj", "attn.c_proj", "ln_2", "mlp.c_proj",
        "mlp.c_proj",
    ),
    "gpt_neox": Layout(
        "gpt_neox.layers", "gpt_neox.final_layer_norm", "attention.dense", "attention.dense", "",
        "mlp.dense_4h_to_h", "mlp.dense_4h_to_h",
    ),
    "gemma2": _GEMMA,
    "gemma3": _GEMMA,
    "olmo2": _GEMMA._replace(mid="mlp"),
}  # fmt: skip


@torch.no_grad()
def plain_pass(
    model: Any,
    family: str,
    ids: Sequence[int],
    edit: tuple[Site, Change, Sequence[int]] | None = None,
) -> tuple[dict[Site, Tensor], Tensor]:
    """States ``[token, feature]`` at every site and logits ``[token, vocab]`` of one text.

    Args:
        edit: A site, what to do with a state there, and at which tokens.
    """
    layout = _LAYOUTS.get(family, _LLAMA)
    layers = list(model.get_submodule(layout.layers))
    seen: dict[Site, Tensor] = {}
    with ExitStack() as stack:
        for layer, block in enumerate(layers):
            _listen(stack, block, layout, layer, seen, edit)
        logits = model(torch.tensor([list(ids)]), use_cache=False).logits[0]
    return {site: value[0].flatten(1) for site, value in seen.items()}, logits


def _listen(
    stack: ExitStack,
    block: Any,
    layout: Layout,
    layer: int,
    seen: dict[Site, Tensor],
    edit: tuple[Site, Change, Sequence[int]] | None,
) -> None:
    def pass_on(stream: str, value: Tensor) -> Tensor:
        site = Site(stream, layer)
        if edit is not None and edit[0] == site:
            value = value.clone()
            at = list(edit[2])
            value[:, at] = edit[1](value[:, at])
        seen[site] = value
        return value

    def before(stream: str) -> Callable[..., Any]:
        def hook(module: Any, args: Any, kwargs: Any) -> Any:
            value = args[0] if args else kwargs["hidden_states"]
            new = pass_on(stream, value)
            if args:
                return (new, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": new}

        return hook

    def after(stream: str) -> Callable[..., Any]:
        def hook(module: Any, args: Any, output: Any) -> Any:
            value = output[0] if isinstance(output, tuple) else output
            if stream == "resid_post" and edit is not None and edit[0] == ("resid_mid", layer):
                # So far the edit has reached the MLP only, not the stream that it is added to.
                value = seen[Site("resid_mid", layer)] + seen[Site("mlp_out", layer)]
            new = pass_on(stream, value)
            return (new, *output[1:]) if isinstance(output, tuple) else new

        return hook

    for stream, name in (("resid_pre", ""), ("z", layout.z), ("resid_mid", layout.mid),
                         ("mlp_post", layout.mlp_post)):  # fmt: skip
        if stream != "resid_mid" or name:
            handle = block.get_submodule(name).register_forward_pre_hook(
                before(stream), with_kwargs=True
            )
            stack.callback(handle.remove)
    for stream, name in (("attn_out", layout.attn_out), ("mlp_out", layout.mlp_out),
                         ("resid_post", "")):  # fmt: skip
        stack.callback(block.get_submodule(name).register_forward_hook(after(stream)).remove)


def greedy(
    model: Any,
    family: str,
    ids: Sequence[int],
    steps: int,
    edit: tuple[Site, Change] | None = None,
) -> tuple[list[int], float]:
    """Greedy continuation by recomputing everything at every step.

    Args:
        edit: Acts on the last prompt token and every later one.

    Returns:
        The new ids, and the smallest lead of a chosen token over the second best.
    """
    out, lead = list(ids), float("inf")
    for _ in range(steps):
        at = range(len(ids) - 1, len(out))
        logits = plain_pass(model, family, out, None if edit is None else (*edit, at))[1][
            -1
        ].float()
        best = logits.topk(2).values
        lead = min(lead, float(best[0] - best[1]))
        out.append(int(logits.argmax()))
    return out[len(ids) :], lead
