"""What a reasoning study found, in words made from its numbers and held to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

from mechmem.analysis.intervals import Estimate
from mechmem.studies.reasoning.answers import accuracy_table, mode_table, repair_table
from mechmem.studies.reasoning.edits import ORACLE, Tested
from mechmem.studies.reasoning.results import ReasoningResults
from mechmem.tasks.questions.labels import LABELS
from mechmem.tasks.questions.reasoning import Reasoning

__all__ = ["headline", "limits", "notes", "oracle_gains", "sentence"]

PAPER = "addition"
FEW = 10
"""With fewer groups an interval is too narrow, and that is said."""
TOWARD = {LABELS[0]: "toward reasoning", LABELS[1]: "toward memory"}


def headline(study: ReasoningResults) -> str:
    """The result in a few words, for a heading."""
    apart = "told apart" if separated(study) else "not told apart beyond the baselines"
    if study.trial is None:
        return f"Reasoning and memory are {apart}; no edit was tried"
    helped = [label for label, row in oracle_gains(study).items() if row["beyond_random_low"] > 0]
    if len(helped) == 2:
        done = "pushing along the direction raises accuracy on both, each with its own sign"
    elif helped:
        done = f"pushing along the direction raises accuracy on {helped[0]} questions only"
    else:
        done = "pushing along the direction raises accuracy no more than random directions do"
    return f"Reasoning and memory are {apart}; {done}"


def sentence(study: ReasoningResults) -> str:
    """The result in one sentence."""
    site = study.reading.chosen
    found, given = study.reading.separation.auroc[site], study.reading.input_only
    low, high = study.reading.shuffled[site.key]
    compared = "more" if separated(study) else "not clearly more"
    text = (
        f"On {found.n:,} unseen questions of {found.groups:,} groups the direction from memory to "
        f"reasoning at {site} tells the two apart with AUROC {_auroc(found)}, {compared} than the "
        f"input tokens alone ({_auroc(given)}) or shuffled labels ({low:.2f} to {high:.2f})"
    )
    if study.trial is None:
        return f"{text}; {study.unanswered}."
    gains = oracle_gains(study)
    told = " and ".join(
        f"{_points(row, 'change')} points on {label} questions when pushed {TOWARD[label]} "
        f"({_beyond(row)})"
        for label, row in gains.items()
    )
    item = next(t for t in study.trial.tested if t.setting.family == PAPER and t.pick == ORACLE)
    return (
        f"{text}; adding {item.setting.strength:g} times the direction at "
        f"{item.setting.direction.site} moved accuracy by {told}, with a sign that knows the label."
    )


def notes(study: ReasoningResults) -> list[str]:
    """What has to be said beside the sentence."""
    told = [
        *_edits(study),
        *_turning(study),
        _modes(study),
        _repairs(study),
        _topics(study),
        _unread(study),
    ]
    if study.card.get("planted"):
        told.append(
            "Which questions are recalled and which computed was decided when this model was "
            "trained; how it keeps them apart was not."
        )
    return [text for text in told if text]


def limits(study: ReasoningResults) -> list[str]:
    """What the study does not show."""
    groups = len(set(study.splits["test"].groups))
    out = [
        "Separation shows what can be read off the states, not what the model uses. Only the edits "
        "speak about causes, and only as far as they go beyond random directions.",
        "A label says what a question asks for, not what the model did to answer it.",
        "A sign that depends on the label is an oracle: whoever uses it has to know beforehand "
        "whether a question is to be recalled or worked out.",
        f"One model, one set of questions, one seed ({study.seed}); the intervals cover the choice "
        f"of the {groups} groups of test questions, not of models or question sets.",
        "Edits were chosen by accuracy on validation questions from a small grid; another grid "
        "may find better ones.",
    ]
    if groups < FEW:
        out.append(f"With {groups} test groups the intervals are too narrow.")
    if study.card.get("planted"):
        out.insert(
            0,
            "The lab model was trained by us on stored values and sums. The study shows what the "
            "method finds where both are there; it does not show that models trained on ordinary "
            "text keep them apart in the same way.",
        )
    return out


def separated(study: ReasoningResults) -> bool:
    """Whether the chosen site's AUROC lies above the input tokens and 97.5 % of shuffled labels."""
    reading = study.reading
    found = reading.separation.auroc[reading.chosen]
    shuffled = reading.shuffled[reading.chosen.key][1]
    return bool(found.low > max(reading.input_only.value, 0.5) and found.value > shuffled)


def oracle_gains(study: ReasoningResults, family: str = PAPER) -> dict[str, dict[str, Any]]:
    """The rows of the oracle's pick in which each class is pushed with its own sign."""
    if study.trial is None:
        return {}
    frame = accuracy_table(study.trial, study.seed)
    out = {}
    for row in _records(frame):
        own = row["family"] == family and row["pick"] == ORACLE
        if own and row["sign"] == TOWARD[row["label"]]:
            out[str(row["label"])] = row
    return {label: out[label] for label in LABELS}


def _edits(study: ReasoningResults) -> Iterator[str]:
    if study.trial is None:
        return
    frame = accuracy_table(study.trial, study.seed)
    plain = frame[frame["family"] == "unedited"].set_index("label")["accuracy"]
    yield (
        "Unedited accuracy was "
        + " and ".join(f"{100 * plain[label]:.0f} % on {label} questions" for label in LABELS)
        + "."
    )
    for item in study.trial.tested:
        if item.setting.family == PAPER and item.pick == ORACLE:
            yield _opposite(frame)
            continue
        mine = [
            row
            for row in _records(frame)
            if row["family"] == item.setting.family
            and row["pick"] == item.pick
            and row["sign"] == _pushed(item, row["label"])
        ]
        how = (
            "with the sign of the label"
            if item.pick == ORACLE
            else f"for all questions alike ({_sign_name(item.chosen_sign)})"
            if item.chosen_sign
            else "for all questions alike"
        )
        told = " and ".join(
            f"{_points(row, 'change')} points on {row['label']} questions ({_beyond(row)})"
            for row in mine
        )
        yield f"{_name(item)}, {how}: {told}."


def _opposite(frame: pd.DataFrame) -> str:
    rows = [
        row
        for row in _records(frame)
        if row["family"] == PAPER
        and row["pick"] == ORACLE
        and row["sign"] != TOWARD.get(row["label"])
    ]
    told = " and ".join(
        f"{_points(row, 'change')} points on {row['label']} questions when pushed {row['sign']}"
        for row in rows
    )
    return f"With the other sign the same edit moved accuracy by {told}."


def _turning(study: ReasoningResults) -> Iterator[str]:
    if study.turning is None:
        return
    rows = _records(study.turning.test)
    for family in dict.fromkeys(row["family"] for row in rows):
        told = []
        where = ""
        for label, sign in ((LABELS[1], 1), (LABELS[0], -1)):
            mine = [r for r in rows if r["family"] == family and r["class"] == label]
            plain = next(r for r in mine if r["alpha"] == 0)
            edit = next(r for r in mine if r["kind"] == "edit" and np.sign(r["alpha"]) == sign)
            pushed = TOWARD[LABELS[0] if sign > 0 else LABELS[1]]
            told.append(
                f"{100 * edit['share']:.0f} % of the {label} questions pushed {pushed} "
                f"({100 * plain['share']:.0f} % unedited; {_beyond(edit, 'beyond')}"
                + (f"; only {edit['groups']} groups)" if edit["groups"] < FEW else ")")
            )
            where = f"block {edit['layer']}, strength {abs(edit['alpha']):g}"
        yield f"Answers of the other route under {family} ({where}): {' and '.join(told)}."


def _modes(study: ReasoningResults) -> str:
    """How far the paper's edit turns answers from the one route to the other."""
    frame = pd.DataFrame() if study.trial is None else mode_table(study.trial, study.seed)
    if frame.empty:
        return ""
    mine = frame[(frame["family"] == PAPER) & (frame["pick"] == ORACLE)]
    turns = []
    for label, sign, mode in (
        (LABELS[1], TOWARD[LABELS[0]], "worked out"),
        (LABELS[0], TOWARD[LABELS[1]], "stored"),
    ):
        same = (mine["label"] == label) & (mine["sign"] == sign) & (mine["mode"] == mode)
        start = frame[
            (frame["family"] == "unedited") & (frame["label"] == label) & (frame["mode"] == mode)
        ]
        for row in _records(mine[same]):
            turns.append(
                f"pushed {sign}, {label} questions were answered with the {_route(mode)} in "
                f"{100 * row['share']:.0f} % of the cases ({100 * start['share'].iloc[0]:.0f} % "
                f"unedited, {100 * row['random_share']:.0f} % under random directions)"
            )
    return (f"Where both routes have an answer: {'; '.join(turns)}.") if turns else ""


def _repairs(study: ReasoningResults) -> str:
    frame = pd.DataFrame() if study.trial is None else repair_table(study.trial)
    if frame.empty or not frame["wrong_mode_errors"].any():
        return ""
    told = []
    for row in _records(frame):
        own = row["family"] == PAPER and row["pick"] == ORACLE
        if own and row["sign"] == TOWARD[row["label"]]:
            told.append(
                f"of {row['wrong_mode_errors']} {row['label']} questions answered by the wrong "
                f"route it repaired {row['wrong_mode_repaired']} (random directions "
                f"{row['wrong_mode_repaired_random_mean']:.1f} on average, "
                f"{row['wrong_mode_repaired_random_most']} at most) and broke {row['broken']} "
                f"right answers (random {row['broken_random_mean']:.1f})"
            )
    return f"Case study, addition with the sign of the label: {'; '.join(told)}." if told else ""


def _topics(study: ReasoningResults) -> str:
    topics = study.topics
    if len(topics.counts) < 2:
        return ""
    text = (
        f"The topic alone gives the right label for {100 * topics.by_topic:.0f} % of the questions "
        f"(guessing the larger class: {100 * topics.majority:.0f} %)"
    )
    if topics.by_topic > topics.majority + 0.05:
        text += "; a direction between the labels may be one between topics"
    return text + "."


def _unread(study: ReasoningResults) -> str:
    if study.trial is None:
        return ""
    seen = study.trial.before["test"]
    rows = [k for k, outcome in enumerate(seen.outcomes) if outcome == "unparsed"]
    if not rows:
        return ""
    text = f"In {len(rows)} of {len(seen)} unedited answers no answer could be read"
    if study.task == Reasoning.name:
        text += f", {sum(seen.truncated[k] for k in rows)} of them cut off at the length limit"
    return f"{text}; they count as not correct."


def _name(item: Tested) -> str:
    setting = item.setting
    size = {"addition": "alpha", "scaled projection": "scale"}.get(setting.family)
    strength = f", {size} {setting.strength:g}" if size else ""
    return f"{setting.family[0].upper()}{setting.family[1:]} ({setting.direction.site}{strength})"


def _sign_name(sign: int) -> str:
    return {1: "toward reasoning", -1: "toward memory", 0: "none"}[sign]


def _pushed(item: Tested, label: str) -> str:
    """The sign that this class got under the item's way of choosing."""
    return TOWARD[label] if item.pick == ORACLE else _sign_name(item.chosen_sign)


def _route(mode: str) -> str:
    return {"stored": "stored value", "worked out": "worked-out value"}[mode]


def _beyond(row: dict[str, Any], name: str = "beyond_random") -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    what = "beyond" if low > 0 else "below" if high < 0 else "not beyond"
    return f"{what} random directions, difference {_points(row, name)}"


def _points(row: dict[str, Any], name: str) -> str:
    value, low, high = (100 * row[key] for key in (name, f"{name}_low", f"{name}_high"))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _auroc(found: Estimate) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]"


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
