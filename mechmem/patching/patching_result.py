"""`PatchingResult`: how much of the behavior moved with the activations."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from jaxtyping import Float

from mechmem.analysis.intervals import Estimate, group_mean, group_ratio
from mechmem.errors import MechmemError, SiteError, listed
from mechmem.models.model import ModelInfo
from mechmem.models.sites import Site
from mechmem.tasks.prompts import PromptSet


@dataclass(frozen=True)
class PatchingResult:
    """Behavior margins of recipients into which a donor's activations were patched.

    A margin is ``log p(memorized) - log p(generalized)`` in nats; all margins of a pair score the
    recipient's two answers.

    Attributes:
        method: ``"activation patching"`` (measured) or ``"attribution patching"`` (first order).
        toward: Class of the donors.
        sites, positions: What was patched: one site and one part of the positions at a time.
        recipients, donors: The members of the pairs, row by row.
        recipient_margins, donor_margins: Of the two members, unpatched.
        margins: After patching, ``[pair, site, position]``, under ``"patched"`` and the name of
            every control; NaN where a pair had no control donor.
        model: Facts of the model.
        seed: Keys controls and intervals.
    """

    method: str
    toward: str
    sites: tuple[Site, ...]
    positions: tuple[str, ...]
    recipients: PromptSet
    donors: PromptSet
    recipient_margins: Float[np.ndarray, " pair"]
    donor_margins: Float[np.ndarray, " pair"]
    margins: Mapping[str, Float[np.ndarray, "pair site position"]]
    model: ModelInfo
    seed: int = 0

    def __len__(self) -> int:
        return len(self.recipients)

    def __repr__(self) -> str:
        return (
            f"PatchingResult({self.method} toward {self.toward}: {len(self)} pairs, "
            f"{len(self.sites)} sites, positions {list(self.positions)})"
        )

    def at(
        self, site: tuple[str, int], position: str | None = None, which: str = "patched"
    ) -> Float[np.ndarray, " pair"]:
        """Margins of all pairs at one site and position.

        Args:
            site: A patched site.
            position: Needed when several were patched.
            which: ``"patched"`` or the name of a control.
        """
        name = position if position is not None or len(self.positions) > 1 else self.positions[0]
        if site not in self.sites or name not in self.positions:
            raise SiteError(
                f"Nothing was patched at {site!r}, position {name!r}; sites are "
                f"{listed(map(str, self.sites))}, positions {listed(self.positions)}."
            )
        if which not in self.margins:
            raise MechmemError(f"No {which!r} here; there are {listed(self.margins)}.")
        values: np.ndarray = self.margins[which][
            :, self.sites.index(Site(*site)), self.positions.index(str(name))
        ]
        return values

    def effect(
        self, site: tuple[str, int], position: str | None = None, which: str = "patched"
    ) -> Estimate:
        """Mean change of the recipient's margin in nats, with an interval over groups."""
        change, rows = self._change(site, position, which)
        return group_mean(change, [self.recipients[int(k)].group for k in rows], kind="mean")

    def recovery(
        self, site: tuple[str, int], position: str | None = None, which: str = "patched"
    ) -> Estimate:
        """Share of the distance from recipient to donor that patching makes up.

        ``mean(patched - recipient) / mean(donor - recipient)``: 0 leaves the recipient as it was,
        1 makes it answer like the donor. It is not a share of a mechanism: several sites can each
        recover all of it, and it can lie outside [0, 1].

        Returns:
            The ratio of means, with Fieller's interval over groups. The interval is NaN when that
            of the distance itself includes 0: then the share means nothing.
        """
        change, rows = self._change(site, position, which)
        gap = (self.donor_margins - self.recipient_margins)[rows]
        return group_ratio(change, gap, [self.recipients[int(k)].group for k in rows])

    def table(self) -> pd.DataFrame:
        """One row per site and position: recovery with interval, the controls' beside it."""
        rows = []
        for site in self.sites:
            for position in self.positions:
                moved, share = self.effect(site, position), self.recovery(site, position)
                row = {
                    "stream": site.stream,
                    "layer": site.layer,
                    "position": position,
                    **moved.row("effect", counted=False),
                    **share.row("recovery", counted=False),
                }
                for name in self.margins:
                    if name != "patched":
                        control = self.recovery(site, position, name)
                        row |= control.row(name, counted=False)
                rows.append({**row, "n": share.n, "groups": share.groups})
        return pd.DataFrame(rows)

    def _change(
        self, site: tuple[str, int], position: str | None, which: str
    ) -> tuple[np.ndarray, np.ndarray]:
        change = self.at(site, position, which) - self.recipient_margins
        rows = np.flatnonzero(~np.isnan(change))
        return change[rows], rows
