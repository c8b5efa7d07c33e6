"""What a study fits, and the rule that makes a grid of edits from it: whole, or shrunk to fit."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mechmem.analysis.directions import Directions, difference_of_means
from mechmem.analysis.draws import DRAWS
from mechmem.analysis.layer_choice import choose_layers
from mechmem.analysis.neurons import NeuronScores, neuron_mean_difference
from mechmem.artifacts import write_text
from mechmem.caching.activations import Activations
from mechmem.errors import ArtifactError, MechmemError, listed, shown
from mechmem.manifests import read_json
from mechmem.numeric import MOST, finite_number, finite_numbers, whole_number
from mechmem.patching.base import Edit
from mechmem.patching.directions import AddDirection
from mechmem.patching.presets import p1_preset
from mechmem.patching.shifting import ShiftNeurons
from mechmem.sweeps.cells import check_refine
from mechmem.tasks.base import BEHAVIORS
from mechmem.tasks.prompts import PromptSet

MOST_LAYERS = 6
PUBLISHED, SHIFT, ADD = (
    "P1 as published",
    "one layer, own shift per position",
    "one direction",
)
REFINE = {SHIFT: (0.7, 1.4), ADD: (0.6, 1.7)}
"""Multiples of the best strength of a family that are tried after the grid."""


STEERED = {"validation": 240, "test": 480}
"""Most prompts of a part on which edits are tried; flips are rare, so fitting takes more."""
LEAST_STEERED = 20


def check_asked(
    shuffles: int,
    steered: Mapping[str, int],
    doses: Sequence[float],
    refine: Mapping[str, Sequence[float]],
    budget: float | None,
) -> None:
    """Refuse what would fail only after a study has run.

    Raises:
        MechmemError: Naming it.
    """
    whole_number(shuffles, "shuffles", 0, most=MOST)
    good = set(steered) == set(STEERED) and all(
        isinstance(most, int) and most >= LEAST_STEERED for most in steered.values()
    )
    if not good:
        raise MechmemError(
            f"steered must say how many prompts of {listed(STEERED)} edits are tried on, at least "
            f"{LEAST_STEERED} each, got {steered!r}; the default is {STEERED}."
        )
    finite_numbers(doses, "doses", empty=True)
    check_refine(refine)
    if budget is not None:
        finite_number(budget, "budget", above=0)


@dataclass(frozen=True)
class Fit:
    """What is fitted on the training flips, or on the same flips with exchanged behaviors.

    Attributes:
        last: States of the output of every block at the last prompt token.
        window: The same at the task's own positions.
        scores, window_scores: Neurons there.
        directions: Difference of means toward the second behavior per site, at the last token.
    """

    last: Activations
    window: Activations
    scores: NeuronScores
    window_scores: NeuronScores
    directions: Directions

    @classmethod
    def of(
        cls,
        last: Activations,
        window: Activations,
        prompts: PromptSet,
        behaviors: Sequence[str] = BEHAVIORS,
    ) -> Fit:
        """Of states whose prompts' behaviors are those of ``prompts``."""
        first, second = behaviors
        same = window is last
        last = last.select(prompts)
        window = last if same else window.select(prompts)
        scores = neuron_mean_difference(last, first=first, second=second)
        return cls(
            last,
            window,
            scores,
            scores if same else neuron_mean_difference(window, first=first, second=second),
            difference_of_means(last, toward=second),
        )


GridRule = Callable[[Fit], Mapping[str, Sequence[Edit]]]


FAMILIES = (PUBLISHED, SHIFT, ADD)
ALPHAS = {SHIFT: (1.0, 2.0), ADD: (1.0, 3.0)}
DRAWN_CONTROLS = {PUBLISHED: 6, SHIFT: 6, ADD: 2}
"""Controls of a family that are drawn."""
FEWEST_DRAWS = 19


@dataclass(frozen=True)
class Plan:
    """What a study tries, the same for the real fit and for every refit.

    ``P1 as published`` shifts the top neurons of all layers at the last position of every pass.
    ``one layer, own shift per position`` shifts all coordinates of one layer, each position of the
    window by its own mean difference. ``one direction`` adds the difference of means at one layer
    to the last position of every pass. Layers are chosen by how well held-out training flips are
    told apart there (`choose_layers`); few strengths, and more around the best (``REFINE``).

    Attributes:
        layers: Most layers that are tried.
        families: Which of the families.
        draws: Random draws per control of the winners.
        validation, test: Most prompts of a part on which edits are tried.
    """

    layers: int = MOST_LAYERS
    families: tuple[str, ...] = FAMILIES
    draws: int = DRAWS
    validation: int = 240
    test: int = 480

    def __post_init__(self) -> None:
        numbers = (self.layers, self.draws, self.validation, self.test)
        whole = all(type(n) is int and 0 < n <= MOST for n in numbers)
        if not whole or not self.families or not set(self.families) <= set(FAMILIES):
            raise MechmemError(
                f"A plan needs numbers from 1 to {MOST:,} and some of the families "
                f"{listed(FAMILIES)}, got {shown(asdict(self), 200)}."
            )

    def grid(self, fit: Fit) -> dict[str, list[Edit]]:
        """The edits of this plan, by family."""
        first, second = fit.scores.first, fit.scores.second
        found: dict[str, list[Edit]] = {}
        if PUBLISHED in self.families:
            found[PUBLISHED] = list(p1_preset("p1-paper").grid(fit.scores, toward=second))
        if SHIFT in self.families:
            found[SHIFT] = [
                ShiftNeurons(fit.window_scores, top=1.0, alpha=alpha, at=[site], toward=second)
                for site in choose_layers(fit.window, self.layers, second, first)
                for alpha in ALPHAS[SHIFT]
            ]
        if ADD in self.families:
            found[ADD] = [
                AddDirection(fit.directions[site], alpha=alpha, positions="each_step")
                for site in choose_layers(fit.last, self.layers, second, first)
                for alpha in ALPHAS[ADD]
            ]
        return found

    def work(self, prompts: Mapping[str, int], n_layers: int, shuffles: int) -> int:
        """Prompts times edits that are run, both ways, with refits, refinement and controls."""
        preset = p1_preset("p1-paper")
        layers, grids = min(self.layers, n_layers), 1 + shuffles
        tried = tested = 0
        for family in self.families:
            alphas = ALPHAS.get(family, ())
            own = layers * len(alphas) if alphas else len(preset.tops) * len(preset.alphas)
            tried += grids * (own + len(REFINE.get(family, ())))
            tested += grids + DRAWN_CONTROLS[family] * self.draws
        held, last = (min(self.validation, prompts["validation"]), min(self.test, prompts["test"]))
        return 2 * (tried * held + tested * last)

    def smaller(self) -> Iterator[Plan]:
        """This plan, and every next one a step smaller. No step takes a refit: with fewer, nothing
        could be claimed."""
        steps: list[dict[str, Any]] = [
            {},
            {"draws": FEWEST_DRAWS},
            {"families": (PUBLISHED, ADD)},
            {"validation": 120, "test": 240},
            {"validation": 60, "test": 120},
            {"layers": 4},
            {"layers": 2},
            {"families": (ADD,)},
            {"validation": 40, "test": 60},
        ]
        plan = self
        for step in steps:
            fewer = {name: _smaller(getattr(plan, name), value) for name, value in step.items()}
            after = replace(plan, **fewer)
            if after != plan or not step:
                plan = after
                yield plan

    def left_out(self, prompts: Mapping[str, int], n_layers: int) -> list[str]:
        """What the whole plan has beyond this one, in words.

        Args:
            prompts: How many there are of validation and test.
            n_layers: Of the model.
        """
        whole, out = Plan(), []
        gone = [name for name in whole.families if name not in self.families]
        if gone:
            out.append(f"the families {listed(gone)}" if gone[1:] else f"the family {gone[0]!r}")
        if self.layers < (most := min(whole.layers, n_layers)):
            out.append(f"{most - self.layers} of {most} layers")
        for part in ("validation", "test"):
            own, most = getattr(self, part), min(getattr(whole, part), prompts[part])
            if own < most:
                out.append(f"{part} prompts beyond {own} (of {most})")
        if self.draws < whole.draws:
            out.append(f"{whole.draws - self.draws} of {whole.draws} draws of each control")
        return out

    def save(self, file: str | Path) -> Path:
        """Write it as JSON; with `load` it gives the same study on any machine."""
        return write_text(Path(file), json.dumps(asdict(self), indent=1) + "\n")

    @classmethod
    def load(cls, file: str | Path) -> Plan:
        """The inverse of `save`.

        Raises:
            ArtifactError: When the file holds no plan.
        """
        try:
            held = read_json(file)
            return cls(**{**held, "families": tuple(held["families"])})
        except (ArtifactError, ValueError, TypeError, KeyError) as error:
            raise ArtifactError(
                f"{file} holds no plan of a study ({error}); give the plan.json that a study with "
                "--budget has saved."
            ) from error


def _smaller(now: Any, value: Any) -> Any:
    """The smaller number; or those families that are in both, if there are any."""
    if isinstance(value, tuple):
        return tuple(name for name in now if name in value) or now
    return min(now, value)


def default_grid(fit: Fit) -> dict[str, list[Edit]]:
    """Edits that a study tries, by family: those of the whole `Plan`."""
    return Plan().grid(fit)
