"""Writes docs/lab-models-paper.md: the models of the paper's tasks, every seed, and their studies.

    python docs/pages/lab_models_paper.py [--work build/lab-models-paper]

What `docs/lab-models-paper/measured` lacks is measured first, on models that the work folder lacks
and that are trained then; everything on the page is written from what lies there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
from helper import write_page
from paper_lab import (
    CLEAN,
    PAIRS,
    TASKS,
    WORK,
    Entry,
    both,
    entries,
    head,
    line,
    percent,
)
from paper_studies import controls, depth, probing, steering

import mechmem as mm

HEAD = """# The lab models of the paper's tasks

Written by `python docs/pages/lab_models_paper.py`, which trains and studies what was not measured
yet. One model again: `mechmem train colors --seed 0 --out FOLDER`; its study: `mechmem study
colors --model FOLDER`. The checkpoint that is kept was chosen on other conflict items than those
measured here. Counted by rule over all models: [what holds](reproduction.md).

The training seeds 0, 1 and 2 were fixed beforehand and run once, with recipes that were fixed then;
all are shown, the failed ones too. The recipe of `cipher` was chosen on seed 10 (a shorter form had
been tried on seed 0 before, and failed there). On which seeds those of `colors` and `addition` were
chosen was not written down: count seed 0 as seen. `lab/cipher` is seed 10, `lab/colors` and
`lab/addition` are seed 0, all trained on another machine.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    found = list(entries(parser.parse_args().work))
    parts = [HEAD, designs(), behavior(found), drawn_again(found), studied(found)]
    parts += [depth(found), steering(found), controls(found), probing(found)]
    page = Path(__file__).parents[1] / "lab-models-paper.md"
    write_page(page, "\n".join(parts))
    print(f"wrote {page}")


def designs() -> str:
    rows = ["## How they were made", ""]
    for task in TASKS:
        rows += [f"**{task}.** {mm.load_model(f'lab/{task}').card['design']}", ""]
    return "\n".join(rows)


def behavior(found: Sequence[Entry]) -> str:
    rows = [
        "## What they do",
        "",
        f"{2 * PAIRS:,} prompts of {PAIRS:,} pairs of held-out conflict items; {CLEAN} held-out "
        "clean items; 95 % intervals from resampling items. A model *shows both* behaviors when "
        "each is at least 10 % of its answers.",
        "",
        *head("model", "memorized", "generalized", "other", "shows both", "flip rate", "flips",
                "clean accuracy", "kept at step", "CPU s"),
    ]  # fmt: skip
    for entry in found:
        got = entry.behavior()
        rows.append(
            line(
                entry.title,
                *(percent(got[name]) for name in ("memorized", "generalized", "other")),
                "yes" if both(got) else "**no**",
                percent(got["flip_rate"]),
                f"{got['flips']} of {got['pairs']:,}",
                percent(got["clean"]),
                got["kept_step"],
                f"{got['cpu_seconds']:.0f}",
            )
        )
    seeds = [entry for entry in found if entry.seed in (0, 1, 2)]
    failed = [entry.title for entry in seeds if not both(entry.behavior())]
    told = f"not on {', '.join(failed)}" if failed else "on all of them"
    same = all(entry.behavior()["as_in_the_manifest"] for entry in found)
    again = "was measured again and is the same" if same else "**is not what was measured again**"
    return "\n".join(
        [
            *rows,
            "",
            f"Both behaviors are there on {len(seeds) - len(failed)} of the {len(seeds)} runs of "
            f"seeds 0 to 2: {told}. What the manifests say {again}.",
            "",
        ]
    )


def drawn_again(found: Sequence[Entry]) -> str:
    """What ships beside the same seed here: how far apart two runs of one recipe come."""
    rows = [
        "## The same seed on another processor",
        "",
        "A recipe gives the same bits again on one machine. On another processor float32 sums "
        "differ in the last digits, and training multiplies that: the same seed is then another "
        "draw, as far off by chance as another seed. "
        "*Apart* is the relative difference of the validation loss at the first evaluation, after "
        "a tenth, and after a half of the evaluations (of `colors` and `addition` these are of the "
        "second phase, so a first phase lies before).",
        "",
        *head("shipped", "seed", "same weights", "apart, first", "apart, a tenth",
                "apart, a half", "kept at step, shipped", "kept at step, here"),
    ]  # fmt: skip
    for entry in found:
        here = entry.same_seed
        if here is None:
            continue
        made = [one.training() for one in (entry, here)]
        losses = [pd.Series(one["validation_loss"]) for one in made]
        apart = (losses[0] / losses[1] - 1).abs()
        at = (0, len(apart) // 10, len(apart) // 2)
        weights = [one["weights"] for one in made]
        rows.append(
            line(
                entry.title,
                here.seed,
                "yes" if weights[0] == weights[1] else "no",
                *(f"{apart[k]:.0e}" for k in at),
                entry.behavior()["kept_step"],
                here.behavior()["kept_step"],
            )
        )
    return "\n".join([*rows, ""])


def studied(found: Sequence[Entry]) -> str:
    rows = [
        "## The studies",
        "",
        "`mechmem study`, with the settings that the lab model ships with, study seed 0: "
        "everything is fitted on the flips of 40 % of the pairs, edits are chosen on validation "
        "prompts and run once on test prompts; no pair is in two parts. A study needs 10 training "
        "flips.",
        "",
        *head("model", "training flips", "test flips", "steered test prompts", "CPU s"),
    ]
    lacking = []
    for entry in found:
        tables = entry.study()
        if isinstance(tables, str):
            lacking.append(entry.title)
            rows.append(line(entry.title, f"**no study**: {tables.partition(' (')[0]}", "", "", ""))
            continue
        counts = tables["depth_profile"]["groups"].iloc[0], tables["separation"]["groups"].iloc[0]
        tried = tables["beyond_controls"]["n"].iloc[0]
        rows.append(line(entry.title, *counts, tried, f"{entry.studied_in:.0f}"))
    rows += ["", f"No study, for want of flips: {', '.join(lacking) or 'none'}."]
    return "\n".join([*rows, ""])


if __name__ == "__main__":
    main()
