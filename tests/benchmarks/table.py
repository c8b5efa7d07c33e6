"""The table of results, and the machine they come from."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["machine", "markdown", "save"]

_PACKAGES = ("torch", "transformers", "transformer-lens", "numpy")


def machine(threads: int, clock: str = "wall") -> dict[str, Any]:
    """Date, processor, load and versions."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "date": datetime.date.today().isoformat(),
        "processor": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "threads": threads,
        "clock": clock,
        "load": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in _PACKAGES},
    }


def markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """One line per row."""
    lines = ["| benchmark | shape | ratio | target | holds | equality | note |", "|" + " --- |" * 7]
    for row in rows:
        holds = {True: "yes", False: "**no**", None: "shown only"}[row["holds"]]
        ratio = row["ratio"]
        shown = f"{ratio:.2f}" if isinstance(ratio, (int, float)) else str(ratio)
        cells = [row["benchmark"], row["shape"], shown, row["target"] or "-", holds]
        cells += [row["equality"], row["note"]]
        lines.append("| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |")
    return "\n".join(lines)


def save(folder: Path, about: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> None:
    """results.md and results.json."""
    folder.mkdir(parents=True, exist_ok=True)
    head = ", ".join(f"{key} {value}" for key, value in about.items())
    (folder / "results.md").write_text(f"{head}\n\n{markdown(rows)}\n")
    (folder / "results.json").write_text(
        json.dumps({"about": dict(about), "rows": list(rows)}, indent=1)
    )
