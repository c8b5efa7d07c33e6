"""What a reasoning study found, in words made from its results and held to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from mechmem.evaluation.behavior import Observations
from mechmem.studies.reasoning.answers import accuracy_table, mode_table, repair_table
from mechmem.studies.reasoning.edits import ORACLE, TestedSigns, Trial
from mechmem.studies.reasoning.reading import HeldOutReading
from mechmem.studies.reasoning.turning import Turning
from mechmem.studies.verdict import Verdict
from mechmem.studies.words import (
    FEW_GROUPS,
    estimate_of,
    few_groups,
    hundredths,
    joined,
    points,
    ratio,
    sentence,
    whole_percent,
)
from mechmem.tasks.questions.labels import LABELS
from mechmem.tasks.questions.reasoning import Reasoning
from mechmem.tasks.questions.topics import TopicBalance

PAPER_FAMILY = "addition"
TOWARD = {LABELS[0]: "toward reasoning", LABELS[1]: "toward memory"}


def headline(reading: HeldOutReading, verdict: Verdict) -> str:
    """The result in a few words, for a heading."""
    apart = "told apart" if separated(reading) else "not told apart beyond the baselines"
    return f"Reasoning and memory are {apart}. {verdict.headline}"


def answer(reading: HeldOutReading, trial: Trial | None, unanswered: str, verdict: Verdict) -> str:
    """The result in two sentences: what can be read and done, and the verdict."""
    site = reading.chosen
    found, given = reading.separation.auroc[site], reading.input_only
    low, high = reading.shuffled[site.key]
    compared = "more" if separated(reading) else "not clearly more"
    text = (
        f"On {found.n:,} unseen questions of {found.groups:,} groups the direction from memory to "
        f"reasoning at {site} tells the two apart with AUROC {ratio(found)}, {compared} than the "
        f"input tokens alone ({ratio(given)}) or shuffled labels ({low:.2f} to {high:.2f})"
    )
    if trial is None:
        return f"{text}; {unanswered}. {verdict.sentence}"
    told = joined(
        [
            f"{_change(row)} on {label} questions when pushed {TOWARD[label]} ({_beyond(row)})"
            for label, row in oracle_gains(trial).items()
        ]
    )
    item = next(t for t in trial.tested if t.setting.family == PAPER_FAMILY and t.pick == ORACLE)
    return (
        f"{text}; adding {item.setting.strength:g} times the direction at "
        f"{item.setting.direction.site} moved accuracy by {told}, with a sign that knows the "
        f"label. {verdict.sentence}"
    )


def notes(
    trial: Trial | None,
    turning: Turning | None,
    topics: TopicBalance,
    card: Mapping[str, Any],
    task: str,
    seed: int,
) -> Iterator[str]:
    """What has to be said beside the sentence."""
    if trial is not None:
        yield from _edits(trial, seed)
    if turning is not None:
        yield from _turning(turning)
    if trial is not None:
        yield from _modes(mode_table(trial))
        yield from _repairs(repair_table(trial))
    yield from _topics(topics)
    if trial is not None:
        yield from _unread(trial.before["test"], task)
    if card.get("planted"):
        yield (
            "Which questions are recalled and which computed was decided when this model was "
            "trained; how it keeps them apart was not."
        )


def limits(groups: int, *, planted: bool, seed: int) -> Iterator[str]:
    """What the study does not show, with so many groups of test questions."""
    if planted:
        yield (
            "The lab model was trained by us on stored values and sums. The study shows what the "
            "method finds where both are there; it does not show that models trained on ordinary "
            "text keep them apart in the same way."
        )
    yield (
        "Separation shows what can be read off the states, not what the model uses. Only the edits "
        "speak about causes, and only as far as the verdict goes: a direction fitted to exchanged "
        "labels goes beyond random ones too."
    )
    yield "A label says what a question asks for, not what the model did to answer it."
    yield (
        "A sign that depends on the label is an oracle: whoever uses it has to know beforehand "
        "whether a question is to be recalled or worked out."
    )
    yield (
        f"One model, one set of questions, one seed ({seed}); the intervals cover the choice of "
        f"the {groups} groups of test questions, not of models or question sets."
    )
    yield (
        "Edits were chosen by accuracy on validation questions from a small grid; another grid "
        "may find better ones."
    )
    yield from few_groups(groups, "test groups")


def separated(reading: HeldOutReading) -> bool:
    """Whether the chosen site's AUROC lies above the input tokens and 97.5 % of shuffled labels."""
    found = reading.separation.auroc[reading.chosen]
    shuffled = reading.shuffled[reading.chosen.key][1]
    return bool(found.low > max(reading.input_only.value, 0.5) and found.value > shuffled)


def oracle_gains(trial: Trial, family: str = PAPER_FAMILY) -> dict[str, dict[str, Any]]:
    """The rows of the oracle's pick in which each class is pushed with its own sign."""
    out = {}
    for row in _records(accuracy_table(trial)):
        own = row["family"] == family and row["pick"] == ORACLE
        if own and row["sign"] == TOWARD[row["label"]]:
            out[str(row["label"])] = row
    return {label: out[label] for label in LABELS}


def _edits(trial: Trial, seed: int) -> Iterator[str]:
    frame = accuracy_table(trial)
    plain = frame[frame["family"] == "unedited"].set_index("label")["accuracy"]
    shares = joined([f"{whole_percent(plain[label])} on {label} questions" for label in LABELS])
    yield sentence(f"unedited accuracy was {shares}")
    for item in trial.tested:
        if item.setting.family == PAPER_FAMILY and item.pick == ORACLE:
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
        told = joined(
            [f"{_change(row)} on {row['label']} questions ({_beyond(row)})" for row in mine]
        )
        yield f"{_name(item)}, {how}: {told}."


def _opposite(frame: pd.DataFrame) -> str:
    told = joined(
        [
            f"{_change(row)} on {row['label']} questions when pushed {row['sign']}"
            for row in _records(frame)
            if row["family"] == PAPER_FAMILY
            and row["pick"] == ORACLE
            and row["sign"] != TOWARD.get(row["label"])
        ]
    )
    return f"With the other sign the same edit moved accuracy by {told}."


def _turning(turning: Turning) -> Iterator[str]:
    rows = _records(turning.test)
    for family in dict.fromkeys(row["family"] for row in rows):
        told = []
        where = ""
        for label, sign in ((LABELS[1], 1), (LABELS[0], -1)):
            mine = [r for r in rows if r["family"] == family and r["class"] == label]
            plain = next(r for r in mine if r["alpha"] == 0)
            edit = next(r for r in mine if r["kind"] == "edit" and np.sign(r["alpha"]) == sign)
            pushed = TOWARD[LABELS[0] if sign > 0 else LABELS[1]]
            told.append(
                f"{whole_percent(edit['share'])} of the {label} questions pushed {pushed} "
                f"({whole_percent(plain['share'])} unedited; {_beyond(edit, 'beyond')}"
                + (f"; only {edit['groups']} groups)" if edit["groups"] < FEW_GROUPS else ")")
            )
            where = f"block {edit['layer']}, strength {abs(edit['alpha']):g}"
        yield f"Answers of the other route under {family} ({where}): {joined(told)}."


def _modes(frame: pd.DataFrame) -> Iterator[str]:
    """How far the paper's edit turns answers from the one route to the other."""
    if frame.empty:
        return
    mine = frame[(frame["family"] == PAPER_FAMILY) & (frame["pick"] == ORACLE)]
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
                f"{whole_percent(row['share'])} of the cases "
                f"({whole_percent(start['share'].iloc[0])} unedited, "
                f"{whole_percent(row['random_share'])} under random directions)"
            )
    if turns:
        yield f"Where both routes have an answer: {'; '.join(turns)}."


def _repairs(frame: pd.DataFrame) -> Iterator[str]:
    if frame.empty or not frame["wrong_mode_errors"].any():
        return
    told = []
    for row in _records(frame):
        own = row["family"] == PAPER_FAMILY and row["pick"] == ORACLE
        if own and row["sign"] == TOWARD[row["label"]]:
            told.append(
                f"of {row['wrong_mode_errors']} {row['label']} questions answered by the wrong "
                f"route it repaired {row['wrong_mode_repaired']} (random directions "
                f"{row['wrong_mode_repaired_random_mean']:.1f} on average, "
                f"{row['wrong_mode_repaired_random_most']} at most) and broke {row['broken']} "
                f"right answers (random {row['broken_random_mean']:.1f})"
            )
    if told:
        yield f"Case study, addition with the sign of the label: {'; '.join(told)}."


def _topics(topics: TopicBalance) -> Iterator[str]:
    if len(topics.counts) < 2:
        return
    text = (
        f"The topic alone gives the right label for {whole_percent(topics.by_topic)} of the "
        f"questions (guessing the larger class: {whole_percent(topics.majority)}; with the labels "
        f"dealt out anew, at most {whole_percent(topics.dealt[1])} in 97.5 % of draws)"
    )
    if topics.confounded:
        text += "; a direction between the labels may be one between topics"
    yield f"{text}."


def _unread(seen: Observations, task: str) -> Iterator[str]:
    rows = [k for k, outcome in enumerate(seen.outcomes) if outcome == "unparsed"]
    if not rows:
        return
    text = f"In {len(rows)} of {len(seen)} unedited answers no answer could be read"
    if task == Reasoning.name:
        text += f", {sum(seen.truncated[k] for k in rows)} of them cut off at the length limit"
    yield f"{text}; they count as not correct."


def _name(item: TestedSigns) -> str:
    setting = item.setting
    size = {"addition": "alpha", "scaled projection": "scale"}.get(setting.family)
    strength = f", {size} {setting.strength:g}" if size else ""
    return f"{setting.family[0].upper()}{setting.family[1:]} ({setting.direction.site}{strength})"


def _sign_name(sign: int) -> str:
    return {1: "toward reasoning", -1: "toward memory", 0: "none"}[sign]


def _pushed(item: TestedSigns, label: str) -> str:
    """The sign that this class got under the item's way of choosing."""
    return TOWARD[label] if item.pick == ORACLE else _sign_name(item.chosen_sign)


def _route(mode: str) -> str:
    return {"stored": "stored value", "worked out": "worked-out value"}[mode]


def _change(row: dict[str, Any]) -> str:
    return points(estimate_of(row, "change"))


def _beyond(row: dict[str, Any], name: str = "beyond_random") -> str:
    """The number alone: only refits can say whether it is more than a fit to nothing gives."""
    return f"{hundredths(estimate_of(row, name), signed=True)} beyond random directions"


def _records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(key): value for key, value in row.items()} for row in frame.to_dict("records")]
