"""`bake`: an edit written into the weights, as a plain transformers model that needs no hooks."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from mechmem.errors import EditError
from mechmem.models.folders import WEIGHT_FILES
from mechmem.models.model import Model
from mechmem.patching.apply import patched
from mechmem.patching.base import Edit, as_edits
from mechmem.patching.writers import plain_copy, writers_of
from mechmem.writing import whole_folder

TOLERANCE = 1e-4


def bake(model: Model, edit: Edit | Sequence[Edit]) -> Any:
    """A new transformers model that computes without hooks what ``model`` computes under the edit.

    * `ProjectOut` with ``at="everywhere"`` is **weight orthogonalization** (Arditi et al.
      2406.11717): every matrix that writes into the residual stream, the embeddings and the biases
      lose their component along the direction, ``W' = (I - r^ r^T) W``. It can also be baked at
      ``attn_out``, ``mlp_out`` and ``("resid_pre", 0)`` alone; `ScaleProjection` likewise.
    * `AddDirection` becomes a bias: ``alpha r`` is added to the bias of what writes there
      (``resid_post`` and ``mlp_out``: the MLP's; ``resid_mid`` and ``attn_out``: attention's;
      ``("resid_pre", 0)``: the embeddings).

    The result is compared with the hooks on random tokens before it is handed over. Tied
    embeddings are untied, since the unembedding must not change.

    Args:
        model: Loaded from transformers weights; it is not changed.
        edit: One edit or a list, at ``positions="all"``, without ``preserve_norm``.

    Returns:
        A ``transformers`` model on the same device, in the same dtype, for ``save_pretrained`` or
        ``mm.load_model``.

    Raises:
        EditError: For an edit that no weights can express: conditional or positional ones, those
            of single neurons, projections at a place that other writers reach, branches followed
            by a norm (Gemma 2, OLMo 2), or a bias where the architecture has none.
        ModelError: For a model without transformers weights.

    What it does not prove: that baked weights behave alike elsewhere, for example quantized.
    """
    edits = as_edits(edit)
    if model.interventions:
        raise EditError(
            "This model is a view on which edits act already; bake the model itself, with all "
            "edits in one list."
        )
    for item in edits:
        item.check(model)
    new = plain_copy(model, [site for item in edits for site in item.biases(model)])
    writers = writers_of(new, model)
    with torch.no_grad():
        for item in edits:
            item.bake(model, writers)
    gap = baking_error(model, edits, new)
    dtype = next(new.parameters()).dtype
    allowed = TOLERANCE if dtype in (torch.float32, torch.float64) else 16 * torch.finfo(dtype).eps
    if not gap <= allowed:
        raise EditError(
            f"The baked weights differ from the hooks by {gap:.2g} of the logits' spread (allowed "
            f"{allowed:.2g}), so this architecture or combination of edits cannot be baked; use "
            "mm.patched(model, edit), or bake the edits one after the other."
        )
    new.save_pretrained = partial(_save_whole, new)
    return new


def _save_whole(model: Any, folder: str | Path, *more: Any, **options: Any) -> Any:
    """The model's own `save_pretrained`; a full disk is one line, and what was there stays."""
    own = type(model).save_pretrained
    if options.get("push_to_hub"):  # it names the repository by the folder
        return own(model, folder, *more, **options)
    with whole_folder(folder, WEIGHT_FILES) as draft:
        return own(model, draft, *more, **options)


def baking_error(model: Model, edit: Edit | Sequence[Edit], baked: Any, seed: int = 0) -> float:
    """Largest difference between baked and hooked logits on random tokens, as a share of the
    logits' standard deviation."""
    from mechmem.models.engine.scoring import last_logits
    from mechmem.models.tokenizing import TokenizedPrompt

    generator = torch.Generator().manual_seed(seed)
    longest = min(12, model.info.n_ctx or 12)
    rows = [
        torch.randint(0, model.info.vocab_size, (length,), generator=generator)
        for length in (longest, max(longest // 2, 1), 1)
    ]
    prompts = [TokenizedPrompt(f"r{k}", tuple(row.tolist()), {}) for k, row in enumerate(rows)]
    with patched(model, edit) as view:
        want = last_logits(
            view.backend, prompts, interventions=view.interventions, pad_id=view.tokens.pad_id
        )
    device = next(baked.parameters()).device
    with torch.no_grad():
        got = torch.stack(
            [baked(row[None].to(device)).logits[0, -1].float().cpu() for row in rows]
        )[:, : want.shape[1]]
    spread = float(want.double().std())
    return float((got - want).abs().max()) / max(spread, torch.finfo(torch.float64).tiny)
