"""Writes docs/reproduction.md: the papers' claims beside what the lab models show.

    python docs/pages/reproduction.py [--work build/lab-models-paper]

P1's rows are read from the saved results of `lab_models_paper.py` (made first where they lack),
P2's from the pages `reasoning-lab.md` and `memorization.md`, which have scripts of their own.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from helper import write_page
from paper_lab import TASKS, WORK, Entry, both, entries, head, line, percent, share
from reproduction_p1 import (
    WAYS,
    Claim,
    as_claim,
    classifier,
    early,
    halves,
    intervention,
    last,
    random_control,
    short,
    ways,
)
from reproduction_p2 import p2

PAPER_FLIPS = 0.085
HEAD = """# What holds: the papers' claims, here

Written by `python docs/pages/reproduction.py` from saved results; no number is typed in, except the
papers' own. Ours are small models trained here ([the paper's tasks](lab-models-paper.md),
[recall-reasoning](reasoning-lab.md)), the papers' are GPT-2-medium, Llama-3.2-3B and larger ones:
**a claim that fails here is not refuted there, and one that holds here is not shown there.**
Whether a claim holds is counted by the rule in its section. Intervals are 95 %, from resampling
instances.

*Second-hand*: only a reader of the paper says so. *Unknown*: no readable source has the number.
*Shipped*: the model in the package. 0, 1, 2 (and 10): training seeds run here, the failed ones
included; the recipe of `cipher` was chosen on seed 10. [P1 and P2](words.md) are the papers, v1 and
v2 the versions of P1; ICI is its `colors`, AA its `addition`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=WORK)
    found = list(entries(parser.parse_args().work))
    made = [(entry, entry.study()) for entry in found]
    studies = [(entry, tables) for entry, tables in made if not isinstance(tables, str)]
    lacking = [entry.title for entry, tables in made if isinstance(tables, str)]
    claims = [behaviors(found), flips(found), early(studies), last(studies), classifier(studies)]
    claims += [intervention(studies), random_control(studies), ways(studies), halves(studies)]
    parts = [HEAD, overview(claims, lacking), "## P1, claim by claim\n"]
    parts += [text for _, text in claims]
    docs = Path(__file__).parents[1]
    parts += [p2(docs)]
    page = docs / "reproduction.md"
    write_page(page, "\n".join(parts), keep=("P1 at a glance",))
    print(f"wrote {page}")


def overview(claims: Sequence[Claim], lacking: Sequence[str]) -> str:
    rows = ["## P1 at a glance", "", *head("claim", "the paper's number", "here")]
    rows += [line(*row) for row, _ in claims]
    rows += [
        line(
            "The same neurons serve several tasks (v2: inter-task consistency)",
            "metric and numbers unknown",
            "**not measured**: every task has a model of its own, whose coordinates are not "
            "aligned. Two kinds of instances of one lab model: [questions](questions.md)",
        )
    ]
    told = f" No study, for want of flips: {', '.join(lacking)}." if lacking else ""
    return "\n".join(
        [
            *rows,
            "",
            "Counts are of the models studied: the shipped ones and every seed. A shipped model is "
            f"a second draw of one of the seeds, of the same recipe.{told}",
            "",
        ]
    )


def behaviors(found: Sequence[Entry]) -> Claim:
    seeds = [entry for entry in found if entry.seed in (0, 1, 2)]
    good = [entry for entry in seeds if both(entry.behavior())]
    rows = _by_task(
        found,
        lambda entry: _two(entry.behavior(), both(entry.behavior())),
        "memorized / generalized",
    )
    return as_claim(
        "Models can be trained that answer conflict items now from memory, now by reasoning",
        "models were chosen for it",
        f"holds on {len(good)} of {len(seeds)} runs of seeds 0 to 2",
        "Rule: each behavior is at least 10 % of the answers to held-out conflict items. "
        "*(fails)* marks the others.",
        rows,
    )


def flips(found: Sequence[Entry]) -> Claim:
    rows = _by_task(found, lambda entry: percent(entry.behavior()["flip_rate"]), "flip rate")
    rates = [entry.behavior()["flip_rate"] for entry in found if entry.seed in (0, 1, 2)]
    rarer = sum(high < PAPER_FLIPS for _, _, high in rates)
    return as_claim(
        "Rephrasing an instance turns some answers from memory to reasoning (flips)",
        "11 % (ICI), 8.5 % (AA), v1",
        f"{share(min(rates)[0])} to {share(max(rates)[0])} on seeds 0 to 2; the interval lies "
        f"below 8.5 % on {rarer} of {len(rates)}",
        "Pairs: `colors` reorders the sentences, `addition` swaps the free addends, `cipher` two "
        "letters.",
        rows,
    )


def _two(found: dict, good: bool) -> str:
    shares = " / ".join(percent(found[name]) for name in WAYS)
    return shares if good else f"{shares} *(fails)*"


def _by_task(found: Sequence[Entry], cell: Callable[[Entry], str], name: str) -> list[str]:
    rows = head("task", "model", name)
    return rows + [line(entry.task, short(entry), cell(entry)) for entry in _ordered(found)]


def _ordered(found: Sequence[Entry]) -> Iterator[Entry]:
    for task in TASKS:
        yield from (entry for entry in found if entry.task == task)


if __name__ == "__main__":
    main()
