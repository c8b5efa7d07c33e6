"""`compare_axes`: are the axes of several labeled sets one thing? Three matrices with refits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import norm

from mechmem.analysis.association import auroc, group_auroc
from mechmem.analysis.directions import Direction, Directions, difference_of_means
from mechmem.analysis.exchange import Exchange
from mechmem.analysis.held_out import refuse_seen_states
from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.caching.activations import Activations, class_names
from mechmem.errors import EditError, PromptError, listed
from mechmem.evaluation.behavior import observe
from mechmem.evaluation.many_edits import evaluate_each
from mechmem.models.model import Model
from mechmem.models.sites import Site, as_site
from mechmem.numeric import MOST, finite_number, whole_number
from mechmem.patching.directions import AddDirection
from mechmem.seeding import keyed_order, keyed_rng
from mechmem.tasks.base import PromptAnswers, with_reading
from mechmem.tasks.prompts import PromptSet

DEPTH = 2 / 3
"""Where axes are compared by default: fixed, so that no layer is chosen."""
KINDS_OF_CLASS = ("behavior", "label")
EDGE = 1e-4
"""Areas nearer to 0 or 1 count as this near: their normal deviate would be infinite."""
MEASURES = ("cosine", "auroc", "change")


@dataclass(frozen=True)
class AxisComparison:
    """Axes fitted on one set (row) beside, and at work on, another (column).

    Attributes:
        rows: Per pair of sets: the ``cosine`` of their axes; the ``auroc`` with which the row's
            axis tells the column's held-out classes apart; the ``change`` in nats of the margin of
            the remembered answer when the column's items are pushed along the row's axis (half of
            forth minus back). Areas and changes with a 95 % interval over groups; all three with
            the middle 95 % of refits on exchanged labels (``null_low``, ``null_high``) and ``p``:
            against the largest of all pairs in every refit, each in units of its own spread (areas
            as normal deviates).
        site: Where.
        shuffles: Refits; p is never below 1 / (shuffles + 1).

    Axes of refits are as long as the fitted ones, so a change is not larger because an axis is.

    What it does not prove: that sets that share an axis share a mechanism. A common topic, length
    or form is an axis as well.
    """

    rows: pd.DataFrame
    site: Site
    shuffles: int

    def table(self) -> pd.DataFrame:
        """One row per pair of sets."""
        return self.rows.assign(
            stream=self.site.stream, layer=self.site.layer, shuffles=self.shuffles
        )


def compare_axes(
    model: Model,
    sets: Mapping[str, Activations],
    toward: Mapping[str, str],
    *,
    items: Mapping[str, PromptSet] | None = None,
    site: tuple[str, int] | None = None,
    alpha: float = 1.0,
    shuffles: int = 99,
    seed: int = 0,
    progress: Callable[[str], None] | None = None,
) -> AxisComparison:
    """Fit a difference of means on half of the groups of every set, and try it on every other half.

    Args:
        model: The model whose states these are.
        sets: States at one position by name, each showing two classes.
        toward: By name of the set, the class that its axis points to: its behavior or its label.
        items: By name, prompts with the remembered answer in `memorized` and another one in
            `generalized`; those whose group was fitted on are left out. Without them nothing is
            pushed.
        site: Where to compare; default `resid_post` at two thirds of the depth.
        alpha: Strength of the push at the last token, in lengths of the axis.
        shuffles: Refits on exchanged labels: within groups that show both classes, else whole
            groups trade theirs.
        seed: Keys halves and exchanges.
        progress: Called with a line for every step.

    Raises:
        PromptError: For fewer than two sets, an unknown class, or a set whose labels cannot be
            exchanged.
        LeakageError: When two sets share a group or a prompt.
        ModelError: For states of another model.
        EditError: For an ``alpha`` that is no number.
    """
    whole_number(shuffles, "shuffles", 0, most=MOST)
    alpha = finite_number(alpha, "alpha", error=EditError)
    say = progress or (lambda line: None)
    if len(sets) < 2 or set(toward) != set(sets) or not set(items or {}) <= set(sets):
        raise PromptError(
            f"Axes are compared between two sets or more, each with a class to point to; got sets "
            f"{listed(sets)}, toward {listed(toward)}, items {listed(items or {})}."
        )
    for name, acts in sets.items():
        acts.provenance.check_model(model, f"The set of states {name!r}")
    here = as_site(site) if site is not None else _default_site(model)
    kinds = {name: _kind(acts, toward[name], name) for name, acts in sets.items()}
    fitted: dict[str, list[Direction]] = {}
    held: dict[str, Activations] = {}
    for name, acts in sets.items():
        say(f"fitting {name} and {shuffles} refits")
        first, held[name] = _halves(acts, kinds[name], seed)
        fitted[name] = _axes(first, here, toward[name], kinds[name], shuffles, seed, name)
    free = {name: _unseen(asked, fitted, name) for name, asked in (items or {}).items()}
    values = {name: np.full((len(sets), len(sets), shuffles + 1), np.nan) for name in MEASURES}
    seen: dict[tuple[str, int, int], Estimate] = {}
    names = list(sets)
    for j, tested in enumerate(names):
        acts = held[tested]
        states = acts[here].flatten(1).double().numpy()
        mine = [k for k, c in enumerate(class_names(acts.prompts, kinds[tested])) if c is not None]
        yes = np.array([getattr(acts.prompts[k], kinds[tested]) == toward[tested] for k in mine])
        groups = [acts.prompts[k].group for k in mine]
        for i, name in enumerate(names):
            refuse_seen_states(Directions({here: fitted[name][0]}), acts, f"test {name!r} on it")
            for k, axis in enumerate(fitted[name]):
                scores = states[mine] @ axis.unit.double().numpy()
                values["auroc"][i, j, k] = auroc(scores, yes)
                other = fitted[tested][k].unit
                values["cosine"][i, j, k] = np.nan if i == j else float(axis.unit @ other)
            scores = states[mine] @ fitted[name][0].unit.double().numpy()
            seen["auroc", i, j] = group_auroc(scores, yes, groups)
    for tested, asked in free.items():
        say(f"pushing {tested}")
        j = names.index(tested)
        found = _changes(model, asked, fitted, alpha)
        for i, name in enumerate(names):
            values["change"][i, j] = found[name].mean(1)
            seen["change", i, j] = group_mean(found[name][0], asked.groups, kind="mean")
    return AxisComparison(_rows(names, values, seen), here, shuffles)


def _default_site(model: Model) -> Site:
    return Site("resid_post", min(round(DEPTH * model.info.n_layers), model.info.n_layers - 1))


def _kind(acts: Activations, toward: str, name: str) -> str:
    """Whether a class is a behavior or a label."""
    kinds = {kind: {c for c in class_names(acts.prompts, kind) if c} for kind in KINDS_OF_CLASS}
    for kind, shown in kinds.items():
        if toward in shown and len(shown) == 2:
            return kind
    raise PromptError(
        f"Set {name!r} does not show {toward!r} as one of two behaviors or labels, but "
        f"{listed(sorted(set().union(*kinds.values())))}. Select the examples of two classes, and "
        "name one of them."
    )


def _halves(acts: Activations, by: str, seed: int) -> tuple[Activations, Activations]:
    """Half of the groups of every class, and the rest."""
    classes = class_names(acts.prompts, by)
    first: set[str] = set()
    dealt: set[str] = set()
    for name in sorted({c for c in classes if c is not None}):
        groups = {p.group for p, c in zip(acts.prompts, classes, strict=True) if c == name} - dealt
        dealt |= groups
        order = keyed_order(sorted(groups), seed, "axes", name)
        first |= set(order[: (len(order) + 1) // 2])
    mine = np.array([prompt.group in first for prompt in acts.prompts])
    half, rest = (acts.take(np.flatnonzero(rows).tolist()) for rows in (mine, ~mine))
    return half, rest


def _axes(
    acts: Activations, site: Site, toward: str, by: str, shuffles: int, seed: int, name: str
) -> list[Direction]:
    """The axis, and those of exchanged labels at the same length."""
    exchange = Exchange(acts.prompts, by=by)
    if why := exchange.reason():
        raise PromptError(f"Set {name!r} cannot be compared: {why}. Give more examples.")
    axis = difference_of_means(acts, toward=toward, by=by)[site]
    own = int(keyed_rng(seed, "axes", name).integers(2**31))  # no set is exchanged as another is
    drawn = (exchange.draw(own, k) for k in range(shuffles))
    refits = [difference_of_means(acts.select(p), toward=toward, by=by)[site] for p in drawn]
    return [axis, *(replace(one, vector=one.unit * axis.norm) for one in refits)]


def _unseen(items: PromptSet, axes: Mapping[str, list[Direction]], name: str) -> PromptSet:
    """The items whose group no axis was fitted on."""
    taken = {group for several in axes.values() for group in several[0].provenance.seen.groups}
    free = items.filter(lambda prompt: prompt.group not in taken)
    if not free:
        raise PromptError(
            f"The {len(items)} items of {name!r} leave none whose group was not fitted on; give "
            "others."
        )
    if lacking := [p.id for p in free if p.memorized is None or p.generalized is None]:
        raise PromptError(
            f"Items {listed(lacking, 5)} of {name!r} have no `memorized` and `generalized` answer."
        )
    return free


def _changes(
    model: Model, items: PromptSet, axes: Mapping[str, list[Direction]], alpha: float
) -> dict[str, np.ndarray]:
    """Per axis and item, half the difference of the margin pushed forth and back, in nats."""
    reader = with_reading(PromptAnswers("behavior"), "choice")
    every = [axis for several in axes.values() for axis in several]
    edits = [AddDirection(axis, alpha=sign * alpha) for axis in every for sign in (1, -1)]
    before = observe(model, items, task=reader)
    done = evaluate_each(model, items, edits, task=reader, before=before)
    margins = np.array([rates.after.margins for rates in done]).reshape(len(every), 2, len(items))
    halves = (margins[:, 0] - margins[:, 1]) / 2
    ends = np.cumsum([len(several) for several in axes.values()])[:-1]
    return dict(zip(axes, np.split(halves, ends), strict=True))


def _rows(
    names: list[str],
    values: Mapping[str, np.ndarray],
    seen: Mapping[tuple[str, int, int], Estimate],
) -> pd.DataFrame:
    p = {name: _adjusted(_even(name, found)) for name, found in values.items()}
    rows = []
    for i, fitted in enumerate(names):
        for j, tested in enumerate(names):
            row: dict[str, object] = {"fitted_on": fitted, "tested_on": tested}
            for name, found in values.items():
                null, estimate = found[i, j, 1:], seen.get((name, i, j))
                row |= (estimate and estimate.row(name, counted=False)) or {name: found[i, j, 0]}
                low, high = np.quantile(null, [0.025, 0.975]) if len(null) else (np.nan, np.nan)
                row |= {f"{name}_null_low": low, f"{name}_null_high": high}
                row[f"{name}_p"] = p[name][i, j]
            pushed, held = seen.get(("change", i, j)), seen["auroc", i, j]
            row |= {"items": pushed.n if pushed else 0, "n": held.n, "groups": held.groups}
            rows.append(row)
    return pd.DataFrame(rows)


def _even(name: str, values: np.ndarray) -> np.ndarray:
    """Areas as normal deviates, which have no ceiling: near 1 all refits would look alike."""
    return norm.ppf(np.clip(values, EDGE, 1 - EDGE)) if name == "auroc" else values


def _adjusted(values: np.ndarray) -> np.ndarray:
    """P-values of every pair against the largest of all pairs in every refit (Westfall and Young's
    maxT), each in units of its own root mean square; ties count against."""
    size = np.abs(values) / np.sqrt((values**2).mean(2, keepdims=True))
    if np.isnan(size).all():
        return np.full(values.shape[:2], np.nan)
    largest = np.nanmax(size[:, :, 1:], axis=(0, 1), initial=0.0)
    p = (1 + (largest >= size[:, :, :1] - 1e-12).sum(2)) / values.shape[2]
    return np.where(np.isnan(size[:, :, 0]), np.nan, p)
