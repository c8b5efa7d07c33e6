"""Controls: for every edit, edits of the same make without the contrast in them.

An effect counts only beyond these. They are made from the edit itself, so that they match it in
sites, positions, number of neurons and in how far they move the states; the size of both stands in
every table that compares them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mechmem.analysis.draws import DRAWS, Beyond, beyond_draws, mean_of_draws
from mechmem.analysis.intervals import Estimate
from mechmem.errors import EditError, listed
from mechmem.evaluation.behavior import Observations, hits
from mechmem.models.model import Model
from mechmem.numeric import MOST, whole_number
from mechmem.patching.base import Edit

CONTROL_NAMES = {
    "alpha 0": "the edit with strength 0; must equal the unedited model exactly",
    "permuted": "the same neurons with the shift values exchanged among them",
    "random neurons": (
        "as many random neurons per site and position, scaled to the same length; of an ablation "
        "or a clamp, others that it moves about as far"
    ),
    "low-rank neurons": (
        "as many of the lowest-ranking neurons per site and position, their own differences scaled "
        "to the same length"
    ),
    "random direction": "an isotropic random direction over all coordinates, of the same size",
    "covariance direction": (
        "a random direction with the covariance of the states that the edit was fitted to, of the "
        "same size"
    ),
    "uniform noise": (
        "P1's own control: as many random neurons of all that were scored, shifted by values "
        "uniform between plus and minus the largest shift; not matched in length"
    ),
    "random heads": "as many of the heads that the edit leaves alone, of any layer",
    "random layers": "as many of the layers that the edit leaves alone, of the same stream",
    "unrelated donors": "activations of another group's prompts in the place of the donors'",
}
"""The controls of the edits that come with mechmem, in words."""


def controls(edit: Edit, model: Model, *, seed: int = 0) -> dict[str, Edit]:
    """The controls of an edit, by name (see `CONTROL_NAMES`): ``edit.controls(model, seed)``.

    Args:
        edit: The edit whose effect is to be judged.
        model: The model it will act on.
        seed: Keys every draw; another seed gives another draw.

    Raises:
        EditError: For a kind of edit that has no controls, or something that is not an edit.
    """
    if not isinstance(edit, Edit) or not isinstance(model, Model):
        raise EditError(
            f"controls takes an edit and a model, got {type(edit).__name__} and "
            f"{type(model).__name__}: mm.controls(edit, model), for example of "
            "mm.AddDirection(r, alpha=2.0)."
        )
    return edit.controls(model, seed)


def control_draws(
    edit: Edit, model: Model, *, draws: int = DRAWS, seed: int = 0
) -> dict[str, list[Edit]]:
    """Every control of an edit with its draws; draw ``k`` is that of ``seed + k``. A control in
    which nothing is drawn (`Edit.settled`) is there once.

    Raises:
        EditError: For fewer than one draw, or an edit without controls.
    """
    whole_number(draws, "draws", most=MOST, error=EditError)
    many = [controls(edit, model, seed=seed + k) for k in range(draws)]
    return {
        name: [draw[name] for draw in (many[:1] if name in edit.settled else many)]
        for name in many[0]
    }


def draws_of_one(
    edit: Edit, model: Model, *, draws: int = DRAWS, seed: int = 0, name: str | None = None
) -> tuple[str, list[Edit]]:
    """The draws of one control: the named one, else random neurons or a random direction.

    Raises:
        EditError: For a control that the edit does not have.
    """
    made = control_draws(edit, model, draws=draws, seed=seed)
    made.pop("alpha 0", None)
    usual = ("random neurons", "random direction", *made)
    wanted = name if name is not None else next((k for k in usual if k in made), None)
    if wanted not in made:
        raise EditError(
            f"{type(edit).__name__} has no control {name!r}; there are {listed(made) or 'none'}."
        )
    return wanted, made[wanted]


def beyond(
    edit: Observations,
    draws: Sequence[Observations],
    outcome: str,
    *,
    rows: np.ndarray | None = None,
    drawn: bool = True,
) -> Beyond:
    """Share of an outcome under an edit minus that under the draws of a control, paired.

    Args:
        edit, draws: What the model did under each, on the same prompts.
        outcome: What counts.
        rows: Only these prompts; default all.
        drawn: False for a control in which nothing is drawn.

    Raises:
        MechmemError: As `mechmem.analysis.draws.beyond_draws`.
    """
    which = np.arange(len(edit)) if rows is None else rows
    return beyond_draws(
        hits(edit, outcome)[which],
        _hits_by_draw(draws, outcome)[:, which],
        [edit.prompts[int(k)].group for k in which],
        drawn=drawn,
        sizes=(edit.moved, size_of(draws)),
    )


def share_of_draws(
    draws: Sequence[Observations],
    outcome: str,
    *,
    rows: np.ndarray | None = None,
    drawn: bool = True,
) -> Estimate:
    """Share of an outcome over the draws of a control; arguments as in `beyond`."""
    which = np.arange(len(draws[0])) if rows is None else rows
    groups = [draws[0].prompts[int(k)].group for k in which]
    return mean_of_draws(_hits_by_draw(draws, outcome)[:, which], groups, drawn=drawn)


def change_of_draws(
    draws: Sequence[Observations],
    before: Observations,
    outcome: str,
    *,
    rows: np.ndarray | None = None,
    drawn: bool = True,
) -> Estimate:
    """The same minus the share without an edit, paired."""
    which = np.arange(len(draws[0])) if rows is None else rows
    groups = [draws[0].prompts[int(k)].group for k in which]
    if all(one is before for one in draws):
        return Estimate.exact(0.0, groups)
    gained = (_hits_by_draw(draws, outcome) - hits(before, outcome))[:, which]
    return mean_of_draws(gained, groups, drawn=drawn, kind="change")


def size_of(draws: Sequence[Observations]) -> float:
    """How far the draws moved an activation, on average."""
    return float(np.mean([seen.moved for seen in draws]))


def _hits_by_draw(many: Sequence[Observations], outcome: str) -> np.ndarray:
    return np.array([hits(seen, outcome) for seen in many])
