"""Do probes and edits fitted on one set of prompts hold on another? Two transfer matrices."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from mechmem.analysis.draws import DRAWS, Beyond
from mechmem.analysis.exchange import Exchange
from mechmem.analysis.intervals import Estimate, group_mean
from mechmem.caching.activations import Activations, class_names
from mechmem.errors import EditError, MechmemError, PromptError, SiteError, listed
from mechmem.evaluation.behavior import observe
from mechmem.evaluation.controls import beyond, draws_of_one
from mechmem.evaluation.many_edits import evaluate_each
from mechmem.evaluation.rates import Rates
from mechmem.evaluation.shared import behaviors_of, steered
from mechmem.models.model import Model
from mechmem.models.sites import Site, as_site
from mechmem.models.tokenizing import TokenizedPrompt
from mechmem.numeric import MOST, whole_number
from mechmem.patching.base import Edit
from mechmem.seeding import keyed_order, keyed_rng
from mechmem.tasks.base import Task
from mechmem.tasks.prompts import PromptSet

FOLDS = 5


@dataclass(frozen=True)
class ProbeTransfer:
    """Accuracy of a probe fitted on one set (row) and asked about another (column).

    Attributes:
        accuracy: ``accuracy[fitted][tested]``; on the diagonal, groups that the probe has not
            seen (cross-validation).
        shuffled: The same after the classes were exchanged within the groups of the fitted set.
        site: Where the states were read.
        classes: The two classes.
    """

    accuracy: Mapping[str, Mapping[str, Estimate]]
    shuffled: Mapping[str, Mapping[str, Estimate]]
    site: Site
    classes: tuple[str, str]

    def table(self) -> pd.DataFrame:
        """One row per pair of sets."""
        return pd.DataFrame(
            [
                {
                    "fitted_on": fitted,
                    "tested_on": tested,
                    "stream": self.site.stream,
                    "layer": self.site.layer,
                    **value.row("accuracy", counted=False),
                    **self.shuffled[fitted][tested].row("shuffled", counted=False),
                    "n": value.n,
                    "groups": value.groups,
                }
                for fitted, row in self.accuracy.items()
                for tested, value in row.items()
            ]
        )


def probe_transfer(
    sets: Mapping[str, Activations],
    *,
    site: tuple[str, int],
    by: str = "behavior",
    seed: int = 0,
) -> ProbeTransfer:
    """Fit a logistic probe on every set of states and test it on every other.

    The sets are states of **one** model: coordinates of models trained apart are not aligned.
    A probe that transfers shows that the sets share a difference, not that the model uses it.

    Args:
        sets: States by name, such as two tasks, two kinds of instances, or two halves.
        site: Where to read; all positions together.
        by: ``"behavior"`` or ``"label"``.
        seed: Keys folds, shuffles and resampling.

    Raises:
        LeakageError: When two sets share a group or a prompt.
        PromptError: Unless every set shows the same two classes, in at least five groups.
        MechmemError: For sets of different models or shapes.
    """
    here = as_site(site)
    if len({acts.provenance.model.fingerprint for acts in sets.values()}) != 1:
        raise MechmemError(
            "Probes transfer between sets of states of one model; these are of "
            f"{listed(sorted({acts.provenance.model.name for acts in sets.values()}))}. "
            "Coordinates of models trained apart are not aligned."
        )
    data = {name: _rows(acts, here, by) for name, acts in sets.items()}
    shapes = {name: features.shape[1] for name, (features, _, _) in data.items()}
    kinds = {tuple(sorted(set(labels.tolist()))) for _, labels, _ in data.values()}
    if len(set(shapes.values())) != 1:
        raise SiteError(f"The sets have different numbers of neurons at {here}: {shapes}.")
    if len(kinds) != 1 or len(classes := next(iter(kinds))) != 2:
        raise PromptError(
            f"Every set must show the same two classes; they show {listed(sorted(kinds))}."
        )
    for name, acts in sets.items():
        if len(set(acts.prompts.groups)) < FOLDS:
            raise PromptError(f"Set {name!r} has fewer than {FOLDS} groups; observe more.")
        for other, theirs in sets.items():
            if name != other:
                tokens = zip(theirs.prompts.ids, theirs.token_ids, strict=True)
                acts.provenance.seen.refuse(
                    theirs.prompts,
                    [TokenizedPrompt(k, ids, {}) for k, ids in tokens],
                    f"test a probe of {name!r}",
                )
    found: dict[str, dict[str, dict[str, Estimate]]] = {"usual": {}, "shuffled": {}}
    exchanged = {name: _exchanged(acts.prompts, by, seed, name) for name, acts in sets.items()}
    for name, (features, labels, groups) in data.items():
        for kind, target in (("usual", labels), ("shuffled", exchanged[name])):
            row = {}
            for other, (states, truth, members) in data.items():
                # Exchanged classes are told from exchanged ones: a draw that happens to keep most
                # of the true ones would be right, or wrong, about most of those.
                asked = truth if kind == "usual" else exchanged[other]
                if other == name:
                    right = _held_out(features, target, asked, groups, seed)
                else:
                    right = (_probe().fit(features, target).predict(states) == asked).astype(float)
                row[other] = group_mean(right, members.tolist(), kind="share")
            found[kind][name] = row
    return ProbeTransfer(found["usual"], found["shuffled"], here, (classes[0], classes[1]))


def _rows(acts: Activations, site: Site, by: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    names = acts.classes(by)
    rows = [k for k, name in enumerate(names) if name is not None]
    groups = np.array([acts.prompts[k].group for k in rows])
    features = acts[site][rows].flatten(1).double().numpy()
    return features, np.array([names[k] for k in rows]), groups


def _probe() -> Any:
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.03, max_iter=2000))


def _held_out(
    features: np.ndarray, target: np.ndarray, truth: np.ndarray, groups: np.ndarray, seed: int
) -> np.ndarray:
    order = keyed_order(groups.tolist(), seed, "transfer-folds")
    right = np.zeros(len(target))
    for fold in range(FOLDS):
        test = np.isin(groups, order[fold::FOLDS])
        fitted = _probe().fit(features[~test], target[~test])
        right[test] = fitted.predict(features[test]) == truth[test]
    return right


def _exchanged(prompts: PromptSet, by: str, seed: int, name: str) -> np.ndarray:
    own = int(keyed_rng(seed, "transfer-shuffle", name).integers(2**31))
    names = class_names(Exchange(prompts, by).draw(own, 0), by)
    return np.array([one for one in names if one is not None])


@dataclass(frozen=True)
class EditTransfer:
    """An edit fitted on one set (row) at work on another (column).

    Attributes:
        rates: ``rates[fitted][tested][toward]``.
        controls: The same for the control of each edit, one `Rates` per draw.
        control: Name of the control.
    """

    rates: Mapping[str, Mapping[str, Mapping[str, Rates]]]
    controls: Mapping[str, Mapping[str, Mapping[str, Sequence[Rates]]]]
    control: str

    def change(self, fitted: str, tested: str, toward: str) -> Estimate:
        """Change of the share that came out as the class steered to."""
        return self.rates[fitted][tested][toward].change(toward)

    def beyond(self, fitted: str, tested: str, toward: str) -> Beyond:
        """The same minus the control's change, its draws a sample like the prompts."""
        draws = [one.after for one in self.controls[fitted][tested][toward]]
        edited = self.rates[fitted][tested][toward]
        return beyond(edited.after, draws, toward)

    def table(self) -> pd.DataFrame:
        """One row per pair of sets and class steered to."""
        rows = []
        for fitted, row in self.rates.items():
            for tested, cells in row.items():
                for toward, rates in cells.items():
                    change = self.change(fitted, tested, toward)
                    rows.append(
                        {
                            "fitted_on": fitted,
                            "tested_on": tested,
                            "toward": toward,
                            "share": rates.share(toward).value,
                            "other": rates.share("other").value
                            if "other" in rates.after.allowed
                            else float("nan"),
                            **change.row("change", counted=False),
                            **self.beyond(fitted, tested, toward).row(),
                            "n": change.n,
                            "groups": change.groups,
                        }
                    )
        return pd.DataFrame(rows)


def edit_transfer(
    model: Model,
    edits: Mapping[str, Edit],
    prompts: Mapping[str, PromptSet],
    *,
    task: Task | Mapping[str, Task] | None = None,
    toward: Sequence[str] | None = None,
    control: str | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> EditTransfer:
    """Apply every edit to every set of prompts, beside draws of a control of the same size.

    Name an edit after the set it was fitted on; the diagonal is then the effect at home, on
    prompts of that set which fitting has not seen. An edit of another model of the same shape can
    be tried with ``force=True`` on the edit: nothing aligns the coordinates of models trained
    apart, so no transfer is to be expected.

    Args:
        model: The unedited model.
        edits: By the name of what they were fitted on; with a ``toward``.
        prompts: Sets to test on, by name.
        task: Reads the completions; several by the name of the set.
        toward: Classes to steer to; default the task's two behaviors.
        control: Default random neurons or a random direction of the same size.
        draws: Draws of the control.
        seed: Keys control and resampling.

    Raises:
        LeakageError: When an edit has seen a prompt, or a rephrasing of one, of any set.
        EditError: For no draws.
    """
    whole_number(draws, "draws", most=MOST, error=EditError)
    rates: dict[str, dict[str, dict[str, Rates]]] = {name: {} for name in edits}
    placebo: dict[str, dict[str, dict[str, list[Rates]]]] = {name: {} for name in edits}
    used = ""
    for tested, asked in prompts.items():
        reader = task.get(tested) if isinstance(task, Mapping) else task
        before = observe(model, asked, task=reader, margins=False)
        aims = toward or behaviors_of(reader)
        for fitted, edit in edits.items():
            plan = []
            for target in aims:
                aimed = steered(edit, target)
                used, mixed = draws_of_one(aimed, model, draws=draws, seed=seed, name=control)
                plan.append([aimed, *mixed])
            done = iter(
                evaluate_each(
                    model, asked, [one for part in plan for one in part], task=reader,
                    before=before, margins=False,
                )
            )  # fmt: skip
            cells, others = {}, {}
            for target, part in zip(aims, plan, strict=True):
                cells[target], *others[target] = (next(done) for _ in part)
            rates[fitted][tested], placebo[fitted][tested] = cells, others
    return EditTransfer(rates, placebo, used)
