"""What writes into the residual stream of a plain transformers model, and a fresh copy of one."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from mechmem.errors import EditError, ModelError
from mechmem.models.architectures import (
    ATTENTION_WRITERS,
    BLOCK_LISTS,
    MLP_WRITERS,
    NORMS_AFTER,
    POSITION_TABLES,
    embedding_scale,
    plain_name,
)
from mechmem.models.model import Model
from mechmem.models.sites import MODULES, Site


@dataclass(frozen=True)
class Writers:
    """The matrices that write into the stream.

    Attributes:
        model: The plain model.
        tables: Embedding matrices ``[token or position, d]``, the tokens' first.
        embedding_scale: What the model multiplies token embeddings with.
        linears: Output projection of every branch.
        after: Branches whose output a norm changes before it is added.
    """

    model: Any
    tables: tuple[Tensor, ...]
    embedding_scale: float
    linears: dict[Site, Any]
    after: frozenset[Site]

    def at(self, site: Site) -> Any:
        """The linear map that writes a branch.

        Raises:
            EditError: When a norm stands between it and the stream, or it is not known.
        """
        if site.stream in MODULES:  # before any norm
            site = Site(site.stream.replace("module", "out"), site.layer)
        elif site in self.after:
            raise EditError(
                f"In {type(self.model).__name__} a norm follows the projection that writes "
                f"{site}, so no weights of that projection do what the edit does to the stream; "
                "use mm.patched(model, edit)."
            )
        if site not in self.linears:
            raise EditError(
                f"What writes {site} in {type(self.model).__name__} is not known; use "
                "mm.patched(model, edit)."
            )
        return self.linears[site]

    def transposed(self, linear: Any) -> bool:
        """Whether its weight is ``[in, out]`` (GPT-2's Conv1D) instead of ``[out, in]``."""
        return not isinstance(linear, nn.Linear)

    def add(self, site: Site, shift: Tensor) -> None:
        """Add a vector to what is written at a site: to the bias of its branch, or the embeddings.

        Raises:
            EditError: Where nothing writes, or the architecture has no bias.
        """
        if site == Site("resid_pre", 0):
            table = self.tables[0]
            # The model multiplies what it looks up there, and would multiply the shift.
            table += (shift / self.embedding_scale).to(table)
            return
        place = site if site.stream != "resid_pre" else Site("resid_post", site.layer - 1)
        branch = {"resid_post": "mlp_out", "resid_mid": "attn_out"}.get(place.stream, place.stream)
        if branch not in ("attn_out", "mlp_out"):
            raise EditError(
                f"AddDirection at {site} cannot be baked; bake it at resid_post, resid_mid, "
                "attn_out, mlp_out or ('resid_pre', 0)."
            )
        linear = self.at(Site(branch, place.layer))
        if linear.bias is None:
            raise EditError(
                f"{type(self.model).__name__} has no bias at {site}, and its configuration "
                "cannot have one, so the addition cannot be baked; use mm.patched(model, edit)."
            )
        linear.bias += shift.to(linear.bias)

    def project(self, units: Mapping[Site, Tensor], scale: float, name: str) -> None:
        """``W' = (I + scale r^ r^T) W`` for everything that writes at the sites.

        Args:
            units: ``r^`` of every site.
            scale: -1 removes the component.
            name: Of the edit, for messages.

        Raises:
            EditError: At a place of the stream that other writers reach.
        """
        if scale == 0:
            return
        for site, unit in units.items():
            if site == Site("resid_pre", 0):
                # Positions too: both tables are added up before the first block.
                for table in self.tables:
                    _stretched(table, unit, scale, rows=True)
            elif site.stream in ("attn_out", "mlp_out", *MODULES):
                linear = self.at(site)
                _stretched(linear.weight, unit, scale, rows=self.transposed(linear))
                if linear.bias is not None:
                    _stretched(linear.bias, unit, scale, rows=True)
            elif scale != -1 or not _emptied(units, site):
                raise EditError(
                    f"{name} at {site} changes what several layers have written there, "
                    "which no single matrix does. ProjectOut(r, at='everywhere') of one direction "
                    "can be baked, and so can attn_out, mlp_out and ('resid_pre', 0); else use "
                    "mm.patched(model, edit)."
                )


def _emptied(units: Mapping[Site, Tensor], site: Site) -> bool:
    """Whether all writers before a place of the stream lose the same direction, so that nothing of
    it is left there."""
    before = [Site("resid_pre", 0)]
    before += [Site(stream, k) for k in range(site.layer) for stream in ("attn_out", "mlp_out")]
    if site.stream == "resid_mid":
        before += [Site("attn_out", site.layer)]
    if site.stream == "resid_post":
        before += [Site(stream, site.layer) for stream in ("attn_out", "mlp_out")]
    own = units[site]
    return all(one in units and abs(float(units[one] @ own)) > 1 - 1e-9 for one in before)


def _stretched(values: Tensor, unit: Tensor, scale: float, rows: bool) -> None:
    """Adds ``scale`` times the part along ``unit`` of every row (or column), in place."""
    along = unit.to(values.device, torch.float64)
    # In float64, so that the weights are rounded once, to their own dtype.
    wide = values.double()
    if rows:
        wide = wide + scale * (wide @ along)[..., None] * along
    else:
        wide = wide + scale * torch.outer(along, along @ wide)
    values.copy_(wide.to(values.dtype))


def plain_copy(model: Model, biased: Sequence[Site]) -> Any:
    """A fresh transformers model with the weights of a loaded one.

    Args:
        model: Loaded from transformers weights.
        biased: Sites that will need a bias; configurations that can have one get one, of zeros.

    Tied embeddings are untied.

    Raises:
        ModelError: When it has no transformers weights, or processed ones.
    """
    source = getattr(model.tl, "original_model", None)
    if source is None or model.info.processing != "raw":
        raise ModelError(
            f"{model.name!r} is a {model.info.kind} with {model.info.processing} weights; only raw "
            "weights loaded from transformers can be baked. Load the model by its name or folder."
        )
    config = copy.deepcopy(source.config)
    # An edit of what the embedding writes must not change how logits are read.
    config.tie_word_embeddings = False
    if biased:
        for name in ("attention_bias", "mlp_bias"):
            if hasattr(config, name):
                setattr(config, name, True)
    parameter = next(source.parameters())
    # Made anew rather than copied: the bridge has put wrappers around the source's modules.
    with torch.random.fork_rng(devices=[]):
        new = type(source)(config)
    new = new.to(device=parameter.device, dtype=parameter.dtype).eval()
    weights = {plain_name(name): value for name, value in source.state_dict().items()}
    state = {}
    for name, fresh in new.state_dict().items():
        known = weights.get(name)
        if known is None and name.endswith("lm_head.weight"):
            # Where the two were tied, the copy's own matrix starts as the embedding's.
            known = next((v for k, v in weights.items() if k.endswith("embed_tokens.weight")), None)
        if known is None and name.endswith(".bias"):
            known = torch.zeros_like(fresh)
        if known is None or known.shape != fresh.shape:
            raise ModelError(
                f"The weight {name!r} of {type(source).__name__} was not found in the loaded "
                "model, so it cannot be copied; use mm.patched(model, edit)."
            )
        state[name] = known.detach().clone()
    new.load_state_dict(state)
    if getattr(source, "generation_config", None) is not None:
        new.generation_config = copy.deepcopy(source.generation_config)
    return new


def writers_of(new: Any, model: Model) -> Writers:
    """Find the writers of a plain model.

    Raises:
        EditError: When its blocks are not where those of known architectures are.
    """
    modules = dict(new.named_modules())
    home = next((name for name in BLOCK_LISTS if name in modules), None)
    if home is None:
        raise EditError(
            f"The blocks of {type(new).__name__} are not where mechmem looks for them; use "
            "mm.patched(model, edit)."
        )
    linears: dict[Site, Any] = {}
    after: set[Site] = set()
    for layer in range(model.n_layers):
        for stream, names in (("attn_out", ATTENTION_WRITERS), ("mlp_out", MLP_WRITERS)):
            site = Site(stream, layer)
            found = [modules.get(f"{home}.{layer}.{name}") for name in names]
            linear = next((one for one in found if one is not None), None)
            if linear is not None:
                linears[site] = linear
            # A `post_attention_layernorm` alone is Llama's name for the norm before the MLP; it
            # follows attention only where the MLP has one behind it too.
            if f"{home}.{layer}.post_feedforward_layernorm" in modules and any(
                f"{home}.{layer}.{name}" in modules for name in NORMS_AFTER[stream]
            ):
                after.add(site)
    tables = [new.get_input_embeddings().weight]
    tables += [modules[name].weight for name in POSITION_TABLES if name in modules]
    scale = embedding_scale(new, model.info.d_model)
    return Writers(new, tuple(tables), scale, linears, frozenset(after))
