"""What a study found, in words made from its numbers and held to them."""

from __future__ import annotations

from mechmem.analysis.intervals import Estimate
from mechmem.evaluation.rates import Rates
from mechmem.studies.behavior.results import BehaviorResults
from mechmem.sweeps.result import Sweep, Tested

PAPER = "P1"
"""Families of edits whose name begins like this are the published form."""


def sentence(study: BehaviorResults) -> str:
    """The result in one sentence: behavior, effect, and the verdict."""
    text = _behavior(study) + ", and " + _effect(study.sweep.best)
    if study.card.get("planted"):
        text += "; the reason to switch was planted in training"
    return f"{text[0].upper()}{text[1:]}. {study.verdict.sentence}"


def notes(study: BehaviorResults) -> list[str]:
    """What has to be said beside the sentence: cost, published form, probes, negative control."""
    told = (
        _no_gain(study.sweep),
        _broken(study.sweep.best),
        _clean_cost(study),
        _paper_form(study),
        _probes(study),
    )
    out = [text[0].upper() + text[1:] + "." for text in told if text]
    return [*out, negative_note(study)] if study.negative is not None else out


def headline(study: BehaviorResults) -> str:
    """The verdict in a few words, for a heading."""
    return study.verdict.headline


def _paper_form(study: BehaviorResults) -> str:
    """What the edit in its published form did, where it was tried."""
    best = study.sweep.best
    if best.family.startswith(PAPER):
        return "the chosen edit has the form that the paper (P1) published"
    for tested in study.sweep.tested:
        if tested.family.startswith(PAPER):
            gaps = {toward: tested.beyond_every_control(toward) for toward in tested.rates}
            told = _and(
                [
                    f"{_points(gap)} toward {toward} "
                    f"({'beyond' if gap.low > 0 else 'not beyond'} its controls)"
                    for toward, gap in gaps.items()
                ]
            )
            return f"the edit as the paper (P1) published it reached {told}"
    return ""


def negative_note(study: BehaviorResults) -> str:
    """What the winning family did on the model in which no effect was expected."""
    inner = study.negative
    if inner is None:
        return ""
    found = inner.verdict
    start = f"On {inner.model.name}, in which no effect is expected, the same search: "
    tail = " Read the main result with doubt." if found.turned else ""
    return start + found.sentence[0].lower() + found.sentence[1:] + tail


def limits(study: BehaviorResults) -> list[str]:
    """What the study does not show."""
    groups = len(set(study.sweep.before.prompts.groups))
    out = [
        "Separation and probes show what can be read off the states, not what the model uses. Only "
        "the edits speak about causes, and only as far as they go beyond their controls.",
        "The neurons were ranked by how they differ between behaviors. That a neuron differs does "
        "not make it a cause; the edit moves many at once.",
        f"Everything was measured on one model, one task and one seed ({study.seed}); the "
        f"intervals cover the choice of the {groups} test instances, not of models or tasks.",
    ]
    if study.card.get("planted"):
        out.insert(
            0,
            "The reason to switch between memory and computing was planted when this model was "
            "trained. The study shows that the method finds and turns a switch that is there; it "
            "does not show that models trained on ordinary text have one.",
        )
    if _input_matches(study):
        out.append(
            "A classifier that sees only the input tokens does as well as one on the states. The "
            "prompts themselves give the behavior away, so the probes show nothing about the "
            "states here."
        )
    if not study.clean.shape[0]:
        out.append("The task has no ordinary items, so what the edit costs elsewhere is unknown.")
    if study.negative is None:
        out.append("No negative control model was studied beside this one.")
    if groups < 10:
        out.append(f"With {groups} test instances the intervals are too narrow.")
    return out


def _behavior(study: BehaviorResults) -> str:
    plain = Rates(study.sweep.before, seed=study.seed)
    shares = _and([f"{_share(plain.share(name))} {name}" for name in plain.after.allowed[:2]])
    first = plain.share(plain.after.allowed[0])
    where = f"{first.n:,} unseen prompts of {first.groups} instances"
    return f"on {where} the model's answers were {shares}"


def _effect(best: Tested) -> str:
    moved = _and(
        [
            f"{toward} answers to {_share(rates.share(toward), True)}"
            for toward, rates in best.rates.items()
        ]
    )
    gaps = {toward: best.beyond_every_control(toward) for toward in best.rates}
    told = _and([f"{_points(gap)} toward {toward}" for toward, gap in gaps.items()])
    idle = all(
        rates.before is not None and rates.after.outcomes == rates.before.outcomes
        for rates in best.rates.values()
    )
    did = "changed no answer" if idle else f"took {moved}"
    return (
        f"the chosen edit ({best.family or type(best.edit).__name__}) {did}, which is {told} "
        "beyond the control that it beats by least"
    )


def _no_gain(sweep: Sweep) -> str:
    """Where the search found nothing, its winner is only the first of many that did nothing."""
    best = max(cell.score for cell in sweep.cells)
    if best > 0:
        return ""
    return (
        f"none of the {len(sweep.cells)} settings tried gained both ways on validation prompts, so "
        "what went to test was chosen for doing the least harm"
    )


def _broken(best: Tested) -> str:
    last = next(iter(best.rates.values())).after.allowed[-1]
    shares = {toward: rates.share(last) for toward, rates in best.rates.items()}
    worst = max(shares, key=lambda toward: shares[toward].value)
    if shares[worst].value < 0.01:
        return ""
    return (
        f"the edit turned up to {_share(shares[worst])} of the answers into {last} (toward {worst})"
    )


def _clean_cost(study: BehaviorResults) -> str:
    if study.clean.empty:
        return ""
    rows = study.clean.set_index("setting")["accuracy"]
    told = _and([f"{_percent(value)} {name}" for name, value in rows.items() if name != "unedited"])
    return f"accuracy on ordinary items was {_percent(rows['unedited'])} unedited and {told}"


def _probes(study: BehaviorResults) -> str:
    site, best = max(study.probes.accuracy.items(), key=lambda item: item[1].value)
    given = study.probes.input_only
    if _input_matches(study):
        return (
            f"probes show nothing here, since the input tokens alone give the behavior away "
            f"({_share(given)} against {_share(best)} from the best layer's states)"
        )
    return (
        f"a probe reads the behavior off {site} in {_share(best)} of the cases (input tokens "
        f"alone: {_share(given)})"
    )


def _input_matches(study: BehaviorResults) -> bool:
    best = max(study.probes.accuracy.values(), key=lambda estimate: estimate.value)
    return best.low <= study.probes.input_only.value


def _percent(value: float) -> str:
    return f"{100 * value:.0f} %"


def _share(estimate: Estimate, ends: bool = False) -> str:
    text = _percent(estimate.value)
    return f"{text} [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]" if ends else text


def _points(estimate: Estimate) -> str:
    """A difference of shares in points, with its interval."""
    value, low, high = (100 * part for part in (estimate.value, estimate.low, estimate.high))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}] points"


def _and(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]
