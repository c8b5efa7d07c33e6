"""`cache_activations` and `cache_moments`: one pass over the prompts, stored or summed up."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

import torch
from torch import Tensor

from mechmem.caching.activations import Activations, check_dtype, class_names
from mechmem.caching.bootstrap import Bootstrap
from mechmem.caching.moments import Moments
from mechmem.caching.provenance import Provenance, Seen
from mechmem.errors import PromptError, SiteError, listed
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.engine.reading import take_states
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.sites import Site, SiteSpec
from mechmem.models.tokenizing import PromptsLike, as_prompts
from mechmem.progress import Progress
from mechmem.tasks.prompts import Prompt, PromptSet


def cache_activations(
    model: Model,
    prompts: PromptsLike,
    *,
    sites: SiteSpec = "resid_post",
    positions: PositionSpec = "last",
    dtype: torch.dtype = torch.float32,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    share_prefixes: bool = True,
    progress: Progress = None,
) -> Activations:
    """Read and keep the states of every prompt.

    Args:
        model: From `load_model`, or inside `patched` (states after the edits).
        prompts: What to run; results come back in this order.
        sites: A stream name means every layer; ``("resid_post", 3)`` one; a list several.
        positions: Which tokens to read, for example ``"last"``, ``"mean"`` or a span's name.
        dtype: Stored precision.
        token_budget: Most tokens in one batch, padding included.
        share_prefixes: Whether prompts that begin alike run their common beginning once, and short
            ones share rows; without it every prompt is run whole in a row of its own.
        progress: ``True`` for a bar with tokens per second on stderr, or a function that is called
            with the number of prompts after every batch.

    Returns:
        `Activations` with ``[example, position, *feature]`` per site, on the CPU.

    Raises:
        PromptError, SiteError, PositionError: Before anything runs, naming what is wrong.
    """
    check_dtype(dtype)
    asked = model.encode(prompts, "cache")
    tokenized = asked.rows
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
        share=share_prefixes,
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
    covariance: SiteSpec | None = None,
    bootstrap: int = 0,
    seed: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    share_prefixes: bool = True,
    progress: Progress = None,
) -> Moments:
    """Read states and keep only their statistics per class: memory does not grow with the prompts.

    Args:
        prompts: As in `cache_activations`; a generator is taken in windows of 8,192 prompts, so
            that not even the prompts are held at once (its ids are not compared over windows).
        by: ``"behavior"`` or ``"label"``: which of them names the class of a prompt.
        covariance: Sites, among ``sites``, whose full covariance is kept.
        bootstrap: Replicates of a keyed Poisson bootstrap over groups, for intervals; 0 for none.
        seed: Keys the bootstrap.
        model, sites, positions, token_budget, share_prefixes, progress: As in `cache_activations`.

    Raises:
        PromptError: When no prompt carries a class.
        MechmemError: For a ``bootstrap`` of 1, or of more than 1,000,000 replicates.
    """
    Bootstrap.asked(bootstrap, seed)  # refuses what cannot be drawn
    wanted = model.sites(sites)
    full = covariance_sites(model, covariance, wanted)
    moments: Moments | None = None
    met = 0
    for asked in _windows(prompts):
        met += len(asked)
        if not any(class_names(asked, by)):
            continue
        part = moments_of(
            model, asked, by=by, sites=wanted, positions=positions, covariance=full,
            bootstrap=Bootstrap.asked(bootstrap, seed),
            token_budget=token_budget, share=share_prefixes, progress=progress,
        )  # fmt: skip
        moments = part if moments is None else moments.merge(part)
    if moments is None:
        raise PromptError(
            f"None of {met} prompts carries a {by}; "
            "observe the model first (mm.observe(...).flips()) or set Prompt.label."
        )
    return moments


def moments_of(
    model: Model,
    asked: PromptSet,
    *,
    by: str,
    sites: Sequence[Site],
    positions: PositionSpec,
    covariance: frozenset[Site],
    bootstrap: Bootstrap | None,
    token_budget: int,
    share: bool,
    progress: Progress,
) -> Moments:
    """The statistics of one set of prompts."""
    names = class_names(asked, by)
    asked = model.encode(asked)
    tokenized = asked.rows
    where = Positions.parse(positions)
    columns = where.check_stackable(tokenized)
    provenance = Provenance(model.info, Seen.of(asked, tokenized), where.spec, by)
    moments = Moments(provenance, tuple(columns), {}, covariance, bootstrap)
    groups = asked.groups
    for taken in take_states(
        model.backend,
        tokenized,
        sites,
        where,
        interventions=model.interventions,
        pad_id=model.tokens.pad_id,
        token_budget=token_budget,
        share=share,
        progress=progress,
    ):
        rows = taken.rows
        moments.update(taken.states, [names[row] for row in rows], [groups[row] for row in rows])
    return moments


def _windows(prompts: PromptsLike, size: int = 8192) -> Iterator[PromptSet]:
    """The prompts at once, or a generator's in windows."""
    if not isinstance(prompts, Iterator):
        yield as_prompts(prompts).require("cache")
        return
    items: Iterator[Prompt | str] = iter(prompts)
    while window := list(islice(items, size)):
        yield as_prompts(window)


def covariance_sites(
    model: Model, covariance: SiteSpec | None, wanted: Sequence[Site]
) -> frozenset[Site]:
    """The sites whose full covariance is kept.

    Raises:
        SiteError: For one that is not read.
    """
    full = frozenset(() if covariance is None else model.sites(covariance))
    if not full <= set(wanted):
        raise SiteError(
            f"covariance= asks for {listed(map(str, full - set(wanted)))}, which sites= does not "
            f"read; add them there."
        )
    return full
