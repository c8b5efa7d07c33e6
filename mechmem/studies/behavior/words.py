"""What a behavior study found, in words made from its results and held to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from mechmem.analysis.intervals import Estimate
from mechmem.analysis.probes import Probes
from mechmem.evaluation.behavior import Observations
from mechmem.evaluation.rates import Rates
from mechmem.plotting.data import p_value
from mechmem.studies.verdict import Verdict
from mechmem.studies.words import few_groups, joined, points, sentence, share, whole_percent
from mechmem.sweeps.result import Sweep, Tested
from mechmem.tasks.base import Task

P1 = "P1"
"""Families of edits whose name begins like this are the published form."""


def answer(found: Sweep, card: Mapping[str, Any], verdict: Verdict) -> str:
    """The result in two sentences: behavior and effect, and the verdict."""
    plain = Rates(found.before)
    first = plain.share(plain.after.allowed[0])
    shares = joined(
        [f"{whole_percent(plain.share(name).value)} {name}" for name in plain.after.allowed[:2]]
    )
    text = (
        f"on {first.n:,} unseen prompts of {first.groups} instances the model's answers were "
        f"{shares}, and {_effect(found.best)}"
    )
    if card.get("planted"):
        text += "; the reason to switch was planted in training"
    return f"{sentence(text)} {verdict.sentence}"


def notes(found: Sweep, clean: pd.DataFrame, probes: Probes, verdict: Verdict) -> list[str]:
    """What has to be said beside the sentence: no gain, cost, published form, probes."""
    told = (
        _no_gain(found),
        _broken(found.best),
        _clean_cost(clean),
        _paper_form(found.tested, verdict),
        _probes(probes),
    )
    return [sentence(text) for text in told if text]


def negative_note(model: str, verdict: Verdict) -> str:
    """What the winning family found on the model in which no effect was expected."""
    told = verdict.sentence[0].lower() + verdict.sentence[1:]
    doubt = " Read the main result with doubt." if verdict.turned else ""
    return f"On {model}, in which no effect is expected, the winning family alone: {told}{doubt}"


def failed_control(reason: str) -> str:
    """That the negative control has no result, and why."""
    return sentence(
        f"the negative control failed and has no result ({reason}); run it as a study of its own"
    )


def limits(
    groups: int,
    probes: Probes,
    *,
    planted: bool,
    clean: bool,
    negative: bool,
    seed: int,
    left_out: Sequence[str] = (),
) -> Iterator[str]:
    """What the study does not show.

    Args:
        groups: Test instances.
        probes: Beside the input tokens alone.
        planted: Whether the reason to switch was built into the training data.
        clean: Whether there were ordinary items.
        negative: Whether a negative control was studied.
        seed: Of the study.
        left_out: What the whole plan has beyond the one that was run.
    """
    if planted:
        yield (
            "The reason to switch between memory and computing was planted when this model was "
            "trained. The study shows that the method finds and turns a switch that is there; it "
            "does not show that models trained on ordinary text have one."
        )
    yield (
        "Separation and probes show what can be read off the states, not what the model uses. Only "
        "the edits speak about causes, and only as far as the verdict goes: going beyond a control "
        "is no test of what was fitted and chosen."
    )
    yield (
        "The neurons were ranked by how they differ between behaviors. That a neuron differs does "
        "not make it a cause; the edit moves many at once."
    )
    yield (
        f"Everything was measured on one model, one task and one seed ({seed}); the intervals "
        f"cover the choice of the {groups} test instances, not of models or tasks."
    )
    if _input_matches(probes):
        yield (
            "A classifier that sees only the input tokens does as well as one on the states. The "
            "prompts themselves give the behavior away, so the probes show nothing about the "
            "states here."
        )
    if not clean:
        yield "The task has no ordinary items, so what the edit costs elsewhere is unknown."
    if not negative:
        yield "No negative control model was studied beside this one."
    if left_out:
        yield f"The plan was shrunk, for the fit and its refits alike: without {joined(left_out)}."
    yield from few_groups(groups, "test instances")


def _gaps(tested: Tested) -> dict[str, Estimate]:
    """How far the edit goes beyond the control that it beats by least, by class steered to."""
    return {toward: tested.beyond_every_control(toward) for toward in tested.rates}


def _effect(best: Tested) -> str:
    moved = joined(
        [
            f"{toward} answers to {share(rates.share(toward))}"
            for toward, rates in best.rates.items()
        ]
    )
    idle = all(
        rates.before is not None and rates.after.outcomes == rates.before.outcomes
        for rates in best.rates.values()
    )
    did = "changed no answer" if idle else f"took {moved}"
    told = joined([f"{points(gap)} toward {toward}" for toward, gap in _gaps(best).items()])
    return (
        f"the chosen edit ({best.family or type(best.edit).__name__}) {did}, which is {told} "
        "beyond the control that it beats by least"
    )


def _no_gain(found: Sweep) -> str:
    """Where the search found nothing, its winner is only the first of many that did nothing."""
    best = max(cell.score for cell in found.cells)
    if best > 0:
        return ""
    return (
        f"none of the {len(found.cells)} settings tried gained both ways on validation prompts, so "
        "what went to test was chosen for doing the least harm"
    )


def _broken(best: Tested) -> str:
    last = next(iter(best.rates.values())).after.allowed[-1]
    became = {
        toward: rates.transitions[last].drop(last).sum() for toward, rates in best.rates.items()
    }
    shares = {toward: float(n) / len(best.rates[toward].after) for toward, n in became.items()}
    worst = max(shares, key=lambda toward: shares[toward])
    if shares[worst] < 0.01:
        return ""
    return (
        f"the edit turned up to {whole_percent(shares[worst])} of the answers into {last} (toward "
        f"{worst})"
    )


def _clean_cost(clean: pd.DataFrame) -> str:
    if clean.empty:
        return ""
    rows = clean.set_index("setting")["accuracy"]
    told = joined(
        [f"{whole_percent(value)} {name}" for name, value in rows.items() if name != "unedited"]
    )
    return f"accuracy on ordinary items was {whole_percent(rows['unedited'])} unedited and {told}"


def _paper_form(tested: Sequence[Tested], verdict: Verdict) -> str:
    """What the edit in its published form did, where it was tried, and its p among the refits."""
    if tested[0].family.startswith(P1):
        return "the chosen edit has the form that the paper (P1) published"
    for one in tested:
        if one.family.startswith(P1):
            told = joined([f"{points(gap)} toward {toward}" for toward, gap in _gaps(one).items()])
            p = verdict.family_p.get(one.family)
            rank = (
                "no refits tested it"
                if p is None
                else f"{p_value(p)} against the best family of every refit"
            )
            return (
                f"the edit as the paper (P1) published it reached {told} beyond the control that "
                f"it beats by least; {rank}"
            )
    return ""


def _probes(probes: Probes) -> str:
    given, read = whole_percent(probes.input_only.value), whole_percent(probes.chosen.value)
    if _input_matches(probes):
        return (
            f"probes show nothing here, since the input tokens alone give the behavior away "
            f"({given} against {read} from the states)"
        )
    if not probes.reads:
        rival = f"guessing gives {whole_percent(probes.majority)}"
        if probes.chosen.low > probes.majority:
            rival = f"the input tokens alone give {given}"
        return (
            f"no probe reads the behavior: {read} of the cases with the layer chosen on the "
            f"training groups, where {rival}"
        )
    return (
        f"a probe reads the behavior in {read} of the cases, its layer chosen on the training "
        f"groups (most often {probes.site}; input tokens alone: {given})"
    )


def _input_matches(probes: Probes) -> bool:
    """Whether the input tokens alone tell the classes as well as the states do."""
    given = probes.input_only
    return given.low > probes.majority and probes.chosen.low <= given.value


def too_few(seen: Observations, task: Task, found: int, needed: int, part: float) -> str:
    """What the model did instead of showing both behaviors in its ``part`` of the groups, with an
    example."""
    pairs = seen.prompts.pairs()
    by_flips = type(task).contrast is Task.contrast
    if not pairs and by_flips:
        return (
            f"None of {len(seen)} training prompts has a rephrasing: no two share a `group`. Give "
            "the rephrasings of one question the same group."
        )
    shares = {name: seen.outcomes.count(name) for name in seen.allowed}
    made = f"pairs of opposite behavior can be made of {len(seen)} training prompts"
    prompt, wrote = seen.prompts[0], seen.completions[0]
    example = (
        f"after {prompt.text!r:.80} the model wrote {wrote!r:.60}, where {prompt.memorized!r} or "
        f"{prompt.generalized!r} was looked for"
        if seen.reading == "text"
        else f"{prompt.memorized!r} minus {prompt.generalized!r} is {seen.margins[0]:.2f} nats "
        f"after {prompt.text!r:.80}"
    )
    return (
        f"Only {found} {f'of {len(pairs)} training pairs are flips' if by_flips else made} "
        f"(outcomes {shares}); a contrast needs at least {needed} in the training part, which "
        f"is {part:.0%} of the groups. For example, {example}. Use more pairs, or a "
        "model that shows both behaviors."
    )
