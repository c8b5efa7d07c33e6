"""The projection of every token of some texts, as a template draws it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from mechmem.plotting.data import each_row

MOST_TOKENS = 240
"""Most tokens of one text on the page; the table has all."""
DEEPEST_SHADE = 55
"""Share of the class color in the background at the end of the scale, %: text stays readable."""
QUANTILE = 0.95
SIDES = {
    "memorized": "memorized",
    "memory": "memorized",
    "generalized": "generalized",
    "reasoning": "generalized",
    "known": "memorized",
    "context": "generalized",
}


@dataclass(frozen=True)
class TokenTexts:
    """Texts, token by token.

    Attributes:
        stream, layer: The site of the direction.
        limit: Distance from zero from which on colors are full.
        toward, away: The classes at the two ends.
        from_middle: Whether zero is the middle of the two class means.
        wrote: Whether something of what the model wrote is shown.
        texts: Rows of tokens by the id of their text; a number stands for so many left out.
        legend: Five tokens that show the scale.
    """

    stream: str
    layer: int
    limit: float
    toward: str
    away: str
    from_middle: bool
    wrote: bool
    texts: dict[str, list[Any]]
    legend: list[dict[str, Any]]


def token_texts(table: pd.DataFrame, ids: Iterable[str]) -> TokenTexts:
    """From the table of `mechmem.analysis.TokenProjections`, the texts with these ids."""
    first = table.iloc[0]
    known = bool(table["from_middle"].notna().all())
    shown = table.assign(value=table["from_middle" if known else "projection"])
    limit = float(np.quantile(np.abs(shown["value"]), QUANTILE)) or 1.0
    toward, away = str(first["toward"]), str(first["away"])

    def look(value: float) -> dict[str, Any]:
        side = toward if value > 0 else away
        return {
            "value": value,
            "side": side,
            "kind": SIDES.get(side, "generalized" if value > 0 else "memorized"),
            "strength": DEEPEST_SHADE * min(1.0, abs(value) / limit),
        }

    texts = {}
    for name in ids:
        rows = shown[shown["id"] == name]
        framed = int((rows["part"] == "prompt").sum()) - 1
        tokens: list[Any] = [
            {
                **look(float(row.value)),
                "token": str(row.token).replace("\n", "↵") or " ",
                "position": int(row.position),
                "part": str(row.part),
                "framed": row.position == framed,
            }
            for row in each_row(rows)
        ]
        if len(tokens) > MOST_TOKENS:
            tokens = [
                *tokens[: MOST_TOKENS // 2],
                len(tokens) - MOST_TOKENS,
                *tokens[-(MOST_TOKENS // 2) :],
            ]
        texts[name] = tokens
    named = ((-1, away), (-0.5, ""), (0, "between"), (0.5, ""), (1, toward))
    return TokenTexts(
        str(first["stream"]),
        int(first["layer"]),
        limit,
        toward,
        away,
        known,
        bool((shown["part"] == "completion").any()),
        texts,
        [{**look(part * limit), "token": name} for part, name in named],
    )
