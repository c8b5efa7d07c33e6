"""`near_ties`: does the answer only change where the model was undecided before?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechmem.analysis.intervals import NOT_MEASURED, Estimate, group_mean
from mechmem.errors import MechmemError, PromptError, listed
from mechmem.evaluation.behavior import Observations
from mechmem.evaluation.rates import Rates
from mechmem.evaluation.shared import need_margins
from mechmem.numeric import MOST, finite_number, whole_number


@dataclass(frozen=True)
class NearTies:
    """How often the answer changed, by how decided it was before.

    Attributes:
        flips: ``flips[name][k]``: share of the prompts of bin ``k`` whose answer turned from the
            one behavior to the other. A bin that holds no prompt is NaN.
        edges: Bin ends in nats of |answer margin|, one more than bins.
        decided: Of the prompts that turned, the share whose |margin| was above ``threshold``; and
            of all prompts, the share above it.
        threshold: Nats. 1 nat: one answer is e = 2.7 times as likely as the other.
        kinds: ``"unedited"`` (rephrasings), ``"edit"`` or ``"control"``, by name.
        sizes: How far each moved an activation; NaN where nothing was edited. A control is one
            draw, so how far draws spread is seen by giving several under names of their own.
    """

    flips: Mapping[str, tuple[Estimate, ...]]
    edges: tuple[float, ...]
    decided: Mapping[str, tuple[Estimate, Estimate]]
    threshold: float
    kinds: Mapping[str, str]
    sizes: Mapping[str, float]

    def table(self) -> pd.DataFrame:
        """One row per name and bin."""
        return pd.DataFrame(
            [
                {
                    "name": name,
                    **self._kind(name),
                    "margin_from": self.edges[k],
                    "margin_to": self.edges[k + 1],
                    **share.row("share"),
                }
                for name, bins in self.flips.items()
                for k, share in enumerate(bins)
            ]
        )

    def summary(self) -> pd.DataFrame:
        """One row per name: how many of its flips were decided before."""
        return pd.DataFrame(
            [
                {
                    "name": name,
                    **self._kind(name),
                    "threshold": self.threshold,
                    **flipped.row("decided"),
                    **everyone.row("of_all", counted=False),
                }
                for name, (flipped, everyone) in self.decided.items()
            ]
        )

    def _kind(self, name: str) -> dict[str, Any]:
        kind = self.kinds[name]
        control = name if kind == "control" else ""
        return {"kind": kind, "control": control, "size": self.sizes[name]}


def near_ties(
    results: Observations | Rates | Mapping[str, Observations | Rates],
    *,
    controls: Mapping[str, Rates] | None = None,
    bins: int = 5,
    threshold: float = 1.0,
) -> NearTies:
    """Flip rate against the answer margin, for rephrasings and for edits.

    For `Observations` a prompt has turned when its partner (`PromptSet.pairs`) came out the other
    way; for `Rates` when the edit turned it. The margin is the one before the edit. A
    control that turns only near-ties, and an edit that turns decided answers too, differ in kind.

    Args:
        results: Observations of pairs, rates of an edit, or several by name.
        controls: Rates of controls, by name.
        bins: Bins with equally many prompts, made over all results together.
        threshold: Nats above which an answer counts as decided.

    Raises:
        PromptError: Without margins, without a prompt that shows one of the behaviors, or for
            rates without a ``before``.
        MechmemError: For ``bins`` below 1, or a ``threshold`` below 0 or without end.
    """
    whole_number(bins, "bins", most=MOST)
    threshold = finite_number(threshold, "threshold")
    if threshold < 0:
        raise MechmemError(f"threshold must be a number from 0, in nats, got {threshold}.")
    named = dict(results) if isinstance(results, Mapping) else {_name(results): results}
    if twice := sorted({*named} & {*(controls or {})}):
        raise PromptError(f"Two results are named {listed(twice)}; give every one its own name.")
    kinds = {
        name: "unedited" if isinstance(one, Observations) else "edit" for name, one in named.items()
    } | dict.fromkeys(controls or {}, "control")
    named |= controls or {}
    rows = {name: _turned(result) for name, result in named.items()}
    margins = np.concatenate([size for size, _, _ in rows.values()])
    edges = np.quantile(margins, np.linspace(0, 1, bins + 1))
    edges[0] = 0.0
    flips, decided = {}, {}
    for name, (size, turned, groups) in rows.items():
        at = np.clip(np.searchsorted(edges, size, side="right") - 1, 0, bins - 1)
        shares = []
        for k in range(bins):
            here = np.flatnonzero(at == k)
            shares.append(
                group_mean(turned[here], [groups[i] for i in here], kind="share")
                if here.size
                else NOT_MEASURED
            )
        flips[name] = tuple(shares)
        above = (size > threshold).astype(float)
        which = np.flatnonzero(turned)
        decided[name] = (
            group_mean(above[which], [groups[i] for i in which], kind="share")
            if which.size
            else NOT_MEASURED,
            group_mean(above, groups, kind="share"),
        )
    sizes = {
        name: one.moved if isinstance(one, Observations) else one.after.moved
        for name, one in named.items()
    }
    ends = tuple(float(edge) for edge in edges)
    return NearTies(flips, ends, decided, threshold, kinds, sizes)


def _name(result: Observations | Rates) -> str:
    return "rephrasings" if isinstance(result, Observations) else "edit"


def _turned(result: Observations | Rates) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """|margin|, whether the answer turned, and group, of every prompt that shows a behavior."""
    if isinstance(result, Rates):
        if result.before is None:
            raise PromptError(
                "These rates are of the unedited model, so nothing turned; use "
                "evaluate(..., edit=...)."
            )
        seen, other = result.before, dict(enumerate(result.after.outcomes))
    else:
        seen = result
        at = {name: row for row, name in enumerate(seen.prompts.ids)}
        other = {}
        for one, two in seen.prompts.pairs():
            other[at[one.id]] = seen.outcomes[at[two.id]]
            other[at[two.id]] = seen.outcomes[at[one.id]]
    rows = [
        int(row)
        for row in need_margins(seen.margins, "A flip rate against the margin")
        if seen.outcomes[row] in seen.behaviors and int(row) in other
    ]
    if not rows:
        raise PromptError(
            "No prompt shows one of the two behaviors and has a partner; give rephrasings the "
            "same `group`."
        )
    both = set(seen.behaviors)
    turned = np.array([{seen.outcomes[row], other[row]} == both for row in rows], float)
    return np.abs(seen.margins[rows]), turned, [seen.prompts[row].group for row in rows]
