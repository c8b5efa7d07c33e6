"""`Spread`: how the states of a site lie and vary, small enough to keep with what was fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.caching.activations import Activations
from mechmem.caching.moments import Moments
from mechmem.errors import ArtifactError
from mechmem.models.sites import Site
from mechmem.seeding import keyed_rng

ROWS = 64
"""Rows of a factor; with as many examples or fewer it is exact."""
AT_ONCE = 512


@dataclass(frozen=True)
class Spread:
    """Mean of the states, and a factor of their covariance within the classes.

    Random directions drawn from it vary as the states do and hold nothing of the contrast, since
    each class is centered by itself.

    Attributes:
        center: ``[d]`` mean over all examples, classes weighing by their number.
        factor: ``[row, d]``; ``factor.T @ factor`` is the pooled covariance, or, with more than
            `ROWS` examples, an unbiased estimate of it: every row is a sum of the centered states
            with random signs, the same signs at every site. No rows where only means are known.
    """

    center: Float[Tensor, " d"]
    factor: Float[Tensor, "row d"]

    @property
    def known(self) -> bool:
        """Whether the covariance is known."""
        return len(self.factor) > 0 and bool(self.factor.any())

    def drawn(self, rng: np.random.Generator) -> Float[Tensor, " d"]:
        """A Gaussian vector with the covariance; another site with the same rows and the same
        generator gives the part of the same draw there."""
        mix = torch.from_numpy(rng.standard_normal(len(self.factor)))
        return mix @ self.factor.double()

    def variance(self, unit: Tensor) -> float:
        """Variance of the projection on a unit vector, within classes."""
        return float((self.factor.double() @ unit).square().sum())

    def alike(self, vector: Tensor, other: Tensor, about_zero: bool) -> Tensor:
        """The vector, turned until the states project on it as far as on another.

        It is weighted by a power of the states' second moments, ``M^k v``, with the ``k`` at which
        the projections have the same mean square; ``v`` itself is kept where it has already.

        Args:
            vector: A random direction.
            other: The one to be like.
            about_zero: Count the projections from 0 (what `ProjectOut` moves), or else from their
                mean (what varies).

        Returns:
            ``[d]``, as long as ``vector``.
        """
        rows = self.factor.double()
        if about_zero:
            rows = torch.cat([rows, self.center.double()[None]])
        _, sizes, axes = torch.linalg.svd(rows, full_matrices=False)
        moments = sizes**2
        wanted = float(((axes @ (other / other.norm())) ** 2 * moments).sum())
        along = axes @ vector
        rest = vector - axes.T @ along  # where the states do not vary at all
        least = moments[0] * 1e-9
        heights = torch.cat([moments, moments.new_zeros(1)]).clamp_min(least).log()
        parts = torch.cat([along**2, rest.square().sum()[None]])
        held = torch.cat([moments, moments.new_zeros(1)])

        def weights(power: float) -> Tensor:
            logs = power * heights
            return (logs - logs.max()).exp()

        low, high = -8.0, 8.0  # the mean square rises with the power
        for _ in range(80):
            middle = (low + high) / 2
            squares = weights(middle) ** 2 * parts
            if float((squares * held).sum() / squares.sum()) < wanted:
                low = middle
            else:
                high = middle
        chosen = weights((low + high) / 2)
        turned = axes.T @ (along * chosen[:-1]) + rest * chosen[-1]
        out: Tensor = turned * (vector.norm() / turned.norm())
        return out

    def packed(self) -> Float[Tensor, "row d"]:
        """Center and factor as one tensor, to save."""
        return torch.cat([self.center[None].float(), self.factor.float()])

    @classmethod
    def unpacked(cls, rows: Tensor, width: int) -> Spread:
        """The inverse of `packed`, for a site of this width.

        Raises:
            ArtifactError: For a tensor of another shape, or one that is not finite.
        """
        right = rows.ndim == 2 and len(rows) > 0 and rows.shape[1] == width
        if not right or not rows.is_floating_point() or not bool(rows.isfinite().all()):
            raise ArtifactError(
                f"How states vary is kept as finite rows of width {width}, got {rows.dtype} "
                f"{list(rows.shape)}. Fit and save it again."
            )
        return cls(rows[0].double(), rows[1:].double())


def spreads(states: Activations | Moments, toward: str, away: str, by: str) -> dict[Site, Spread]:
    """The spread of two classes at every site, positions side by side.

    From moments the covariance is known where they kept it (``cache_moments(covariance=...)``).
    """
    if isinstance(states, Moments):
        return {site: _from_moments(states, site, toward, away) for site in states.sites}
    names = states.classes(by)
    ids = states.prompts.ids
    order = sorted(range(len(ids)), key=lambda k: ids[k])  # the factor's rows are drawn along
    rows = [[k for k in order if names[k] == side] for side in (toward, away)]
    n = sum(map(len, rows))
    signs = None
    if n > ROWS:
        signs = [_signs([ids[k] for k in part]) / ROWS**0.5 for part in rows]
    return {
        site: _from_states([state[part].flatten(1) for part in rows], signs, n)
        for site, state in states.states.items()
    }


def _signs(ids: Sequence[str]) -> Tensor:
    """``[row, example]`` of +1 and -1; those of a prompt depend on its id alone."""
    drawn = [keyed_rng(0, "spread", name).choice([-1.0, 1.0], ROWS) for name in ids]
    return torch.from_numpy(np.stack(drawn, axis=1))


def _from_states(parts: Sequence[Tensor], signs: Sequence[Tensor] | None, n: int) -> Spread:
    means = [part.double().mean(0) for part in parts]
    center = sum(mean * (len(part) / n) for mean, part in zip(means, parts, strict=True))
    assert isinstance(center, Tensor)
    scale = max(n - 2, 1) ** -0.5
    if signs is None:
        away = [part.double() - mean for part, mean in zip(parts, means, strict=True)]
        return Spread(center, torch.cat(away) * scale)
    factor = torch.zeros(ROWS, len(center), dtype=torch.float64)
    for part, mean, sign in zip(parts, means, signs, strict=True):
        for start in range(0, len(part), AT_ONCE):
            rows = part[start : start + AT_ONCE].double() - mean
            factor += sign[:, start : start + AT_ONCE] @ rows
    return Spread(center, factor * scale)


def _from_moments(moments: Moments, site: Site, toward: str, away: str) -> Spread:
    one, zero = (moments.classes[name][site] for name in (toward, away))
    n = one.count + zero.count
    center = ((one.mean * one.count + zero.mean * zero.count) / n).flatten()
    if one.cross is None or zero.cross is None or len(one.cross) != 1:
        return Spread(center, center.new_zeros(0, len(center)))
    values, axes = torch.linalg.eigh((one.cross[0] + zero.cross[0]) / max(n - 2, 1))
    root = (values.clamp_min(0).sqrt() * axes).T
    if len(root) > ROWS:
        root = _signs([f"{site.key} {k}" for k in range(len(root))]) / ROWS**0.5 @ root
    return Spread(center, root)
