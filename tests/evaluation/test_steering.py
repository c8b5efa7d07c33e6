"""The grid of an outcome by layer and strength against one `evaluate` per cell."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from helpers import bench, contrast_set

import mechmem as mm
from mechmem.evaluation.steering import scale_everywhere

SITES = [("resid_post", 0), ("resid_post", 1)]
FITTED = contrast_set(8, seed=1)
HELD = mm.PromptSet(
    replace(p, id="h" + p.id, group="h" + str(p.group)) for p in contrast_set(6, seed=5)
)


@pytest.fixture(scope="module")
def directions() -> mm.Directions:
    acts = mm.cache_activations(bench().model, FITTED, sites=SITES)
    return mm.difference_of_means(acts, toward="reasoning", by="label")


class FirstWord(mm.Task):
    """Correct when the first word written has an even number, so that edits change the outcome."""

    name = "first-word"
    outcomes = ("correct", "wrong")
    max_new_tokens = 1

    def prompts(self, n: int, seed: int = 0) -> mm.PromptSet:
        raise NotImplementedError

    def pairs(self, n: int, seed: int = 0) -> mm.PromptSet:
        raise NotImplementedError

    def classify(self, prompt: mm.Prompt, completion: str) -> str:
        digits = [ch for ch in completion.split(" ")[0] if ch.isdigit()]
        return "correct" if digits and int(digits[-1]) % 2 == 0 else "wrong"


def share(model, edit, label: str) -> float:
    with mm.patched(model, edit) as view:
        seen = mm.observe(view, HELD, task=FirstWord(), margins=False)
    rows = [k for k, p in enumerate(HELD) if p.label == label]
    return float(np.mean([seen.outcomes[k] == "correct" for k in rows]))


def test_every_cell_is_its_own_evaluation_both_signs_on_both_classes(directions) -> None:
    model = bench().model
    grid = mm.steering_grid(model, directions, HELD, alphas=[3.0], task=FirstWord(), draws=2)
    table = grid.table()
    assert set(table["alpha"]) == {-3.0, 0.0, 3.0}
    assert set(table["class"]) == {"reasoning", "memory"}
    assert len(table) == 2 * 3 * 2 * 2  # sites, strengths, classes, kinds
    for row in table[table["alpha"] != 0].to_dict("records"):
        r = directions[row["stream"], row["layer"]]
        toward = "reasoning" if row["alpha"] > 0 else "memory"
        edit = mm.AddDirection(r, alpha=3.0, toward=toward)
        if row["kind"] == "edit":
            assert row["share"] == pytest.approx(share(model, edit, row["class"]))
        else:
            drawn = [mm.controls(edit, model, seed=k)["random direction"] for k in range(2)]
            want = np.mean([share(model, one, row["class"]) for one in drawn])
            assert row["share"] == pytest.approx(want)
    plain = table[table["alpha"] == 0]
    assert (plain["change"] == 0).all()
    edits = table[(table["kind"] == "edit") & (table["alpha"] != 0)]
    placebo = table[(table["kind"] != "edit") & (table["alpha"] != 0)]
    for one, other in zip(edits.itertuples(), placebo.itertuples(), strict=True):
        assert one.beyond == pytest.approx(one.share - other.share)
        assert one.beyond_low <= one.beyond + 1e-9 <= one.beyond_high + 2e-9
        assert one.size == pytest.approx(one.control_size, rel=1e-5)
        assert 1 <= one.rank <= 3
    assert edits["change"].abs().max() > 0, "an edit that changes nothing tests nothing"


def test_the_released_form_takes_its_scale(directions) -> None:
    model = bench().model
    one = mm.Directions({directions.sites[1]: directions[SITES[1]]})
    grid = mm.steering_grid(
        model, one, HELD, alphas=[0.5], task=FirstWord(), make=scale_everywhere, draws=0
    )
    for row in grid.table().to_dict("records"):
        if row["alpha"]:
            edit = mm.ScaleProjection(one[SITES[1]], scale=row["alpha"], at="everywhere")
            assert row["share"] == pytest.approx(share(model, edit, row["class"]))


def test_what_cannot_be_a_grid(directions) -> None:
    model = bench().model
    with pytest.raises(mm.EditError, match="above 0"):
        mm.steering_grid(model, directions, HELD, alphas=[-1.0])
    with pytest.raises(mm.TaskError, match=r"Unknown outcome 'corect'.*Did you mean 'correct'"):
        mm.steering_grid(model, directions, HELD, alphas=[1.0], task=FirstWord(), outcome="corect")
    with pytest.raises(mm.PromptError, match="other prompts"):
        mm.steering_grid(
            model,
            directions,
            HELD,
            task=FirstWord(),
            before=mm.observe(model, FITTED, task=FirstWord(), margins=False),
        )
    mine = mm.observe(model, HELD, task=FirstWord(), margins=False)
    foreign = replace(mine, model=replace(mine.model, fingerprint="another"))
    with pytest.raises(mm.PromptError, match="another model"):
        mm.steering_grid(model, directions, HELD, task=FirstWord(), before=foreign)
