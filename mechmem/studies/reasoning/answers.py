"""What the edits did on the test questions, as tables: accuracy, modes, repaired errors."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from mechmem.analysis.draws import beyond_draws
from mechmem.evaluation.behavior import Observations
from mechmem.evaluation.controls import beyond, change_of_draws, size_of
from mechmem.studies.reasoning.edits import TestedSigns, Trial
from mechmem.studies.reasoning.rows import correct, mean_of, of_label
from mechmem.tasks.parsing.answers import starts_with_answer
from mechmem.tasks.prompts import Prompt
from mechmem.tasks.questions.labels import LABELS

ANSWER_MODES = ("stored", "worked out", "other")
MOST_CASES = 12


def accuracy_table(trial: Trial) -> pd.DataFrame:
    """Accuracy of both classes under both signs of every chosen edit, beside random directions.

    ``beyond_random`` is the edit minus the random directions, which are a sample like the questions
    (`mechmem.analysis.draws.beyond_draws`); ``strongest_random`` the largest change that one of
    them made, by its size.
    """
    before = trial.before["test"]
    rows: list[dict[str, Any]] = []
    for label in LABELS:
        mine = of_label(before, label)
        plain = mean_of(correct(before), mine, before, "share")
        rows.append(
            {"family": "unedited", "label": label, **plain.row("accuracy"),}
        )  # fmt: skip
    for item, sign, label, mine in _each(trial):
        after = correct(item.after[sign])
        draws = item.random[sign]
        moves = (np.stack([correct(seen) for seen in draws]) - correct(before))[:, mine].mean(1)
        gap = beyond(item.after[sign], draws, "correct", rows=mine)
        parts = {
            "accuracy": mean_of(after, mine, before, "share"),
            "change": mean_of(after - correct(before), mine, before, "change"),
            "random_change": change_of_draws(draws, before, "correct", rows=mine),
        }
        row = {**_about(item, sign), "label": label}
        for name, found in parts.items():
            row |= found.row(name, counted=False)
        row |= gap.row("beyond_random")
        row["strongest_random"] = float(moves[np.abs(moves).argmax()])
        rows.append(row | {"n": len(mine), "groups": parts["accuracy"].groups})
    return pd.DataFrame(rows)


def mode_table(trial: Trial) -> pd.DataFrame:
    """What was answered where both routes have an answer: the stored value, the computed one.

    Empty when no question carries both.
    """
    before = trial.before["test"]
    both = np.array([_both(prompt) for prompt in before.prompts])
    if not both.any():
        return pd.DataFrame()
    rows: list[dict[str, Any]] = []
    for label in LABELS:
        mine = np.intersect1d(of_label(before, label), np.flatnonzero(both))
        if len(mine):
            for mode in ANSWER_MODES:
                share = mean_of(_is_mode(before, mode), mine, before, "share")
                rows.append({"family": "unedited", "label": label, "mode": mode,
                             **share.row("share"),})  # fmt: skip
    for item, sign, label, of_this in _each(trial):
        mine = np.intersect1d(of_this, np.flatnonzero(both))
        if not len(mine):
            continue
        for mode in ANSWER_MODES:
            after = _is_mode(item.after[sign], mode)
            draws = np.stack([_is_mode(seen, mode) for seen in item.random[sign]])
            share = mean_of(after, mine, before, "share")
            gap = beyond_draws(
                after[mine], draws[:, mine], [before.prompts[int(k)].group for k in mine],
                sizes=(item.after[sign].moved, size_of(item.random[sign])),
            )  # fmt: skip
            rows.append(
                {**_about(item, sign), "label": label, "mode": mode,
                 **share.row("share"), "random_share": float(draws[:, mine].mean()),
                 **gap.row("beyond_random")}
            )  # fmt: skip
    return pd.DataFrame(rows)


def repair_table(trial: Trial) -> pd.DataFrame:
    """The case study, counted: errors that an edit repairs, those it makes, and by chance.

    A *wrong-mode* error gives the answer of the other route: a fact answered with the sum, a
    computation answered with the stored value. The counts of random directions are the mean, the
    standard deviation and the largest over the draws.
    """
    before = trial.before["test"]
    right = correct(before) == 1
    slips = np.array([wrong_mode(before, k) for k in range(len(before))])
    rows = []
    for item, sign, label, mine in _each(trial):
        of_class = np.zeros(len(before), dtype=bool)
        of_class[mine] = True
        wrong, slip = of_class & ~right, of_class & slips

        def count(seen: Observations, of: np.ndarray, good: bool) -> int:
            return int(((correct(seen) == 1) == good)[of].sum())

        row = {**_about(item, sign), "label": label, "errors": int(wrong.sum()),
               "wrong_mode_errors": int(slip.sum()), "draws": len(item.random[sign]),
               "size": item.after[sign].moved,
               "control_size": size_of(item.random[sign])}  # fmt: skip
        for name, of, good in (
            ("repaired", wrong, True),
            ("wrong_mode_repaired", slip, True),
            ("broken", of_class & right, False),
        ):
            by_chance = [count(seen, of, good) for seen in item.random[sign]]
            row[name] = count(item.after[sign], of, good)
            row[f"{name}_random_mean"] = float(np.mean(by_chance))
            several = len(by_chance) > 1
            row[f"{name}_random_spread"] = float(np.std(by_chance, ddof=1)) if several else np.nan
            row[f"{name}_random_most"] = max(by_chance)
        rows.append(row)
    return pd.DataFrame(rows)


def case_examples(trial: Trial) -> pd.DataFrame:
    """Questions whose error a chosen edit repaired under the sign of their label, first cases.

    ``random_repairs`` is how many of the random directions repaired the same question.
    """
    before = trial.before["test"]
    rows = []
    for item in trial.tested:
        for sign in item.setting.signs:
            for k, prompt in enumerate(before.prompts):
                if sign != (1 if prompt.label == LABELS[0] else -1):
                    continue
                if before.outcomes[k] == "correct" or item.after[sign].outcomes[k] != "correct":
                    continue
                rows.append(
                    {**_about(item, sign), "label": prompt.label,
                     "question": str(prompt.meta.get("question", prompt.text)),
                     "right": prompt.answer, "before": before.completions[k].strip()[:120],
                     "after": item.after[sign].completions[k].strip()[:120],
                     "wrong_mode": wrong_mode(before, k),
                     "random_repairs": f"{_repairs(item, sign, k)} of {len(item.random[sign])}"}
                )  # fmt: skip
    frame = pd.DataFrame(rows)
    if frame.empty:
        return frame
    frame = frame.sort_values("wrong_mode", ascending=False, kind="stable")
    return frame.groupby(["family", "pick", "label"], sort=False).head(MOST_CASES // 3)


def wrong_mode(seen: Observations, row: int) -> bool:
    """Whether the answer is wrong and is that of the other route."""
    prompt = seen.prompts[row]
    if seen.outcomes[row] == "correct" or not _both(prompt):
        return False
    other = prompt.memorized if prompt.label == LABELS[0] else prompt.generalized
    return starts_with_answer(seen.completions[row], other or "")


def _repairs(item: TestedSigns, sign: int, row: int) -> int:
    return sum(seen.outcomes[row] == "correct" for seen in item.random[sign])


def _both(prompt: Prompt) -> bool:
    routes = (prompt.memorized, prompt.generalized)
    return None not in routes and routes[0] != routes[1]


def _is_mode(seen: Observations, mode: str) -> np.ndarray:
    out = []
    for prompt, text in zip(seen.prompts, seen.completions, strict=True):
        stored = starts_with_answer(text, prompt.memorized or "")
        worked = starts_with_answer(text, prompt.generalized or "")
        out.append((stored, worked, not stored and not worked)[ANSWER_MODES.index(mode)])
    return np.array(out, dtype=float)


def _each(trial: Trial) -> list[tuple[TestedSigns, int, str, np.ndarray]]:
    """Every chosen edit, sign and class, with the rows of the class."""
    before = trial.before["test"]
    return [
        (item, sign, label, of_label(before, label))
        for item in trial.tested
        for sign in item.setting.signs
        for label in LABELS
    ]


def _about(item: TestedSigns, sign: int) -> dict[str, Any]:
    site = item.setting.direction.site
    return {
        "family": item.setting.family,
        "pick": item.pick,
        "stream": site.stream,
        "layer": site.layer,
        "strength": item.setting.strength,
        "sign": {1: "toward reasoning", -1: "toward memory", 0: "none"}[sign],
    }
