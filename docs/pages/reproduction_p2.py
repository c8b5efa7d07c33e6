"""P2's part of docs/reproduction.md, read from the tables of the pages that measured it."""

from __future__ import annotations

import re
from pathlib import Path

from helper import read_csv, tables_of

SEEDS = ("seed 0", "seed 1", "seed 2")


def p2(docs: Path) -> str:
    """Claims of P2 beside the numbers that stand in reasoning-lab.md and memorization.md."""
    lab, other = (
        (docs / name).read_text(encoding="utf-8")
        for name in ("reasoning-lab.md", "memorization.md")
    )
    apart = tables_of(lab, "Are they told apart?")[0]
    edits = read_csv(docs / "reasoning-lab" / "what-the-edits-do-to-accuracy.csv")
    scores = tables_of(other, "What was measured")[1]
    rows = [
        "## P2, from the pages that measured it",
        "",
        "Read from [the study on recall-reasoning](reasoning-lab.md) and [two other meanings of "
        "memorization](memorization.md); seeds 0, 1, 2, and the control whose kinds are dealt out "
        "without a reason to share a mode. Points: accuracy minus that under random directions, "
        "from least to most over the seeds and both kinds of questions ([each, with its "
        "interval](reasoning-lab/what-the-edits-do-to-accuracy.csv)).",
        "",
        "| claim | the paper's number | here | holds here? |",
        "|---|---|---|---|",
        _row(
            "One direction tells reasoning from memory prompts",
            "Llama-3-8B, held out: AUROC 0.929 after block 1, 0.978 after block 5 (an independent "
            "run's)",
            _areas(apart),
            _separates(apart),
        ),
        _row(
            "Adding it, with the sign of the label, raises accuracy",
            "unknown; a re-run by others found 0 of 13 components reliable",
            _own_sign(edits, "addition"),
            _count(edits, "addition"),
        ),
        _row(
            "Scaling the projection (the released code), with the sign of the label, raises it",
            "unknown",
            _own_sign(edits, "scaled projection"),
            _count(edits, "scaled projection"),
        ),
        _row(
            "Taking the direction out (the paper's second intervention) changes accuracy",
            "unknown",
            _removed(edits),
            _removed_count(edits),
        ),
        _row(
            "Open in the paper: is perturbational memorization mediated by it?",
            "none",
            f"Spearman {_score(scores, 'perturbational')}",
            _beyond_random(scores, "perturbational"),
        ),
        _row(
            "Open in the paper: is counterfactual memorization?",
            "none",
            f"Spearman {_score(scores, 'counterfactual')}",
            _beyond_random(scores, "counterfactual")
            + "; mostly between kinds of items, and moving along the direction does not turn it "
            "([what the page says](memorization.md#what-it-says))",
        ),
    ]
    return "\n".join([*rows, ""])


def _separates(rows: list[dict[str, str]]) -> str:
    """Against the larger of what shuffled labels reach and what the input tokens give."""
    above = []
    for row in rows:
        low = _numbers(row["3"])[1]
        above.append(low > max(_numbers(row["shuffled"])[-1], _numbers(row["input tokens"])[0]))
    seeds, control = above[: len(SEEDS)], above[-1]
    return (
        f"interval above the input tokens and shuffled labels on {sum(seeds)} of {len(seeds)} "
        "seeds after block 3 (the studies' own sentence compares the value itself, after the block "
        f"that validation chose); the control {'too' if control else 'not'}"
    )


def _mine(rows: list[dict[str, str]], family: str) -> list[dict[str, str]]:
    """Every class pushed with its own sign, chosen for that, on the seeds."""
    return [
        row
        for row in rows
        if row["model"] in SEEDS
        and row["family"] == family
        and row["chosen for"].startswith("sign by label")
        and row["pushed"] == f"toward {row['questions']}"
    ]


def _areas(rows: list[dict[str, str]]) -> str:
    """From least to most over the seeds, and the control; intervals stand on the page itself."""
    told = []
    for column, name in (("block 0", "block 0"), ("3", "block 3")):
        *seeds, control = (_numbers(row[column])[0] for row in rows)
        told.append(f"{min(seeds):.2f} to {max(seeds):.2f} after {name} (control {control:.2f})")
    return f"{', '.join(told)} ([intervals](reasoning-lab.md#are-they-told-apart))"


def _range(rows: list[dict[str, str]]) -> str:
    """The points of some rows, from least to most."""
    found = [_numbers(row["beyond random"])[0] for row in rows]
    return f"{min(found):+.1f} to {max(found):+.1f} points"


def _own_sign(rows: list[dict[str, str]], family: str) -> str:
    return _range(_mine(rows, family))


def _count(rows: list[dict[str, str]], family: str) -> str:
    mine = _mine(rows, family)
    held = sum(_numbers(row["beyond random"])[1] > 0 for row in mine)
    return f"beyond random directions in {held} of {len(mine)} cases"


def _out(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [
        row
        for row in rows
        if row["model"] in SEEDS and row["family"] == "projection-out everywhere"
    ]


def _removed(rows: list[dict[str, str]]) -> str:
    return _range(_out(rows))


def _removed_count(rows: list[dict[str, str]]) -> str:
    hurt = {
        kind: sum(
            _numbers(row["beyond random"])[2] < 0 for row in _out(rows) if row["questions"] == kind
        )
        for kind in ("reasoning", "memory")
    }
    return (
        f"everywhere at once it hurts beyond random directions: reasoning on {hurt['reasoning']}, "
        f"memory on {hurt['memory']} of {len(SEEDS)} seeds (random directions take out as "
        "much)"
    )


def _score(rows: list[dict[str, str]], name: str) -> str:
    (row,) = (row for row in rows if row["score"].startswith(name))
    return f"{row['Spearman with the projection']} (random directions {row['random directions']})"


def _beyond_random(rows: list[dict[str, str]], name: str) -> str:
    (row,) = (row for row in rows if row["score"].startswith(name))
    _, low, high = _numbers(row["Spearman with the projection"])
    least, most = _numbers(row["random directions"])
    outside = low > most or high < least
    return f"{'a' if outside else 'no'} relation beyond random directions"


def _numbers(cell: str) -> list[float]:
    return [float(part) for part in re.findall(r"[-+]?\d+\.?\d*", cell)]


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
