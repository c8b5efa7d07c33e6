"""Activation patching from one member of a flip pair to the other, and its gradient estimate."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from mechmem.caching.activations import Activations
from mechmem.caching.extract import cache_activations
from mechmem.errors import PromptError
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.engine.gradients import margin_gradients
from mechmem.models.model import Model
from mechmem.models.positions import Positions, PositionSpec
from mechmem.models.sites import Site, SiteSpec
from mechmem.models.tokenizing import PromptsLike
from mechmem.patching.apply import patched
from mechmem.patching.interchange import PatchActivations
from mechmem.patching.margins import answer_ids, behavior_margins
from mechmem.patching.pairs import CONTROLS, AlignedPairs, align_pairs
from mechmem.patching.patching_result import PatchingResult
from mechmem.tasks.base import Task
from mechmem.tasks.prompts import PromptSet


def activation_patching(
    model: Model,
    prompts: PromptsLike,
    *,
    toward: str = "generalized",
    sites: SiteSpec = "resid_post",
    positions: PositionSpec = "last",
    by: str = "behavior",
    task: Task | None = None,
    controls: bool = True,
    seed: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    progress: Callable[[int], None] | None = None,
) -> PatchingResult:
    """Run one member of every pair with the other member's activation at one place, and see how far
    its behavior margin follows.

    Each site and each part of the positions is patched on its own. Two controls run beside it:
    ``"unrelated"`` donors (the same class, another instance) move what the class has in common but
    not the instance; ``"same behavior"`` donors (the recipient's own class, another instance) move
    the instance but not the behavior. Patching says something about the pair's behavior only beyond
    them.

    Args:
        model: The model, or a view of it inside `patched`.
        prompts: Pairs (`PromptSet.pairs`) with both answers and their classes, for example
            ``mm.observe(...).flips()``. Pairs of one class only are left out.
        toward: Class of the donor; the other member receives.
        sites: Where to patch, one after the other.
        positions: Which tokens, a list is patched part by part; all tokens of a span together.
        by: ``"behavior"`` (observed) or ``"label"``.
        task: Knows how an answer follows a prompt; default a blank between.
        controls: Leave out to save two thirds of the time.
        seed: Keys the controls' donors and the intervals.
        token_budget: Most tokens in one batch.
        progress: Called with 1 after every site and part of every batch of equal lengths.

    Raises:
        PromptError: Without pairs or answers, or when controls find no second group.
        PositionError: When the members of a pair differ in how many tokens a position means.
    """
    setup = _Setup.of(model, prompts, toward, sites, positions, by, task, seed, token_budget)
    margins = setup.empty(controls)
    for rows in setup.pairs.buckets():
        for k, part in enumerate(setup.pairs.parts):
            states = {side: setup.states(side, rows, part) for side in _SIDES}
            for s, site in enumerate(setup.sites):
                for name, (side, donor_of) in setup.donors(rows, controls).items():
                    if not donor_of:
                        continue
                    mine = list(donor_of)
                    names = {
                        setup.pairs.recipients[row].id: getattr(setup.pairs, side)[donor].id
                        for row, donor in donor_of.items()
                    }
                    with patched(model, PatchActivations(states[side], names, at=site)) as view:
                        margins[name][mine, s, k] = behavior_margins(
                            view,
                            setup.pairs.side("recipients", mine),
                            task=task,
                            token_budget=token_budget,
                        )
                if progress is not None:
                    progress(1)
    return setup.result("activation patching", margins)


def attribution_patching(
    model: Model,
    prompts: PromptsLike,
    *,
    toward: str = "generalized",
    sites: SiteSpec = "resid_post",
    positions: PositionSpec = "last",
    by: str = "behavior",
    task: Task | None = None,
    controls: bool = True,
    seed: int = 0,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
) -> PatchingResult:
    """The first-order estimate of `activation_patching`, for all sites and positions at once.

    ``margin(recipient) + grad(recipient) . (h(donor) - h(recipient))``: one backward pass of the
    behavior margin (one per answer where answers have several tokens) instead of a forward pass per
    site (Nanda 2023; Syed et al. 2310.10348). It is exact where the margin is linear in the
    activation, and can be far off where it is not: confirm what matters by `activation_patching`.
    The model's weights get no gradient.

    Args:
        model, prompts, toward, sites, positions, by, task, controls, seed, token_budget: As in
            `activation_patching`.

    Raises:
        PromptError, PositionError: As in `activation_patching`.
    """
    setup = _Setup.of(model, prompts, toward, sites, positions, by, task, seed, token_budget)
    margins = setup.empty(controls)
    for rows in setup.pairs.buckets():
        recipients = model.encode(setup.pairs.side("recipients", rows))
        slopes = margin_gradients(
            model.backend,
            recipients.rows,
            *answer_ids(model, recipients, task),
            setup.sites,
            setup.pairs.parts,
            interventions=model.interventions,
            pad_id=model.tokens.pad_id,
            token_budget=token_budget,
        )
        for k, part in enumerate(setup.pairs.parts):
            given = setup.states("donors", rows, part)
            for s, site in enumerate(setup.sites):
                slope = slopes[site, part]
                states = {"donors": given[site].double(), "recipients": slope.states}
                for name, (side, donor_of) in setup.donors(rows, controls).items():
                    for row, donor in donor_of.items():
                        here, there = rows.index(row), rows.index(donor)
                        step = states[side][there] - slope.states[here]
                        gain = float((slope.gradients[here] * step).sum())
                        margins[name][row, s, k] = setup.recipient_margins[row] + gain
    return setup.result("attribution patching", margins)


_SIDES = ("donors", "recipients")


@dataclass(frozen=True)
class _Setup:
    """What both methods begin with and end in."""

    model: Model
    toward: str
    sites: list[Site]
    pairs: AlignedPairs
    recipient_margins: np.ndarray
    donor_margins: np.ndarray
    seed: int
    token_budget: int

    @classmethod
    def of(
        cls,
        model: Model,
        prompts: PromptsLike,
        toward: str,
        sites: SiteSpec,
        positions: PositionSpec,
        by: str,
        task: Task | None,
        seed: int,
        token_budget: int,
    ) -> _Setup:
        pairs = align_pairs(model, prompts, toward=toward, by=by, positions=positions)
        # The donor is scored on the recipient's answers, so that the two margins are one scale.
        asked = PromptSet(
            replace(donor, memorized=mine.memorized, generalized=mine.generalized)
            for mine, donor in zip(pairs.recipients, pairs.donors, strict=True)
        )
        own, theirs = (
            behavior_margins(model, side, task=task, token_budget=token_budget)
            for side in (pairs.recipients, asked)
        )
        return cls(model, toward, model.sites(sites), pairs, own, theirs, seed, token_budget)

    def empty(self, controls: bool) -> dict[str, np.ndarray]:
        """Margins to be filled in, under ``"patched"`` and the controls' names.

        Raises:
            PromptError: When controls are asked for and no pair can have one.
        """
        if controls and not any(
            self.pairs.strangers(rows, self.seed, "unrelated") for rows in self.pairs.buckets()
        ):
            raise PromptError(
                "The controls of patching need pairs of at least two groups with as many tokens "
                f"at the positions; there are {len(self.pairs)} pairs of one group each or of "
                "different lengths. Add pairs, or pass controls=False."
            )
        shape = (len(self.pairs), len(self.sites), len(self.pairs.parts))
        return {n: np.full(shape, np.nan) for n in ("patched", *(CONTROLS if controls else ()))}

    def states(self, side: str, rows: Sequence[int], part: Positions) -> Activations:
        """States of one side of the pairs, in full precision."""
        return cache_activations(
            self.model,
            self.pairs.side(side, rows),
            sites=self.sites,
            positions=list(part.parts),
            dtype=torch.float64 if self.model.info.dtype == "float64" else torch.float32,
            token_budget=self.token_budget,
        )

    def donors(self, rows: Sequence[int], controls: bool) -> dict[str, tuple[str, dict[int, int]]]:
        """Which side gives, and the giving row by the receiving one, for all that is patched."""
        out = {"patched": ("donors", {row: row for row in rows})}
        if controls:
            sides = dict(zip(CONTROLS, _SIDES, strict=True))
            for name, side in sides.items():
                out[name] = (side, self.pairs.strangers(rows, self.seed, name))
        return out

    def result(self, method: str, margins: dict[str, np.ndarray]) -> PatchingResult:
        return PatchingResult(
            method,
            self.toward,
            tuple(self.sites),
            tuple(str(part) for part in self.pairs.parts),
            self.pairs.recipients,
            self.pairs.donors,
            self.recipient_margins,
            self.donor_margins,
            margins,
            self.model.info,
            self.seed,
        )
