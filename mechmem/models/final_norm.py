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
