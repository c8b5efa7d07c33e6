"""The norm before the unembedding, on states that were read already."""

from __future__ import annotations

import torch
from torch import Tensor

from mechmem.errors import SiteError
from mechmem.models.model import Model


@torch.no_grad()
def final_norm(model: Model, states: Tensor) -> Tensor:
    """What the final norm makes of ``[..., d_model]`` states of the last block's output.

    No hook of the model is called.

    Raises:
        SiteError: For a model without a final norm.
    """
    norm = getattr(model.tl, "ln_final", None)
    if norm is None:
        raise SiteError(f"{model.name} has no final norm (`ln_final`), so no normed states.")
    inner = getattr(norm, "original_component", None) or norm
    like = next(iter(inner.parameters()), next(model.tl.parameters()))
    hidden = inner(states.to(like))
    return torch.as_tensor(hidden).to(states)


@torch.no_grad()
def unembedded(model: Model, normed: Tensor) -> Tensor:
    """Logits ``[token, vocab]`` of normed states ``[token, d_model]``, capped as the model caps
    them, in float64 on the CPU."""
    like = next(model.tl.unembed.parameters(), next(model.tl.parameters()))
    logits = model.tl.unembed(normed.to(like)[None])[0].double().cpu()
    cap = float(getattr(model.tl.cfg, "output_logits_soft_cap", 0) or 0)
    return cap * torch.tanh(logits / cap) if cap > 0 else logits
