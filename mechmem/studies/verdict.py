"""What a study may claim: the real effect among its refits on exchanged classes.

The whole recipe (fit, the rule for the grid, choice on validation, one look at test) is repeated on
exchanged classes. The statistic was fixed beforehand: the paired change in share, on test, of the
family that was chosen on validation. ``p = (1 + refits at least as large) / (refits + 1)``; ties
count against the effect.

A gate comes first: the larger of the changes toward the two classes against the refits' larger.
Only behind it: both ways, by the smaller against the refits' smaller, where each direction must
also go beyond random draws with the states' own covariance (a fit may merely be longer than one to
noise); and single classes and families, against each refit's maximum over classes and families, so
that no p has to be divided.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import isnan, nan

import pandas as pd

from mechmem.plotting.data import p_value
from mechmem.studies.words import joined
from mechmem.sweeps.result import Sweep, Tested

LEVEL = 0.05
FEWEST_REFITS = 19  # 1 / (19 + 1) = 0.05
"""Refits below which no p can reach the level."""
COVARIANCE = "covariance direction"
# Equal shares may differ in the last digits, being differences of means.
TIE = 1e-12

Effects = Mapping[str, Mapping[str, float]]
"""By family and class: the paired change in share on test. The chosen family comes first."""


@dataclass(frozen=True)
class Verdict:
    """What may be claimed.

    Attributes:
        effects: The real fit's, by family and class steered to, the chosen family first; empty
            where no edit was found.
        refits: The same of every refit on exchanged classes.
        planned: Refits that were asked for.
        reason: Why nothing could be tested; empty otherwise.
        draws: Per class, p of the chosen edit among random draws with the states' covariance, and
            how many there were.
        how: How the labels were exchanged, where there was a choice.
        unit: What an effect of a class is, in words.

    What it does not show: that the classes are what they are called, or that another model, task
    or set of prompts behaves alike. An exchange breaks every tie to the class, also that of the
    prompts' own words.
    """

    effects: Effects
    refits: Sequence[Effects]
    planned: int
    reason: str = ""
    draws: Mapping[str, tuple[float, int]] = field(default_factory=dict)
    how: str = ""
    unit: str = "points toward {}"

    @property
    def shuffles(self) -> int:
        """Refits that were run; 0 where nothing was tested."""
        return len(self.refits)

    @property
    def too_few(self) -> bool:
        """Whether no effect, however large, could have been claimed with so few refits."""
        return 0 < self.shuffles < FEWEST_REFITS

    @property
    def chosen(self) -> str:
        """The family that was chosen on validation."""
        return next(iter(self.effects), "")

    @property
    def classes(self) -> list[str]:
        """The classes steered to."""
        return list(next(iter(self.effects.values()), {}))

    @property
    def p(self) -> dict[str, float]:
        """By claim: ``"any"``, ``"both"``, and every class. Empty where nothing was tested.

        Those behind the gate are only to be read when ``"any"`` holds.
        """
        if not self.refits:
            return {}
        own = self.effects.get(self.chosen, {})
        # A refit that found no edit has turned nothing: its effect is 0.
        larger = [_largest(_chosen(refit).values()) for refit in self.refits]
        smaller = [_smallest(_chosen(refit).values()) for refit in self.refits]
        if not own:
            return {"any": 1.0, "both": 1.0}
        return {
            "any": rank_p(_largest(own.values()), larger),
            "both": rank_p(_smallest(own.values()), smaller),
            **{name: rank_p(value, larger) for name, value in own.items()},
        }

    @property
    def family_p(self) -> dict[str, float]:
        """By family: its larger change against each refit's largest of all families."""
        if not self.refits:
            return {}
        most = [
            _largest([value for own in refit.values() for value in own.values()])
            for refit in self.refits
        ]
        return {
            family: rank_p(_largest(own.values()), most) for family, own in self.effects.items()
        }

    @property
    def turned(self) -> list[str]:
        """The classes that the model was turned to. To do less harm than refits do is no turn: the
        share of a class has to grow."""
        p, own = self.p, self.effects.get(self.chosen, {})
        grew = [name for name in self.classes if own[name] > TIE]
        if not grew or p.get("any", 1.0) > LEVEL:
            return []
        if grew == self.classes and p["both"] <= LEVEL and all(map(self._beyond_draws, grew)):
            return grew
        alone = [name for name in grew if p[name] <= LEVEL]
        if len(alone) < len(self.classes):
            return alone
        # Every class would pass by itself; what does not go beyond its draws may only be longer.
        beyond = [name for name in alone if self._beyond_draws(name)]
        return beyond or [max(alone, key=lambda name: own[name])]

    @property
    def both(self) -> bool:
        """Whether it was turned to every class."""
        return len(self.turned) == len(self.classes) > 1

    @property
    def sentence(self) -> str:
        """The verdict in words, with its p."""
        if self.reason:
            return f"Not testable: {self.reason}."
        if not self.refits:
            return "Nothing was tested: no refits on exchanged labels were run."
        if not self.effects:
            return "Not turned: no edit was found (p = 1)."
        own = self.effects[self.chosen]
        told = joined(
            [f"{100 * value:+.1f} {self.unit.format(name)}" for name, value in own.items()]
        )
        if self.too_few:
            return (
                f"Too few refits to claim anything: {told}; with {self.shuffles} of them p cannot "
                f"fall below {1 / (self.shuffles + 1):.2g}, and {FEWEST_REFITS} are needed."
            )
        if not self.turned:
            rank = f", no more than refits on exchanged labels do ({self._rank('any')})"
            return f"Not turned: {told}{rank if self.p['any'] > LEVEL else ''}."
        if self.both:
            return (
                f"Turned both ways: {told}, beyond refits on exchanged labels "
                f"({self._rank('both')})."
            )
        rest = [name for name in self.classes if name not in self.turned]
        weakest = max(self.turned, key=lambda name: self.p[name])
        return (
            f"Turned toward {joined(self.turned)}, not shown toward {joined(rest)}: {told}, beyond "
            f"refits on exchanged labels ({self._rank(weakest)}).{self._held_back()}"
        )

    @property
    def headline(self) -> str:
        """The verdict in a few words."""
        if self.reason:
            return "Not testable"
        if not self.refits:
            return "Nothing was tested"
        if self.too_few:
            return "Too few refits to claim anything"
        if not self.turned:
            return "Not turned beyond refits on exchanged labels"
        if self.both:
            return "Turned both ways, beyond refits on exchanged labels"
        return f"Turned toward {joined(self.turned)} only, beyond refits on exchanged labels"

    def table(self) -> pd.DataFrame:
        """One row per claim for the edit, with its p, and one per claim and refit; ``of`` says
        what an effect is the change of, a share or a margin in nats."""
        rows = []
        of = "margin" if "margin" in self.unit else "share"
        for claim, p in self.p.items():
            # Single classes are judged against the larger change of a refit, as `p` does.
            null = claim if claim == "both" else "any"
            values = [_statistic(self.effects, claim)]
            values += [_statistic(refit, null) for refit in self.refits]
            for k, value in enumerate(values):
                kind, own = ("refit", float("nan")) if k else ("edit", p)
                rows.append(
                    {"claim": claim, "kind": kind, "draw": k, "effect": value, "p": own, "of": of}
                )
        return pd.DataFrame(rows)

    def as_dict(self) -> dict[str, object]:
        """JSON-ready, for a manifest."""
        return {
            "turned": self.turned,
            "p": self.p,
            "family_p": self.family_p,
            "shuffles": self.shuffles,
            "planned": self.planned,
            "how": self.how,
            "draws": {name: list(found) for name, found in self.draws.items()},
            "sentence": self.sentence,
        }

    def _beyond_draws(self, name: str) -> bool:
        return name in self.draws and self.draws[name][0] <= LEVEL

    def _held_back(self) -> str:
        """Why both ways is not claimed where the refits would allow it; else empty."""
        own = self.effects[self.chosen]
        lacking = [name for name in self.classes if not self._beyond_draws(name)]
        if self.p["both"] > LEVEL or not lacking or min(own.values()) <= TIE:
            return ""
        fewest = min(self.draws.get(name, (1.0, 0))[1] for name in lacking)
        if fewest < FEWEST_REFITS:
            return (
                f" Both ways cannot be claimed with {fewest} random draws of the states' "
                f"covariance beside it; {FEWEST_REFITS} are needed."
            )
        return (
            f" Both ways is not claimed: toward {joined(lacking)} random draws with the states' "
            "covariance do as much."
        )

    def _rank(self, claim: str) -> str:
        found = self.table()
        mine = found[(found["claim"] == claim) & (found["kind"] == "refit")]["effect"]
        as_large = int((~(mine < _statistic(self.effects, claim) - TIE)).sum())
        many = "none" if as_large == 0 else str(as_large)
        return f"{many} of {self.shuffles} did as much, {p_value(self.p[claim])}"


def verdict_of(sweep: Sweep, planned: int, reason: str = "") -> Verdict:
    """The verdict on a sweep with its refits.

    Args:
        sweep: With `Sweep.refits`.
        planned: How many refits were asked for.
        reason: Why none could be made.
    """
    draws = {}
    if sweep.tested:
        best = sweep.best
        for name, rates in best.rates.items():
            drawn = best.controls[name].get(COVARIANCE, ())
            if drawn:
                goal = best.goal(name)
                null = [draw.change(goal).value for draw in drawn]
                draws[name] = (rank_p(rates.change(goal).value, null), len(null))
    refits = [_effects(tested) for tested in sweep.refits]
    return Verdict(_effects(sweep.tested), refits, planned, reason, draws)


def _effects(tested: Sequence[Tested]) -> Effects:
    return {
        item.family: {name: r.change(item.goal(name)).value for name, r in item.rates.items()}
        for item in tested
    }


def _chosen(effects: Effects) -> Mapping[str, float]:
    return next(iter(effects.values()), {})


def _statistic(effects: Effects, claim: str) -> float:
    own = _chosen(effects)
    if not own:
        return 0.0
    if claim in ("any", "both"):
        return (_largest if claim == "any" else _smallest)(own.values())
    return own.get(claim, 0.0)


def _largest(values: Iterable[float]) -> float:
    """0 of nothing; NaN with any NaN among them, whatever their order."""
    known = list(values)
    return nan if any(map(isnan, known)) else max(known, default=0.0)


def _smallest(values: Iterable[float]) -> float:
    return -_largest([-value for value in values])


def rank_p(value: float, null: Sequence[float]) -> float:
    """``(1 + those at least as large) / (number + 1)``; ties count against the value, and
    NaN beats nothing."""
    return (1 + sum(not other < value - TIE for other in null)) / (len(null) + 1)
