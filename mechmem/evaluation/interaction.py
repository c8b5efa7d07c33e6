"""`interaction`: do neurons act alone or together? Parts of a shift singly, and all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from mechmem.analysis.draws import DRAWS, Beyond, beyond_draws, mean_of_draws
from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.errors import EditError, listed
from mechmem.evaluation.behavior import observe
from mechmem.evaluation.controls import controls, draws_of_one, size_of
from mechmem.evaluation.many_edits import evaluate_each
from mechmem.evaluation.shared import behaviors_of, need_margins, refuse_seen, sign_toward
from mechmem.models.model import Model
from mechmem.models.sites import Site
from mechmem.models.tokenizing import PromptsLike
from mechmem.numeric import MOST, whole_number
from mechmem.patching.shifting import ShiftNeurons
from mechmem.tasks.base import Task

NeuronPart = Mapping[Site, Sequence[int]]
"""Coordinates by site, positions flattened, as in `NeuronSet.index` and
`NeuronClusters.members`."""


@dataclass(frozen=True)
class Interaction:
    """What the parts of a shift do alone, and together.

    Every effect is the change of the answer margin in nats, counted toward the class steered to.

    Attributes:
        effects: ``effects[toward][kind][name]``; kind is ``"edit"`` or ``"permuted"`` (the same
            neurons with the shift values exchanged among them, over all draws). Names are those of
            the parts, and ``"joint"`` (all parts at once), ``"sum of parts"``, and
            ``"interaction"``: joint minus sum, prompt by prompt. Above 0 the parts help each other,
            below 0 they replace each other; 0 means that each acts alone.
        beyond: ``beyond[toward][name]``: the edit's effect minus that of the draws.
        sizes: Neurons of every part.
    """

    effects: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
    beyond: Mapping[str, Mapping[str, Beyond]]
    sizes: Mapping[str, int]

    def score(self, toward: str) -> Estimate:
        """Joint effect minus the sum of the parts' effects, nats."""
        return self.effects[toward]["edit"]["interaction"]

    def table(self) -> pd.DataFrame:
        """One row per class steered to, kind, and part or sum."""
        total = sum(self.sizes.values())
        return pd.DataFrame(
            [
                {
                    "toward": toward,
                    "kind": "edit" if kind == "edit" else "control",
                    "control": "" if kind == "edit" else kind,
                    "part": name,
                    "neurons": self.sizes.get(name, total),
                    **effect.row("effect"),
                    **(self.beyond[toward][name].row(counted=False) if kind == "edit" else {}),
                }
                for toward, kinds in self.effects.items()
                for kind, parts in kinds.items()
                for name, effect in parts.items()
            ]
        )


def split_shift(
    edit: ShiftNeurons, model: Model, parts: Mapping[str, NeuronPart] | None = None
) -> dict[str, ShiftNeurons]:
    """The same shift on some of its neurons at a time.

    Args:
        edit: The whole shift.
        model: The model it acts on.
        parts: Coordinates by site for every part; by default every chosen neuron is one, named
            ``resid_post[2][17]``.

    Raises:
        EditError: For no part, one that is empty, or has a coordinate that the edit does not shift.
    """
    whole = replace(edit, alpha=1.0, toward=edit.scores.first).shift(model)
    moved = {site: value.flatten().nonzero()[:, 0].tolist() for site, value in whole.items()}
    if parts is None:
        parts = {f"{site}[{k}]": {site: [k]} for site, index in moved.items() for k in index}
    if not parts:
        raise EditError(
            "parts is empty; name some, for example {'one': {Site('resid_post', 1): [0, 3]}}, or "
            "leave it out for every neuron by itself."
        )
    out = {}
    for name, part in parts.items():
        wrong = [
            f"{site}[{int(k)}]"
            for site, index in part.items()
            for k in index
            if int(k) not in moved.get(site, ())
        ]
        if wrong or not any(len(index) for index in part.values()):
            raise EditError(
                f"Part {name!r} {'is empty' if not wrong else f'has {listed(wrong, 5)}'}; a part "
                "holds neurons that the edit shifts."
            )
        shifts = {}
        for site, index in part.items():
            mask = torch.zeros(whole[site].numel(), dtype=torch.bool)
            mask[torch.as_tensor(list(index), dtype=torch.long)] = True
            shifts[site] = whole[site] * mask.reshape(whole[site].shape)
        out[name] = replace(edit, shifts=shifts)
    return out


def interaction(
    model: Model,
    edit: ShiftNeurons,
    prompts: PromptsLike,
    *,
    parts: Mapping[str, NeuronPart] | None = None,
    task: Task | None = None,
    toward: Sequence[str] | None = None,
    draws: int = DRAWS,
    allow_seen: bool = False,
    seed: int = 0,
) -> Interaction:
    """Shift every part alone, then all together, and compare.

    What it does not prove: an effect of the parts on the behavior; the margin can move a long way
    without the answer changing.

    Args:
        model: The unedited model.
        edit: A neuron shift, with its ``alpha``.
        prompts: With `memorized` and `generalized`; none of them seen in making the edit.
        parts: See `split_shift`. Together they should hold every neuron once, for example the
            clusters of `neuron_clusters`.
        task: Writes the answers as the model would.
        toward: Classes to steer to; default the task's two behaviors.
        draws: Draws of the control.
        allow_seen: Measure on fitted prompts all the same.
        seed: Keys the control.

    Raises:
        LeakageError: When the edit has seen a prompt or a group of the set.
        EditError: For parts that share a neuron, or that the edit does not have, no parts, or no
            draws.
    """
    whole_number(draws, "draws", most=MOST, error=EditError)
    asked = model.encode(prompts, "measure the interaction")
    if not allow_seen:
        refuse_seen(edit, asked, "measure an interaction")
    names = split_shift(edit, model, parts)
    index = [
        (site, k)
        for item in names.values()
        for site, value in (item.shifts or {}).items()
        for k in value.flatten().nonzero()[:, 0].tolist()
    ]
    if len(set(index)) < len(index):
        raise EditError("The parts share a neuron, so their sum would count it twice.")
    chosen = {name: _coordinates(item) for name, item in names.items()}
    whole = replace(edit, shifts=_joined(names))
    before = observe(model, asked, task=task)
    scored = need_margins(before.margins, "An interaction")
    groups = [asked[int(row)].group for row in scored]
    effects: dict[str, dict[str, dict[str, Estimate]]] = {}
    further: dict[str, dict[str, Beyond]] = {}
    for target in toward or behaviors_of(task):
        sign = sign_toward(target, task)
        aimed = replace(whole, toward=target)
        if "permuted" not in controls(aimed, model, seed=seed):
            raise EditError(
                "The parts have one shift value per site and position, so there is nothing to "
                "exchange for a control; choose more neurons."
            )
        _, mixed = draws_of_one(aimed, model, draws=draws, seed=seed, name="permuted")
        tried = [
            edit
            for joint in (aimed, *mixed)
            if isinstance(joint, ShiftNeurons)
            for edit in (*split_shift(joint, model, chosen).values(), joint)
        ]
        seen = [
            rates.after
            for rates in evaluate_each(
                model, asked, tried, task=task, before=before, allow_seen=True
            )
        ]
        moved = sign * np.stack([(one.margins - before.margins)[scored] for one in seen])
        moved = moved.reshape(1 + len(mixed), len(names) + 1, len(scored))
        total, together = moved[:, :-1].sum(1), moved[:, -1]
        of = dict(zip(names, moved[:, :-1].swapaxes(0, 1), strict=True))
        of |= {"joint": together, "sum of parts": total, "interaction": together - total}
        effects[target] = {
            "edit": {k: group_mean(v[0], groups, kind="mean") for k, v in of.items()},
            "permuted": {k: mean_of_draws(v[1:], groups, kind="mean") for k, v in of.items()},
        }
        own, *others = seen[len(names) :: len(names) + 1]
        sizes = own.moved, size_of(others)
        further[target] = {
            k: beyond_draws(v[0], v[1:], groups, kind="mean", sizes=sizes) for k, v in of.items()
        }
    counts = {name: sum(map(len, part.values())) for name, part in chosen.items()}
    return Interaction(effects, further, counts)


def _coordinates(edit: ShiftNeurons) -> dict[Site, list[int]]:
    return {
        site: value.flatten().nonzero()[:, 0].tolist()
        for site, value in (edit.shifts or {}).items()
    }


def _joined(parts: Mapping[str, ShiftNeurons]) -> dict[Site, torch.Tensor]:
    out: dict[Site, torch.Tensor] = {}
    for item in parts.values():
        for site, value in (item.shifts or {}).items():
            out[site] = out[site] + value if site in out else value
    return dict(sorted(out.items(), key=lambda pair: pair[0].depth))
