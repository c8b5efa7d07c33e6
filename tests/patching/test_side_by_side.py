"""Every kind of edit, side by side with all the others: the numbers and reports of a run alone."""

from __future__ import annotations

import warnings
from functools import cache

import helpers
import numpy as np
import pytest
import torch
from helpers import close, hook_count

import mechmem as mm
from mechmem.evaluation.many_edits import Bench
from mechmem.patching.apply import patched_each
from mechmem.tasks.base import PromptAnswers

KINDS = ("gpt2", "llama")
PROMPTS = helpers.contrast_set(5, seed=7)
EARLY, LATE = ("resid_post", 0), ("resid_post", 1)
CHOSEN = [1, 4, 9, 15]


@cache
def edits(kind: str) -> dict[str, object]:
    """One of every kind that does more than to add a vector everywhere."""
    model = helpers.bench(kind).model
    fitted = mm.cache_activations(model, helpers.contrast_set(12), sites="resid_post")
    cue = mm.cache_activations(
        model, helpers.contrast_set(12), sites="resid_post", positions=["cue", "last"]
    )
    own = mm.cache_activations(model, PROMPTS, sites=["resid_post", "z"])
    r = mm.difference_of_means(fitted, toward="generalized")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mm.MechmemWarning)
        leace = mm.fit_directions(fitted, method="leace", toward="generalized")
    scores = mm.neuron_mean_difference(fitted)
    donors = {p.id: PROMPTS[(k + 3) % len(PROMPTS)].id for k, p in enumerate(PROMPTS)}
    add = mm.AddDirection(r[LATE], alpha=3.0, positions="each_step")
    return {
        "gate at its own site": mm.OnlyWhere(add, r[LATE], when="generalized"),
        "gate at an earlier site": mm.OnlyWhere(
            mm.AddDirection(r[LATE], alpha=3.0), r[EARLY], when="memorized"
        ),
        "gate that never opens": mm.OnlyWhere(add, r[LATE], when="generalized", threshold=1e6),
        "states of others, early": mm.PatchActivations(own, donors, at=EARLY),
        "states of others, in heads": mm.PatchActivations(own, donors, at=("z", 1)),
        "heads": mm.AblateHeads({("z", 0): [0], ("z", 1): [1]}),
        "neurons": mm.AblateNeurons(scores.top(6), mode="mean"),
        "clamped": mm.ClampNeurons({("mlp_post", 1): CHOSEN}, minimum=-0.02, maximum=0.02),
        "shifted": mm.ShiftNeurons(scores, top=0.3, alpha=2.0, toward="generalized"),
        "shifted in a window": mm.ShiftNeurons(
            mm.neuron_mean_difference(cue), top=20, alpha=2.0, toward="memorized"
        ),
        "skipped": mm.SkipLayers(LATE),
        "erased": mm.Erase(leace),
        "turned, of the same length": mm.AddDirection(r[EARLY], alpha=4.0, preserve_norm=True),
        "nothing": mm.AddDirection(r[EARLY], alpha=0.0),
        "two": [mm.ProjectOut(r[EARLY]), mm.ClampNeurons({LATE: CHOSEN}, maximum=0.1)],
    }


class Words(PromptAnswers):
    """Reads a few tokens of text."""

    def __init__(self, tokens: int) -> None:
        super().__init__("behavior")
        self.max_new_tokens = tokens


def alone(model: mm.Model, edit: object, tokens: int):
    """What one edit does by itself: logits, what is observed, and the report of the same passes."""
    with mm.patched(model, edit) as view:
        seen = mm.observe(view, PROMPTS, task=Words(tokens))
    with mm.patched(model, edit) as view:
        if tokens > 1:
            view.complete(PROMPTS, tokens)
        return view.logits(PROMPTS), seen, view.edit_report().table()


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_edit_gives_side_by_side_what_it_gives_alone(kind, tokens) -> None:
    model, grid = helpers.bench(kind).model, edits(kind)
    every = range(len(grid))
    with patched_each(model, list(grid.values())) as views:
        bench = Bench(views, PROMPTS, task=Words(tokens), margins=[True] * len(grid))
        rows = {cell: range(len(PROMPTS)) for cell in every}
        seen = bench.run(every, rows)
        reports = [view.edit_report().table() for view in views]
    for cell, (name, edit) in enumerate(grid.items()):
        logits, want, report = alone(model, edit, tokens)
        if not bench.grid.alone(cell):
            got = torch.stack([bench.logits[cell][row] for row in rows[cell]])
            close(got, logits, 1e-4)
        assert seen[cell].completions == want.completions, name
        assert np.abs(seen[cell].margins - want.margins).max() <= 1e-4 * np.ptp(want.margins), name
        if not bench.grid.alone(cell):  # asked for text and margins one after the other
            same_report(reports[cell], report, name)
        still = name in ("nothing", "gate that never opens")
        assert bool(report["tokens"].sum()) != still, name
    assert [name for k, name in enumerate(grid) if bench.grid.alone(k)] == ["nothing"]


def same_report(got, want, name: str) -> None:
    for column in ("edit", "stream", "layer", "passes", "applied", "tokens", "closed"):
        assert list(got[column]) == list(want[column]), (name, column)
    for column in ("distance", "length", "relative"):
        assert np.allclose(got[column], want[column], rtol=1e-4), (name, column)


@pytest.mark.parametrize("tokens", [1, 4])
@pytest.mark.parametrize("site", [EARLY, ("z", 1)])
def test_an_error_inside_one_of_many_edits_leaves_nothing_behind(tokens, site) -> None:
    model = helpers.bench().model
    own = mm.cache_activations(model, PROMPTS, sites=[site])
    broken = mm.PatchActivations(own, {PROMPTS[0].id: PROMPTS[1].id})
    before, hooks = model.logits(PROMPTS), hook_count(model)
    grid = list(edits("gpt2").values())
    views: list[mm.Model] = []

    def run_all() -> None:
        with patched_each(model, [*grid[:4], broken, *grid[4:]]) as made:
            views.extend(made)
            bench = Bench(made, PROMPTS, task=Words(tokens), margins=[True] * len(made))
            bench.run(range(len(made)))

    with pytest.raises(mm.EditError, match="No donor is named"):
        run_all()
    assert hook_count(model) == hooks
    assert not any("forward" in block.__dict__ for block in model.tl.blocks)
    assert torch.equal(model.logits(PROMPTS), before)
    with pytest.raises(mm.EditError, match="after its `with` block ended"):
        views[0].logits(PROMPTS)
