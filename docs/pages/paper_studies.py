"""Tables of docs/lab-models-paper.md that come from the saved studies."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from paper_lab import TASKS, Entry, claims, head, line, percent, points, share

OWN = "P1 as published"


def depth(found: Sequence[Entry]) -> str:
    rows = [
        "## The mean difference by depth",
        "",
        "Last prompt token. *Size*: root mean square of NMD over the coordinates, in units of the "
        "spread at that depth, on the training flips; in brackets the middle 95 % with the "
        "behaviors exchanged within pairs, so what lies inside is nothing. *Raw*: the same in "
        "activations. *AUROC*: how well the projection on that difference tells the behaviors "
        "apart on the flips of the test part, with its interval (0.5 is guessing).",
        "",
        *head("model", "at", "size", "raw", "AUROC on test flips"),
    ]
    for entry, tables in _studies(found):
        sizes, apart = tables["depth_profile"], tables["separation"]
        for one, other in zip(sizes.itertuples(), apart.itertuples(), strict=True):
            size = f"{one.scaled:.2f} [{one.shuffled_low:.2f}, {one.shuffled_high:.2f}]"
            auroc = f"{other.auroc:.2f} [{other.auroc_low:.2f}, {other.auroc_high:.2f}]"
            rows.append(line(entry.title, _place(one), size, f"{one.raw:.2f}", auroc))
    return "\n".join([*rows, ""])


def steering(found: Sequence[Entry]) -> str:
    studies = _studies(found)
    families = list(dict.fromkeys(studies[0][1]["beyond_controls"]["family"]))
    rows = [
        "## Turning the models",
        "",
        "What each study may claim, from 19 refits of the whole recipe on exchanged behaviors, and "
        "how far each family goes among them (p of its larger change against the refits' largest "
        "of any family; not below 0.05 with 19).",
        "",
        *head("model", "verdict", *(f"p, {family}" for family in families)),
    ]
    for entry, _ in studies:
        verdict = entry.verdict()
        ps = [verdict["family_p"].get(family) for family in families]
        cells = ["" if p is None else f"{p:.2f}" for p in ps]
        rows.append(line(entry.title, verdict["sentence"], *cells))
    rows += ["", "Families beyond all refits, of the models studied:", "", *head("family", *TASKS)]
    for family in families:
        held = [
            [claims(entry.verdict(), family) for entry, _ in studies if entry.task == task]
            for task in TASKS
        ]
        rows.append(line(family, *(f"{sum(mine)} of {len(mine)}" for mine in held)))
    return "\n".join([*rows, "", *changes(studies), ""])


def changes(studies: Sequence[tuple[Entry, dict[str, pd.DataFrame]]]) -> list[str]:
    """What the edits did, beside the control of the paper's own form."""
    rows = [
        "### What the edits did",
        "",
        "The winner of every family on the test prompts. *Change* is in points of the share "
        "steered to. *Beyond random*: minus the same shift on as many random neurons (of one "
        "direction: along a random one), scaled to the same length, over all draws. *chosen* is "
        "the family that validation chose. "
        "A control is needed, and proves nothing that was chosen: the verdict does.",
        "",
        *head("model", "family", "edit", "toward", "before", "after", "other", "change",
                "beyond random", "draws", "spread", "size", "control size"),
    ]  # fmt: skip
    for entry, tables in studies:
        test, beyond = tables["test"], tables["beyond_controls"]
        plain = test[test["kind"] == "unedited"].iloc[0]
        chosen = beyond["family"].iloc[0]
        for one in beyond.itertuples():
            mine = test[(test["family"] == one.family) & (test["toward"] == one.toward)]
            edit = mine[mine["kind"] == "edit"].iloc[0]
            kinds = ("random neurons", "random direction")
            matched = pd.concat([mine[mine["control"] == kind] for kind in kinds])
            cells = [""] * 5
            if len(matched):
                own = matched.iloc[0]
                cells = [
                    _minus(own), int(own["draws"]), share(own["spread"]), f"{edit['size']:.2f}",
                    f"{own['control_size']:.2f}",
                ]  # fmt: skip
            rows.append(
                line(
                    entry.title,
                    one.family + (" (chosen)" if one.family == chosen else ""),
                    _edit(one),
                    one.toward,
                    share(plain[one.toward]),
                    share(edit[one.toward]),
                    share(edit["other"]),
                    points((edit["change"], edit["change_low"], edit["change_high"])),
                    *cells,
                )
            )
    return rows


def controls(found: Sequence[Entry]) -> str:
    names = (
        "alpha 0", "random neurons", "permuted", "low-rank neurons", "random direction",
        "uniform noise",
    )  # fmt: skip
    rows = [
        "## The paper's own form against every control",
        "",
        f"*{OWN}*: the edit minus each control, in points of the share steered to. `uniform noise` "
        "is the control of the paper's code, not matched in length; the others are. `alpha 0` is "
        "the unedited model: the edit's own change.",
        "",
        *head("model", "toward", *names),
    ]
    for entry, tables in _studies(found):
        test = tables["test"]
        for toward in ("memorized", "generalized"):
            mine = test[(test["family"] == OWN) & (test["toward"] == toward)].set_index("control")
            cells = [_minus(mine.loc[name]) if name in mine.index else "" for name in names]
            rows.append(line(entry.title, toward, *cells))
    return "\n".join([*rows, ""])


def probing(found: Sequence[Entry]) -> str:
    rows = [
        "## Reading the behavior off the state",
        "",
        "Logistic classifiers at the last prompt token on the training flips, whole pairs held "
        "out (chance 50 %). Where the input tokens alone do as well, a probe says nothing about "
        "the state.",
        "",
        *head("model", "at", "accuracy", "shuffled labels", "input tokens only", "prompt length"),
    ]
    for entry, tables in _studies(found):
        for one in tables["probes"].itertuples():
            cells = [
                percent([getattr(one, f"{name}{end}") for end in ("", "_low", "_high")])
                for name in ("shuffled", "input_only", "length_only")
            ]
            own = percent([one.accuracy, one.accuracy_low, one.accuracy_high])
            rows.append(line(entry.title, _place(one), own, *cells))
    return "\n".join([*rows, ""])


def _studies(found: Sequence[Entry]) -> list[tuple[Entry, dict[str, pd.DataFrame]]]:
    made = ((entry, entry.study()) for entry in found)
    return [(entry, tables) for entry, tables in made if not isinstance(tables, str)]


def _edit(row: tuple) -> str:
    if row.edit == "AddDirection":
        return f"{row.direction}, alpha {row.alpha:g}"
    return f"{row.at}, alpha {row.alpha:g}, top {row.top:.0%}"


def _minus(row: pd.Series) -> str:
    return points([row[f"edit_minus_control{end}"] for end in ("", "_low", "_high")])


def _place(row: tuple) -> str:
    return "embedding" if row.stream == "resid_pre" else f"block {row.layer}"
