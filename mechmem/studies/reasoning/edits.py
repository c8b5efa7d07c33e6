"""P2's interventions: tried on validation questions, one setting per family tested once.

Always both signs on both classes. P2 pushes toward reasoning on reasoning questions and away on
memory questions; that sign knows the label, so as a method it is an oracle. Beside the setting
that serves the oracle best stands the one that a user without labels would choose.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import pandas as pd

from mechmem.analysis.directions import Direction, Directions
from mechmem.analysis.draws import DRAWS
from mechmem.evaluation.behavior import Observations
from mechmem.evaluation.controls import (
    beyond,
    change_of_draws,
    controls,
    draws_of_one,
    share_of_draws,
    size_of,
)
from mechmem.evaluation.many_edits import evaluate_each
from mechmem.evaluation.rates import evaluate
from mechmem.evaluation.steering import RANDOM, add, scale_everywhere, steering_grid
from mechmem.models.model import Model
from mechmem.patching.base import Edit
from mechmem.patching.directions import AddDirection
from mechmem.patching.projections import ProjectOut
from mechmem.studies.reasoning.rows import of_label
from mechmem.tasks.base import Task
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.labels import LABELS

ALPHAS = (0.5, 1.0, 2.0, 4.0)
SCALES = (0.05, 0.1, 0.25, 0.5)
ORACLE = "sign by label (oracle)"
UNLABELED = "one sign for all"
VALIDATION_DRAWS = 5
"""Random directions beside the grid on validation, where nothing is claimed beyond them."""
FAMILY_FORMULAS = {
    "addition": "h + alpha r at one layer, all tokens (the paper)",
    "scaled projection": "h + scale (h . r^) r^ at block inputs, attention and MLP outputs of "
    "every layer, all tokens (the released code)",
    "projection-out": "h - (h . r^) r^ at one layer, all tokens (the paper's ablation)",
    "projection-out everywhere": "the same at block inputs, attention and MLP outputs of every "
    "layer",
}
LAST = "addition at the last token"


def _add_last(direction: Direction, alpha: float) -> Edit:
    return replace(cast(AddDirection, add(direction, alpha)), positions="each_step")


SIGNED = {"addition": add, "scaled projection": scale_everywhere, LAST: _add_last}


@dataclass(frozen=True)
class SignedEdit:
    """One edit of a family.

    Attributes:
        family: A key of `FAMILY_FORMULAS`.
        direction: Points toward reasoning.
        strength: Alpha in lengths of the direction, or scale; NaN where there is none.
    """

    family: str
    direction: Direction
    strength: float

    @property
    def signs(self) -> tuple[int, ...]:
        """``+1`` toward reasoning, ``-1`` away; projection-out has no sign (0)."""
        return (0,) if np.isnan(self.strength) else (1, -1)

    def edit(self, sign: int) -> Edit:
        """The edit with this sign."""
        if self.family in SIGNED:
            return SIGNED[self.family](self.direction, sign * self.strength)
        at: Any = "everywhere" if self.family.endswith("everywhere") else None
        return ProjectOut(self.direction, at=at)


@dataclass(frozen=True)
class TestedSigns:
    """A chosen setting on the test questions.

    Attributes:
        setting: What was chosen.
        pick: `ORACLE` or `UNLABELED`: what it was chosen for.
        chosen_sign: The sign that serves both classes best on validation.
        after: What the model did, by sign.
        random: The same under norm-matched random directions, by sign.
    """

    setting: SignedEdit
    pick: str
    chosen_sign: int
    after: Mapping[int, Observations]
    random: Mapping[int, tuple[Observations, ...]]


@dataclass(frozen=True)
class Trial:
    """Everything that was tried.

    Attributes:
        before: Unedited answers by part (``"validation"``, ``"test"``).
        validation: The rows of `mechmem.steering_grid` with their ``family``; projection-out has no
            strength.
        tested: Chosen settings on the test part.
    """

    before: Mapping[str, Observations]
    validation: pd.DataFrame
    tested: tuple[TestedSigns, ...]


def try_edits(
    model: Model,
    directions: Directions,
    parts: Mapping[str, PromptSet],
    reader: Task,
    *,
    alphas: Sequence[float] = ALPHAS,
    scales: Sequence[float] = SCALES,
    draws: int = DRAWS,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Trial:
    """Choose on ``parts["validation"]``, test once on ``parts["test"]``."""
    before = {
        name: evaluate(model, part, task=reader, margins=False).after
        for name, part in parts.items()
    }
    held = parts["validation"]
    frames = []
    for family, strengths in (("addition", alphas), ("scaled projection", scales)):
        grid = steering_grid(
            model, directions, held, alphas=strengths, task=reader, make=SIGNED[family],
            before=before["validation"], draws=VALIDATION_DRAWS, seed=seed,
            progress=lambda line, family=family: say(f"{family}, validation: {line}"),  # type: ignore[misc]
        )  # fmt: skip
        frames.append(grid.rows.assign(family=family))
    for family in ("projection-out", "projection-out everywhere"):
        say(f"{family}, validation")
        frames.append(_removed(family, model, directions, held, reader, before["validation"], seed))
    table = pd.concat(frames, ignore_index=True)
    tested = []
    for family in FAMILY_FORMULAS:
        for pick, (setting, sign) in _choose(family, directions, table).items():
            say(f"{family}, test")
            tested.append(
                _test(
                    model, setting, sign, pick, parts["test"], reader, before["test"], draws, seed
                )
            )
    return Trial(before, table, tuple(tested))


def _test(
    model: Model,
    setting: SignedEdit,
    sign: int,
    pick: str,
    prompts: PromptSet,
    reader: Task,
    before: Observations,
    draws: int,
    seed: int,
) -> TestedSigns:
    """The setting with both signs and its random directions, all at once."""
    edits = []
    for one in setting.signs:
        edit = setting.edit(one)
        others = [controls(edit, model, seed=_draw(seed, k)) for k in range(draws)]
        edits += [edit, *(named[RANDOM] for named in others)]
    rates = evaluate_each(model, prompts, edits, task=reader, before=before, margins=False)
    seen = [item.after for item in rates]
    parts = {
        one: seen[k * (draws + 1) : (k + 1) * (draws + 1)] for k, one in enumerate(setting.signs)
    }
    return TestedSigns(
        setting,
        pick,
        sign,
        {one: part[0] for one, part in parts.items()},
        {one: tuple(part[1:]) for one, part in parts.items()},
    )


def _removed(
    family: str,
    model: Model,
    directions: Directions,
    prompts: PromptSet,
    reader: Task,
    before: Observations,
    seed: int,
) -> pd.DataFrame:
    """Rows like those of `steering_grid` for projecting each site's direction out."""
    settings = [SignedEdit(family, one, float("nan")) for one in directions if one.norm]
    plan = []
    for setting in settings:
        edit = setting.edit(0)
        _, drawn = draws_of_one(edit, model, draws=VALIDATION_DRAWS, seed=seed, name=RANDOM)
        plan += [edit, *drawn]
    done = evaluate_each(model, prompts, plan, task=reader, before=before, margins=False)
    seen, each, rows = [item.after for item in done], 1 + VALIDATION_DRAWS, []
    for k, setting in enumerate(settings):
        own, *others = seen[k * each : (k + 1) * each]
        for label in LABELS:
            mine = of_label(before, label)
            for kind, many in (("edit", [own]), ("control", others)):
                beside = kind == "control"
                share = share_of_draws(many, "correct", rows=mine, drawn=beside)
                change = change_of_draws(many, before, "correct", rows=mine, drawn=beside)
                rows.append(
                    {
                        "stream": setting.direction.site.stream,
                        "layer": setting.direction.site.layer,
                        "alpha": float("nan"),
                        "kind": kind,
                        "control": RANDOM if beside else "",
                        "class": label,
                        **share.row("share", counted=False),
                        **change.row("change", counted=False),
                        "n": share.n,
                        "groups": share.groups,
                        "size": size_of(many),
                        **({} if beside else beyond(own, others, "correct", rows=mine).row()),
                        "family": family,
                    }
                )
    return pd.DataFrame(rows)


def _draw(seed: int, k: int) -> int:
    return 1000 * (seed + 1) + k  # other directions than the one shown beside validation


def _choose(
    family: str, directions: Directions, table: pd.DataFrame
) -> dict[str, tuple[SignedEdit, int]]:
    """The settings that serve the oracle and the user without labels best on validation.

    Ties go to the weaker edit, then to the earlier layer.
    """
    mine = table[(table["family"] == family) & (table["kind"] == "edit") & (table["alpha"] != 0)]
    found: dict[str, list[tuple[float, SignedEdit, int]]] = {ORACLE: [], UNLABELED: []}
    sizes = mine["alpha"].abs().fillna(-1.0)
    for key, part in mine.groupby([mine["stream"], mine["layer"], sizes]):
        stream, layer, size = (str(one) for one in key)
        strength = float(size) if float(size) > 0 else float("nan")
        setting = SignedEdit(family, directions[stream, int(layer)], strength)
        signs = np.sign(part["alpha"].fillna(0.0)).astype(int)
        share = part["share"].groupby([signs, part["class"]]).first()
        means = {sign: float(share[sign].mean()) for sign in setting.signs}
        sign = max(means, key=lambda one: means[one])
        found[UNLABELED].append((means[sign], setting, sign))
        if len(setting.signs) > 1:
            oracle = (share[1, LABELS[0]] + share[-1, LABELS[1]]) / 2
            found[ORACLE].append((float(oracle), setting, sign))

    def order(item: tuple[float, SignedEdit, int]) -> tuple[float, float, int]:
        value, setting, _ = item
        return (
            -round(value, 9),
            float(np.nan_to_num(setting.strength)),
            setting.direction.site.layer,
        )

    return {pick: min(items, key=order)[1:] for pick, items in found.items() if items}
