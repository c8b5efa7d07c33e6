"""What an ablation puts in the place of an activation: zero, a mean, or another prompt's value."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mechmem.analysis.neurons import NeuronScores
from mechmem.caching.activations import Activations
from mechmem.caching.moments import Moments
from mechmem.errors import EditError, listed
from mechmem.models.engine.batching import Feed
from mechmem.models.sites import Site
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.seeding import keyed_rng

MODES = ("zero", "mean", "resample")

ReplacementSource = Activations | Moments | NeuronScores
"""What means (all three) and other prompts' values (`Activations`) are taken from."""

Values = Callable[[Feed], Tensor]
"""From what a pass sees to the new values ``[row or 1, position or 1, d or 1]``."""


@dataclass(frozen=True)
class Replacement:
    """The values of an ablation.

    Attributes:
        mode: ``"zero"``, ``"mean"`` or ``"resample"``.
        source: Where means or other prompts' values come from.
        seed: Keys which other prompt is taken.
    """

    mode: str
    source: ReplacementSource | None
    seed: int

    def check(self) -> None:
        """Refuse an unknown mode, or one without its source.

        Raises:
            EditError: Saying what to pass.
        """
        if self.mode not in MODES:
            raise EditError(f"mode must be one of {listed(MODES)}, got {self.mode!r}.")
        if self.mode == "mean" and self.source is None:
            raise EditError(
                "mode='mean' needs source=: Activations, Moments or NeuronScores of the sites that "
                "are ablated, for example source=mm.cache_activations(model, prompts, sites='z')."
            )
        if self.mode == "resample" and not isinstance(self.source, Activations):
            raise EditError(
                "mode='resample' needs source=: the Activations of other prompts at the sites that "
                f"are ablated; got {type(self.source).__name__}."
            )

    @property
    def used(self) -> ReplacementSource | None:
        """The source, where the mode takes anything from it."""
        return None if self.mode == "zero" else self.source

    def values(self, site: Site) -> Values:
        """The new values at a site.

        Raises:
            EditError: When the source lacks the site, or its values are not finite.
        """
        if self.mode == "zero":
            return lambda feed: torch.zeros(1, 1, 1)
        assert self.source is not None
        if site not in self.source.sites:
            raise EditError(
                f"The source of this edit has no values at {site}; it has "
                f"{listed(map(str, self.source.sites))}. Cache that site too: sites=[...]."
            )
        if self.mode == "mean":
            mean = _finite(_mean(self.source, site), site)[None]
            return lambda feed: mean
        assert isinstance(self.source, Activations)
        states = _finite(self.source[site], site).flatten(2)
        donors = Donors(self.source, self.seed)
        return lambda feed: states[[donors.row(prompt) for prompt in feed.prompts]]


class Donors:
    """For every prompt a stored prompt of another group, drawn by seed and token ids alone.

    All sites of an edit, and all edits with the same seed and source, take the same donor.
    """

    def __init__(self, acts: Activations, seed: int) -> None:
        self.acts, self.seed = acts, seed
        self.order = sorted(range(len(acts)), key=lambda row: acts.prompts[row].id)
        self.known: dict[tuple[str, str], int] = {}

    def row(self, prompt: TokenizedPrompt) -> int:
        """The row of the donor.

        Raises:
            EditError: When every stored prompt belongs to the group of this one.
        """
        key = (prompt.digest, prompt.group)
        if key not in self.known:
            rows = [
                row
                for row in self.order
                if self.acts.prompts[row].group != prompt.group
                and self.acts.token_ids[row] != prompt.ids
            ]
            if not rows:
                raise EditError(
                    f"Every prompt of the source belongs to group {prompt.group!r} of prompt "
                    f"{prompt.id!r}, so there is no other value to take; cache other groups too."
                )
            pick = keyed_rng(self.seed, "resample", prompt.digest).integers(len(rows))
            self.known[key] = rows[int(pick)]
        return self.known[key]

    def chosen(self, prompts: Mapping[str, TokenizedPrompt]) -> dict[str, str]:
        """Donor id of every prompt, by prompt id."""
        return {name: self.acts.prompts[self.row(item)].id for name, item in prompts.items()}


def _mean(source: ReplacementSource, site: Site) -> Tensor:
    """``[position, d]`` float64: over examples, or over classes that each count once."""
    if isinstance(source, Activations):
        return source[site].double().mean(0).flatten(1)
    if isinstance(source, NeuronScores):
        return source.mean[site]
    means = [sites[site].mean for sites in source.classes.values() if site in sites]
    return torch.stack(means).mean(0).flatten(1)


def _finite(values: Tensor, site: Site) -> Tensor:
    if not torch.isfinite(values).all():
        raise EditError(
            f"The source has values at {site} that are not finite (NaN or infinity); they cannot "
            "replace anything. Is the stored dtype too small?"
        )
    return values
