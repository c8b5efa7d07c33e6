"""Class statistics of many resamples at once: the same contrast under many weightings."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from mechmem.analysis.intervals import group_counts
from mechmem.caching.activations import Activations
from mechmem.errors import MechmemError, PromptError, listed
from mechmem.models.sites import Site
from mechmem.seeding import keyed_rng

RESAMPLED_RANKINGS = ("mean_difference", "scaled", "correlation")
CHUNK = 32


@dataclass(frozen=True)
class StackedStates:
    """States of two classes as one table, one column per neuron.

    Attributes:
        values: Centered on the mean over all examples, so that sums of squares lose nothing.
        is_first: True for examples of the first class.
        groups: Group number of every example.
        parts: Columns of every site, in order.
        n_groups: Number of groups.
    """

    values: Float[np.ndarray, "example neuron"]
    is_first: np.ndarray
    groups: np.ndarray
    parts: dict[Site, slice]
    n_groups: int

    @classmethod
    def of(cls, acts: Activations, first: str, second: str, by: str) -> StackedStates:
        """From states, leaving out examples of other classes.

        Raises:
            PromptError: When a class is missing, or states are not finite.
        """
        names = acts.classes(by)
        rows = [k for k, name in enumerate(names) if name in (first, second)]
        is_first = np.array([names[k] == first for k in rows])
        if not rows or is_first.all() or not is_first.any():
            found = sorted({name for name in names if name is not None})
            raise PromptError(
                f"A contrast of {first!r} and {second!r} needs both; these prompts show "
                f"{listed(found)}."
            )
        _, groups = np.unique([acts.prompts[k].group for k in rows], return_inverse=True)
        parts, start, columns = {}, 0, []
        for site, state in acts.states.items():
            flat = state[rows].flatten(1).double().numpy()
            if not np.isfinite(flat).all():
                raise PromptError(
                    f"States at {site} are not finite (NaN or infinity), so nothing can be ranked "
                    "there. Is the dtype too small?"
                )
            parts[site] = slice(start, start + flat.shape[1])
            start += flat.shape[1]
            columns.append(flat)
        values = np.concatenate(columns, axis=1)
        return cls(values - values.mean(0), is_first, groups, parts, int(groups.max()) + 1)

    @property
    def total(self) -> int:
        """Number of neurons."""
        return int(self.values.shape[1])

    def resampled(self, seed: int, draws: int) -> Float[np.ndarray, "draw example"]:
        """How often every example is drawn when groups are drawn with replacement.

        Draws without one of the classes are left out.
        """
        counts = group_counts(self.n_groups, draws, seed, "contrast-bootstrap", self.n_groups)
        drawn = counts[:, self.groups].astype(float)
        kept: np.ndarray = drawn[(drawn @ self.is_first > 0) & (drawn @ ~self.is_first > 0)]
        return kept

    def shuffled(self, seed: int, *names: object) -> np.ndarray:
        """`is_first` with the classes exchanged at random: within every group that shows both
        classes, and between the other groups as wholes."""
        rng = keyed_rng(seed, "contrast-shuffle", *names)
        out = self.is_first.copy()
        order = np.argsort(self.groups, kind="stable")
        whole = []
        for rows in np.split(order, np.flatnonzero(np.diff(self.groups[order])) + 1):
            if len(set(out[rows].tolist())) == 1:
                whole.append(rows)
            out[rows] = rng.permutation(out[rows])
        traded = rng.permutation([bool(out[rows[0]]) for rows in whole])
        for rows, first in zip(whole, traded, strict=True):
            out[rows] = bool(first)
        return out

    def statistics(
        self, weights: Float[np.ndarray, "draw example"], is_first: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """Signed scores ``[draw, neuron]`` of every ranking under weights of the examples.

        ``mean_difference``: first class minus second. ``scaled``: the same in units of the typical
        spread of its site (root mean square of the pooled standard deviations there).
        ``correlation``: Pearson r with the class.

        Args:
            weights: Nonnegative; every class needs a positive sum.
            is_first: Other classes than the observed ones, ``[example]`` or ``[draw, example]``.
        """
        first = np.broadcast_to(self.is_first if is_first is None else is_first, weights.shape)
        one, zero = weights * first, weights * ~first
        n1, n0 = one.sum(1, keepdims=True), zero.sum(1, keepdims=True)
        squares = self.values**2
        mean1, mean0 = one @ self.values / n1, zero @ self.values / n0
        within = (one + zero) @ squares - n1 * mean1**2 - n0 * mean0**2
        within = np.maximum(within, 0)
        difference = mean1 - mean0
        between = difference**2 * (n1 * n0 / (n1 + n0))
        total = np.sqrt(within + between)
        pooled = within / np.maximum(n1 + n0 - 2, 1)
        scaled = np.empty_like(difference)
        for part in self.parts.values():
            typical = np.sqrt(pooled[:, part].mean(1, keepdims=True))
            scaled[:, part] = _ratio(difference[:, part], typical)
        correlation = _ratio(difference * np.sqrt(n1 * n0 / (n1 + n0)), total)
        return {"mean_difference": difference, "scaled": scaled, "correlation": correlation}


def top_masks(
    scores: Float[np.ndarray, "draw neuron"], k: int, parts: Sequence[slice] = ()
) -> np.ndarray:
    """True at the ``k`` largest |scores| of every draw; with ``parts``, the same share of each."""
    mask = np.zeros(scores.shape, dtype=bool)
    total = scores.shape[1]
    for part in parts or [slice(0, total)]:
        width = part.stop - part.start
        count = max(1, round(k * width / total)) if parts else k
        order = np.argsort(-np.abs(scores[:, part]), axis=1, kind="stable")[:, :count]
        np.put_along_axis(mask[:, part], order, True, axis=1)
    return mask


def count_top(top: float, total: int) -> int:
    """A number of neurons from a number or a share.

    Raises:
        MechmemError: For an impossible one.
    """
    whole = isinstance(top, int) and not isinstance(top, bool) and 1 <= top <= total
    share = isinstance(top, float) and 0 < top <= 1
    if not (whole or share):
        raise MechmemError(
            f"top must be a number of neurons from 1 to {total}, or a share in (0, 1], got {top!r}."
        )
    return int(top) if whole else max(1, round(top * total))


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """0 where both are 0: what never varies says nothing about the class."""
    out: np.ndarray = np.divide(top, bottom, out=np.zeros_like(top), where=bottom > 0)
    return out
