"""`state_map`: states of one site in the plane of their two main axes, other sets beside them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression

from mechmem.analysis.directions import Direction, Directions
from mechmem.caching.activations import Activations, class_names
from mechmem.errors import PositionError, PromptError, SiteError, listed
from mechmem.models.sites import Site, as_site


@dataclass(frozen=True)
class StateMap:
    """States in the plane of the first two principal components of one set.

    Attributes:
        site: Whose states.
        points: One row per state: set, id, group, class, x, y.
        explained: Share of the fitted set's variance that each axis carries.
        boundary: ``(a, b, c)`` of the line ``a x + b y + c = 0`` that a logistic classifier draws
            in the plane between the fitted set's two classes; ``None`` without two classes.
        direction: The direction's two coordinates in the plane, in activation units; ``None``
            without one.
        in_plane: Length of the direction in the plane, as a share of its whole length.
        start: Where the direction is drawn from: the mean of its two class means.
        toward: The class it points to.
    """

    site: Site
    points: pd.DataFrame
    explained: tuple[float, float]
    boundary: tuple[float, float, float] | None
    direction: tuple[float, float] | None
    in_plane: float
    start: tuple[float, float]
    toward: str

    def table(self) -> pd.DataFrame:
        """One row per state, and rows of kind ``boundary`` and ``direction`` (two ends each)."""
        rows = self.points.assign(kind="state")
        extra = []
        if self.direction is not None:
            ends = np.array([self.start, np.add(self.start, self.direction)])
            extra += [{"kind": "direction", "class": self.toward, "x": x, "y": y} for x, y in ends]
        if self.boundary is not None:
            own = self.points[self.points["set"] == self.points["set"].iloc[0]]
            extra += [
                {"kind": "boundary", "class": "", "x": x, "y": y}
                for x, y in _across(self.boundary, own)
            ]
        # Words in every row keep ids and groups words when the table is read again.
        words = [{"set": row["kind"], "id": row["kind"], "group": row["kind"]} for row in extra]
        extra = [one | row for one, row in zip(words, extra, strict=True)]
        out = pd.concat([rows, pd.DataFrame(extra)], ignore_index=True) if extra else rows
        return out.assign(
            stream=self.site.stream,
            layer=self.site.layer,
            explained_x=self.explained[0],
            explained_y=self.explained[1],
            in_plane=self.in_plane,
        )


def state_map(
    acts: Activations,
    site: tuple[str, int],
    *,
    direction: Direction | Directions | None = None,
    others: Mapping[str, Activations] | None = None,
    by: str = "label",
    name: str = "fitted",
) -> StateMap:
    """PCA of one set's states with other sets projected into it (P2, figure 1).

    Args:
        acts: The set whose two main axes make the plane.
        site: Which states.
        direction: Drawn as an arrow; it must belong to the site.
        others: More sets by name, projected into the same plane, never fitted.
        by: ``"label"`` or ``"behavior"``: the class of every state. Without it a state has none.
        name: What to call the first set.

    Raises:
        PromptError: With fewer than three states, or without variation.
        PositionError: When states have several positions.
        SiteError: When a set lacks the site or the direction belongs to another.

    What it does not prove: two dimensions show where the largest variance is, which need not be
    where the classes differ; the boundary is fitted to the states drawn, so it is not a test.
    """
    place = as_site(site)
    states = _flat(acts, place)
    if len(states) < 3:
        raise PromptError(f"A plane needs at least three states, got {len(states)}; cache more.")
    center = states.mean(axis=0)
    _, sizes, axes = np.linalg.svd(states - center, full_matrices=False)
    if sizes[0] == 0:
        raise PromptError(f"All states at {place} are the same; choose a later site.")
    axes = axes[:2] if len(axes) > 1 else np.vstack([axes, np.zeros_like(axes)])
    # The sign of an axis is arbitrary: its largest coordinate is made positive.
    largest = np.abs(axes).argmax(axis=1)
    axes = axes * np.where(axes[np.arange(2), largest] < 0, -1.0, 1.0)[:, None]
    share = np.append(sizes**2 / (sizes**2).sum(), 0.0)
    if name in (others or {}):
        raise PromptError(f"{name!r} names the fitted states; name the other set otherwise.")
    sets = {name: acts, **(others or {})}
    points = pd.concat(
        [
            _points(label, one, (_flat(one, place) - center) @ axes.T, by)
            for label, one in sets.items()
        ],
        ignore_index=True,
    )
    arrow, in_plane, toward = None, 0.0, ""
    start = (0.0, 0.0)
    if direction is not None:
        one = direction[place] if isinstance(direction, Directions) else direction
        if one.site != place:
            raise SiteError(
                f"The direction belongs to {one.site}, the map is of {place}; pass the direction "
                "of that site."
            )
        arrow = axes @ one.vector.numpy()
        in_plane, toward = float(np.linalg.norm(arrow) / one.norm), one.toward
        start = _middle(points, name, (one.toward, one.away)) - arrow / 2
    return StateMap(
        place,
        points,
        (float(share[0]), float(share[1])),
        _boundary(points[points["set"] == name]),
        None if arrow is None else (float(arrow[0]), float(arrow[1])),
        in_plane,
        (float(start[0]), float(start[1])),
        toward,
    )


def _flat(acts: Activations, site: Site) -> np.ndarray:
    if len(acts.columns) != 1:
        raise PositionError(
            f"A map shows one position, these states have {listed(acts.columns)}; choose one with "
            "acts.at('last')."
        )
    out: np.ndarray = acts[site].flatten(1).double().numpy()
    if not np.isfinite(out).all():
        raise PromptError(f"States at {site} are not finite (NaN or infinity). Is the dtype small?")
    return out


def _points(label: str, acts: Activations, plane: np.ndarray, by: str) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "set": label,
            "id": acts.prompts.ids,
            "group": acts.prompts.groups,
            "class": [name or "" for name in class_names(acts.prompts, by)],
            "x": plane[:, 0],
            "y": plane[:, 1],
        }
    )


def _middle(points: pd.DataFrame, name: str, classes: tuple[str, str]) -> np.ndarray:
    own = points[points["set"] == name]
    parts = [own[own["class"] == one] for one in classes]
    parts = [part for part in parts if len(part)] or [own]
    out: np.ndarray = np.mean([part[["x", "y"]].to_numpy().mean(axis=0) for part in parts], axis=0)
    return out


def _boundary(own: pd.DataFrame) -> tuple[float, float, float] | None:
    known = own[own["class"] != ""]
    if known["class"].nunique() != 2:
        return None
    plane = known[["x", "y"]].to_numpy()
    scale = float(plane.std()) or 1.0
    model = LogisticRegression(class_weight="balanced").fit(plane / scale, known["class"])
    slope = model.coef_[0] / scale
    if not np.abs(slope).max() > 0:
        return None
    return float(slope[0]), float(slope[1]), float(model.intercept_[0])


def _across(line: tuple[float, float, float], own: pd.DataFrame) -> list[tuple[float, float]]:
    """Two points of the line, as far apart as the states reach."""
    normal, offset = np.array(line[:2]), line[2]
    size = float(np.linalg.norm(normal))
    plane = own[["x", "y"]].to_numpy()
    middle = plane.mean(axis=0)
    foot = middle - normal * (middle @ normal + offset) / size**2
    along = np.array([-normal[1], normal[0]]) / size
    reach = (plane - foot) @ along
    return [tuple(foot + along * end) for end in (reach.min(), reach.max())]
