"""Words and numbers of every study: shares, points, p-values, lists. Reports write them so too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mechmem.analysis.intervals import Estimate

DASH = "–"
"""In a cell that has no number."""

FEW_GROUPS = 10
"""With fewer groups only a large effect can be seen, and that is said."""


def whole_percent(value: float) -> str:
    """``0.523`` as ``52 %``."""
    return f"{100 * value:.0f} %"


def share(estimate: Estimate) -> str:
    """A share with its interval: ``52 % [41, 63]``."""
    return f"{whole_percent(estimate.value)} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def points(estimate: Estimate) -> str:
    """A difference of shares in points, with its interval: ``+8.5 [+2.5, +14.4] points``."""
    return f"{hundredths(estimate, signed=True)} points"


def hundredths(estimate: Estimate, *, signed: bool = False) -> str:
    """A share, or a difference of two, times 100, for a cell of a table: ``52.3 [41.0, 63.1]``."""
    sign = "+" if signed else ""
    value, low, high = (
        f"{100 * part:{sign}.1f}" for part in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} [{low}, {high}]"


def ratio(estimate: Estimate) -> str:
    """A number that is not a share, such as an area or a correlation: ``0.83 [0.79, 0.88]``."""
    return f"{estimate.value:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def joined(parts: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def sentence(text: str) -> str:
    """With a capital letter and a full stop."""
    return f"{text[:1].upper()}{text[1:]}."


def estimate_of(row: Mapping[Any, Any], name: str) -> Estimate:
    """A number of a table with its interval: ``name``, ``name_low``, ``name_high``."""
    low, high = (float(row[f"{name}_{end}"]) for end in ("low", "high"))
    return Estimate(float(row[name]), low, high, int(row["n"]), int(row["groups"]))


def few_groups(groups: int, what: str) -> list[str]:
    """What has to be said where few groups were asked."""
    if groups >= FEW_GROUPS:
        return []
    return [f"With {groups} {what} only a large effect could be seen."]
