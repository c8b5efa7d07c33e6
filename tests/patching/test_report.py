"""What an edit report says, recomputed from the states before and after; and the order of edits."""

from __future__ import annotations

import helpers
import numpy as np
import pytest
import torch
from helpers import close, differs, hf_logits, hf_states

import mechmem as mm

PROMPTS = helpers.ragged(6)
SITE = ("resid_post", 1)


def direction(bench, site=SITE) -> mm.Direction:
    acts = mm.cache_activations(bench.model, helpers.contrast_set(6), sites=site)
    return mm.difference_of_means(acts, toward="generalized")[site]


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_report_says_how_many_tokens_moved_how_far_and_relative_to_what(kind):
    bench = helpers.bench(kind)
    r = direction(bench)
    with mm.patched(bench.model, mm.ProjectOut(r)) as view:
        view.logits(PROMPTS)
        report = view.edit_report()
    states = torch.cat([hf_states(bench.hf, bench.ids(p.text), [SITE])[SITE] for p in PROMPTS])
    before = states.double().numpy()
    moved = np.abs(before @ (r.vector.numpy() / np.linalg.norm(r.vector.numpy())))
    lengths = np.linalg.norm(before, axis=1)
    (row,) = report.table().to_dict("records")
    assert (row["edit"], row["stream"], row["layer"]) == ("ProjectOut", *SITE)
    assert (row["passes"], row["applied"], row["tokens"]) == (1, 1, len(before))
    close(row["distance"], moved.mean())
    close(row["length"], lengths.mean())
    close(row["relative"], (moved / lengths).mean())


def test_every_pass_of_generation_is_counted_and_padding_never_is():
    bench = helpers.bench()
    r = direction(bench)
    with mm.patched(bench.model, mm.AddDirection(r, alpha=3.0, positions="each_step")) as view:
        done = view.complete(PROMPTS, max_new_tokens=4)
    (fired,) = view.edit_report().fired
    assert fired.passes == fired.applied == 4
    # The last token of a completion is written, never read again; a row that ended is not edited.
    assert fired.tokens == sum(min(4, len(c.ids) + c.finished) for c in done)
    close(fired.distance, 3 * r.norm)


def test_where_an_edit_meets_nothing_in_a_pass_it_is_not_applied():
    model = helpers.bench().model
    edit = mm.AblateSites(SITE, positions="last")
    with mm.patched(model, edit) as view:
        view.generate(PROMPTS, max_new_tokens=4)
    (fired,) = view.edit_report().fired
    assert (fired.passes, fired.applied, fired.tokens) == (4, 1, len(PROMPTS))
    assert fired.relative == 1.0


def test_a_report_starts_at_zero_in_every_block_and_can_be_read_after_it():
    model = helpers.bench().model
    edit = mm.AblateSites(SITE)
    counts = []
    for _ in range(2):
        with mm.patched(model, edit) as view:
            assert view.edit_report().fired[0].passes == 0
            view.logits(PROMPTS)
        counts.append(view.edit_report().fired[0].tokens)
    assert counts[0] == counts[1] > 0
    words = repr(view.edit_report())
    assert f"AblateSites at resid_post[1]: {counts[0]} tokens moved in 1 of 1 passes" in words
    assert "100.0% of their length" in words


def test_a_nested_block_reports_outer_and_inner_edits_in_the_order_they_act():
    bench = helpers.bench()
    r = direction(bench)
    with mm.patched(bench.model, mm.AddDirection(r, alpha=1.0)) as outer:
        with mm.patched(outer, mm.ProjectOut(r)) as inner:
            inner.logits(PROMPTS)
        outer.logits(PROMPTS)
    table = inner.edit_report().table()
    assert table["edit"].tolist() == ["AddDirection", "ProjectOut"]
    assert table["passes"].tolist() == [2, 1]
    assert len(outer.edit_report()) == 1


def test_one_row_for_every_site_of_an_edit():
    model = helpers.bench().model
    with mm.patched(model, mm.AblateHeads({("z", 0): [0], ("z", 2): [0, 1]})) as view:
        view.logits(PROMPTS)
    table = view.edit_report().table()
    assert table["layer"].tolist() == [0, 2]
    assert table["relative"][1] == 1.0
    assert 0 < table["relative"][0] < 1.0


def test_edits_at_one_site_act_in_the_order_given():
    bench = helpers.bench()
    r = direction(bench)
    unit = r.unit.float()

    def out(states, at):
        return states - (states @ unit)[:, None] * unit

    def add(states, at):
        return states + 2.0 * r.vector.float()

    both = {"out": (mm.ProjectOut(r), out), "add": (mm.AddDirection(r, alpha=2.0), add)}
    results = []
    for order in (("out", "add"), ("add", "out")):
        with mm.patched(bench.model, [both[name][0] for name in order]) as view:
            got = view.logits(PROMPTS)
        hand = {SITE: [both[name][1] for name in order]}
        want = [hf_logits(bench.hf, bench.ids(p.text), hand)[-1] for p in PROMPTS]
        close(got, torch.stack(want))
        first, second = (both[name][0] for name in order)
        with mm.patched(bench.model, first) as outer, mm.patched(outer, second) as inner:
            close(inner.logits(PROMPTS), got, tolerance=0)
        results.append(got)
    differs(results[0], results[1])


def test_edits_at_several_sites_act_in_the_order_of_the_network_however_they_are_given():
    bench = helpers.bench()
    sites = [("resid_pre", 1), ("attn_out", 1), ("resid_mid", 1), ("mlp_out", 1), ("resid_post", 1)]
    edits = [mm.AddDirection(direction(bench, site), alpha=2.0) for site in sites]
    hand = {
        site: [lambda states, at, v=edit.direction.vector: states + 2.0 * v.float()]
        for site, edit in zip(sites, edits, strict=True)
    }
    want = torch.stack([hf_logits(bench.hf, bench.ids(p.text), hand)[-1] for p in PROMPTS])
    for given in (edits, edits[::-1], [edits[k] for k in (2, 0, 4, 1, 3)]):
        with mm.patched(bench.model, given) as view:
            close(view.logits(PROMPTS), want)


def test_an_ablation_given_last_undoes_what_came_before_it_at_its_site():
    bench = helpers.bench()
    r = direction(bench)
    zero, push = mm.AblateSites(SITE), mm.AddDirection(r, alpha=2.0)
    with mm.patched(bench.model, [push, zero]) as view:
        undone = mm.cache_activations(view, PROMPTS, sites=SITE)[SITE]
    with mm.patched(bench.model, [zero, push]) as view:
        kept = mm.cache_activations(view, PROMPTS, sites=SITE)[SITE]
    assert torch.equal(undone, torch.zeros_like(undone))
    close(kept[:, 0], (2.0 * r.vector).expand(len(PROMPTS), -1))
