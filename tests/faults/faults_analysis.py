"""Statistics over states."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import helpers
import torch
from fault_scene import SITE, Fault, Scene, wide_directions

import mechmem as mm

NAN, INF = float("nan"), float("inf")


def of_class(s: Scene, behavior: str | None) -> mm.Activations:
    """The shared states, all of one class."""
    told = mm.PromptSet(replace(p, behavior=behavior) for p in s.prompts)
    return s.acts.select(told)


def three(s: Scene) -> mm.Activations:
    names = ("memorized", "generalized", "other")
    told = mm.PromptSet(replace(p, behavior=names[k % 3]) for k, p in enumerate(s.prompts))
    return s.acts.select(told)


def toward(acts: mm.Activations, name: str = "generalized", **options: Any) -> Any:
    return mm.difference_of_means(acts, toward=name, **options)


def several(s: Scene) -> mm.Activations:
    return mm.cache_activations(s.model, s.prompts, sites=[SITE], positions=[-1, -2])


def moments(s: Scene, **options: Any) -> mm.Moments:
    return mm.cache_moments(s.model, s.prompts, **{"by": "label", "sites": [SITE], **options})


def zero_direction(s: Scene) -> Any:
    return replace(s.direction, vector=torch.zeros(16, dtype=torch.float64)).unit


TOP = "top must be a number of neurons (an integer from 1) or a share (a float in (0, 1])"

FAULTS = [
    Fault(
        "take directions of one class only",
        lambda s: toward(of_class(s, "generalized")),
        mm.PromptError,
        "A contrast by behavior needs 2 classes, but 16 prompts show 'generalized'",
        "observe the model first and use its flips: mm.observe(...).flips()",
    ),
    Fault(
        "take directions of prompts without a class",
        lambda s: toward(of_class(s, None)),
        mm.PromptError,
        "A contrast by behavior needs 2 classes, but 16 prompts show none",
        "mm.observe(...).flips()",
    ),
    Fault(
        "take directions toward a class that nobody shows",
        lambda s: toward(s.acts, "reasoning"),
        mm.PromptError,
        "No examples of class 'reasoning'; the classes are 'generalized', 'memorized' with counts",
        "Choose one of them, or by='behavior' or by='label'",
    ),
    Fault(
        "take directions among three classes",
        lambda s: toward(three(s)),
        mm.PromptError,
        "toward='generalized' leaves 'memorized', 'other' on the other side",
        "say away=.",
    ),
    Fault(
        "take directions of no example",
        lambda s: toward(s.acts.take([])),
        mm.PromptError,
        "No examples to take a difference of means of: the set is empty.",
        "Cache more prompts",
    ),
    Fault(
        "take directions of states that hold NaN",
        lambda s: toward(s.bent(NAN)),
        mm.PromptError,
        "States at resid_post[1] are not finite (NaN or infinity) for class 'memorized'",
        "Is the dtype too small?",
    ),
    Fault(
        "take neuron differences of states that hold infinity",
        lambda s: mm.neuron_mean_difference(s.bent(INF)),
        mm.PromptError,
        "States at resid_post[1] are not finite (NaN or infinity)",
        "Is the dtype too small?",
    ),
    Fault(
        "fit probes on states that hold NaN",
        lambda s: mm.fit_probes(s.bent(NAN)),
        mm.PromptError,
        "States at resid_post[1] are not finite",
        "Is the dtype too small?",
    ),
    Fault(
        "take directions of several positions",
        lambda s: toward(several(s)),
        mm.PositionError,
        "A direction belongs to one position, these states have '-1', '-2'",
        "choose one with acts.at('last'), or cache with positions='mean'.",
    ),
    Fault(
        "take neuron differences of one example per class",
        lambda s: mm.neuron_mean_difference(s.acts.take([0, 1])),
        mm.MechmemError,
        "A spread needs at least two examples of each class, got memorized: 1, generalized: 1.",
        "Observe more prompts.",
    ),
    Fault("choose no neuron", lambda s: s.scores.top(0), mm.MechmemError, "got 0", TOP),
    Fault(
        "choose a share of neurons above 1",
        lambda s: s.scores.top(1.5),
        mm.MechmemError,
        "got 1.5",
        TOP,
    ),
    Fault(
        "choose a share of NaN neurons",
        lambda s: s.scores.top(NAN),
        mm.MechmemError,
        "got nan",
        TOP,
    ),
    Fault("choose True neurons", lambda s: s.scores.top(True), mm.MechmemError, "got True", TOP),
    Fault(
        "choose neurons by a text", lambda s: s.scores.top("5%"), mm.MechmemError, "got '5%'", TOP
    ),
    Fault(
        "choose more neurons than were scored",
        lambda s: s.scores.top(1000),
        mm.MechmemError,
        "top=1000 neurons asked for, but only 96 were scored",
        "ask for fewer, or for a share such as 0.05",
    ),
    Fault(
        "rank neurons by an unknown statistic",
        lambda s: s.scores.top(5, by="correlations"),
        mm.MechmemError,
        "Unknown ranking 'correlations'",
        "allowed are 'correlation'",
    ),
    Fault(
        "rank neurons in an unknown scope",
        lambda s: s.scores.top(5, scope="layer"),
        mm.MechmemError,
        "got 'layer'",
        "scope must be 'global' or 'site'",
    ),
    Fault(
        "choose neurons at a site that was not scored",
        lambda s: s.scores.top(5, sites=[("mlp_post", 0)]),
        mm.SiteError,
        "No neuron scores at mlp_post[0]; scored were 'resid_pre[0]'",
        "Cache those sites first.",
    ),
    Fault(
        "fit probes on one class",
        lambda s: mm.fit_probes(of_class(s, "memorized")),
        mm.PromptError,
        "A contrast by behavior needs 2 classes, but 16 prompts show 'memorized'",
        "mm.observe(...).flips()",
    ),
    Fault(
        "fit probes on three classes",
        lambda s: mm.fit_probes(three(s)),
        mm.PromptError,
        "A probe separates two classes, these prompts show 'generalized', 'memorized', 'other'",
        "Keep the prompts of two",
    ),
    Fault(
        "fit probes with one fold",
        lambda s: mm.fit_probes(s.acts, folds=1),
        mm.PromptError,
        "got 1",
        "folds must be an integer from 2",
    ),
    Fault(
        "fit probes on fewer groups than folds",
        lambda s: mm.fit_probes(s.acts, folds=9),
        mm.PromptError,
        "9 folds need at least 9 groups, there are 8",
        "observe more instances or pass fewer folds.",
    ),
    Fault(
        "measure separation on fitted prompts",
        lambda s: mm.separation(s.directions, s.acts),
        mm.LeakageError,
        "prompts that fitting or choosing has seen (…by group",
        "Split by group first: train, validation, test = prompts.split(...).",
    ),
    Fault(
        "measure separation where one class is missing",
        lambda s: mm.separation(
            s.directions,
            mm.cache_activations(
                s.model,
                s.others.filter(lambda p: p.behavior == "memorized"),
                sites=s.directions.sites,
            ),
        ),
        mm.PromptError,
        "but 8 prompts show 'memorized'",
        "mm.observe(...).flips()",
    ),
    Fault(
        "ask for a direction at a site without one",
        lambda s: s.directions["mlp_out", 0],
        mm.SiteError,
        "No direction at ('mlp_out', 0); there are 'resid_pre[0]'",
        "Cache that site too",
    ),
    Fault(
        "project states of another width",
        lambda s: wide_directions()["mlp_post", 0].project(s.acts["resid_post", 0]),
        mm.SiteError,
        "States of width 16 cannot be projected on the direction at mlp_post[0], which has width "
        "64",
        "Project states of its own site",
    ),
    Fault(
        "use a direction of length zero",
        zero_direction,
        mm.SiteError,
        "The direction at resid_post[1] is zero: the two class means coincide",
        "choose another site",
    ),
    Fault(
        "merge moments of different positions",
        lambda s: moments(s).merge(moments(s, positions="mean")),
        mm.MechmemError,
        "Cannot merge moments with …'last'…'mean'",
        "Cache both with the same settings",
    ),
    Fault(
        "merge moments of different sites",
        lambda s: moments(s).merge(moments(s, sites=[("resid_post", 0)])),
        mm.MechmemError,
        "Cannot merge moments of different sites",
        "Cache the same sites on both.",
    ),
    Fault(
        "ask for a covariance that was not kept",
        lambda s: moments(s).classes["memory"][mm.Site(*SITE)].covariance,
        mm.MechmemError,
        "No covariance was kept here",
        "ask for it: cache_moments(..., covariance=sites).",
    ),
    Fault(
        "keep the covariance of a site that is not read",
        lambda s: moments(s, covariance=[("z", 0)]),
        mm.SiteError,
        "covariance= asks for 'z[0]', which sites= does not read",
        "add them there.",
    ),
    Fault(
        "take moments of prompts without a label",
        lambda s: mm.cache_moments(s.model, helpers.ragged(4), by="label"),
        mm.PromptError,
        "None of 4 prompts carries a label",
        "set Prompt.label.",
    ),
]
