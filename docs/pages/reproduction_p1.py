"""P1's claims about states and edits, each counted from the saved studies."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd
from paper_lab import TASKS, Entry, claims, head, line, percent, points, row_of, share

OWN = "P1 as published"
WAYS = {"memorized": "generalized", "generalized": "memorized"}
Tables = dict[str, pd.DataFrame]
Studies = Sequence[tuple[Entry, Tables]]
Claim = tuple[tuple[str, str, str], str]
"""A row of the overview (claim, the paper's number, verdict here), and the section."""


def early(studies: Studies) -> Claim:
    def cell(entry: Entry, tables: Tables) -> str:
        sizes = tables["depth_profile"]["scaled"].tolist()
        high = tables["depth_profile"]["shuffled_high"].tolist()
        return ", ".join(
            f"{size:.2f}{'' if size > top else '°'}" for size, top in zip(sizes, high, strict=True)
        )

    grown = []
    for task in TASKS:
        mine = [
            tables["depth_profile"]["scaled"] for entry, tables in studies if entry.task == task
        ]
        more = sum(sizes.iloc[-1] > sizes.iloc[1] for sizes in mine)
        grown.append(f"`{task}` {more} of {len(mine)}")
    return as_claim(
        "NMD is near 0 in early layers and grows with depth",
        "second-hand, no number",
        "0 at the embedding on all; larger after the last block than after the first, in units of "
        f"the spread: {', '.join(grown)}",
        "Size of NMD at the last prompt token in units of the spread, training flips: embedding, "
        "then after every block. ° marks sizes within what exchanged behaviors give. At the "
        "embedding all prompts have the same token, so it is 0 of itself where prompts are of "
        "equal length.",
        _by_study(studies, cell, "size of NMD, embedding to last block"),
    )


def last(studies: Studies) -> Claim:
    def auroc(tables: Tables) -> pd.Series:
        return tables["separation"].iloc[-1]

    def cell(entry: Entry, tables: Tables) -> str:
        row = auroc(tables)
        return f"{row['auroc']:.2f} [{row['auroc_low']:.2f}, {row['auroc_high']:.2f}]"

    told = []
    for task in ("addition", "colors"):
        mine = [auroc(tables) for entry, tables in studies if entry.task == task]
        above = sum(row["auroc_low"] > 0.5 for row in mine)
        more = sum(row["auroc_low"] > row["random_high"] for row in mine)
        told.append(
            f"`{task}` above chance on {above}, above random directions on {more} of {len(mine)}"
        )
    return as_claim(
        "The last layer separates the behaviors strongly for AA, not for ICI",
        "second-hand, no number",
        "; ".join(told),
        "AUROC of the projection on the direction of the training flips, after the last block, on "
        "the flips of the test part. Rule: the interval lies above 0.5, and above the middle 95 % "
        "of random directions of the same site.",
        _by_study(studies, cell, "AUROC after the last block"),
    )


def classifier(studies: Studies) -> Claim:
    def best(tables: Tables) -> pd.Series:
        return tables["probes"].iloc[-1]

    def cell(entry: Entry, tables: Tables) -> str:
        row = best(tables)
        own = percent([row["accuracy"], row["accuracy_low"], row["accuracy_high"]])
        return f"{own} against {share(row['input_only'])}, shuffled {share(row['shuffled'])}"

    more = [
        row["accuracy_low"] > row["input_only"] for row in (best(tables) for _, tables in studies)
    ]
    over = [best(tables)["accuracy_low"] > 0.5 for _, tables in studies]
    return as_claim(
        "The behavior can be read off the states before anything is written",
        "classifier, split and accuracy unknown",
        f"above chance on {sum(over)} of {len(over)}; above a classifier on the input tokens alone "
        f"on {sum(more)}",
        "Logistic classifier after the last block (named beforehand, not the best one), whole "
        "pairs held out, against the input tokens alone. All layers and the prompt's length: [the "
        "lab models](lab-models-paper.md#reading-the-behavior-off-the-state). Rule: the "
        "interval lies above.",
        _by_study(studies, cell, "accuracy against input tokens only"),
    )


def intervention(studies: Studies) -> Claim:
    rows = [
        *head("model", "p among refits", "toward", "P1's measure: of the other behavior, turned",
                "same, random neurons of that length", "share steered to, beyond random neurons")
    ]  # fmt: skip
    held: dict[str, list[bool]] = {task: [] for task in TASKS}
    found: dict[str, list[float]] = {task: [] for task in TASKS}
    for entry, tables in studies:
        verdict = entry.verdict()
        held[entry.task].append(claims(verdict, OWN))
        p = verdict["family_p"].get(OWN)
        for toward in WAYS:
            test = row_of(tables["test"], family=OWN, toward=toward, control="random neurons")
            found[entry.task].append(_turned_row(tables, toward, "edit")["share"])
            turned = [_turned(tables, toward, name) for name in ("edit", "random neurons")]
            minus = [test[f"edit_minus_control{end}"] for end in ("", "_low", "_high")]
            cell = "not tested" if p is None else f"{p:.2f}"
            rows.append(line(entry.title, cell, toward, *turned, points(minus)))
    told = "; ".join(
        f"`{task}` {sum(held[task])} of {len(held[task])}, turning "
        f"{share(min(found[task]))} to {share(max(found[task]))}"
        for task in TASKS
    )
    return as_claim(
        "Shifting the top neurons by NMD at every step turns the behavior",
        "second-hand, v1 ICI: 83.7 % memorized to generalized, 89.9 % back",
        f"beyond refits on exchanged behaviors: {told}",
        "The paper's own form (`p1-paper`), strength and share of neurons chosen on validation "
        "prompts, measured once on test prompts. P1 gives the share of the prompts that did the "
        "other behavior which now does the wanted one; beside it stands what a random shift of the "
        "same length does. Points: the share steered to, minus the control. Rule: its larger "
        "change is beyond the largest of any family in each of 19 refits of the whole recipe on "
        "exchanged behaviors. Answers that became neither, and other forms of the edit: "
        "[the lab models](lab-models-paper.md#turning-the-models).",
        rows,
    )


def random_control(studies: Studies) -> Claim:
    rows = head("model", "toward", "turned by uniform noise", "turned by random neurons, matched")
    quiet = []
    for entry, tables in studies:
        for toward in WAYS:
            cells = [_turned(tables, toward, k) for k in ("uniform noise", "random neurons")]
            rows.append(line(entry.title, toward, *cells))
            quiet.append(_turned_row(tables, toward, "uniform noise")["share"] < 0.05)
    return as_claim(
        "Random neurons change almost nothing",
        "second-hand, “negligible”",
        f"P1's own control turns under 5 % of the answers in {sum(quiet)} of {len(quiet)} cases",
        "P1's control takes values uniform within the largest NMD, which is another length than "
        "the edit's; matched ones have the same. Shown: of the prompts that did the other "
        "behavior, the share turned.",
        rows,
    )


def ways(studies: Studies) -> Claim:
    rows = head("model", "turned toward memorized", "turned toward generalized", "apart")
    apart = []
    for entry, tables in studies:
        one, other = (_turned_row(tables, toward, "edit") for toward in WAYS)
        clear = one["share_low"] > other["share_high"] or other["share_low"] > one["share_high"]
        apart.append(clear)
        cells = [
            percent([row["share"], row["share_low"], row["share_high"]]) for row in (one, other)
        ]
        rows.append(line(entry.title, *cells, "yes" if clear else "no"))
    return as_claim(
        "The two directions are not equally hard",
        "second-hand: 83.7 against 89.9 % (ICI)",
        f"intervals apart on {sum(apart)} of {len(apart)}",
        "The paper's own form; the two are of different prompts. Rule: the intervals do not meet.",
        rows,
    )


def halves(studies: Studies) -> Claim:
    rows = head("model", "overlap", "behaviors exchanged", "chance", "sign agreement", "flips")
    good = []
    for entry, _ in studies:
        table = entry.halves()
        shared, signs = (row_of(table, statistic=k) for k in ("overlap", "sign_agreement"))
        good.append(shared["mean"] > shared["shuffled_high"])
        rows.append(
            line(
                entry.title,
                f"{shared['mean']:.2f} ({shared['mean_low']:.2f} to {shared['mean_high']:.2f})",
                f"{shared['shuffled']:.2f} (to {shared['shuffled_high']:.2f})",
                f"{shared['chance']:.2f}",
                f"{signs['mean']:.2f}",
                int(shared["groups"]),
            )
        )
    return as_claim(
        "The neurons found are the same within a task (v2: intra-task consistency)",
        "metric and numbers unknown",
        f"halves share more than with exchanged behaviors on {sum(good)} of {len(good)}",
        "Two random halves of the training flips, top 10 % by correlation: share of the top "
        "neurons in common, mean and middle 95 % of 100 divisions (no interval). Rule: the mean "
        "lies above the middle 95 % of the same with the behaviors exchanged within pairs.",
        rows,
    )


def as_claim(claim: str, paper: str, here: str, rule: str, rows: Sequence[str]) -> Claim:
    text = [f"### {claim}", "", rule, "", *rows]
    return (claim, paper, here), "\n".join([*text, ""])


def short(entry: Entry) -> str:
    return "shipped" if entry.seed is None else f"seed {entry.seed}"


def _turned_row(tables: Tables, toward: str, name: str) -> pd.Series:
    which = {"kind": "edit"} if name == "edit" else {"control": name}
    return row_of(tables["turned"], family=OWN, toward=toward, outcome=toward, **which)


def _turned(tables: Tables, toward: str, name: str) -> str:
    row = _turned_row(tables, toward, name)
    return f"{percent([row['share'], row['share_low'], row['share_high']])}, n {row['n']}"


def _by_study(studies: Studies, cell: Callable[[Entry, Tables], str], name: str) -> list[str]:
    rows = head("task", "model", name)
    return rows + [line(entry.task, short(entry), cell(entry, each)) for entry, each in studies]
