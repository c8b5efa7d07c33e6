"""`cache_activations` and `cache_moments`: one pass over the prompts, stored or summed up."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mechmem.caching.activations import Activations, class_names
from mechmem.caching.moments import Moments
from mechmem.caching.provenance import Provenance, Seen
from mechmem.errors import ModelError, PromptError
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.engine.positions import Positions, PositionSpec
from mechmem.models.engine.run import take_states
from mechmem.models.hooked import Model
from mechmem.models.sites import Site, SiteSpec
from mechmem.models.tokens import PromptsLike, as_prompts

__all__ = ["cache_activations", "cache_moments"]

Progress = Callable[[int], None]


def cache_activations(
    model: Model,
    prompts: PromptsLike,
    *,
    sites: SiteSpec = "resid_post",
    positions: PositionSpec = "last",
    dtype: torch.dtype = torch.float32,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    progress: Progress | None = None,
) -> Activations:
    """Read and keep the states of every prompt.

    Args:
        model: From `load_model`, or inside `patched` (states after the edits).
        prompts: What to run; results come back in this order.
        sites: A stream name means every layer; ``("resid_post", 3)`` one; a list several.
        positions: Which tokens to read, for example ``"last"``, ``"mean"`` or a span's name.
        dtype: Stored precision.
        token_budget: Most tokens in one batch, padding included.
        progress: Called with the number of prompts after every batch.

    Returns:
        `Activations` with ``[example, position, *feature]`` per site, on the CPU.

    Raises:
        PromptError, SiteError, PositionError: Before anything runs, naming what is wrong.
    """
    asked = as_prompts(prompts).require("cache")
    tokenized = model.tokenize(asked)
    where = Positions.parse(positions)
    columns = where.check_stackable(tokenized)
    wanted = model.sites(sites)
    out: dict[Site, Tensor] = {}
    for taken in take_states(
        model.backend,
        tokenized,
        wanted,
        where,
        interventions=model.interventions,
        pad_id=model.tokens.pad_id,
        dtype=dtype,
        token_budget=token_budget,
        progress=progress,
    ):
        rows = torch.tensor(taken.rows)
        for site, state in taken.states.items():
            if site not in out:
                out[site] = torch.empty((len(asked), *state.shape[1:]), dtype=dtype)
            out[site][rows] = state
    return Activations(
        {site: out[site] for site in wanted},
        asked,
        tuple(columns),
        tuple(item.ids for item in tokenized),
        Provenance(model.info, Seen.of(asked, tokenized), where.spec),
    )


def cache_moments(
    model: Model,
    prompts: PromptsLike,
    *,
    by: str,
    sites: SiteSpec = "resid_post",
    positions: PositionSpec = "last",
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    progress: Progress | None = None,
) -> Moments:
    """Read states and keep only their statistics per class: memory does not grow with the prompts.

    Args:
        by: ``"behavior"`` or ``"label"``: which of them names the class of a prompt.
        model, prompts, sites, positions, token_budget, progress: As in `cache_activations`.

    Raises:
        PromptError: When no prompt carries a class.
    """
    asked = as_prompts(prompts).require("cache")
    names = class_names(asked, by)
    if not any(names):
        raise PromptError(
            f"None of {len(asked)} prompts carries a {by}; "
            "observe the model first (mm.observe(...).flips()) or set Prompt.label."
        )
    tokenized = model.tokenize(asked)
    where = Positions.parse(positions)
    columns = where.check_stackable(tokenized)
    moments = Moments(
        Provenance(model.info, Seen.of(asked, tokenized), where.spec, by), tuple(columns)
    )
    for taken in take_states(
        model.backend,
        tokenized,
        model.sites(sites),
        where,
        interventions=model.interventions,
        pad_id=model.tokens.pad_id,
        token_budget=token_budget,
        progress=progress,
    ):
        moments.update(taken.states, [names[row] for row in taken.rows])
    if not moments.classes:
        raise ModelError("No state was read.")
    return moments
