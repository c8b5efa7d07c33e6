"""`EditReport`: where every edit fired, and how far it moved the activations."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import nan

import pandas as pd

from mechmem.models.sites import Site


@dataclass(frozen=True)
class Fired:
    """What one edit did at one site.

    Attributes:
        edit: Kind of edit.
        site: Where.
        passes: Forward passes in which its hook was called.
        applied: Passes in which it met at least one of its positions.
        tokens: Tokens whose activation changed. A token is counted in every pass that computes it.
        closed: Tokens that a conditional edit would have moved and left alone.
        distance: Mean length by which the moved tokens' activations moved, in activation units.
        length: Mean length of those activations before the edit.
        relative: Mean of distance over length, token by token.
    """

    edit: str
    site: Site
    passes: int
    applied: int
    tokens: int
    closed: int
    distance: float
    length: float
    relative: float

    @property
    def closed_share(self) -> float:
        """Of the tokens that a conditional edit was asked to move, the share it left alone; 0 when
        there was none."""
        asked = self.tokens + self.closed
        return self.closed / asked if asked else 0.0


@dataclass(frozen=True)
class EditReport:
    """What the edits of a `patched` block did.

    Attributes:
        fired: One entry per edit and site, in the order in which they were given.
    """

    fired: tuple[Fired, ...]

    def __len__(self) -> int:
        return len(self.fired)

    @property
    def moved(self) -> float:
        """Mean length by which an activation was moved, over all tokens and sites that were; 0 when
        none was, NaN without an edit."""
        tokens = sum(item.tokens for item in self.fired)
        far = sum(item.distance * item.tokens for item in self.fired)
        return far / tokens if tokens else 0.0 if self.fired else nan

    def __repr__(self) -> str:
        lines = [
            f"{item.edit} at {item.site}: {item.tokens} tokens moved in {item.applied} of "
            f"{item.passes} passes, by {item.distance:.3g} ({item.relative:.1%} of their length)"
            + (f", gate closed at {item.closed} ({item.closed_share:.1%})" if item.closed else "")
            for item in self.fired
        ]
        return "EditReport(\n  " + "\n  ".join(lines) + "\n)"

    def table(self) -> pd.DataFrame:
        """One row per edit and site."""
        rows = []
        for item in self.fired:
            row = asdict(item)
            site = row.pop("site")
            rows.append({"edit": row.pop("edit"), "stream": site[0], "layer": site[1], **row})
        return pd.DataFrame(rows)
