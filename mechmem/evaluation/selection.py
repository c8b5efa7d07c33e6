"""`select_direction`: one direction out of many, by what it does on validation prompts."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from mechmem.analysis.directions import Direction, Directions
from mechmem.caching.activations import class_names
from mechmem.caching.provenance import Seen
from mechmem.errors import EditError, PromptError, listed
from mechmem.evaluation.shared import behaviors_of, sign_toward
from mechmem.models.model import Model
from mechmem.models.sites import Site
from mechmem.numeric import MOST, finite_number
from mechmem.patching.apply import patched
from mechmem.patching.base import Edit
from mechmem.patching.directions import AddDirection
from mechmem.patching.margins import behavior_margins
from mechmem.patching.projections import ProjectOut
from mechmem.tasks.base import Task
from mechmem.tasks.prompts import PromptSet

Score = Callable[[Model, PromptSet], Float[np.ndarray, " example"]]
"""How far the model leans toward the directions' class on every prompt, above 0 when it does."""


@dataclass(frozen=True)
class Candidate:
    """One direction and what it did.

    Attributes:
        source: Name of the set of directions it is from.
        direction: The candidate.
        bypass: Mean score on prompts of its class while it is projected out everywhere: lower
            means that more of the behavior went through it.
        induce: Mean score on prompts of the other class while it is added.
        kl: Mean divergence of the next token on the neutral prompts under projection, in nats.
        dropped: Why it cannot be chosen; empty for one that can.
    """

    source: str
    direction: Direction
    bypass: float
    induce: float
    kl: float
    dropped: str


@dataclass(frozen=True)
class Selection:
    """Every candidate, and the one that was chosen.

    Attributes:
        candidates: In the order given.
        best: The chosen one; ``None`` when every candidate was dropped.
        before: Mean score of the unedited model on prompts of the class, and of the other.
        limits: What was asked of a candidate, by name.
        seen: Everything that fitting and choosing has seen.
    """

    candidates: tuple[Candidate, ...]
    best: Candidate | None
    before: tuple[float, float]
    limits: Mapping[str, float]
    seen: Seen

    @property
    def direction(self) -> Direction:
        """The chosen direction; it remembers the prompts it was chosen on.

        Raises:
            EditError: When every candidate was dropped.
        """
        if self.best is None:
            why = pd.Series([item.dropped for item in self.candidates]).value_counts()
            reasons = ", ".join(f"{count} x {name}" for name, count in why.items())
            raise EditError(
                f"None of {len(self.candidates)} directions fulfills the rule ({reasons}); read "
                "table(), and loosen kl_limit=, induce_minimum= or drop_last= if that is honest, "
                "or report that no direction does it."
            )
        one = self.best.direction
        return replace(one, provenance=replace(one.provenance, seen=self.seen))

    def table(self) -> pd.DataFrame:
        """One row per candidate, best bypass score first."""
        rows = [
            {
                "source": item.source,
                "stream": item.direction.site.stream,
                "layer": item.direction.site.layer,
                "method": item.direction.method,
                "bypass": item.bypass,
                "bypass_before": self.before[0],
                "induce": item.induce,
                "induce_before": self.before[1],
                "kl": item.kl,
                "dropped": item.dropped,
                "chosen": item is self.best,
            }
            for item in self.candidates
        ]
        return pd.DataFrame(rows).sort_values("bypass", kind="stable", ignore_index=True)


def select_direction(
    model: Model,
    directions: Directions | Mapping[str, Directions],
    *,
    validation: PromptSet,
    neutral: PromptSet | None = None,
    task: Task | None = None,
    score: Score | None = None,
    by: str | None = None,
    alpha: float = 1.0,
    induce_minimum: float = 0.0,
    kl_limit: float = 0.1,
    drop_last: float = 0.2,
    progress: Callable[[str], None] | None = None,
) -> Selection:
    """Choose a direction by the bypass / induce / KL rule (Arditi et al. 2406.11717, appendix C).

    Of every candidate three numbers are measured on validation prompts. **Bypass**: the mean score
    on prompts of its class while it is projected out at every site of every block. **Induce**: the
    mean score on prompts of the other class while ``alpha`` times it is added at its own site.
    **KL**: how far the projection moves the next token on neutral prompts. Candidates with an
    induce score below ``induce_minimum``, a KL above ``kl_limit``, or in the last ``drop_last`` of
    the layers are dropped. Of the others the lowest bypass score wins.

    The rule was made for refusal, where the score is the log-odds of refusing. Here the score is
    the behavior margin in nats, turned toward the directions' class, unless ``score=`` is given.

    Args:
        model: The unedited model.
        directions: Candidates, or several sets of them by name (methods, positions).
        validation: Prompts of both classes that no candidate has seen.
        neutral: Prompts on which projecting out should change nothing; default the validation
            prompts of the other class.
        task: For the margin: how an answer continues the prompt.
        score: Another score, needed where prompts lack two answers.
        by: ``"behavior"`` or ``"label"``; default what the directions were fitted by.
        alpha: Strength of the addition, in lengths of the direction.
        induce_minimum, kl_limit, drop_last: The rule.
        progress: Called with a line per candidate.

    Raises:
        LeakageError: When a candidate has seen a validation or neutral prompt.
        PromptError: When validation prompts lack a class, or two answers for the margin.
        EditError: For no candidates, candidates of several contrasts, or a rule that no number
            makes.

    What it does not prove: the winner of many candidates looks better on validation than it is;
    report it on prompts that took no part, which ``Selection.direction`` enforces.
    """
    alpha = finite_number(alpha, "alpha", error=EditError)
    if abs(alpha) > MOST:
        raise EditError(
            f"alpha must be at most {MOST:,} lengths of the direction either way, got {alpha:g}."
        )
    without = math.inf  # -inf and inf leave a limit out; NaN would do so unsaid
    if induce_minimum != -without:
        finite_number(induce_minimum, "induce_minimum", error=EditError)
    if kl_limit != without:
        finite_number(kl_limit, "kl_limit", error=EditError)
    if not 0 <= finite_number(drop_last, "drop_last", error=EditError) < 1:
        raise EditError(
            f"drop_last must be a share of the layers, from 0 to less than 1, got {drop_last!r}."
        )
    sets = {"": directions} if isinstance(directions, Directions) else dict(directions)
    flat = [(name, one) for name, many in sets.items() for one in many]
    if not flat:
        raise EditError("There are no candidate directions; fit some with mm.fit_directions(...).")
    first = flat[0][1]
    if any({one.toward, one.away} != {first.toward, first.away} for _, one in flat):
        pairs = sorted({f"{one.away} -> {one.toward}" for _, one in flat})
        raise EditError(f"Candidates must be of one contrast, these are of {listed(pairs)}.")
    flat = [(name, _turned(one, first.toward)) for name, one in flat]
    seen = Seen()
    for many in sets.values():
        seen = seen | many.provenance.seen
    held, rest = (
        model.encode(part)
        for part in _classes(validation, first, by or first.provenance.by or "behavior")
    )
    other = rest if neutral is None else model.encode(neutral, "choose on")
    for prompts in (held, rest, other):
        seen.refuse(prompts, prompts.rows, "choose a direction")
    for prompts in (held, rest, other):
        seen = seen | Seen.of(prompts, prompts.rows)

    measure = score if score is not None else _margin(first.toward, task)
    plain = model.logits(other)
    before = (_mean(measure(model, held)), _mean(measure(model, rest)))
    last = int(model.n_layers * (1 - drop_last))
    found = []
    for name, one in flat:
        if one.norm == 0:
            nan = math.nan
            found.append(Candidate(name, one, nan, nan, nan, "points nowhere"))
            continue
        with patched(model, ProjectOut(one, at="everywhere")) as view:
            bypass, kl = _mean(measure(view, held)), next_token_kl(plain, view.logits(other))
        pushing: Edit = AddDirection(one, alpha=alpha)
        with patched(model, pushing) as view:
            induce = _mean(measure(view, rest))
        why = _why(one.site, bypass, induce, kl, (last, induce_minimum, kl_limit))
        found.append(Candidate(name, one, bypass, induce, kl, why))
        if progress is not None:
            progress(f"{name} {one.site}: bypass {bypass:.3f}, induce {induce:.3f}, KL {kl:.3f}")
    left = [item for item in found if not item.dropped]
    best = min(left, key=lambda item: item.bypass) if left else None
    limits = {"alpha": alpha, "induce_minimum": induce_minimum}
    limits |= {"kl_limit": kl_limit, "drop_last": drop_last}
    return Selection(tuple(found), best, before, limits, seen)


def next_token_kl(
    before: Float[Tensor, "example vocab"], after: Float[Tensor, "example vocab"]
) -> float:
    """Mean over prompts of ``KL(before || after)`` of the next token, in nats."""
    p, q = (logits.double().log_softmax(dim=-1) for logits in (before, after))
    return float(torch.where(p.isneginf(), 0.0, p.exp() * (p - q)).sum(dim=-1).mean())


def _why(
    site: Site, bypass: float, induce: float, kl: float, limits: tuple[int, float, float]
) -> str:
    last, induce_minimum, kl_limit = limits
    reasons = []
    if not all(map(math.isfinite, (bypass, induce, kl))):
        reasons.append("not finite")
    if site.layer >= last:
        reasons.append("last layers")
    if induce < induce_minimum:
        reasons.append("does not induce")
    if kl > kl_limit:
        reasons.append("changes neutral prompts")
    return ", ".join(reasons)


def _classes(validation: PromptSet, direction: Direction, by: str) -> tuple[PromptSet, PromptSet]:
    asked = validation.require("choose on")
    names = class_names(asked, by)
    parts = []
    for wanted in (direction.toward, direction.away):
        part = [prompt for prompt, name in zip(asked, names, strict=True) if name == wanted]
        if not part:
            present = sorted({name for name in names if name is not None})
            raise PromptError(
                f"No validation prompt is {wanted!r} by {by}; there are "
                f"{listed(present) or 'none'}. Observe the model first "
                "(mm.observe(...).behaving), or set labels and by='label'."
            )
        parts.append(PromptSet(part))
    return parts[0], parts[1]


def _margin(toward: str, task: Task | None) -> Score:
    known = behaviors_of(task)
    if toward not in known:
        raise PromptError(
            f"The directions point toward {toward!r}, and a margin is known between "
            f"{listed(known)} only; pass score=, a function of model and prompts."
        )
    sign = sign_toward(toward, task)
    return lambda model, prompts: sign * behavior_margins(model, prompts, task=task)


def _turned(direction: Direction, toward: str) -> Direction:
    if direction.toward == toward:
        return direction
    return replace(
        direction,
        vector=-direction.vector,
        toward=direction.away,
        away=direction.toward,
        toward_mean=-direction.away_mean,
        away_mean=-direction.toward_mean,
        boundary=None if direction.boundary is None else -direction.boundary,
        reader=None if direction.reader is None else -direction.reader,
    )


def _mean(values: np.ndarray) -> float:
    return float(np.mean(values))
