"""A number at every layer and token of a prompt, beside what random directions give there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from mechmem.analysis.directions import Direction, Directions
from mechmem.caching.extract import cache_activations
from mechmem.errors import EditError, PromptError, SiteError, listed
from mechmem.evaluation.controls import draws_of_one
from mechmem.models.final_norm import final_norm, unembedded
from mechmem.models.model import Model
from mechmem.models.tokenizing import PromptsLike, as_prompts
from mechmem.numeric import MOST, whole_number
from mechmem.patching.base import Edit
from mechmem.patching.directions import AddDirection
from mechmem.patching.margins import answer_ids
from mechmem.seeding import keyed_rng
from mechmem.tasks.base import Task
from mechmem.tasks.prompts import PromptSet

BAND_DRAWS = 39
"""Draws of the control that make the band of a map: the fewest of which one more lies outside once
in 20 times."""
BAND = (0.025, 0.975)
NOTHING = 1e-6
"""A direction that is shorter than this share of the states is zero up to rounding."""


@dataclass(frozen=True)
class TokenMap:
    """A number at every layer and token of one prompt.

    Attributes:
        rows: One row per site and token: ``stream, layer, position, token, value`` and the ends
            ``band_low, band_high`` of the middle 95 % of the same number along random directions.
        toward, away: Positive is ``toward``.
        unit: What the numbers count.
        control: Which random directions the band is of.
    """

    rows: pd.DataFrame
    toward: str
    away: str
    unit: str
    control: str

    def table(self) -> pd.DataFrame:
        """One row per site and token, with the classes and the unit."""
        return self.rows.assign(
            toward=self.toward, away=self.away, unit=self.unit, control=self.control
        )


def projection_map(
    model: Model,
    directions: Directions,
    prompt: PromptsLike,
    *,
    control: str = "random direction",
    draws: int = BAND_DRAWS,
    seed: int = 0,
) -> TokenMap:
    """The projection of every token's state on the direction of its site, counted from the middle
    of the class means, in lengths of the direction (of a difference of means: the distance between
    the classes, so that the class means lie at -0.5 and 0.5).

    The directions were fitted at one position, usually the last prompt token; elsewhere the number
    says how far a state lies along the same line, not that the model decides there.

    Args:
        model: From `load_model`, or the view inside `patched`.
        directions: One per site to read. A site at which the classes coincide (the embedding of
            the same last word) is left out.
        prompt: One prompt.
        control: Whose draws the band is of, as `AddDirection` draws them: ``"random direction"``
            (isotropic) or ``"covariance direction"``, a wider band, along which the states vary as
            they do. Each is counted from its own middle.
        draws: How many.
        seed: Keys them.

    Raises:
        EditError: For a control that is not there, or no draws.
        PromptError: For more than one prompt.
        SiteError: When the classes coincide at every site.
    """
    whole_number(draws, "draws", most=MOST, error=EditError)
    asked = _one(prompt)
    acts = cache_activations(model, asked, sites=directions.sites, positions="all")
    frames = []
    for direction in directions:
        states = acts[direction.site][0].flatten(1)
        if direction.norm <= NOTHING * float(states.double().norm(dim=-1).mean()):
            continue
        edit = AddDirection(direction)
        _, drawn = draws_of_one(edit, model, draws=draws, seed=seed, name=control)
        others = [_counted(_own(one), states) for one in drawn]
        frames.append(_frame(direction.site, _counted(direction, states), np.stack(others)))
    first = next(iter(directions))
    if not frames:
        raise SiteError(
            f"The classes coincide at {listed(map(str, directions.sites))}: every direction is "
            "zero. Fit at other sites or positions."
        )
    rows = _named(frames, model, acts.token_ids[0])
    return TokenMap(rows, first.toward, first.away, "distances between the classes", control)


def margin_map(
    model: Model,
    prompt: PromptsLike,
    *,
    task: Task | None = None,
    draws: int = BAND_DRAWS,
    seed: int = 0,
) -> TokenMap:
    """The margin between the first tokens of the two answers, had the model stopped after each
    layer, at every token: the final norm and the unembedding on the output of every block (the
    logit lens). At the last layer and token it is the model's own margin.

    Earlier layers do not write in the last one's terms, so a margin of 0 there does not prove that
    nothing is decided.

    Args:
        model: From `load_model`, or the view inside `patched`.
        prompt: One prompt with `memorized` and `generalized`.
        task: Says how an answer follows the prompt.
        draws: Isotropic random directions behind the final norm, as long as the difference of the
            two answers' unembedding vectors.
        seed: Keys them.

    Raises:
        PromptError: For more than one prompt, one that lacks an answer, or answers that begin with
            the same token.
        EditError: For no draws.
    """
    whole_number(draws, "draws", most=MOST, error=EditError)
    asked = _one(prompt)
    (first,), (second,) = answer_ids(model, asked, task)
    if first[0] == second[0]:
        raise PromptError(
            f"{asked[0].memorized!r} and {asked[0].generalized!r} begin with the same token, so no "
            "margin of their first tokens tells them apart. Ask for the projection instead."
        )
    acts = cache_activations(model, asked, sites="resid_post", positions="all")
    names = (task.behaviors if task is not None else ("memorized", "generalized"))[:2]
    frames = []
    apart = (model.tl.W_U[:, first[0]] - model.tl.W_U[:, second[0]]).detach().double().cpu()
    for site in acts.sites:
        normed = final_norm(model, acts[site][0].flatten(1))
        logits = unembedded(model, normed)
        rng = keyed_rng(seed, "margin map", site.key)
        noise = rng.standard_normal((draws, apart.numel()))
        noise *= float(apart.norm()) / np.linalg.norm(noise, axis=1, keepdims=True)
        others = noise @ normed.double().cpu().numpy().T
        value = (logits[:, first[0]] - logits[:, second[0]]).numpy()
        frames.append(_frame(site, value, others))
    rows = _named(frames, model, acts.token_ids[0])
    return TokenMap(rows, names[0], names[1], "nats", "random direction")


def _one(prompt: PromptsLike) -> PromptSet:
    asked = as_prompts(prompt).require("map")
    if len(asked) != 1:
        raise PromptError(f"A map is of one prompt, got {len(asked)}; ask for one after the other.")
    return asked


def _own(edit: Edit) -> Direction:
    assert isinstance(edit, AddDirection)
    assert isinstance(edit.direction, Direction)
    return edit.direction


def _counted(direction: Direction, states: torch.Tensor) -> np.ndarray:
    """From the middle of the class means, where those are known, in lengths of the direction."""
    middle = (direction.toward_mean + direction.away_mean) / 2 if direction.has_means else 0.0
    out: np.ndarray = (direction.project(states).numpy() - middle) / direction.norm
    return out


def _frame(site: tuple[str, int], value: np.ndarray, others: np.ndarray) -> pd.DataFrame:
    # At (draws + 1) times the share; at the usual place one more draw of 20 lay outside in 12 %.
    low, high = np.quantile(others, BAND, axis=0, method="weibull")
    return pd.DataFrame(
        {
            "stream": site[0],
            "layer": site[1],
            "position": np.arange(len(value)),
            "value": value,
            "band_low": low,
            "band_high": high,
        }
    )


def _named(frames: list[pd.DataFrame], model: Model, ids: tuple[int, ...]) -> pd.DataFrame:
    rows = pd.concat(frames, ignore_index=True)
    pieces = model.tokens.pieces(ids)
    rows.insert(3, "token", [pieces[k] for k in rows["position"]])
    return rows
