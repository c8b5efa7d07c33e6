"""`sweep`: try many edits on validation prompts, test the winner once on prompts nobody saw."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, cast

import pandas as pd

from mechmem.analysis.draws import DRAWS
from mechmem.caching.provenance import Seen
from mechmem.errors import EditError, listed
from mechmem.evaluation.behavior import observe, reader_for
from mechmem.evaluation.controls import control_draws
from mechmem.evaluation.rates import Rates
from mechmem.evaluation.shared import row_of
from mechmem.models.engine.batching import DEFAULT_TOKEN_BUDGET
from mechmem.models.model import Model
from mechmem.numeric import MOST, whole_number
from mechmem.patching.base import Edit, as_edits
from mechmem.seeding import keyed_seed
from mechmem.sweeps.cells import CellRun, Setting, check_refine, check_sharing
from mechmem.sweeps.result import Cell, Sweep, Tested
from mechmem.sweeps.store import Done
from mechmem.tasks.base import BEHAVIORS, Task
from mechmem.tasks.choice import Choice
from mechmem.tasks.prompts import PromptSet

EditGrid = Mapping[str, Sequence[Edit]] | Sequence[Edit]
Objective = Callable[[Mapping[str, Rates]], float]


def two_way_gain(rates: Mapping[str, Rates]) -> float:
    """The smaller of the gains in share toward each class: high only for edits that steer both
    ways. What an edit turns into ``other`` counts against it, since it is not a gain."""
    return min(result.change(toward).value for toward, result in rates.items())


def sweep(
    model: Model,
    grid: EditGrid,
    *,
    task: Task | None = None,
    reading: str | Choice | None = None,
    validation: PromptSet,
    test: PromptSet,
    toward: Sequence[str] | None = None,
    objective: Objective = two_way_gain,
    counts: Mapping[str, str] | None = None,
    refits: Sequence[EditGrid] = (),
    refine: Mapping[str, Sequence[float]] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
    folder: str | Path | None = None,
    rank: int | None = None,
    world: int | None = None,
    reuse: bool = True,
    token_budget: int = DEFAULT_TOKEN_BUDGET,
    progress: Callable[[str], None] | None = None,
) -> Sweep:
    """Choose on validation, test once.

    Every edit is tried toward every class. The winner of each family (by ``objective``, on the
    validation prompts) is then run on the test prompts together with its controls.

    Edits run side by side and share what they have in common: the blocks below an edit, the tokens
    before it, the forward passes. A sample of them is compared with fresh runs of their own
    (``checked``); a difference of more than 1e-4 of the logits' spread (more in half precision) is
    an error.

    Args:
        model: The unedited model.
        grid: Edits by family, or one list. Edits need a ``toward`` field.
        task: Reads the completions.
        reading: ``"text"`` or ``"choice"`` (see `observe`); default the task's own.
        validation, test: Prompts that share no group with each other or with what the edits saw.
        toward: Classes to steer to; default the task's two behaviors.
        objective: From rates per class to a score; higher is better.
        counts: Per class steered to, the outcome that counts in tables and in the comparison with
            controls; default the outcome of the same name, or the task's first one where it has
            none (``"correct"`` for questions).
        refits: Grids that the same rule made from exchanged classes. Each is swept as the grid is
            (validation, choice, one look at test), without controls, its cells beside all others.
            One that found no edit, in a family or at all, has nothing to test there.
        refine: Per family, multiples of the best edit's alpha that are tried on validation after
            the grid, in the refits too.
        draws: Random draws per control; with one, how far draws spread is not known and intervals
            of the difference have no bounds.
        seed: Keys controls and resampling.
        folder: Where finished edits are stored. The same sweep called again, after a kill or on
            purpose, takes them from there.
        rank, world: This process's share; default ``RANK`` and ``WORLD_SIZE`` (torchrun), else
            everything. A process that is early takes over from the others, so every one of them
            returns the whole result.
        reuse: False runs every edit by itself.
        token_budget: Most tokens in one batch.
        progress: Called with a line for every edit tried.

    Raises:
        LeakageError: When test, validation and fitting share a group or a prompt.
        EditError: For an empty grid, no draws, a factor that is no number, an edit without
            ``toward``, one that never acted, or an objective that does not fit the task's outcomes.
        ModelError: When edits do not give the same side by side as alone.
        ArtifactError: When processes share the work without a folder, or it cannot be used.
    """
    found_anything = [{k: v for k, v in _families(one).items() if v} for one in refits]
    grids = [_families(grid), *found_anything]
    check_refine(refine)
    _check_asked(objective, draws, seed, folder, progress, token_budget)
    edits = [edit for families in grids for members in families.values() for edit in members]
    if not any(grids[0].values()):
        raise EditError("The grid holds no edit; give for example [mm.AddDirection(r, alpha=2.0)].")
    empty = [name for name, members in grids[0].items() if not members]
    if empty:
        raise EditError(
            f"The grid's families {listed(sorted(set(empty)), 4)} hold no edit, so none of them "
            "could be tested; leave them out, or give them some."
        )
    for edit in as_edits(edits):
        if "toward" not in {item.name for item in fields(edit)}:  # type: ignore[arg-type]
            raise EditError(
                f"{type(edit).__name__} cannot be steered toward a class, so a sweep cannot choose "
                "it; evaluate it on its own with mm.evaluate(..., edit=...)."
            )
    seen = Seen()
    for edit in edits:
        seen = seen | edit.seen
    chosen_on = model.encode(validation, "choose on")
    seen.refuse(chosen_on, chosen_on.rows, "choose an edit")
    # Validation counts as seen from here on: no test prompt may be one that chose.
    seen = seen | Seen.of(chosen_on, chosen_on.rows)
    tested_on = model.encode(test, "test on")
    seen.refuse(tested_on, tested_on.rows, "test the chosen edit")

    task = task if task is None and reading is None else reader_for(validation, task, reading)
    toward = toward or (BEHAVIORS if task is None else task.behaviors)
    place = None if folder is None else Path(folder)
    run = CellRun(model, task, seed, place, rank, world, reuse, token_budget)
    check_sharing(place, rank, world)
    for name in toward:
        _toward(edits[0], name).changes(model)  # refuses a class that it does not know
    start = observe(model, chosen_on, task=task, margins=False, token_budget=token_budget)
    goals = _goals(toward, counts, start.allowed, objective)
    checked: list[dict[str, Any]] = []

    def validate(tried: Sequence[_Try]) -> list[Cell]:
        settings = [
            Setting(_toward(item.edit, name), _about("validation", item, name))
            for item in tried
            for name in toward
        ]
        done = run.run(settings, chosen_on, _teller(progress))
        checked.extend(_differences(settings, done))
        cells = []
        for k, item in enumerate(tried):
            mine = done[k * len(toward) : (k + 1) * len(toward)]
            rates = {name: Rates(one.seen, start) for name, one in zip(toward, mine, strict=True)}
            cells.append(Cell(item.family, item.edit, rates, _score(objective, rates, item.edit)))
        return cells

    tried = [
        _Try(k, family, edit)
        for k, families in enumerate(grids)
        for family, members in families.items()
        for edit in members
    ]
    found = list(zip(tried, validate(tried), strict=True))
    again = [
        _Try(item.grid, item.family, _stronger(cell.edit, factor))
        for item, cell in _winners(found)
        for factor in (refine or {}).get(item.family, ())
    ]
    found += zip(again, validate(again), strict=True)
    before = observe(model, tested_on, task=task, token_budget=token_budget)
    plans = [
        (item, cell, list(_test_plan(item, cell, model, toward, draws, seed)))
        for item, cell in _winners(found)
    ]
    settings = [setting for *_, plan in plans for _, _, setting in plan]
    done = run.run(settings, tested_on, _teller(progress))
    checked += _differences(settings, done)
    results = iter(done)
    tested: list[list[Tested]] = [[] for _ in grids]
    for item, cell, plan in plans:
        rates: dict[str, Rates] = {}
        placebo: dict[str, dict[str, list[Rates]]] = {name: {} for name in toward}
        for name, kind, _ in plan:
            rates_of = Rates(next(results).seen, before)
            if kind:
                placebo[name].setdefault(kind, []).append(rates_of)
            else:
                rates[name] = rates_of
        tested[item.grid].append(Tested(cell.family, cell.edit, rates, placebo, goals))
    return Sweep(
        [cell for item, cell in found if item.grid == 0],
        tested[0],
        before,
        seen,
        pd.DataFrame(checked),
        tested[1:],
    )


@dataclass(frozen=True)
class _Try:
    """An edit to try: 0 is the grid itself, the others are its refits."""

    grid: int
    family: str
    edit: Edit


def _families(grid: EditGrid) -> dict[str, Sequence[Edit]]:
    given: Mapping[Any, Any] = grid if isinstance(grid, Mapping) else {"": grid}
    for name, members in given.items():
        many = isinstance(members, Iterable) and not isinstance(members, (str, bytes))
        if not isinstance(name, str) or not many:
            raise EditError(
                f"A grid is a list of edits, or such lists by the name of their family, got "
                f"{name!r:.40}: {members!r:.80}; for example {{'additive': [edit]}}."
            )
    return {name: list(members) for name, members in given.items()}


def _check_asked(
    objective: object, draws: object, seed: int, folder: object, progress: object, budget: object
) -> None:
    """Refuse what would fail only after edits have run.

    Raises:
        EditError: Naming it.
    """
    whole_number(draws, "draws", most=MOST, error=EditError)
    whole_number(budget, "token_budget", error=EditError)
    keyed_seed(seed)
    if not callable(objective):
        raise EditError(f"objective must be a function of rates, got {objective!r:.80}.")
    if not (progress is None or callable(progress)):
        raise EditError(f"progress must be a function of a line, got {progress!r:.80}.")
    if not (folder is None or isinstance(folder, (str, os.PathLike))):
        raise EditError(f"folder must be a path, got {folder!r:.80}.")


def _winners(found: Sequence[tuple[_Try, Cell]]) -> list[tuple[_Try, Cell]]:
    """The best cell of every family of every grid, the best family of each grid first."""
    best: dict[tuple[int, str], tuple[_Try, Cell]] = {}
    for item, cell in found:
        key = (item.grid, item.family)
        # The first of equals, so that the grid's own order decides.
        if key not in best or cell.score > best[key][1].score:
            best[key] = (item, cell)
    return sorted(best.values(), key=lambda pair: (pair[0].grid, -pair[1].score))


def _stronger(edit: Edit, factor: float) -> Edit:
    if not hasattr(edit, "alpha"):
        raise EditError(
            f"refine= multiplies the strength alpha, and {type(edit).__name__} has none; leave its "
            "family out of refine."
        )
    return replace(cast(Any, edit), alpha=edit.alpha * factor)  # type: ignore[no-any-return]


def _score(objective: Objective, rates: Mapping[str, Rates], edit: Edit) -> float:
    score = objective(rates)
    if not math.isfinite(score):
        raise EditError(
            f"The objective gave {score} for {edit.describe()}, which ranks nowhere; return a "
            "finite number."
        )
    return score


def _goals(
    toward: Sequence[str],
    counts: Mapping[str, str] | None,
    allowed: Sequence[str],
    objective: Objective,
) -> dict[str, str]:
    """Which outcome counts, by class."""
    if objective is two_way_gain and not set(toward) <= set(allowed):
        raise EditError(
            f"The objective two_way_gain looks for outcomes named like the classes "
            f"{listed(toward)}, but this task has {listed(allowed)}; pass objective=, a function "
            "from rates per class to a number, for example "
            f"lambda rates: rates[{toward[0]!r}].change({allowed[0]!r}).value."
        )
    given = dict(counts or {})
    wrong = sorted(set(given) - set(toward)) + sorted(set(given.values()) - set(allowed))
    if wrong:
        raise EditError(
            f"counts={given} names {listed(wrong)}; classes are {listed(toward)}, outcomes "
            f"{listed(allowed)}."
        )
    return {name: given.get(name, name if name in allowed else allowed[0]) for name in toward}


def _about(part: str, item: _Try, toward: str, control: str = "") -> dict[str, Any]:
    kind = "control" if control else "refit" if item.grid else "edit"
    return {
        "part": part, "family": item.family, "refit": item.grid, **item.edit.describe(),
        **row_of(kind, toward, control),
    }  # fmt: skip


def _test_plan(
    item: _Try, cell: Cell, model: Model, toward: Sequence[str], draws: int, seed: int
) -> Iterator[tuple[str, str, Setting]]:
    """Class, control (empty for the edit itself) and what to run, for everything tested of one
    winner; refits have no controls."""
    for name in toward:
        edit = _toward(cell.edit, name)
        # Refits are ranked by shares of outcomes, so their margins are not scored.
        yield name, "", Setting(edit, _about("test", item, name), margins=item.grid == 0)
        drawn = {} if item.grid else control_draws(edit, model, draws=draws, seed=seed)
        for kind, kinds in drawn.items():
            for control in kinds:
                yield name, kind, Setting(control, _about("test", item, name, kind))


def _differences(settings: Sequence[Setting], done: Sequence[Done]) -> list[dict[str, Any]]:
    return [
        {**setting.about, "difference": item.difference}
        for setting, item in zip(settings, done, strict=True)
        if item.difference is not None
    ]


def _teller(progress: Callable[[str], None] | None) -> Callable[[Setting], None] | None:
    if progress is None:
        return None

    def tell(setting: Setting) -> None:
        about = setting.about
        kind = f"{about['control']}, " if about["control"] else ""
        kind += f"refit {about['refit']}, " if about["refit"] else ""
        progress(f"{about['part']}, {about['family']}: {kind}{setting.edit.describe()}")

    return tell


def _toward(edit: Edit, name: str) -> Edit:
    return replace(cast(Any, edit), toward=name)  # type: ignore[no-any-return]
