"""Compare the tables of two saved studies: what a change of the code left alone, and what not.

    python docs/pages/same_tables.py OLD NEW [--to 1e-6]

OLD and NEW are folders that `mechmem study` wrote. Columns are matched by name, renamed ones by
`RENAMED`; rows by `KEYS`, and by their place where a table has none of these. Every column that is
on one side only and every column with a changed value is one line; the exit status is 1 if there is
any.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd

RENAMED = {
    "low": "share_low",
    "high": "share_high",
    "setting": "kind",
    "edit_minus_placebo": "edit_minus_control",
    "placebo": "control",
}
KEYS = ["id", "family", "toward", "before", "outcome", "stream", "layer", "alpha", "part"]


def tables(folder: Path) -> dict[str, pd.DataFrame]:
    place = folder / "tables" if (folder / "tables").is_dir() else folder
    return {path.stem: pd.read_csv(path) for path in sorted(place.glob("*.csv"))}


def compared(old: pd.DataFrame, new: pd.DataFrame, to: float) -> Iterator[str]:
    """One line for everything in which two tables differ."""
    old = old.rename(columns={a: b for a, b in RENAMED.items() if b in new and b not in old})
    yield from (f"column {name!r} is gone" for name in old if name not in new)
    yield from (f"column {name!r} is new" for name in new if name not in old)
    both = [name for name in old if name in new]
    keys = [name for name in KEYS if name in both]
    if len(old) != len(new):
        yield f"{len(old)} rows became {len(new)}"
        if not keys:
            return
    if keys:
        counted = [
            frame.assign(again=frame.groupby(keys, dropna=False, sort=False).cumcount())
            for frame in (old, new)
        ]
        joined = counted[0].merge(counted[1], on=[*keys, "again"], suffixes=(" old", " new"))
        yield from (
            [f"{len(joined)} rows have a partner"] if len(joined) < max(len(old), len(new)) else []
        )
    for name in both:
        if name in keys:
            continue
        sides = (joined[f"{name} old"], joined[f"{name} new"]) if keys else (old[name], new[name])
        yield from _column(name, *sides, to)


def _column(name: str, old: pd.Series, new: pd.Series, to: float) -> Iterator[str]:
    if pd.api.types.is_numeric_dtype(old) and pd.api.types.is_numeric_dtype(new):
        a, b = old.to_numpy(float), new.to_numpy(float)
        same = np.isclose(a, b, rtol=to, atol=to, equal_nan=True)
        if not same.all():
            at = int(np.flatnonzero(~same)[0])
            gap = np.abs(a - b)[~same & np.isfinite(a - b)].max(initial=0.0)
            yield (
                f"{name}: {(~same).sum()} of {len(a)} differ, by {gap:.3g} at most "
                f"({a[at]:.6g} -> {b[at]:.6g})"
            )
        return
    one, other = old.fillna("").astype(str), new.fillna("").astype(str)
    wrong = (one != other).to_numpy()
    if wrong.any():
        at = int(np.flatnonzero(wrong)[0])
        yield (
            f"{name}: {wrong.sum()} of {len(one)} differ "
            f"({one.iloc[at]!r:.60} -> {other.iloc[at]!r:.60})"
        )


def main() -> int:
    asked = argparse.ArgumentParser(description=__doc__)
    asked.add_argument("old", type=Path)
    asked.add_argument("new", type=Path)
    asked.add_argument("--to", type=float, default=1e-6)
    said = asked.parse_args()
    one, other = tables(said.old), tables(said.new)
    found = 0
    for name in sorted({*one, *other}):
        if name not in one or name not in other:
            lines = ["table is new" if name in other else "table is gone"]
        else:
            lines = list(compared(one[name], other[name], said.to))
        found += len(lines)
        print(f"{name}: {'same' if not lines else ''}")
        print("".join(f"    {line}\n" for line in lines), end="")
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main())
