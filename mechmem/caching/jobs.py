"""Extraction to disk: resumable, and shared between processes by ``RANK`` and ``WORLD_SIZE``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechmem.caching.activations import check_dtype, class_names
from mechmem.caching.bootstrap import Bootstrap
from mechmem.caching.engines import engine_for
from mechmem.caching.extract import covariance_sites
from mechmem.caching.moments import Moments
from mechmem.caching.parts import Part, parts_of
from mechmem.caching.shards import Engine, described_edits, run_shards
from mechmem.caching.store import ActivationStore
from mechmem.errors import ArtifactError, PromptError, listed
from mechmem.models.check.site_check import require_sites
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET, PlannedBatch
from mechmem.models.engine.plan import PassPlan
from mechmem.models.engine.reading import take_states
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.sites import Site, SiteSpec
from mechmem.models.tokenizing import PromptsLike, TokenizedPrompt
from mechmem.progress import Progress
from mechmem.tasks.prompts import PromptSet


def extract_activations(
    model: Model,
    prompts: PromptsLike,
    folder: str | Path,
    *,
    sites: SiteSpec = "resid_post",
    positions: PositionSpec = "last",
    dtype: torch.dtype = torch.float32,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    shard_rows: int = 1024,
    share_prefixes: bool = True,
    rank: int | None = None,
    world: int | None = None,
    engine: str | Engine = "process",
    progress: Progress = None,
) -> ActivationStore:
    """Read the states of every prompt into a folder.

    Called again with the same settings it makes what is missing, and adds prompts whose ids are
    new. Under ``torchrun`` every process makes its share of the shards; the bytes do not depend on
    how many there are, nor on how often one was killed (but a batch that had to be halved for lack
    of memory is equal to about 1e-5 only).

    Args:
        model, prompts, sites, positions, dtype, token_budget, share_prefixes, progress: As in
            `cache_activations`.
        folder: Where to; on a file system that all processes see.
        shard_rows: Most prompts in a shard (one batch always fits): the work that a kill can lose.
        rank, world: This process's share; default ``RANK`` and ``WORLD_SIZE``, else everything.
        engine: ``"process"``, or ``"ray"``: actors on the cluster that Ray is connected to (else on
            that of ``RAY_ADDRESS``, else on this machine) load the model by its name and make the
            shards; ``progress`` then hears of whole shards.

    Returns:
        The store; ``complete`` is False while other processes are still at work. Its behaviors and
        labels are those of ``prompts``; the folder keeps those that a prompt first came with, and
        `ActivationStore.select` brings others.

    Raises:
        ArtifactError: When the folder was begun with other settings, or knows an id with another
            text.
        ModelError: For an engine that does not exist, that cannot load this model, or whose worker
            died four times.
        PromptError, SiteError, PositionError: Before anything runs, naming what is wrong.
    """
    check_dtype(dtype)
    # Before anything is given a name: `locals()` are the arguments and nothing else.
    spread = engine_for(extract_activations, locals())
    asked = model.encode(prompts, "extract")
    wanted = model.sites(sites)
    # Before the folder is begun: no shard could ever be made of a refused site.
    require_sites(model.backend, [*wanted, *(edit.site for edit in model.interventions)])

    def make(
        part: Part,
        tokenized: Sequence[TokenizedPrompt],
        plan: PassPlan,
        works: Sequence[PlannedBatch],
        rows: list[int],
    ) -> dict[str, Tensor]:
        place = {row: k for k, row in enumerate(rows)}
        out: dict[str, Tensor] = {}
        where = Positions.parse(positions)
        for taken in take_states(
            model.backend, tokenized, wanted, where, interventions=model.interventions,
            pad_id=model.tokens.pad_id, dtype=dtype, plan=plan, works=works, progress=progress,
        ):  # fmt: skip
            # Batches come as planned and may be halved; a shard has the order of its own rows.
            at = torch.tensor([place[row] for row in taken.rows])
            for site, state in taken.states.items():
                empty = torch.empty((len(rows), *state.shape[1:]), dtype=dtype)
                out.setdefault(site.key, empty)[at] = state
        return out

    settings = {
        **_settings(model, folder, "activations", wanted, positions, token_budget, share_prefixes),
        "dtype": str(dtype).removeprefix("torch."),
    }
    run_shards(
        model, asked, folder, settings, make, shard_rows=shard_rows, rank=rank, world=world,
        engine=spread,
    )  # fmt: skip
    store = ActivationStore(folder)
    now = {prompt.id: prompt for prompt in asked}
    store.prompts = PromptSet(now.get(prompt.id, prompt) for prompt in store.prompts)
    return store


def extract_moments(
    model: Model,
    prompts: PromptsLike,
    folder: str | Path,
    *,
    by: str,
    sites: SiteSpec = "resid_post",
    positions: PositionSpec = "last",
    covariance: SiteSpec | None = None,
    bootstrap: int = 0,
    seed: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    shard_rows: int = 16384,
    share_prefixes: bool = True,
    rank: int | None = None,
    world: int | None = None,
    engine: str | Engine = "process",
    progress: Progress = None,
) -> Moments | None:
    """Statistics per class into a folder, shard by shard; `merge_moments` adds them up.

    Args:
        by, covariance, bootstrap, seed: As in `cache_moments`.
        model, prompts, folder, sites, positions, token_budget, shard_rows, share_prefixes, rank,
            world, engine, progress: As in `extract_activations`.

    Returns:
        The merged moments, or ``None`` while shards of other processes are missing.
    """
    spread = engine_for(extract_moments, locals())
    Bootstrap.asked(bootstrap, seed)  # refuses what cannot be drawn
    asked = model.encode(prompts, "extract")
    if not any(class_names(asked, by)):
        raise PromptError(f"None of {len(asked)} prompts carries a {by}.")
    wanted = model.sites(sites)
    require_sites(model.backend, [*wanted, *(edit.site for edit in model.interventions)])
    full = covariance_sites(model, covariance, wanted)

    def make(
        part: Part,
        tokenized: Sequence[TokenizedPrompt],
        plan: PassPlan,
        works: Sequence[PlannedBatch],
        rows: list[int],
    ) -> dict[str, Tensor]:
        names, groups = class_names(part.prompts, by), part.prompts.groups
        drawn = Bootstrap.asked(bootstrap, seed)
        moments = Moments(part.provenance, tuple(part.index["columns"]), {}, full, drawn)
        for taken in take_states(
            model.backend, tokenized, wanted, Positions.parse(positions),
            interventions=model.interventions, pad_id=model.tokens.pad_id, plan=plan, works=works,
            progress=progress,
        ):  # fmt: skip
            at = taken.rows
            moments.update(taken.states, [names[row] for row in at], [groups[row] for row in at])
        return {"rows": torch.tensor(rows), **moments.tensors()}

    settings = {
        **_settings(model, folder, "moments", wanted, positions, token_budget, share_prefixes),
        "by": by,
        "covariance": sorted(site.key for site in full),
        "bootstrap": [bootstrap, seed] if bootstrap else None,
    }
    run_shards(
        model, asked, folder, settings, make, shard_rows=shard_rows, rank=rank, world=world,
        engine=spread,
    )  # fmt: skip
    return merge_moments(folder) if not any(part.missing() for part in parts_of(folder)) else None


def merge_moments(folder: str | Path) -> Moments:
    """Add up the shards of `extract_moments`, always in the same order.

    Raises:
        ArtifactError: When shards are missing, or the folder holds something else.
    """
    parts = parts_of(folder)
    if not parts or parts[0].settings.get("what") != "moments":
        raise ArtifactError(
            f"{folder} holds no shards of moments; extract_activations needs no merging: open its "
            "folder with mm.ActivationStore(folder)."
        )
    missing = [str(part.path(shard)) for part in parts for shard in part.missing()]
    if missing:
        raise ArtifactError(
            f"{len(missing)} shards are missing: {listed(missing, 3)}. Run the extraction again "
            "with the same settings; it makes only these."
        )
    total: Moments | None = None
    for part in parts:
        about = _about(part)
        for shard in range(len(part.rows)):
            tensors = {k: v for k, v in part.read(shard).items() if k != "rows"}
            moments = Moments.from_parts(tensors, about)
            total = moments if total is None else total.merge(moments)
    assert total is not None
    return total


def _settings(
    model: Model,
    folder: str | Path,
    what: str,
    sites: Sequence[Site],
    positions: PositionSpec,
    token_budget: int,
    share_prefixes: bool,
) -> dict[str, Any]:
    model.check_for_folder(folder)
    return {
        "what": what,
        "model": model.info.as_dict(),
        "edits": described_edits(model),
        "sites": [site.key for site in sites],
        "positions": Positions.parse(positions).spec,
        "token_budget": token_budget,
        "share_prefixes": share_prefixes,
    }


def _about(part: Part) -> Mapping[str, Any]:
    settings = part.settings
    return {
        "provenance": part.provenance.as_dict(),
        "columns": part.index["columns"],
        "covariance": settings["covariance"],
        "bootstrap": settings["bootstrap"],
    }
