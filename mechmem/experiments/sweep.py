"""`sweep`: try many edits on validation prompts, test the winner once on prompts nobody saw."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, cast

import numpy as np
import pandas as pd

from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.caching.provenance import Seen
from mechmem.errors import EditError
from mechmem.evaluation.behavior import Observations, observe
from mechmem.evaluation.controls import controls
from mechmem.evaluation.rates import Rates, evaluate
from mechmem.models.hooked import Model
from mechmem.patching.base import Edit, as_edits
from mechmem.tasks.base import BEHAVIORS, Task
from mechmem.tasks.prompts import PromptSet

__all__ = ["Cell", "Sweep", "Tested", "sweep", "two_way_gain"]

Objective = Callable[[Mapping[str, Rates]], float]


def two_way_gain(rates: Mapping[str, Rates]) -> float:
    """The smaller of the gains in share toward each class: high only for edits that steer both
    ways. What an edit turns into ``other`` counts against it, since it is no gain."""
    return min(result.change(toward).value for toward, result in rates.items())


@dataclass(frozen=True)
class Cell:
    """One edit of the grid on the validation prompts."""

    family: str
    edit: Edit
    rates: Mapping[str, Rates]
    score: float


@dataclass(frozen=True)
class Tested:
    """A winner on the test prompts, beside its controls.

    Attributes:
        family: The family it won.
        edit: The winner.
        rates: Per class steered to.
        controls: Per class steered to and control name, one `Rates` per draw.
    """

    family: str
    edit: Edit
    rates: Mapping[str, Rates]
    controls: Mapping[str, Mapping[str, Sequence[Rates]]]

    def control_share(self, toward: str, name: str, outcome: str) -> Estimate:
        """Share under a control, averaged over its draws."""
        return self._averaged(self.controls[toward][name], outcome, None)

    def beyond(self, toward: str, name: str, outcome: str | None = None) -> Estimate:
        """Share under the edit minus share under a control (averaged over its draws), paired
        prompt by prompt; default outcome: the class steered to."""
        return self._averaged(self.controls[toward][name], outcome or toward, self.rates[toward])

    def beyond_every_control(self, toward: str) -> Estimate:
        """`beyond` for the control that it beats by least."""
        return min(
            (self.beyond(toward, name) for name in self.controls[toward]),
            key=lambda estimate: estimate.low,
        )

    def _averaged(self, draws: Sequence[Rates], outcome: str, edited: Rates | None) -> Estimate:
        values = np.mean([_hits(draw.after, outcome) for draw in draws], axis=0)
        if edited is not None:
            values = _hits(edited.after, outcome) - values
        first = draws[0]
        return group_mean(values, first.after.prompts.groups, seed=first.seed)


@dataclass(frozen=True)
class Sweep:
    """What a sweep found.

    Attributes:
        cells: Every edit on the validation prompts.
        tested: The winner of every family on the test prompts, best validation score first.
        before: Observations of the unedited model on the test prompts.
        seen: Everything that fitting and choosing has seen.
    """

    cells: Sequence[Cell]
    tested: Sequence[Tested]
    before: Observations
    seen: Seen

    @property
    def best(self) -> Tested:
        """The winner over all families, chosen on validation."""
        return self.tested[0]

    def table(self) -> pd.DataFrame:
        """Validation: one row per edit and class steered to."""
        rows = []
        for cell in self.cells:
            for toward, rates in cell.rates.items():
                row = {"family": cell.family, **cell.edit.describe(), "toward": toward}
                row |= {name: rates.share(name).value for name in rates.after.allowed}
                rows.append({**row, "score": cell.score})
        return pd.DataFrame(rows)

    def test_table(self) -> pd.DataFrame:
        """Test: unedited, every winner and every control, with intervals and paired differences."""
        rows: list[dict[str, Any]] = []
        plain = Rates(self.before)
        rows.append(
            {"family": "", "setting": "unedited", "toward": "", **_shares(plain.share, plain)}
        )
        for tested in self.tested:
            for toward, rates in tested.rates.items():
                change = rates.change(toward)
                rows.append(
                    {
                        "family": tested.family,
                        "setting": "edit",
                        "toward": toward,
                        **_shares(rates.share, rates),
                        "change": change.value,
                        "change_low": change.low,
                        "change_high": change.high,
                    }
                )
                for name in tested.controls[toward]:
                    beyond = tested.beyond(toward, name)

                    def share(
                        outcome: str,
                        tested: Tested = tested,
                        toward: str = toward,
                        name: str = name,
                    ) -> Estimate:
                        return tested.control_share(toward, name, outcome)

                    rows.append(
                        {
                            "family": tested.family,
                            "setting": name,
                            "toward": toward,
                            **_shares(share, rates),
                            "edit_minus_control": beyond.value,
                            "edit_minus_control_low": beyond.low,
                            "edit_minus_control_high": beyond.high,
                        }
                    )
        return pd.DataFrame(rows)


def sweep(
    model: Model,
    grid: Mapping[str, Sequence[Edit]] | Sequence[Edit],
    *,
    task: Task | None = None,
    validation: PromptSet,
    test: PromptSet,
    toward: Sequence[str] = BEHAVIORS,
    objective: Objective = two_way_gain,
    draws: int = 3,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> Sweep:
    """Choose on validation, test once.

    Every edit is tried toward every class. The winner of each family (by ``objective``, on the
    validation prompts) is then run on the test prompts together with its controls.

    Args:
        model: The unedited model.
        grid: Edits by family, or one list. Edits need a ``toward`` field.
        task: Reads the completions.
        validation, test: Prompts that share no group with each other or with what the edits saw.
        toward: Classes to steer to.
        objective: From rates per class to a score; higher is better.
        draws: Random draws per control.
        seed: Keys controls and resampling.
        progress: Called with a line for every edit tried.

    Raises:
        LeakageError: When test, validation and fitting share a group or a prompt.
        EditError: For an empty grid or an edit without ``toward``.
    """
    families = dict(grid) if isinstance(grid, Mapping) else {"": list(grid)}
    edits = [edit for members in families.values() for edit in members]
    if not edits:
        raise EditError("The grid holds no edit; give for example [mm.AddDirection(r, alpha=2.0)].")
    for edit in as_edits(edits):
        if "toward" not in {field.name for field in fields(edit)}:  # type: ignore[arg-type]
            raise EditError(
                f"{type(edit).__name__} cannot be steered toward a class, so a sweep cannot choose "
                "it; evaluate it on its own with mm.evaluate(..., edit=...)."
            )
    seen = Seen()
    for edit in edits:
        seen = seen | edit.seen
    seen.refuse(validation.require("choose on"), model.tokenize(validation), "choose an edit")
    seen = seen | Seen.of(validation, model.tokenize(validation))
    seen.refuse(test.require("test on"), model.tokenize(test), "test the chosen edit")

    start = observe(model, validation, task=task, margins=False)
    cells = []
    for family, edit in ((name, edit) for name, members in families.items() for edit in members):
        rates = {
            name: evaluate(
                model,
                validation,
                task=task,
                edit=_toward(edit, name),
                before=start,
                margins=False,
                seed=seed,
            )
            for name in toward
        }
        score = objective(rates)
        if not math.isfinite(score):
            raise EditError(
                f"The objective gave {score} for {edit.describe()}, which ranks nowhere; return a "
                "finite number."
            )
        cells.append(Cell(family, edit, rates, score))
        if progress is not None:
            progress(f"{family}: {edit.describe()}")
    before = observe(model, test, task=task)
    winners = [
        max((cell for cell in cells if cell.family == family), key=lambda cell: cell.score)
        for family in families
    ]
    winners.sort(key=lambda cell: -cell.score)
    tested = [
        _tested(model, cell, test, before, task, toward, draws, seed, progress) for cell in winners
    ]
    return Sweep(cells, tested, before, seen)


def _tested(
    model: Model,
    cell: Cell,
    test: PromptSet,
    before: Observations,
    task: Task | None,
    toward: Sequence[str],
    draws: int,
    seed: int,
    progress: Callable[[str], None] | None,
) -> Tested:
    def run(edit: Edit, margins: bool) -> Rates:
        return evaluate(
            model, test, task=task, edit=edit, before=before, margins=margins, seed=seed
        )

    rates, placebo = {}, {}
    for name in toward:
        edit = _toward(cell.edit, name)
        rates[name] = run(edit, True)
        placebo[name] = {
            kind: [run(control, False) for control in kinds]
            for kind, kinds in _drawn(edit, model, draws, seed)
        }
        if progress is not None:
            progress(f"test, {cell.family}: toward {name}")
    return Tested(cell.family, cell.edit, rates, placebo)


def _drawn(edit: Edit, model: Model, draws: int, seed: int) -> Iterator[tuple[str, list[Edit]]]:
    """Every control with its draws; a control without randomness is run once."""
    many = [controls(edit, model, seed=seed + k) for k in range(draws)]
    for kind in many[0]:
        yield kind, [draw[kind] for draw in (many[:1] if kind == "alpha 0" else many)]


def _toward(edit: Edit, name: str) -> Edit:
    return replace(cast(Any, edit), toward=name)  # type: ignore[no-any-return]


def _hits(seen: Observations, outcome: str) -> np.ndarray:
    return np.array([name == outcome for name in seen.outcomes], dtype=float)


def _shares(share: Callable[[str], Estimate], rates: Rates) -> dict[str, float]:
    row: dict[str, float] = {}
    for outcome in rates.after.allowed:
        estimate = share(outcome)
        row |= {
            outcome: estimate.value,
            f"{outcome}_low": estimate.low,
            f"{outcome}_high": estimate.high,
        }
    return {**row, "n": len(rates.after), "groups": len(set(rates.after.prompts.groups))}
