"""Counterfactual memorization: is an item answered because it was in the training data?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float

from mechmem.analysis.intervals import NOT_MEASURED, Estimate, group_mean
from mechmem.artifacts import check_writable, load_artifact, save_artifact, versions
from mechmem.digests import Digests
from mechmem.errors import ArtifactError, PromptError, TaskError, did_you_mean, listed
from mechmem.evaluation.behavior import observe
from mechmem.evaluation.many_edits import evaluate_each
from mechmem.models.model import Model
from mechmem.numeric import MOST, whole_number
from mechmem.patching.base import Edit
from mechmem.seeding import keyed_rng
from mechmem.sweeps.digests import task_digest
from mechmem.tasks.base import Task
from mechmem.tasks.prompts import PromptSet


@dataclass(frozen=True)
class CounterfactualMemorization:
    """How much better an item is answered by models that were trained on it than by others.

    The score of an item is ``mean over models trained with it - mean over models trained without
    it`` of the share of its prompts that were answered right (Feldman and Zhang, arXiv 2008.03703;
    Zhang et al., arXiv 2112.12938).

    Attributes:
        groups: The items, by the group of their prompts.
        kinds: ``meta["item"]`` of every item, empty where there is none.
        inside: ``[model, item]`` whether the item was in a model's training data.
        performance: ``[model, item]`` share right, by name of the edit in force; ``""`` is none.
    """

    groups: tuple[str, ...]
    kinds: tuple[str, ...]
    inside: Bool[np.ndarray, "model item"]
    performance: Mapping[str, Float[np.ndarray, "model item"]] = field(repr=False)

    def scores(self, edit: str = "") -> dict[str, float]:
        """Score by item, with an edit in force if one is named."""
        right = self._right(edit)
        with_it, without = (
            (mask * right).sum(0) / mask.sum(0) for mask in (self.inside, ~self.inside)
        )
        return dict(zip(self.groups, (with_it - without).tolist(), strict=True))

    def change(self, edit: str, kind: str | None = None) -> Estimate:
        """Mean score under an edit minus mean score without one, over the items (of one kind).

        The interval is over items, not models.
        """
        return group_mean(*self.differences(edit, kind), kind="change")

    def differences(
        self, edit: str, kind: str | None = None
    ) -> tuple[Float[np.ndarray, " item"], list[str]]:
        """Score under an edit minus score without one, per item (of one kind), and the items.

        Raises:
            PromptError: For a kind that no item has.
        """
        before, after = self.scores(), self.scores(edit)
        chosen = [
            name for name, own in zip(self.groups, self.kinds, strict=True) if kind in (None, own)
        ]
        if not chosen:
            raise PromptError(
                f"No item of kind {kind!r}; there are {listed(sorted(set(self.kinds)))}."
            )
        return np.array([after[name] - before[name] for name in chosen]), chosen

    def table(self, edit: str = "") -> pd.DataFrame:
        """One row per item. The interval joins those of the models with the item and of those
        without it (Newcombe 1998), so that it has width where all of either side agree."""
        rows = []
        for k, (name, kind) in enumerate(zip(self.groups, self.kinds, strict=True)):
            one, other = (self._mean(edit, k, side) for side in (self.inside, ~self.inside))
            score = one.value - other.value
            rows.append(
                {
                    "group": name,
                    "kind": kind,
                    "edit": edit,
                    "models_with": one.n,
                    "models_without": other.n,
                    "with": one.value,
                    "without": other.value,
                    "score": score,
                    "score_low": score - math.hypot(one.value - one.low, other.high - other.value),
                    "score_high": score + math.hypot(one.high - one.value, other.value - other.low),
                }
            )
        return pd.DataFrame(rows)

    def _mean(self, edit: str, item: int, side: Bool[np.ndarray, "model item"]) -> Estimate:
        """Share right over the models of one side; every model is a group."""
        models = np.flatnonzero(side[:, item])
        if not models.size:
            return NOT_MEASURED
        return group_mean(
            self._right(edit)[models, item], models.astype(str).tolist(), kind="share"
        )

    def _right(self, edit: str) -> Float[np.ndarray, "model item"]:
        if edit not in self.performance:
            raise PromptError(f"No edit {edit!r} was tried; there are {listed(self.performance)}.")
        return self.performance[edit]


def check_models(models: int) -> None:
    """Refuse a number of models that is not made of pairs.

    Raises:
        PromptError: For an odd number, fewer than two, or none at all.
    """
    if whole_number(models, "models", 2, most=MOST, error=PromptError) % 2:
        raise PromptError(f"models must be even and at least 2, got {models}.")


def left_out(groups: Sequence[str], models: int, seed: int = 0) -> list[frozenset[str]]:
    """Which items each model is trained without: every item by exactly half of the models.

    Models come in pairs that leave out complementary halves, drawn anew for every pair.

    Raises:
        PromptError: For an odd number of models, or fewer than two.
    """
    check_models(models)
    names = sorted(set(groups))
    out = []
    for pair in range(models // 2):
        order = keyed_rng(seed, "left-out", pair).permutation(len(names))
        half = {names[int(k)] for k in order[: len(names) // 2]}
        out += [frozenset(half), frozenset(names) - half]
    return out


def counterfactual_memorization(
    train: Callable[[frozenset[str], int], Model],
    items: PromptSet,
    *,
    task: Task,
    models: int = 16,
    edits: Callable[[Model, frozenset[str]], Mapping[str, Edit]] | None = None,
    solved: str = "correct",
    seed: int = 0,
    folder: str | Path | None = None,
    settings: Mapping[str, Any] | None = None,
    progress: Callable[[str], None] | None = None,
) -> CounterfactualMemorization:
    """Train many small models, each without half of the items, and compare.

    Args:
        train: From the items (groups) to leave out and the model's number to a trained model.
        items: Prompts to ask; those of one group are one item.
        task: Reads the completions.
        models: How many; even.
        edits: From a model and what it was trained without to edits by name. They may not have seen
            the items.
        solved: The outcome that counts as right.
        seed: Draws who leaves out what, and keys the resampling.
        folder: Keeps what each model did; a run that was killed goes on there.
        settings: Whatever ``train`` and ``edits`` depend on, by name: steps, data, strengths. What
            the folder keeps belongs to them; the two functions themselves are not compared.
        progress: Called with a line per model.

    Raises:
        PromptError: For an odd number of models.
        TaskError: For a ``solved`` that is no outcome of the task.
        ArtifactError: When the folder holds another study: other models, items, task, ``solved`` or
            ``settings``, with or without edits, or made by another mechmem; or when a setting has
            no content that can be compared.
        LeakageError: When an edit has seen an item.

    What it does not prove: a high score says that this item's answer came from its own training
    prompts; a low score, that others lead to it as well, whether by a rule or by resemblance.
    """
    if solved not in task.outcomes:
        raise TaskError(
            f"Unknown outcome {solved!r:.80}; this task has {listed(task.outcomes)}."
            f"{did_you_mean(str(solved), task.outcomes)}"
        )
    groups = sorted(set(items.require("leave out").groups))
    kind = {p.group: str(p.meta.get("item", "")) for p in items}
    without = left_out(groups, models, seed)
    inside = np.array([[name not in gone for name in groups] for gone in without])
    keep = None if folder is None else Path(folder)
    common: dict[str, Any] = {}
    if keep is not None:
        check_writable(keep)
        common = _common(items, task, edits is not None, solved, settings or {})
    found: list[dict[str, np.ndarray]] = []
    for k, gone in enumerate(without):
        about = {"model": k, "without": sorted(gone), **common}
        done = None if keep is None else _kept(keep / f"model-{k:03d}", about)
        if done is None:
            done = _performance(train(gone, k), items, groups, task, edits, gone, solved)
            if keep is not None:
                tensors = {_key(name): torch.from_numpy(value) for name, value in done.items()}
                names = {_key(name): name for name in done}
                save_artifact(
                    keep / f"model-{k:03d}", "counterfactual", tensors, {**about, "edits": names}
                )
        found.append(done)
        if progress is not None:
            progress(f"model {k + 1} of {models}")
    tried = list(found[0])
    return CounterfactualMemorization(
        tuple(groups),
        tuple(kind[name] for name in groups),
        inside,
        {name: np.stack([done[name] for done in found]) for name in tried},
    )


def _performance(
    model: Model,
    items: PromptSet,
    groups: Sequence[str],
    task: Task,
    edits: Callable[[Model, frozenset[str]], Mapping[str, Edit]] | None,
    gone: frozenset[str],
    solved: str,
) -> dict[str, np.ndarray]:
    """Share of each item's prompts that were answered right, by edit."""
    named = {} if edits is None else dict(edits(model, gone))
    plain = observe(model, items, task=task, margins=False)
    seen = {"": plain}
    if named:
        rates = evaluate_each(
            model, items, list(named.values()), task=task, before=plain, margins=False
        )
        seen |= {name: rate.after for name, rate in zip(named, rates, strict=True)}
    index = {name: k for k, name in enumerate(groups)}
    rows = np.array([index[name] for name in items.groups])
    size = np.bincount(rows, minlength=len(groups))
    out = {}
    for name, observed in seen.items():
        right = np.array([outcome == solved for outcome in observed.outcomes], dtype=float)
        out[name] = np.bincount(rows, weights=right, minlength=len(groups)) / size
    return out


def _key(name: str) -> str:
    return f"edit.{name}" if name else "unedited"


def _common(
    items: PromptSet, task: Task, edited: bool, solved: str, settings: Mapping[str, Any]
) -> dict[str, Any]:
    """What all models of one study share, for the files in its folder."""
    digests = Digests()
    return {
        "prompts": items.ids,
        "items": Digests().of(items.to_records()),
        "task": task.name,
        "reading": task_digest(task),
        "edited": edited,
        "solved": solved,
        "settings": {name: digests.of(value) for name, value in settings.items()},
        "mechmem": versions()["mechmem"],
    }


def _kept(path: Path, about: Mapping[str, Any]) -> dict[str, np.ndarray] | None:
    if not path.with_suffix(".json").is_file():
        return None
    tensors, note = load_artifact(path, "counterfactual")
    differs = [name for name, value in about.items() if note.get(name) != value]
    if "settings" in differs:
        then, now = note.get("settings") or {}, about["settings"]
        differs += sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
    if differs:
        raise ArtifactError(
            f"{path} was made with other {listed(differs)}; choose another folder, or ask the same."
        )
    return {name: tensors[key].numpy() for key, name in note["edits"].items()}
