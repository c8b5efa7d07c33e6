"""Writes a page: its long tables go into CSV files beside it, and are read from there."""

from __future__ import annotations

import csv
import re
from pathlib import Path

LONG = 7
"""Rows from which a table is a file and no longer on the page."""


def write_page(page: Path, text: str, *, keep: tuple[str, ...] = (), long: int = LONG) -> None:
    """Write a page; every long table as ``<page>/<section>.csv``, linked where it stood.

    Long is from ``long`` rows on. Tables of the sections in ``keep`` stay. Text that was
    written so before comes out the same.
    """
    folder = page.with_suffix("")
    lines: list[str] = []
    table: list[str] = []
    heading, used = "table", set[str]()
    for line in [*text.splitlines(), ""]:
        if line.startswith("|"):
            table.append(line)
            continue
        if len(table) - 2 >= long and heading not in keep:
            slug = "-".join(re.findall(r"[a-z0-9]+", heading.lower())[:6])
            name = next(name for n in ("", *range(2, 99)) if (name := f"{slug}{n}.csv") not in used)
            used.add(name)
            folder.mkdir(exist_ok=True)
            write_csv(folder / name, table)
            link = f"[{folder.name}/{name}]({folder.name}/{name})"
            lines.append(f"{link}, {len(table) - 2} rows.")
        else:
            lines += table
        table = []
        if found := re.match(r"#+ (.+)", line):
            heading = found[1]
        lines.append(line)
    page.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def write_csv(file: Path, table: list[str]) -> None:
    """A table's cells as they stand."""
    with file.open("w", encoding="utf-8", newline="") as stream:
        rows = csv.writer(stream, lineterminator="\n")
        rows.writerows(cells_of(line) for line in [table[0], *table[2:]])


def read_csv(file: Path) -> list[dict[str, str]]:
    """The rows of a page's file by column name."""
    with file.open(encoding="utf-8", newline="") as stream:
        return list(csv.DictReader(stream))


def tables_of(page: str, heading: str) -> list[list[dict[str, str]]]:
    """The tables of a section that are on the page, each as rows by column name."""
    section = re.split(r"^## ", page.partition(f"## {heading}\n")[2], flags=re.M)[0]
    found: list[list[dict[str, str]]] = []
    names: list[str] = []
    for line in [*section.splitlines(), ""]:
        if not line.startswith("|"):
            names = []
        elif not names:
            names = cells_of(line)
            found.append([])
        elif set(line) - {"|", "-"}:
            found[-1].append(dict(zip(names, cells_of(line), strict=True)))
    return found


def cells_of(line: str) -> list[str]:
    """The cells of a line of a table."""
    return [cell.strip() for cell in line.strip().removeprefix("|").removesuffix("|").split("|")]
