"""`bake`: an edit written into the weights, as a plain transformers model that needs no hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mechmem.errors import EditError
from mechmem.models.model import Model
from mechmem.models.positions import Positions
from mechmem.models.sites import Site
from mechmem.patching.apply import patched
from mechmem.patching.base import Edit, as_edits, check_number, signed
from mechmem.patching.conditional import OnlyWhere
from mechmem.patching.directions import AddDirection, DirectionEdit, ProjectOut, ScaleProjection
from mechmem.patching.writers import Writers, plain_copy, writers_of

__all__ = ["bake", "baking_error"]

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
        _refuse_inexpressible(item)
    adding = [item for item in edits if isinstance(item, AddDirection)]
    biased = [site for item in adding for site in item.sites(model)]
    new = plain_copy(model, [site for site in biased if site != Site("resid_pre", 0)])
    writers = writers_of(new, model)
    with torch.no_grad():
        for item in edits:
            assert isinstance(item, DirectionEdit)
            if isinstance(item, AddDirection):
                _add(item, model, writers)
            else:
                _project(item, model, writers)
    gap = baking_error(model, edits, new)
    dtype = next(new.parameters()).dtype
    allowed = TOLERANCE if dtype in (torch.float32, torch.float64) else 16 * torch.finfo(dtype).eps
    if not gap <= allowed:
        raise EditError(
            f"The baked weights differ from the hooks by {gap:.2g} of the logits' spread (allowed "
            f"{allowed:.2g}), so this architecture or combination of edits cannot be baked; use "
            "mm.patched(model, edit), or bake the edits one after the other."
        )
    return new


def baking_error(model: Model, edit: Edit | Sequence[Edit], baked: Any, seed: int = 0) -> float:
    """Largest difference between baked and hooked logits on random tokens, as a share of the
    logits' standard deviation."""
    from mechmem.models.engine.scoring import last_logits
    from mechmem.models.tokens import TokenizedPrompt

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


def _refuse_inexpressible(edit: Edit) -> None:
    known = isinstance(edit, (AddDirection, ProjectOut, ScaleProjection))
    if not known or not isinstance(edit, DirectionEdit):
        why = "acts on some tokens only" if isinstance(edit, OnlyWhere) else "is no linear map"
        raise EditError(
            f"{type(edit).__name__} {why} that weights could express; AddDirection, ProjectOut and "
            "ScaleProjection can be baked, for others use mm.patched(model, edit)."
        )
    if Positions.parse(edit.positions) != Positions.parse("all"):
        raise EditError(
            f"Weights act at every position, this {type(edit).__name__} at {edit.positions!r}; use "
            "positions='all', or mm.patched(model, edit)."
        )
    if edit.preserve_norm:
        raise EditError("preserve_norm=True depends on the token; weights cannot express it.")


def _project(edit: DirectionEdit, model: Model, writers: Writers) -> None:
    """``W' = (I + s r^ r^T) W`` for everything that writes at the sites."""
    scale = check_number(edit.scale, "scale") if isinstance(edit, ScaleProjection) else -1.0
    if scale == 0:
        return
    sites = edit.sites(model)
    written = [site for site in sites if site.stream in ("attn_out", "mlp_out")]
    if Site("resid_pre", 0) in sites:
        unit = edit.of(Site("resid_pre", 0)).unit
        for table in writers.tables:
            _stretched(table, unit, scale, rows=True)
    for site in written:
        linear = writers.at(site)
        unit = edit.of(site).unit
        _stretched(linear.weight, unit, scale, rows=writers.transposed(linear))
        if linear.bias is not None:
            _stretched(linear.bias, unit, scale, rows=True)
    for site in sites:
        if site not in written and site != Site("resid_pre", 0):
            _refuse_unless_empty(edit, model, site, scale, sites)


def _refuse_unless_empty(
    edit: DirectionEdit, model: Model, site: Site, scale: float, sites: Sequence[Site]
) -> None:
    """A projection of the stream itself is nothing once all writers before it are orthogonal."""
    before = [Site("resid_pre", 0)]
    before += [Site(stream, k) for k in range(site.layer) for stream in ("attn_out", "mlp_out")]
    if site.stream == "resid_mid":
        before += [Site("attn_out", site.layer)]
    if site.stream == "resid_post":
        before += [Site(stream, site.layer) for stream in ("attn_out", "mlp_out")]
    own = edit.of(site).unit
    same = all(one in sites and abs(float(edit.of(one).unit @ own)) > 1 - 1e-9 for one in before)
    if scale != -1 or not same:
        raise EditError(
            f"{type(edit).__name__} at {site} changes what several layers have written there, "
            "which no single matrix does. ProjectOut(r, at='everywhere') of one direction can be "
            "baked, and so can attn_out, mlp_out and ('resid_pre', 0); else use "
            "mm.patched(model, edit)."
        )


def _add(edit: AddDirection, model: Model, writers: Writers) -> None:
    """``b' = b + alpha r`` where it is written."""
    sign = signed(edit.toward, edit.first.toward, edit.first.away)
    for site in edit.sites(model):
        shift = edit.of(site).vector * (sign * check_number(edit.alpha, "alpha"))
        if site == Site("resid_pre", 0):
            table = writers.tables[0]
            table += (shift / writers.embedding_scale).to(table)
            continue
        place = site if site.stream != "resid_pre" else Site("resid_post", site.layer - 1)
        branch = {"resid_post": "mlp_out", "resid_mid": "attn_out"}.get(place.stream, place.stream)
        if branch not in ("attn_out", "mlp_out"):
            raise EditError(
                f"AddDirection at {site} cannot be baked; bake it at resid_post, resid_mid, "
                "attn_out, mlp_out or ('resid_pre', 0)."
            )
        linear = writers.at(Site(branch, place.layer))
        if linear.bias is None:
            raise EditError(
                f"{type(writers.model).__name__} has no bias at {site}, and its configuration "
                "cannot have one, so the addition cannot be baked; use mm.patched(model, edit)."
            )
        linear.bias += shift.to(linear.bias)


def _stretched(values: Tensor, unit: Tensor, scale: float, rows: bool) -> None:
    """Adds ``scale`` times the part along ``unit`` of every row (or column), in place."""
    along = unit.to(values.device, torch.float64)
    wide = values.double()
    if rows:
        wide = wide + scale * (wide @ along)[..., None] * along
    else:
        wide = wide + scale * torch.outer(along, along @ wide)
    values.copy_(wide.to(values.dtype))
