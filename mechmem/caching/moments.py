"""`Moments`: count, mean and second moment per class, streamed in float64 and merged exactly."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mechmem.artifacts import load_artifact, save_artifact
from mechmem.caching.activations import Activations
from mechmem.caching.bootstrap import Bootstrap, WeightedMean
from mechmem.caching.provenance import PROVENANCE, Provenance
from mechmem.errors import ArtifactError, MechmemError, PromptError, listed
from mechmem.models.sites import Site

_SHAPE = {
    "provenance": PROVENANCE,
    "columns": [str],
    "covariance": [str],
    "bootstrap": (None, [int, int]),
}

AT_ONCE = 256
"""Stored examples that are summed up together: about what stays in the processor's cache."""


@dataclass
class ClassMoments:
    """Moments of one class at one site, per position and coordinate.

    Attributes:
        count: Number of examples.
        mean: ``[position, *feature]`` float64.
        m2: Sum of squared deviations from the mean, same shape.
        cross: Sum of products of deviations, ``[position, d, d]`` with heads flattened; ``None``
            where it was not asked for.
    """

    count: int
    mean: Tensor
    m2: Tensor
    cross: Tensor | None = None

    @classmethod
    def of(cls, values: Tensor, full: bool = False) -> ClassMoments:
        """Moments of ``[example, position, *feature]``, with ``cross`` when ``full``."""
        # A copy even of float64: it is changed in place below, and the states are the caller's.
        away = values.to(torch.float64, copy=True)
        mean = away.mean(0)
        away -= mean  # in place, as below: fresh memory costs ten times the arithmetic
        cross = None
        if full:
            flat = away.flatten(2).transpose(0, 1)
            cross = flat.transpose(1, 2) @ flat
        return cls(away.shape[0], mean, away.square_().sum(0), cross)

    def merged(self, other: ClassMoments) -> ClassMoments:
        """Both together, by Chan's update: no large sums are subtracted from each other."""
        if self.mean.shape != other.mean.shape:
            raise MechmemError(
                f"Cannot merge moments of shapes {tuple(self.mean.shape)} and "
                f"{tuple(other.mean.shape)}; they belong to different sites or positions."
            )
        count = self.count + other.count
        delta = other.mean - self.mean
        mean = self.mean + delta * (other.count / count)
        between = self.count * other.count / count
        m2 = self.m2 + other.m2 + delta**2 * between
        cross = None
        if self.cross is not None and other.cross is not None:
            flat = delta.flatten(1)
            cross = self.cross + other.cross + flat[:, :, None] * flat[:, None, :] * between
        return ClassMoments(count, mean, m2, cross)

    @property
    def covariance(self) -> Tensor:
        """Unbiased covariance ``[position, d, d]``, heads flattened; NaN for a single example.

        Raises:
            MechmemError: Where it was not asked for.
        """
        if self.cross is None:
            raise MechmemError(
                "No covariance was kept here; ask for it: cache_moments(..., covariance=sites)."
            )
        if self.count < 2:
            return torch.full_like(self.cross, torch.nan)
        return self.cross / (self.count - 1)

    @property
    def variance(self) -> Tensor:
        """Unbiased variance ``[position, *feature]``; NaN for a single example."""
        return self.m2 / (self.count - 1) if self.count > 1 else torch.full_like(self.m2, torch.nan)


@dataclass
class Moments:
    """Streaming statistics of several classes at several sites.

    Attributes:
        provenance: Model, positions and what was seen.
        columns: Names of the positions.
        classes: ``moments.classes["memorized"][site]`` is a `ClassMoments`.
        covariance: Sites of which the full covariance is kept: d x d numbers per class, position
            and site.
        bootstrap: Weighted means for intervals, when they were asked for.
    """

    provenance: Provenance
    columns: tuple[str, ...]
    classes: dict[str, dict[Site, ClassMoments]] = field(default_factory=dict)
    covariance: frozenset[Site] = frozenset()
    bootstrap: Bootstrap | None = None

    def update(
        self,
        states: Mapping[Site, Tensor],
        names: Sequence[str | None],
        groups: Sequence[str] | None = None,
    ) -> None:
        """Add a batch.

        Args:
            states: ``[example, position, *feature]`` per site.
            names: Class of every example; ``None`` is left out.
            groups: Group of every example, which a bootstrap needs.

        Raises:
            PromptError: When a state is not finite, naming the site.
        """
        # Sorted, because the order of a set of texts changes from process to process.
        for name in sorted({name for name in names if name is not None}):
            rows = torch.tensor([k for k, other in enumerate(names) if other == name])
            known = self.classes.setdefault(name, {})
            for site, values in states.items():
                batch = ClassMoments.of(values[rows], site in self.covariance)
                # One NaN or infinity makes a mean one too, so the mean tells of all.
                if not torch.isfinite(batch.mean).all():
                    raise PromptError(
                        f"States at {site} are not finite (NaN or infinity) for class {name!r}; "
                        "no statistic of them means anything. Is the dtype too small?"
                    )
                known[site] = known[site].merged(batch) if site in known else batch
        if self.bootstrap is not None:
            if groups is None:
                raise PromptError("A bootstrap resamples groups; pass groups= with every batch.")
            self.bootstrap.update(states, names, groups)

    def merge(self, other: Moments) -> Moments:
        """Both together, as if all examples had gone into one.

        Raises:
            MechmemError: When they come from different models, sites, positions or contrasts.
        """
        mine, theirs = self.provenance, other.provenance
        for what in ("positions", "by"):
            if getattr(mine, what) != getattr(theirs, what):
                raise MechmemError(
                    f"Cannot merge moments with {what} {getattr(mine, what)!r} and "
                    f"{getattr(theirs, what)!r}. Cache both with the same settings."
                )
        if mine.model.fingerprint != theirs.model.fingerprint:
            raise MechmemError(
                f"Cannot merge moments of two models, {mine.model.fingerprint} and "
                f"{theirs.model.fingerprint}."
            )
        if self.classes and other.classes and self.sites != other.sites:
            different = sorted(set(self.sites) ^ set(other.sites), key=lambda site: site.depth)
            raise MechmemError(
                f"Cannot merge moments of different sites; only one side has "
                f"{listed(map(str, different))}. Cache the same sites on both."
            )
        if self.covariance != other.covariance or (self.bootstrap is None) != (
            other.bootstrap is None
        ):
            raise MechmemError(
                "Cannot merge moments of which only one side keeps a covariance or a bootstrap; "
                "cache both with the same covariance= and bootstrap=."
            )
        merged = {name: dict(sites) for name, sites in self.classes.items()}
        for name, sites in other.classes.items():
            known = merged.setdefault(name, {})
            for site, moments in sites.items():
                known[site] = known[site].merged(moments) if site in known else moments
        provenance = Provenance(mine.model, mine.seen | theirs.seen, mine.positions, mine.by)
        both = None
        if self.bootstrap is not None and other.bootstrap is not None:
            both = self.bootstrap.merge(other.bootstrap)
        return Moments(provenance, self.columns, merged, self.covariance, both)

    @property
    def sites(self) -> list[Site]:
        """Sites that any class has, in depth order."""
        found = {site for sites in self.classes.values() for site in sites}
        return sorted(found, key=lambda site: site.depth)

    @property
    def counts(self) -> dict[str, int]:
        """Number of examples of every class."""
        return {
            name: next(iter(sites.values())).count for name, sites in self.classes.items() if sites
        }

    def pair(self, toward: str, away: str | None) -> tuple[str, str]:
        """The two classes of a contrast; the other one of two is found by itself.

        Raises:
            PromptError: When a class is missing, or the other one is not unique.
        """
        present = sorted(self.classes)
        others = [name for name in present if name != toward]
        if toward not in present or (away is not None and away not in present):
            missing = toward if toward not in present else away
            raise PromptError(
                f"No examples of class {missing!r}; the classes are {listed(present)} "
                f"with counts {self.counts}. Choose one of them, or by='behavior' or by='label'."
            )
        if away is None:
            if len(others) != 1:
                raise PromptError(
                    f"toward={toward!r} leaves {listed(others) or 'no class'} on the other side; "
                    "a contrast needs one other class: say away=."
                )
            away = others[0]
        return toward, away

    @classmethod
    def from_activations(cls, acts: Activations, by: str) -> Moments:
        """The statistics of stored states."""
        moments = cls(
            Provenance(acts.provenance.model, acts.provenance.seen, acts.provenance.positions, by),
            acts.columns,
        )
        names = acts.classes(by)
        for start in range(0, len(names), AT_ONCE):
            part = {site: state[start : start + AT_ONCE] for site, state in acts.states.items()}
            moments.update(part, names[start : start + AT_ONCE])
        return moments

    def save(self, path: str | Path) -> Path:
        """Write ``path.safetensors`` and ``path.json``; `load` reads them back."""
        return save_artifact(path, "moments", self.tensors(), self.about())

    @classmethod
    def load(cls, path: str | Path) -> Moments:
        """Read what `save` wrote."""
        return cls.from_parts(*load_artifact(path, "moments", _SHAPE))

    def tensors(self) -> dict[str, Tensor]:
        """Every number, by name."""
        out = {}
        for name, sites in self.classes.items():
            for site, own in sites.items():
                key = f"{name}/{site.key}"
                out[f"{key}/count"] = torch.tensor(own.count)
                out[f"{key}/mean"], out[f"{key}/m2"] = own.mean, own.m2
                if own.cross is not None:
                    out[f"{key}/cross"] = own.cross
                if self.bootstrap is not None:
                    drawn = self.bootstrap.classes[name][site]
                    out[f"{key}/weight"], out[f"{key}/drawn"] = drawn.weight, drawn.mean
        return out

    def about(self) -> dict[str, Any]:
        """Everything else, JSON-ready."""
        drawn = self.bootstrap
        return {
            "provenance": self.provenance.as_dict(),
            "columns": list(self.columns),
            "covariance": sorted(site.key for site in self.covariance),
            "bootstrap": None if drawn is None else [drawn.replicates, drawn.seed],
        }

    @classmethod
    def from_parts(cls, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> Moments:
        """The inverse of `tensors` and `about`."""
        drawn = None if about["bootstrap"] is None else Bootstrap(*about["bootstrap"])
        moments = cls(
            Provenance.from_dict(about["provenance"]),
            tuple(about["columns"]),
            {},
            frozenset(Site.from_key(key) for key in about["covariance"]),
            drawn,
        )
        for entry in sorted(key for key in tensors if key.endswith("/count")):
            key = entry.removesuffix("/count")
            # From the right: a class may have a slash in its name, a site has none.
            name, _, place = key.rpartition("/")
            site = Site.from_key(place)
            own = ClassMoments(
                int(tensors[entry]),
                tensors[f"{key}/mean"],
                tensors[f"{key}/m2"],
                tensors[f"{key}/cross"] if site in moments.covariance else None,
            )
            _check(key, own, len(moments.columns))
            moments.classes.setdefault(name, {})[site] = own
            if drawn is not None:
                mean, weight = tensors[f"{key}/drawn"], tensors[f"{key}/weight"]
                if list(mean.shape) != [drawn.replicates, *own.mean.shape] or weight.shape != (
                    drawn.replicates,
                ):
                    raise ArtifactError(
                        f"The bootstrap of {key} has the shapes {list(weight.shape)} and "
                        f"{list(mean.shape)}, which are not {drawn.replicates} replicates of "
                        f"{list(own.mean.shape)}. Save it again."
                    )
                drawn.classes.setdefault(name, {})[site] = WeightedMean(weight, mean)
        return moments


def _check(key: str, own: ClassMoments, columns: int) -> None:
    """Refuse stored moments that cannot be those of anything."""
    shape = list(own.mean.shape)
    width = own.mean[0].numel() if shape and shape[0] else 0
    wide = own.cross is None or list(own.cross.shape) == [columns, width, width]
    if own.count < 1 or shape[:1] != [columns] or own.m2.shape != own.mean.shape or not wide:
        raise ArtifactError(
            f"The moments of {key} do not fit together: {own.count} examples, mean {shape}, m2 "
            f"{list(own.m2.shape)}, {columns} positions. Save them again."
        )
