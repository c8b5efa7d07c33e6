"""`mechmem status`: how far the workers of a folder are."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from mechmem.cli.app import command
from mechmem.cli.output import Format, Output, print_result

if TYPE_CHECKING:
    import pandas as pd

WATCHED_EVERY = 5.0
RECENT = 32
"""Units by whose times the pace is told."""


@dataclass(frozen=True)
class _Unit:
    """One unit of work: its files, the file that its claim is named after, its tokens."""

    files: Sequence[Path]
    named: Path
    tokens: int

    @property
    def made(self) -> float | None:
        """When it was finished."""
        try:
            return max(file.stat().st_mtime for file in self.files)
        except OSError:
            return None

    @property
    def state(self) -> str:
        from mechmem.work_claims import claim_of, is_stale

        if self.made is not None:
            return "done"
        claim = claim_of(self.named)
        if not claim.exists():
            return "missing"
        return "stale" if is_stale(claim) else "claimed"


@command()
def status(
    folder: Annotated[Path, typer.Argument(help="What extract, sweep or study write to.")],
    watch: Annotated[
        bool, typer.Option("--watch", help="Say it again every five seconds until all is done.")
    ] = False,
    output: Output = Format.table,
) -> None:
    """Say what is done, claimed by a worker, stale (left by one) and missing, and the time left.

    Of a sweep or a study only the stages that have begun are known.

    Example: mechmem status states --watch
    """
    while True:
        table = _table(folder)
        print_result(table, output)
        if not watch or (table["done"] == table["units"]).all():
            return
        time.sleep(WATCHED_EVERY)


def _table(folder: Path) -> pd.DataFrame:
    import pandas as pd

    from mechmem.errors import ArtifactError

    found = _extraction(folder) or _cells(folder)
    if not found:
        raise ArtifactError(
            f"{folder} holds no work that is shared; name the folder that `mechmem extract`, "
            "`sweep --out` or `study --join` writes to."
        )
    return pd.DataFrame([{"part": name, **_row(units)} for name, units in found.items()])


def _extraction(folder: Path) -> dict[str, list[_Unit]]:
    from mechmem.caching.parts import parts_of

    return {
        part.folder.name: [
            _Unit([part.path(k)], part.path(k), sum(len(part.token_ids[row]) for row in rows))
            for k, rows in enumerate(part.rows)
        ]
        for part in parts_of(folder)
    }


def _cells(folder: Path) -> dict[str, list[_Unit]]:
    from mechmem.sweeps.store import CellStore

    store = CellStore(folder / "cells" if (folder / "cells").is_dir() else folder)
    return {
        f"stage {number}": [
            _Unit([store.path(key) for key in unit], store.unit(unit[0]), tokens * len(unit))
            for unit in units
        ]
        for number, (units, tokens) in enumerate(store.plans(), start=1)
    }


def _row(units: Sequence[_Unit]) -> dict[str, float]:
    states = [unit.state for unit in units]
    row: dict[str, float] = {"units": len(units)}
    row |= {name: states.count(name) for name in ("done", "claimed", "stale", "missing")}
    done = sorted((unit.made, unit.tokens) for unit in units if unit.made is not None)[-RECENT:]
    pace = _pace(*zip(*done, strict=True)) if len(done) > 1 else math.nan
    left = sum(unit.tokens for unit, state in zip(units, states, strict=True) if state != "done")
    return {**row, "tokens per second": pace, "seconds left": left / pace if left else 0.0}


def _pace(made: Sequence[float], tokens: Sequence[int]) -> float:
    """Tokens per second; a gap ten times as long as most is a pause, in which nobody worked."""
    import numpy as np

    gaps = np.diff(made)
    worked = gaps <= 10 * (np.median(gaps) or gaps.max())
    took = float(gaps[worked].sum())
    return float(np.array(tokens[1:])[worked].sum()) / took if took else math.nan
