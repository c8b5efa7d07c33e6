"""Writes docs/questions.md: every question of the page, measured again on the lab models.

    python docs/pages/questions.py [--work build/questions] [--only near-ties]

Models for comparison that the work folder holds already are not trained again; delete them to start
from nothing. With ``--only`` one section is measured again and put in its place in the page.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
from helper import write_page
from paper_lab import row_of

import mechmem as mm
from mechmem import plotting
from mechmem.analysis.draws import DRAWS
from mechmem.studies.words import estimate_of
from mechmem.tasks.lab.addition_cued import CUES

HERE = Path(__file__).parents[1]
RUNS = {
    "width-32-seed-0": {"seed": 0, "width": 32},
    "width-32-seed-1": {"seed": 1, "width": 32},
    "width-64-seed-1": {"seed": 1},
    "width-64-seed-2": {"seed": 2},
    "width-128-seed-0": {"seed": 0, "width": 128},
    "no-special-seed-0": {"seed": 0, "special": False},
    "no-special-seed-1": {"seed": 1, "special": False},
    "no-special-seed-2": {"seed": 2, "special": False},
}
HEAD = """# Questions a reviewer asks

Each question has a function, a figure, and an answer of the shipped lab model `lab/addition-cued`.
**Its mode is [planted](lab-models.md)**: the numbers show what the functions measure and how to
read them, not what large models do. Written by `python docs/pages/questions.py`; `--only NAME`
measures the section again whose picture has that name.

Unless a section says otherwise: 600 pairs of prompts (`task.pairs(600, seed=1)`), divided by
instance; fitted on {flips} flips of 60 % of the instances, measured on {test} prompts of the
{groups} others. Two edits, fixed beforehand and not chosen on these prompts: **window** shifts
block 0 at the cue words and the last token, each position by its own mean difference, alpha 1;
**published** shifts the top 10 % of residual coordinates of all layers at the last position, ranked
by correlation, alpha 1. A control is the same shift on as many random neurons, scaled to the same
length: {draws} draws, their spread inside the interval; of near-ties one draw. Intervals are 95 %,
from resampling instances. In the snippets `edit` is one of the two,
`test` those prompts, `acts` and `scores` the states and differences that they were fitted on,
`seen` and `rates` what was observed; the script has how each was made.
"""


@dataclass(frozen=True)
class Section:
    """One question."""

    name: str
    title: str
    asked: str
    code: str
    answer: Callable[[Scene], tuple[str, object]]


class Scene:
    """Model, prompts and fits that the sections share."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.model = mm.load_model("lab/addition-cued")
        self.task = mm.get_task("addition-cued")
        parts = self.task.pairs(600, seed=1).split(train=0.6, test=0.4, seed=0)
        self.test = parts.test
        self.flips = mm.observe(self.model, parts.train, task=self.task, margins=False).flips()
        self.spans = list(self.task.read_spans)

    @cached_property
    def acts(self) -> mm.Activations:
        return mm.cache_activations(self.model, self.flips)

    @cached_property
    def window_acts(self) -> mm.Activations:
        return mm.cache_activations(self.model, self.flips, positions=self.spans)

    @cached_property
    def scores(self) -> mm.NeuronScores:
        return mm.neuron_mean_difference(self.acts)

    @cached_property
    def window(self) -> mm.ShiftNeurons:
        return window_of(self.window_acts)

    @cached_property
    def published(self) -> mm.ShiftNeurons:
        return mm.ShiftNeurons(self.scores, top=0.1, alpha=1.0)

    @cached_property
    def seen(self) -> mm.Observations:
        return mm.observe(self.model, self.test, task=self.task)

    def trained(self, name: str) -> tuple[mm.Model, mm.Task]:
        """A model for comparison with its task, trained now where the work folder lacks it."""
        folder = self.work / name
        if not (folder / "manifest.json").is_file():
            print(f"training {name}", flush=True)
            mm.train_lab_model("addition-cued", folder, **RUNS[name])
        return mm.load_model(folder), mm.get_task("addition-cued", seed=RUNS[name]["seed"])


def window_of(acts: mm.Activations) -> mm.ShiftNeurons:
    scores = mm.neuron_mean_difference(acts)
    return mm.ShiftNeurons(scores, top=1.0, alpha=1.0, at=[("resid_post", 0)])


def share(value: object, sign: bool = False) -> str:
    """An estimate of a share, as percent with its interval."""
    mark = "+" if sign else ""
    unit = " points" if sign else " %"
    return (
        f"{100 * value.value:{mark}.1f}{unit} [{100 * value.low:{mark}.1f}, "
        f"{100 * value.high:{mark}.1f}]"
    )


def plain(value: object, digits: int = 2, sign: bool = False) -> str:
    mark = "+" if sign else ""
    return (
        f"{value.value:{mark}.{digits}f} [{value.low:{mark}.{digits}f}, "
        f"{value.high:{mark}.{digits}f}]"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def layers(scene: Scene) -> tuple[str, object]:
    found = mm.layer_distribution(scene.acts, top=0.1)
    rows = []
    for ranking, sites in found.share.items():
        cells = []
        for site, value in sites.items():
            mean, low, high = found.shuffled[ranking][site]
            cells.append(
                f"{100 * value.value:.0f} % [{100 * value.low:.0f}, {100 * value.high:.0f}]; "
                f"{100 * mean:.0f} % [{100 * low:.0f}, {100 * high:.0f}]"
            )
        rows.append([ranking, *cells])
    n = next(iter(found.share["correlation"].values()))
    deepest = max(site.layer for site in found.even)
    last = {
        name: next(s for site, s in sites.items() if site.layer == deepest)
        for name, sites in found.share.items()
    }
    null = next(v for site, v in found.shuffled["mean_difference"].items() if site.layer == deepest)
    text = (
        f"Share of the {found.chosen} chosen neurons after each block; after the semicolon "
        f"when the classes are exchanged within the pairs (mean and middle 95 % of 200 "
        f"draws); n = {n.n} prompts in {n.groups} instances, an even spread is "
        f"{100 * next(iter(found.even.values())):.0f} %.\n\n"
        + table(["ranking", *(f"block {site.layer}" for site in found.even)], rows)
        + "\n\nStates grow with depth, so the raw mean difference favors late blocks whatever the "
        f"classes are: {100 * null[0]:.0f} % in block {deepest} with exchanged classes. The "
        f"observed choice does not lie there ({100 * last['mean_difference'].value:.0f} %; by "
        f"correlation {100 * last['correlation'].value:.0f} %)."
    )
    return text, plotting.layer_shares(found)


def graded(scene: Scene) -> tuple[str, object]:
    found = {
        name: mm.evaluation.margin_response(scene.model, edit, scene.test, task=scene.task)
        for name, edit in (("window", scene.window), ("published", scene.published))
    }
    rows = []
    for name, response in found.items():
        for toward, step in response.largest_step.items():
            at = response.alphas.index(1.0)
            rows.append(
                [
                    name,
                    toward,
                    plain(response.change[toward]["edit"][at], sign=True),
                    plain(response.change[toward]["control"][at], sign=True),
                    share(response.share[toward]["edit"][at]),
                    plain(step),
                    plain(response.linearity[toward]),
                ]
            )
    steady = found["window"].steady_step
    text = (
        "Nine strengths, alpha 0 to 2. *Largest step*: of the way that the margin of one prompt "
        f"goes, the share that falls into a single step; a switch has 1, a steady dial {steady:.3f}"
        ". *Linearity*: squared correlation of one prompt's margin with alpha.\n\n"
        + table(
            [
                "edit",
                "toward",
                "margin moves at alpha 1 (nats)",
                "control",
                "share at alpha 1",
                "largest step",
                "linearity",
            ],
            rows,
        )
        + f"\n\nn = {len(scene.test)} prompts. The shift is graded, not a switch; where the "
        "linearity is well below 1, the margin of some prompts turns back."
    )
    return text, plotting.margin_response(found["window"])


def together(scene: Scene) -> tuple[str, object]:
    found = mm.neuron_clusters(scene.acts, scene.scores.top(0.1))
    several = [size for size in found.sizes if size > 1]
    exchanged = found.shuffled
    parts = {f"cluster {k}": found.members(k) for k in range(len(found.sizes))}
    effects = mm.evaluation.interaction(
        scene.model, scene.published, scene.test, parts=parts, task=scene.task
    )
    rows = []
    for toward, kinds in effects.effects.items():
        for kind, values in kinds.items():
            rows.append(
                [
                    toward,
                    "shift" if kind == "edit" else "values exchanged",
                    plain(values["joint"], sign=True),
                    plain(values["sum of parts"], sign=True),
                    plain(values["interaction"], sign=True),
                ]
            )
    text = (
        f"The {len(found.neurons)} neurons of *published* fall into {len(several)} clusters of "
        f"{min(several, default=0)} to {max(several, default=0)} neurons "
        f"({len(found.sizes) - len(several)} vary alone), "
        "found on one half of the instances. On the other half the mean |r| within them is "
        f"{plain(found.within)}, across them {plain(found.between)}; with each neuron's values "
        f"exchanged among the prompts of a class {exchanged['within'][0]:.2f} "
        f"(n = {found.n} prompts in {found.groups} instances). The neurons span about "
        f"{plain(found.dimensions, 1)} independent axes (exchanged: "
        f"{exchanged['dimensions'][0]:.1f}). "
        "Part of this is the residual stream itself, which hands a coordinate on to the next "
        "block.\n\nEffects on the answer margin in nats, counted toward the class, "
        f"n = {len(scene.test)}:\n\n"
        + table(["toward", "kind", "all at once", "sum of the parts", "interaction"], rows)
        + "\n\nInteraction below 0: the parts partly replace each other; interval that holds 0: "
        "they add up."
    )
    return text, plotting.interaction(effects)


def holding(scene: Scene) -> tuple[str, object]:
    halves = {
        r: mm.split_halves(scene.acts, top=0.1, ranking=r)
        for r in ("correlation", "mean_difference")
    }
    rows = []
    for ranking, found in halves.items():
        for row in found.table().to_dict("records"):
            rows.append(
                [
                    ranking,
                    str(row["statistic"]).replace("_", " "),
                    f"{row['mean']:.2f} ({row['mean_low']:.2f} to {row['mean_high']:.2f})",
                    f"{row['shuffled']:.2f} ({row['shuffled_low']:.2f} to "
                    f"{row['shuffled_high']:.2f})",
                    f"{row['chance']:.2f}",
                ]
            )
    known = set(scene.flips.groups)
    fresh = scene.task.pairs(600, seed=2).filter(lambda p: p.group in known)
    other = mm.observe(scene.model, fresh, task=scene.task, margins=False).flips()
    again = mm.neuron_mean_difference(mm.cache_activations(scene.model, other))
    seeds = mm.neuron_overlap(scene.scores, again, top=0.1)
    text = (
        f"Halves of the instances, 100 random divisions, top {halves['correlation'].top} of "
        f"{halves['correlation'].total} neurons, n = {halves['correlation'].n} prompts in "
        f"{halves['correlation'].groups} instances; in brackets the middle 95 % of the divisions, "
        "not an interval.\n\n"
        + table(["ranking", "statistic", "observed", "classes exchanged", "chance"], rows)
        + "\n\nExchanged classes share more than independent choices would, because coordinates "
        "are correlated: that is the level to beat. Fresh prompts of the same instances (seed 2 "
        f"instead of 1): {seeds.shared} of {seeds.top} neurons shared (chance "
        f"{seeds.chance[0]:.1f}, 95 % below {seeds.chance[2]:.0f}), "
        f"{seeds.signs[1]} of {seeds.signs[0]} in the same direction."
    )
    return text, plotting.split_halves(
        {"by correlation": halves["correlation"], "by difference": halves["mean_difference"]}
    )


def _beyond(found: mm.evaluation.EditTransfer, name: str) -> str:
    """The classes toward which an edit goes beyond its control on training seed 1."""
    sides = ("memorized", "generalized")
    return " and ".join(s for s in sides if found.beyond(name, "seed 1", s).low > 0) or "neither"


def transfer(scene: Scene) -> tuple[str, object]:
    kinds = {"sum shown": True, "sum never shown": False}

    def part(prompts: mm.PromptSet, shown: bool) -> mm.PromptSet:
        return prompts.filter(lambda p: p.meta["shows_sum"] == shown)

    states = {name: scene.window_acts.select(part(scene.flips, k)) for name, k in kinds.items()}
    probes = mm.evaluation.probe_transfer(states, site=("resid_post", 0))
    edits = mm.evaluation.edit_transfer(
        scene.model,
        {name: window_of(acts) for name, acts in states.items()},
        {name: part(scene.test, k) for name, k in kinds.items()},
        task=scene.task,
    )
    rows = []
    for fitted in kinds:
        for tested in kinds:
            value = probes.accuracy[fitted][tested]
            rows.append(
                [
                    fitted,
                    tested,
                    share(value),
                    f"{100 * probes.shuffled[fitted][tested].value:.0f} %",
                    share(edits.beyond(fitted, tested, "memorized"), True),
                    share(edits.beyond(fitted, tested, "generalized"), True),
                ]
            )
    other, other_task = scene.trained("width-64-seed-1")
    forced = {"seed 0": replace(scene.window, force=True)}
    parts = other_task.pairs(600, seed=1).split(train=0.6, test=0.4, seed=0)
    own = mm.observe(other, parts.train, task=other_task, margins=False).flips()
    forced["seed 1"] = window_of(mm.cache_activations(other, own, positions=scene.spans))
    known = set(scene.flips.groups)
    prompts = parts.test.filter(lambda p: p.group not in known)
    away = mm.evaluation.edit_transfer(other, forced, {"seed 1": prompts}, task=other_task)
    between = [
        [
            name,
            share(away.change(name, "seed 1", "memorized"), True),
            share(away.beyond(name, "seed 1", "memorized"), True),
            share(away.change(name, "seed 1", "generalized"), True),
            share(away.beyond(name, "seed 1", "generalized"), True),
        ]
        for name in forced
    ]
    n = edits.change("sum shown", "sum shown", "memorized")
    text = (
        "The lab model knows one task; special sets whose sum training showed and those whose sum "
        "it never showed stand for two. Probe: "
        "accuracy on block 0, cue words and last token. Edit: *window*, change of the share beyond "
        f"the control. About {n.n} prompts in {n.groups} instances per cell; the diagonal is held "
        "out too.\n\n"
        + table(
            [
                "fitted on",
                "tested on",
                "probe",
                "classes exchanged",
                "edit toward memorized",
                "edit toward generalized",
            ],
            rows,
        )
        + "\n\nA probe on the input tokens alone does as well ([the lab models](lab-models.md)), "
        "so the probe's transfer says that both kinds obey the same cue words. The edit's is the "
        "stronger evidence. Sets of other tasks, "
        "each with refits: `mm.evaluation.compare_axes` ([a real model](real-model.md)). Between "
        "models trained from different seeds coordinates are not aligned: `neuron_overlap` and "
        "`probe_transfer` refuse to compare them, an edit can be forced onto the other model. "
        f"On training seed 1 (n = {len(prompts)} prompts):\n\n"
        + table(
            [
                "edit fitted on",
                "toward memorized",
                "beyond its control",
                "toward generalized",
                "beyond its control",
            ],
            between,
        )
        + f"\n\nBeyond its control: the foreign edit toward {_beyond(away, 'seed 0')}, the model's "
        f"own toward {_beyond(away, 'seed 1')}."
    )
    return text, plotting.transfer_matrix(edits)


def costs(scene: Scene) -> tuple[str, object]:
    clean = scene.task.clean_prompts(400, seed=1)
    rows = []
    found = {}
    for name, edit in (("window", scene.window), ("published", scene.published)):
        found[name] = mm.side_effects(scene.model, edit, clean=clean, task=scene.task)
        for setting, values in found[name].values.items():
            if setting == "unedited" and name == "published":
                continue
            rows.append(
                [
                    "" if setting == "unedited" else name,
                    setting,
                    plain(values["kl"], 3),
                    share(values["accuracy"]),
                    share(found[name].changes[setting]["accuracy"], True),
                    plain(values["answer_perplexity"]),
                ]
            )
    n = found["window"].values["unedited"]["kl"]
    text = (
        f"{n.n} ordinary sums of {n.groups} instances that training never showed. KL is from the "
        "unedited to the edited distribution of the answer. Perplexity is that of the right "
        "answer, since this model was trained on answers only; `texts=` gives it per token of "
        "neutral text.\n\n"
        + table(
            ["edit", "setting", "KL (nats)", "accuracy", "change", "perplexity of the answer"], rows
        )
        + "\n\nSteering toward memorized costs accuracy on ordinary sums, a random shift of the "
        "same length does not; toward generalized the interval of the cost holds 0."
    )
    return text, plotting.side_effects(found["window"])


def cue(scene: Scene, rank: float) -> Callable[[mm.Prompt], mm.Prompt]:
    """Exchange the cue words for those at a place in the order of their hidden weights."""
    world = scene.task.world
    score = world.weights[0][:, None, None] + world.weights[1][:, None] + world.weights[2]
    order = [k for k in np.argsort(score, axis=None) if world.reserved.ravel()[k]]
    picked = np.unravel_index(order[round(rank * (len(order) - 1))], score.shape)
    words = " ".join(slot[int(k)] for slot, k in zip(CUES, picked, strict=True))

    def rewrite(prompt: mm.Prompt) -> mm.Prompt:
        start, end = prompt.spans["cue"]
        return replace(prompt, text=prompt.text[:start] + words + prompt.text[end:], spans={})

    return rewrite


def prompts(scene: Scene) -> tuple[str, object]:
    example = scene.task.clean_prompts(1, seed=3)[0]
    found = mm.evaluation.prompting(
        scene.model,
        scene.test,
        {
            "cue words for memory": cue(scene, 1.0),
            "cue words for sums": cue(scene, 0.0),
            "cue words in the middle (control)": cue(scene, 0.5),
            "one solved sum in front": f"{example.text} {example.answer} ",
        },
        edits={
            "window, memorized": replace(scene.window, toward="memorized"),
            "window, generalized": replace(scene.window, toward="generalized"),
        },
        task=scene.task,
    )
    rows = [
        [name, found.kinds[name], *(share(rates.share(outcome)) for outcome in rates.after.allowed)]
        for name, rates in found.rates.items()
    ]
    one = found.compared("cue words for memory", "window, memorized", "memorized")
    two = found.compared("cue words for sums", "window, generalized", "generalized")
    text = (
        f"{len(scene.test)} prompts, the same for all. The model understands no instruction but "
        "its cue words; the exchanged ones are combinations that training never showed with these "
        "instances.\n\n"
        + table(["setting", "kind", "memorized", "generalized", "other"], rows)
        + f"\n\nPrompt minus edit, item by item: {share(one, True)} memorized, {share(two, True)} "
        "generalized. Where the prompt can carry the mode, it does so more fully than the edit. An "
        "example in front, which training never showed, only breaks the answer."
    )
    return text, plotting.prompting(found)


def repeat(scene: Scene) -> tuple[str, object]:
    some = scene.test[:200]
    same = mm.evaluation.determinism(scene.model, some, task=scene.task)
    drawn = mm.evaluation.sampling(
        scene.model, scene.test, task=scene.task, temperatures=(0.25, 0.5, 1.0, 2.0)
    )
    rows = [
        [
            f"{t:g}",
            share(drawn.as_greedy(t)),
            share(drawn.agreement(t)),
            share(drawn.both(t)),
            share(drawn.share(t, "memorized")),
            share(drawn.share(t, "other")),
        ]
        for t in drawn.outcomes
    ]
    greedy = "; ".join(
        f"{name}: {100 * value.value:.0f} % of {value.n} answers the same, logits differ by at "
        f"most {same.logits[name][0]:.1g} of {same.logits[name][1]:.3g}"
        for name, value in same.same.items()
    )
    text = (
        f"Greedy: {greedy}.\n\nSampled, 10 draws per prompt, {len(scene.test)} prompts:\n\n"
        + table(
            [
                "temperature",
                "as greedy",
                "two draws alike",
                "prompts with both behaviors",
                "memorized",
                "other",
            ],
            rows,
        )
        + "\n\nA flip between rephrasings is not noise of decoding: greedy answers repeat."
    )
    return text, plotting.sampling(drawn)


def ties(scene: Scene) -> tuple[str, object]:
    edit = scene.window
    results: dict[str, object] = {"rephrasings": scene.seen}
    controls = {}
    for toward in ("memorized", "generalized"):
        aimed = replace(edit, toward=toward)
        control = mm.controls(aimed, scene.model, seed=0)["random neurons"]
        results[f"toward {toward}"], controls[f"random neurons, {toward}"] = mm.evaluate_each(
            scene.model, scene.test, [aimed, control], task=scene.task, before=scene.seen
        )
    found = mm.evaluation.near_ties(results, controls=controls)
    head = [
        "turned by",
        *(f"{a:.1f} to {b:.1f}" for a, b in zip(found.edges, found.edges[1:], strict=False)),
        "of those turned, decided before",
    ]
    rows = [
        [name, *(f"{100 * s.value:.0f} %" for s in bins), share(found.decided[name][0])]
        for name, bins in found.flips.items()
    ]
    everyone = found.decided["rephrasings"][1]
    text = (
        "Share of the prompts whose answer turned, by |answer margin| before in nats "
        f"({found.flips['rephrasings'][0].n} prompts per bin). *Decided*: |margin| above "
        f"{found.threshold:g} nat; that is {share(everyone)} of all prompts.\n\n"
        + table(head, rows)
        + "\n\nRephrasings turn decided answers at least as often as near-ties: the words decide, "
        "not chance. The edit turns answers that were decided by several nats, its control hardly "
        "any above 3; the more decided an answer is, the rarer the edit turns it."
    )
    return text, plotting.near_ties(found)


def partly(scene: Scene) -> tuple[str, object]:
    strong = replace(scene.window, alpha=2.0)
    rates = mm.evaluate(scene.model, scene.test, task=scene.task, edit=strong, before=scene.seen)
    usual, edited = (
        mm.evaluation.graded_answers(scene.seen),
        mm.evaluation.graded_answers(rates.after),
    )
    rows = []
    for name, item in (("unedited", usual), ("window, alpha 2", edited)):
        for row in item.summary().to_dict("records"):
            if row["n"]:
                rows.append(
                    [
                        name,
                        str(row["outcome"]),
                        str(row["answer"]),
                        f"{row['similarity']:.2f}",
                        f"{row['chance']:.2f} [{row['chance_low']:.2f}, {row['chance_high']:.2f}]",
                        str(row["n"]),
                    ]
                )
    divided = usual.preference
    middle = np.mean((divided > 0.1) & (divided < 0.9))
    text = (
        "Similarity of what was written to each answer (1: letter by letter), beside the "
        "similarity to another instance's answer.\n\n"
        + table(["model", "classified as", "answer", "similarity", "chance", "n"], rows)
        + "\n\nAn answer is one number, so nothing can be half written: what is "
        "neither answer is about as similar to the memorized one as chance, and a shared digit "
        "looks like half an answer. Closer to the memorized answer than 95 % of chance, without "
        f"being it: {share(edited.partly('memorized'))} of the others under the edit. They share "
        "a digit with the sum more often than chance: missed sums, no half memories. The "
        f"probabilities are graded: for {100 * middle:.1f} % of {len(divided)} unedited prompts "
        "the memorized answer gets between 10 and 90 % of what both answers get together."
    )
    return text, plotting.graded_answers(edited)


def training(scene: Scene) -> tuple[str, object]:
    rows, drawn = [], {}
    for seed in (0, 1, 2):
        without, task = scene.trained(f"no-special-seed-{seed}")
        with_ = scene.model if seed == 0 else scene.trained(f"width-64-seed-{seed}")[0]
        models = {"ordinary sums only": without, "with special sums": with_}
        found = mm.evaluation.compare_models(models, task.clean_prompts(1000, seed=1), task=task)
        change = found.accuracy_change["with special sums"]
        rows.append(
            [
                str(seed),
                share(found.accuracy["ordinary sums only"]),
                share(found.accuracy["with special sums"]),
                share(change, True),
                plain(found.surprise_change["with special sums"], sign=True),
            ]
        )
        drawn[seed] = found
    text = (
        "The other model is trained on the ordinary half of every batch alone: the same sums, "
        "order and number of steps, no special prompt. 1,000 held-out sums (`seed=1`; [the lab "
        "models](lab-models.md) draws others) per training seed.\n\n"
        + table(
            [
                "training seed",
                "ordinary sums only",
                "with special sums",
                "difference",
                "surprise at the right answer (nats)",
            ],
            rows,
        )
        + "\n\nThe intervals are over items; the three seeds show how much the training itself "
        "varies."
    )
    return text, plotting.model_accuracy(drawn[0])


def sizes(scene: Scene) -> tuple[str, object]:
    models = {"width 64, seed 0": (scene.model, scene.task)}
    for name in RUNS:
        if name.startswith("width"):
            label = name.replace("-seed-", ", seed ").replace("width-", "width ")
            models[label] = scene.trained(name)
    models = dict(sorted(models.items(), key=lambda pair: (pair[1][0].info.d_model, pair[0])))

    def fit(model: mm.Model, flips: mm.PromptSet) -> mm.Edit:
        return window_of(mm.cache_activations(model, flips, positions=scene.spans))

    found = mm.evaluation.effect_by_model(models, fit, n=600, seed=1)
    measured, rows = found.table(), []
    for name in models:
        seen = found.observed[name]
        rows.append(
            [
                name,
                f"{found.parameters[name]:,}",
                f"{100 * np.mean([o == 'memorized' for o in seen.outcomes]):.1f} %",
                f"{100 * seen.flip_rate:.1f} %",
                *(
                    share(estimate_of(row_of(measured, model=name, toward=t), "beyond"), True)
                    if found.rates[name]
                    else "too few flips"
                    for t in ("memorized", "generalized")
                ),
            ]
        )
    n = len(next(iter(found.observed.values())))
    text = (
        "The same recipe with residual streams of 32, 64 and 128 coordinates (4 blocks each), and "
        f"*window* fitted on each; {n} prompts per model, change beyond the control.\n\n"
        + table(
            [
                "model",
                "weights",
                "memorized, unedited",
                "flip rate",
                "toward memorized",
                "toward generalized",
            ],
            rows,
        )
        + f"\n\nThe control: {measured['draws'].max()} draws, whose shares spread by "
        f"{100 * measured['spread'].max():.1f} points at most; edits moved a state by "
        f"{_from_to(measured['size'])}, controls by {_from_to(measured['control_size'])}. One to "
        "three trainings per size: differences no larger than those between the seeds of one size "
        "say nothing about size."
    )
    return text, plotting.effect_by_model(found)


def _from_to(values: pd.Series) -> str:
    return f"{values.min():.2f} to {values.max():.2f}"


SECTIONS = [
    Section(
        "layers",
        "Where do the chosen neurons lie?",
        "In which layers, and how much of it is scale?",
        "found = mm.layer_distribution(acts, top=0.1)\nmm.plotting.layer_shares(found)",
        layers,
    ),
    Section(
        "graded",
        "Is the shift a switch or a dial?",
        "A label is one or the other; does the margin of a prompt jump, or move steadily?",
        "found = mm.evaluation.margin_response(model, edit, test, task=task)\n"
        "mm.plotting.margin_response(found)",
        graded,
    ),
    Section(
        "together",
        "Do neurons act alone or together?",
        "Which of the chosen neurons vary together, and does their joint shift do more than "
        "the single ones?",
        "clusters = mm.neuron_clusters(acts, scores.top(0.1))\n"
        "mm.plotting.neuron_clusters(clusters)\n"
        "parts = {f'cluster {k}': clusters.members(k) for k in range(len(clusters.sizes))}\n"
        "found = mm.evaluation.interaction(model, edit, test, parts=parts, task=task)\n"
        "mm.plotting.interaction(found)",
        together,
    ),
    Section(
        "halves",
        "Do they hold across halves and prompts?",
        "Does another half of the instances choose the same neurons, in the same direction?",
        "found = mm.split_halves(acts, top=0.1)\nmm.plotting.split_halves(found)\n"
        "mm.neuron_overlap(scores, other_scores, top=0.1).table()",
        holding,
    ),
    Section(
        "transfer",
        "Do probes and edits carry over?",
        "From one kind of instance, or one task, to another; from one model to another?",
        "mm.plotting.transfer_matrix("
        "mm.evaluation.probe_transfer(states, site=('resid_post', 0)))\n"
        "mm.plotting.transfer_matrix("
        "mm.evaluation.edit_transfer(model, edits, prompts, task=task))",
        transfer,
    ),
    Section(
        "costs",
        "What does an edit cost?",
        "On prompts that it is not about: KL, accuracy, perplexity.",
        "found = mm.side_effects(model, edit, clean=task.clean_prompts(400, seed=1), task=task)\n"
        "mm.plotting.side_effects(found)",
        costs,
    ),
    Section(
        "prompts",
        "How does a changed prompt compare?",
        "An instruction, other cue words or examples, on the same items as the edit.",
        "found = mm.evaluation.prompting(\n"
        "    model, test, {'instruction': 'Remember. '}, edits={'edit': edit}, task=task\n"
        ")\nmm.plotting.prompting(found)",
        prompts,
    ),
    Section(
        "repeat",
        "Does the same prompt twice give the same answer?",
        "With greedy decoding, and when answers are sampled.",
        "mm.evaluation.determinism(model, test, task=task).table()\n"
        "mm.plotting.sampling(mm.evaluation.sampling(model, test, task=task))",
        repeat,
    ),
    Section(
        "near-ties",
        "Do only near-ties turn?",
        "Flip rate against how decided the answer was.",
        "found = mm.evaluation.near_ties(\n"
        "    {'rephrasings': seen, 'edit': rates}, controls={'random': mixed}\n)\n"
        "mm.plotting.near_ties(found)",
        ties,
    ),
    Section(
        "partly",
        "What about partly remembered answers?",
        "A graded score beside the three classes.",
        "graded = mm.evaluation.graded_answers(seen)\nmm.plotting.graded_answers(graded)",
        partly,
    ),
    Section(
        "training",
        "What does training the memorized part cost?",
        "On clean items, against a model trained without it.",
        "mm.train_lab_model('addition-cued', 'without', special=False)\n"
        "found = mm.evaluation.compare_models({'without': without, 'with': model},\n"
        "                          task.clean_prompts(1000, seed=1), task=task)\n"
        "mm.plotting.model_accuracy(found)",
        training,
    ),
    Section(
        "sizes",
        "Does the effect change with model size?",
        "Three widths of the lab recipe.",
        "mm.train_lab_model('addition-cued', 'small', width=32)\n"
        "models = {'width 32': (small, task), 'width 64': (model, task)}\n"
        "found = mm.evaluation.effect_by_model(models, fit)"
        "\nmm.plotting.effect_by_model(found)",
        sizes,
    ),
]


def replaced(page: str, section: str) -> list[str]:
    """The parts of the page with one section exchanged."""
    parts = re.split(r"\n(?=## )", page)
    title = section.splitlines()[0]
    return [section if part.splitlines()[0] == title else part for part in parts]


def compared(work: Path) -> str:
    """The models that some sections compare, all of them trained by then."""
    steps = {
        json.loads((work / name / "manifest.json").read_text())["training"]["steps"]
        for name in RUNS
    }
    return (
        f"## The models for comparison\n\n{len(RUNS)} models, {', '.join(map(str, steps))} steps "
        "each, all of the recipe of [the lab models](lab-models.md): "
        + ", ".join(f"`{name}`" for name in RUNS)
        + ".\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("build/questions"))
    parser.add_argument("--only", choices=[section.name for section in SECTIONS])
    asked = parser.parse_args()
    scene = Scene(asked.work)
    flips = len(scene.flips)
    head = HEAD.format(
        flips=flips // 2, test=len(scene.test), groups=len(set(scene.test.groups)), draws=DRAWS
    )
    parts, figures = [head], {}
    for section in SECTIONS:
        if asked.only not in (None, section.name):
            continue
        print(f"measuring {section.name}", flush=True)
        text, figure = section.answer(scene)
        figures[section.name] = figure
        image = f"![{section.name}](assets/questions/{section.name}.png)"
        parts.append(
            f"## {section.title}\n\n{section.asked}\n\n"
            f"```py\n{section.code}\n```\n\n{image}\n\n{text}\n"
        )
    if asked.only is None:
        parts.append(compared(asked.work))
    page, folder = HERE / "questions.md", HERE / "assets" / "questions"
    folder.mkdir(parents=True, exist_ok=True)
    for figure in figures.values():
        figure.update_layout(width=860)
    plotting.save_figures(figures, folder, "png", scale=1.2)
    if asked.only is not None:
        parts = replaced(page.read_text(encoding="utf-8"), parts[1])
    write_page(page, "\n".join(parts), long=4)
    print(f"wrote {page}")


if __name__ == "__main__":
    main()
