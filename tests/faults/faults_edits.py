"""Edits and patching."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fault_scene import SITE, Fault, Scene, wide_directions

import mechmem as mm

NAN, INF = float("nan"), float("inf")


def under(make: Any):
    """Run under the edit that ``make`` makes of a scene."""

    def trigger(s: Scene) -> None:
        with mm.patched(s.model, make(s)) as view:
            view.logits(s.others)

    return trigger


def add(**options: Any):
    return under(lambda s: mm.AddDirection(s.direction, **options))


def shift(**options: Any):
    return under(lambda s: mm.ShiftNeurons(s.scores, **options))


def never_fires(s: Scene) -> None:
    with mm.patched(s.model, mm.AddDirection(s.direction, positions="generated")) as view:
        view.logits(s.others)


def after_its_block(s: Scene) -> None:
    with mm.patched(s.model, mm.ProjectOut(s.direction)) as view:
        view.logits(s.others)
    view.logits(s.others)


def unused(s: Scene) -> None:
    with mm.patched(s.model, mm.ProjectOut(s.direction)) as view:
        pass
    assert view.edit_report().table()["passes"].sum() == 0


def user_error(s: Scene) -> None:
    with mm.patched(s.model, mm.ProjectOut(s.direction)) as view:
        view.logits(s.others)
        raise ZeroDivisionError("in the user's own code")


def left_by_generator(s: Scene) -> None:
    def steps():
        with mm.patched(s.model, mm.ProjectOut(s.direction)) as view:
            for prompt in s.others:
                yield view.logits(prompt)

    going = steps()
    next(going)
    going.close()


def bent_source(s: Scene) -> Any:
    return mm.AblateSites(SITE, mode="mean", source=s.bent(NAN))


def transplant(s: Scene, donors: dict[str, str]) -> mm.PatchActivations:
    return mm.PatchActivations(s.acts, donors, at=SITE)


def patching(prompts: Any = None, **options: Any):
    def trigger(s: Scene) -> Any:
        chosen = s.prompts if prompts is None else prompts(s)
        return mm.activation_patching(s.model, chosen, **{"sites": [SITE], **options})

    return trigger


def windowed(s: Scene) -> mm.ShiftNeurons:
    acts = mm.cache_activations(s.model, s.prompts, sites=[SITE], positions=[-1, -2])
    return mm.ShiftNeurons(mm.neuron_mean_difference(acts), positions="last")


def one_group_source(s: Scene) -> Any:
    acts = mm.cache_activations(s.model, s.others[:2], sites=[SITE])
    return mm.AblateSites(SITE, mode="resample", source=acts)


FAULTS = [
    Fault("steer by NaN", add(alpha=NAN), mm.EditError, "got nan", "alpha must be a finite number"),
    Fault(
        "steer by infinity",
        add(alpha=INF),
        mm.EditError,
        "got inf",
        "alpha must be a finite number",
    ),
    Fault(
        "steer by True", add(alpha=True), mm.EditError, "got True", "alpha must be a finite number"
    ),
    Fault(
        "steer by a text", add(alpha="3"), mm.EditError, "got '3'", "alpha must be a finite number"
    ),
    Fault(
        "shift neurons by NaN",
        shift(alpha=NAN),
        mm.EditError,
        "got nan",
        "alpha must be a finite number",
    ),
    Fault(
        "misspell a keyword of an edit",
        add(alhpa=3.0),
        TypeError,
        "unexpected keyword argument 'alhpa'",
    ),
    Fault(
        "steer toward a class that the direction does not know",
        add(toward="reasoning"),
        mm.EditError,
        "toward='reasoning' is neither 'generalized' nor 'memorized'",
        "say one of the two",
    ),
    Fault(
        "shift neurons toward an unknown class",
        shift(toward="generalised"),
        mm.EditError,
        "toward='generalised' is neither 'memorized' nor 'generalized'",
        "say one of the two",
    ),
    Fault(
        "make an edit that never fires",
        never_fires,
        mm.EditError,
        "The hook of AddDirection at resid_post[1] never met one of its positions, so the results "
        "are those of the unedited model there.",
        "Check the site and positions of the edit.",
    ),
    Fault(
        "use a patched model after its block",
        after_its_block,
        mm.EditError,
        "This patched model was used after its `with` block ended",
        "call it inside.",
    ),
    Fault(
        "open a block and run nothing in it", unused, None, "no error; the report counts 0 passes"
    ),
    Fault(
        "let your own code fail inside a block",
        user_error,
        ZeroDivisionError,
        "in the user's own code",
    ),
    Fault(
        "leave a block by closing a generator", left_by_generator, None, "the edit is gone with it"
    ),
    Fault(
        "patch with something that is not an edit",
        under(lambda s: s.direction),
        mm.MechmemError,
        "edit must be Edit or a sequence of Edit, got Direction",
        "for example edit = mm.AddDirection(direction, alpha=2.0)",
    ),
    Fault(
        "patch with no edit",
        under(lambda s: []),
        mm.EditError,
        "got []",
        "Expected an edit such as mm.ShiftNeurons(...) or a list of edits",
    ),
    Fault(
        "edit at the mean position",
        add(positions="mean"),
        mm.EditError,
        "positions='mean' is for reading",
        "an edit needs tokens, for example 'last'.",
    ),
    Fault(
        "edit at a span that a prompt lacks",
        add(positions="quest"),
        mm.PositionError,
        "Unknown position 'quest' for prompt",
        "allowed are 'last', 'prompt'",
    ),
    Fault(
        "edit at a layer that the model lacks",
        add(at=("resid_post", 9)),
        mm.SiteError,
        "Layer 9 of 'resid_post' is out of range",
        "0 to 2 (or -1 for the last)",
    ),
    Fault(
        "shift neurons at a site that was not scored",
        shift(at=[("mlp_post", 0)]),
        mm.EditError,
        "No neuron scores at mlp_post[0]; scored were 'resid_pre[0]'",
        "Cache those sites first.",
    ),
    Fault(
        "shift no neuron",
        shift(top=0),
        mm.MechmemError,
        "got 0",
        "top must be a number of neurons (an integer from 1) or a share",
    ),
    Fault(
        "shift more neurons than there are",
        shift(top=10_000),
        mm.MechmemError,
        "top=10000 neurons asked for, but only 96 were scored",
        "ask for fewer, or for a share such as 0.05",
    ),
    Fault(
        "move a window's shifts elsewhere",
        under(windowed),
        mm.EditError,
        "These values have their own positions '-1', '-2'",
        "leave positions= out, or use values of one position.",
    ),
    Fault(
        "ablate a neuron that the site lacks",
        under(lambda s: mm.AblateNeurons({SITE: [16]}, mode="zero")),
        mm.EditError,
        "16 cannot be edited",
        "resid_post[1] has neurons 0 to 15",
    ),
    Fault(
        "ablate no neuron",
        under(lambda s: mm.AblateNeurons({}, mode="zero")),
        mm.EditError,
        "No neuron is chosen",
        "for example neurons={('mlp_post', 0): [5]}.",
    ),
    Fault(
        "ablate in an unknown mode",
        under(lambda s: mm.AblateSites(SITE, mode="median")),
        mm.EditError,
        "got 'median'",
        "mode must be one of …'zero'",
    ),
    Fault(
        "ablate to the mean of nothing",
        under(lambda s: mm.AblateSites(SITE, mode="mean")),
        mm.EditError,
        "mode='mean' needs source=",
        "for example source=mm.cache_activations(model, prompts, sites='z').",
    ),
    Fault(
        "resample from moments",
        under(lambda s: mm.AblateSites(SITE, mode="resample", source=s.scores)),
        mm.EditError,
        "got NeuronScores",
        "mode='resample' needs source=: the Activations of other prompts",
    ),
    Fault(
        "resample a group from itself alone",
        under(one_group_source),
        mm.EditError,
        "Every prompt of the source belongs to group 'og0'",
        "cache other groups too.",
    ),
    Fault(
        "ablate to a source that lacks the site",
        under(lambda s: mm.AblateSites(("mlp_out", 0), mode="mean", source=s.acts)),
        mm.EditError,
        "The source of this edit has no values at mlp_out[0]; it has 'resid_pre[0]'",
        "Cache that site too: sites=[...].",
    ),
    Fault(
        "ablate to a source that holds NaN",
        under(bent_source),
        mm.EditError,
        "The source has values at resid_post[1] that are not finite (NaN or infinity)",
        "Is the stored dtype too small?",
    ),
    Fault(
        "ablate heads of a stream without heads",
        under(lambda s: mm.AblateHeads({SITE: [0]}, mode="zero")),
        mm.EditError,
        "Heads live in stream 'z', got resid_post[1]",
        "write ('z', 1).",
    ),
    Fault(
        "ablate a head that the layer lacks",
        under(lambda s: mm.AblateHeads({("z", 1): [2]}, mode="zero")),
        mm.EditError,
        "so 2 cannot be edited",
        "z[1] has heads 0 to 1",
    ),
    Fault(
        "clamp without bounds",
        under(lambda s: mm.ClampNeurons({SITE: [0]})),
        mm.EditError,
        "ClampNeurons needs a minimum, a maximum, or both",
        "for example minimum=0.0",
    ),
    Fault(
        "clamp between bounds that are crossed",
        under(lambda s: mm.ClampNeurons({SITE: [0]}, minimum=2.0, maximum=1.0)),
        mm.EditError,
        "minimum=2.0 is above maximum=1.0",
        "exchange the two",
    ),
    Fault(
        "clamp to NaN",
        under(lambda s: mm.ClampNeurons({SITE: [0]}, minimum=NAN)),
        mm.EditError,
        "got nan",
        "minimum must be a finite number",
    ),
    Fault(
        "skip a layer by another stream",
        under(lambda s: mm.SkipLayers(("mlp_out", 1))),
        mm.EditError,
        "A skipped layer is named by its end, got mlp_out[1]",
        "write ('resid_post', 1).",
    ),
    Fault(
        "gate an edit by a later site",
        under(
            lambda s: mm.OnlyWhere(
                mm.AddDirection(s.directions["resid_post", 0]), s.direction, when="memorized"
            )
        ),
        mm.EditError,
        "The gate reads resid_post[1], but the edit also acts at resid_post[0]",
        "take a gate at an earlier site, or edit later ones.",
    ),
    Fault(
        "gate an edit at a threshold of NaN",
        under(
            lambda s: mm.OnlyWhere(
                mm.AddDirection(s.direction), s.direction, when="memorized", threshold=NAN
            )
        ),
        mm.EditError,
        "got nan",
        "threshold must be a finite number",
    ),
    Fault(
        "transplant from an unknown donor",
        under(lambda s: transplant(s, {s.others[0].id: "nobody"})),
        mm.EditError,
        "The source has no activations of donors 'nobody'",
        "Cache them too, or name others in donors=",
    ),
    Fault(
        "transplant into prompts that have no donor",
        under(lambda s: transplant(s, {s.others[0].id: "g0.0"})),
        mm.EditError,
        "No donor is named for prompts 'og",
        "run only prompts that are keys of donors=.",
    ),
    Fault(
        "patch pairs of one class",
        patching(lambda s: mm.PromptSet(replace(p, behavior="memorized") for p in s.prompts)),
        mm.PromptError,
        "No pair has exactly one member of behavior 'generalized' and one of another; the classes "
        "found are 'memorized'",
        "Use the flips of mm.observe(...).flips(), or set by= and toward=.",
    ),
    Fault(
        "patch at generated tokens",
        patching(positions="generated"),
        mm.PositionError,
        "positions='generated' names no prompt token to patch",
        "use 'last', 'all', an integer or the name of a span.",
    ),
    Fault(
        "patch every token of pairs of unequal length",
        patching(
            lambda s: mm.PromptSet(
                replace(p, text=p.text + " w3") if p.id.endswith(".1") else p for p in s.prompts
            ),
            positions="all",
        ),
        mm.PositionError,
        "Position 'all' has 5 tokens in prompt 'g0.0' and 6 in its partner",
        "patch 'last', a span of one length, or only pairs of one length.",
    ),
    Fault(
        "patch pairs without answers",
        patching(
            lambda s: mm.PromptSet(replace(p, memorized=None, generalized=None) for p in s.prompts)
        ),
        mm.PromptError,
        "A behavior margin needs `memorized` and `generalized` of every prompt; missing on 'g0.",
        "Set them",
    ),
    Fault(
        "ask for a place that was not patched",
        lambda s: patching()(s).at(("resid_post", 0), "last"),
        mm.SiteError,
        "Nothing was patched at ('resid_post', 0), position 'last'",
        "sites are 'resid_post[1]', positions 'last'",
    ),
    Fault(
        "set the projection on a direction of another width",
        under(lambda s: mm.SetProjection(wide_directions()["mlp_post", 0], at=SITE)),
        mm.EditError,
        "The direction comes from mlp_post[0] and has width 64",
        "edit a stream of the same width",
    ),
]
