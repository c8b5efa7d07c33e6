"""Attacks mechmem and writes how every attempt ended: ``python -m attacks docs/reliability.md``."""

from __future__ import annotations

import sys
import time
from collections import Counter
from pathlib import Path

import pandas as pd

from attacks.attacks import ATTACKS, KEPT, RAW, REFUSED, WRONG, run

TRIALS = {
    "one bit of a file flipped": 2000,
    "one entry of a manifest changed": 2000,
    "the same, with a digest that fits": 2000,
    "a file that is none": 300,
    "markup in a study's tables": 100,
}
OTHERS = 60
START, END = "<!-- start of attacks -->", "<!-- end of attacks -->"


def measured(seed: int = 0) -> pd.DataFrame:
    """One row per attack; each is told as it ends."""
    rows = []
    for name, attack in ATTACKS.items():
        began = time.process_time()
        counts = Counter(run(name, TRIALS.get(name, OTHERS), seed))
        what = " ".join(str(attack.__doc__).split())
        ends = {outcome: counts[outcome] for outcome in (KEPT, REFUSED, RAW, WRONG)}
        rows.append({"what": what, "times": sum(counts.values()), **ends})
        print(rows[-1], f"{time.process_time() - began:.0f} CPU s", file=sys.stderr)
    return pd.DataFrame(rows)


def block(table: pd.DataFrame) -> str:
    lines = ["| attack | times | kept | refused | raw | wrong |", "| --- " * 6 + "|"]
    for row in table.to_dict("records"):
        cells = [row["what"], *(row[name] for name in ("times", KEPT, REFUSED, RAW, WRONG))]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    page = Path(sys.argv[1])
    text = page.read_text(encoding="utf-8")
    before, rest = text.split(START)
    _, after = rest.split(END)
    found = block(measured())
    page.write_text(f"{before}{START}\n{found}\n{END}{after}", encoding="utf-8")
