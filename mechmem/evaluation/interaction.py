"""`interaction`: do neurons act alone or together? Parts of a shift singly, and all at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.errors import EditError, listed
from mechmem.evaluation.controls import controls
from mechmem.evaluation.rows import refuse_seen, sign_toward
from mechmem.models.model import Model
from mechmem.models.sites import Site
from mechmem.models.tokens import PromptsLike, as_prompts
from mechmem.patching.apply import patched
from mechmem.patching.base import Edit
from mechmem.patching.margins import behavior_margins
from mechmem.patching.shifting import ShiftNeurons
from mechmem.tasks.base import BEHAVIORS, Task

__all__ = ["Interaction", "Part", "interaction", "split_shift"]

Part = Mapping[Site, Sequence[int]]
"""Coordinates by site, positions flattened, as in `NeuronSet.index` and
`NeuronClusters.members`."""


@dataclass(frozen=True)
class Interaction:
    """What the parts of a shift do alone, and together.

    Every effect is the change of the answer margin in nats, counted toward the class steered to.

    Attributes:
        effects: ``effects[toward][kind][name]``; kind is ``"edit"`` or ``"permuted"`` (the same
            neurons with the shift values exchanged among them). Names are those of the parts, and
            ``"joint"`` (all parts at once), ``"sum of parts"``, and ``"interaction"``: joint minus
            sum, prompt by prompt. Above 0 the parts help each other, below 0 they replace each
            other; 0 means that each acts alone.
        sizes: Neurons of every part.
    """

    effects: Mapping[str, Mapping[str, Mapping[str, Estimate]]]
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
                }
                for toward, kinds in self.effects.items()
                for kind, parts in kinds.items()
                for name, effect in parts.items()
            ]
        )


def split_shift(
    edit: ShiftNeurons, model: Model, parts: Mapping[str, Part] | None = None
) -> dict[str, ShiftNeurons]:
    """The same shift on some of its neurons at a time.

    Args:
        edit: The whole shift.
        model: The model it acts on.
        parts: Coordinates by site for every part; by default every chosen neuron is one, named
            ``resid_post[2][17]``.

    Raises:
        EditError: For a part that is empty, or has a coordinate that the edit does not shift.
    """
    whole = replace(edit, alpha=1.0, toward=edit.scores.first).shift(model)
    moved = {site: value.flatten().nonzero()[:, 0].tolist() for site, value in whole.items()}
    if parts is None:
        parts = {f"{site}[{k}]": {site: [k]} for site, index in moved.items() for k in index}
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
    parts: Mapping[str, Part] | None = None,
    task: Task | None = None,
    toward: Sequence[str] = BEHAVIORS,
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
        toward: Classes to steer to.
        allow_seen: Measure on fitted prompts all the same.
        seed: Keys the control and the resampling of groups.

    Raises:
        LeakageError: When the edit has seen a prompt or a group of the set.
        EditError: For parts that share a neuron, or that the edit does not have.
    """
    asked = as_prompts(prompts).require("measure the interaction")
    if not allow_seen:
        refuse_seen(model, edit, asked, "measure an interaction")
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
    before = behavior_margins(model, asked, task=task)
    effects: dict[str, dict[str, dict[str, Estimate]]] = {}
    for target in toward:
        sign = sign_toward(target)
        effects[target] = {}
        made = controls(replace(whole, toward=target), model, seed=seed)
        if "permuted" not in made:
            raise EditError(
                "The parts have one shift value per site and position, so there is nothing to "
                "exchange for a control; choose more neurons."
            )
        mixed = made["permuted"]
        assert isinstance(mixed, ShiftNeurons)
        for kind, joint in (("edit", replace(whole, toward=target)), ("permuted", mixed)):

            def moved(item: Edit, sign: int = sign) -> np.ndarray:
                with patched(model, item) as view:
                    after = behavior_margins(view, asked, task=task)
                change: np.ndarray = sign * (after - before)
                return change

            each = {name: moved(part) for name, part in split_shift(joint, model, chosen).items()}
            total, together = np.sum(list(each.values()), axis=0), moved(joint)
            each |= {
                "joint": together,
                "sum of parts": total,
                "interaction": together - total,
            }
            effects[target][kind] = {
                name: group_mean(values, asked.groups, kind="mean") for name, values in each.items()
            }
    return Interaction(
        effects, {name: sum(map(len, part.values())) for name, part in chosen.items()}
    )


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
