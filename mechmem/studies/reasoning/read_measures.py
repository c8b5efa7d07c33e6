"""What `read_labels` measures on the states of labeled questions, and on their input alone."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from mechmem.analysis.association import auroc, group_auroc
from mechmem.analysis.directions import Direction, Directions, difference_of_means
from mechmem.analysis.intervals import Estimate, group_counts
from mechmem.caching.activations import Activations
from mechmem.models.sites import Site
from mechmem.seeding import keyed_rng
from mechmem.studies.reasoning.reading import input_scores
from mechmem.tasks.prompts import PromptSet
from mechmem.tasks.questions.labels import LABELS

REASONING = LABELS[0]
CHANCE_DRAWS = 100
"""Random directions, and as many directions of labels that were dealt out again."""
RESAMPLES = 1000


def _positive(prompts: PromptSet) -> Bool[np.ndarray, " example"]:
    return np.array([p.label == REASONING for p in prompts], dtype=bool)


def area(
    scores: Float[np.ndarray, " example"], prompts: PromptSet, within: bool = False, seed: int = 0
) -> Estimate:
    """AUROC with an interval over groups; ``within``: only questions of one subject are compared,
    and the interval is resampled."""
    positive = _positive(prompts)
    if not within:
        return group_auroc(scores, positive, prompts.groups)
    names, group = np.unique(prompts.groups, return_inverse=True)
    counts = group_counts(len(names), RESAMPLES, seed, "within subjects")[:, group]
    every = np.arange(len(positive))
    draws = [_within(scores, positive, prompts, np.repeat(every, row)) for row in counts]
    low, high = np.nanquantile(draws, [0.025, 0.975])
    value = _within(scores, positive, prompts, every)
    return Estimate(value, float(low), float(high), len(positive), len(names))


def _within(
    scores: np.ndarray, positive: np.ndarray, prompts: PromptSet, rows: np.ndarray
) -> float:
    """Areas of the subjects, weighted by their pairs of one question each way."""
    subjects = np.array([str(p.meta.get("category")) for p in prompts])[rows]
    total = weight = 0.0
    for subject in np.unique(subjects):
        mine = rows[subjects == subject]
        pairs = float(positive[mine].sum() * (~positive[mine]).sum())
        if pairs:
            total += pairs * auroc(scores[mine], positive[mine])
            weight += pairs
    return total / weight if weight else float("nan")


def by_layer(
    name: str,
    directions: Directions,
    train: Activations,
    other: Activations,
    *,
    within: bool,
    seed: int,
) -> pd.DataFrame:
    """AUROC of one set at every site, beside random directions and those of dealt-out labels."""
    labels = _positive(train.prompts)
    names, index = np.unique(train.prompts.groups, return_inverse=True)
    of_group = np.zeros(len(names), dtype=bool)
    of_group[index] = labels  # rephrasings keep one label
    rows: list[dict[str, Any]] = []
    for direction in directions:
        site = direction.site
        states, fitted = (a[site].flatten(1).double().numpy() for a in (other, train))
        found = area(states @ _vector(direction), other.prompts, within, seed)
        rng = keyed_rng(seed, "reading", site.key)
        noise = rng.standard_normal((CHANCE_DRAWS, states.shape[1]))
        mixed = [rng.permutation(of_group)[index] for _ in range(CHANCE_DRAWS)]
        dealt = [fitted[m].mean(0) - fitted[~m].mean(0) for m in mixed]
        row: dict[str, Any] = {
            "set": name, "site": site.key, "stream": site.stream, "layer": site.layer,
            **found.row("x", counted=False),
        }  # fmt: skip
        for kind, vectors in {"random": noise, "shuffled": np.array(dealt)}.items():
            values = [_plain(states @ v, other.prompts, within) for v in vectors]
            row[f"{kind}_low"], row[f"{kind}_high"] = np.quantile(values, [0.025, 0.975]).tolist()
        rows.append({**row, "n": found.n, "groups": found.groups})
    return pd.DataFrame(rows)


def _plain(scores: np.ndarray, prompts: PromptSet, within: bool) -> float:
    positive = _positive(prompts)
    if within:
        return _within(scores, positive, prompts, np.arange(len(positive)))
    return auroc(scores, positive)


def baselines(
    layers: pd.DataFrame,
    chosen: Site,
    train: Activations,
    tested: Mapping[str, Activations],
    *,
    within: str,
    seed: int,
) -> pd.DataFrame:
    """What the input alone tells: fitted on the fitting questions, tried on every set."""
    scaler = StandardScaler().fit(_form(train.prompts))
    form = LogisticRegression(max_iter=2000).fit(
        scaler.transform(_form(train.prompts)), _positive(train.prompts)
    )
    longer = np.corrcoef(_lengths(train), _positive(train.prompts))[0, 1]
    rows = []
    for name, other in tested.items():
        at = layers[(layers["set"] == name) & (layers["site"] == chosen.key)].iloc[0]
        scores = {
            "length": (1 if longer >= 0 else -1) * _lengths(other),
            "form": form.decision_function(scaler.transform(_form(other.prompts))),
            "words": input_scores(train, other),
        }
        row: dict[Any, Any] = at.drop(["stream", "layer"]).to_dict()
        for kind, values in scores.items():
            found = area(np.asarray(values, float), other.prompts, name == within, seed)
            row |= found.row(kind, counted=False)
        rows.append(row)
    return pd.DataFrame(rows)


def _lengths(acts: Activations) -> Float[np.ndarray, " example"]:
    return np.array([float(len(ids)) for ids in acts.token_ids])


def _form(prompts: PromptSet) -> Float[np.ndarray, "example feature"]:
    """Nothing of what is meant: length, digits, signs, capitals, sentences, a question mark."""
    out = []
    for p in prompts:
        text = str(p.meta.get("question", p.text))
        signs = len(re.findall(r"[=+*/^<>$%\\]", text))
        out.append(
            [
                np.log(len(text) + 1.0),
                sum(c.isdigit() for c in text) / len(text),
                signs / len(text),
                sum(c.isupper() for c in text) / len(text),
                len(re.findall(r"[.!?](?:\s|$)", text)),
                float("?" in text),
            ]
        )
    return np.array(out, dtype=float)


def _vector(direction: Direction) -> Float[np.ndarray, " d"]:
    return direction.vector.flatten().double().numpy()


def _largest(vector: np.ndarray) -> float:
    total = float(vector @ vector)
    return float((vector**2).max()) / total if total else float("nan")


def _cosine(one: np.ndarray, other: np.ndarray) -> float:
    size = float(np.linalg.norm(one) * np.linalg.norm(other))
    return float(one @ other) / size if size else float("nan")


def shape(
    directions: Directions, train: Activations, tested: Mapping[str, Activations]
) -> pd.DataFrame:
    """What the directions and the states around them look like; see `QuestionReading.shape`."""
    others = {
        name: difference_of_means(other, toward=REASONING, by="label")
        for name, other in tested.items()
    }
    rows = []
    for direction in directions:
        site, vector = direction.site, _vector(direction)
        states = train[site].flatten(1).double().numpy()
        mean = states.mean(0)
        _, sizes, axes = np.linalg.svd(states - mean, full_matrices=False)
        total = float((sizes**2).sum())
        rows.append(
            {
                "site": site.key,
                "stream": site.stream,
                "layer": site.layer,
                "length": float(np.linalg.norm(vector)),
                "largest_coordinate": _largest(vector),
                "largest_of_mean": _largest(mean),
                "first_component": float(sizes[0] ** 2) / total if total else float("nan"),
                "cosine_with_first": abs(_cosine(vector, axes[0])),
                **{
                    f"cosine: {name}": _cosine(vector, _vector(found[site]))
                    for name, found in others.items()
                },
            }
        )
    return pd.DataFrame(rows)


def cosines(directions: Directions) -> pd.DataFrame:
    """Between the directions of every two sites."""
    found = list(directions)
    return pd.DataFrame(
        [
            {"one": a.site.key, "other": b.site.key, "cosine": _cosine(_vector(a), _vector(b))}
            for a in found
            for b in found
        ]
    )
