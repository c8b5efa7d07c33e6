"""LEACE as an edit, and edits that a fitted probe lets through, by hand."""

from __future__ import annotations

import warnings

import helpers
import numpy as np
import pytest
import torch
from helpers import close, differs, hf_logits, hf_states

import mechmem as mm
from mechmem.errors import EditError

PROMPTS = helpers.ragged(6)
GATE, LATER = ("resid_post", 0), ("resid_post", 2)


def fitted(bench, method="difference_of_means", sites=(GATE,), n=12) -> mm.Directions:
    acts = mm.cache_activations(bench.model, helpers.contrast_set(n), sites=list(sites))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", mm.MechmemWarning)
        return mm.fit_directions(acts, method=method, toward="generalized")


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_eraser_is_applied_with_its_bias_at_each_of_its_sites(kind) -> None:
    bench = helpers.bench(kind)
    sites = [("resid_post", 0), ("mlp_out", 1)]
    found = fitted(bench, "leace", sites)

    def hand(r: mm.Direction):
        vector, reader, center = (np.asarray(v) for v in (r.vector, r.reader, r.center))

        def change(states, at):
            data = states.double().numpy()
            out = data - np.outer((data - center) @ reader, vector)
            return torch.from_numpy(out).to(states)

        return [change]

    edits = {site: hand(found[site]) for site in sites}
    with mm.patched(bench.model, mm.Erase(found)) as view:
        got = view.logits(PROMPTS)
    want = torch.stack([hf_logits(bench.hf, bench.ids(p.text), edits)[-1] for p in PROMPTS])
    close(got, want, 1e-4)
    differs(got, bench.model.logits(PROMPTS))


def test_after_erasing_the_fitted_class_means_coincide_in_the_model() -> None:
    bench = helpers.bench()
    found = fitted(bench, "leace", [LATER], n=30)
    prompts = helpers.contrast_set(30)

    def gap(model) -> float:
        acts = mm.cache_activations(model, prompts, sites=[LATER])
        return mm.difference_of_means(acts, toward="generalized")[LATER].norm

    with mm.patched(bench.model, mm.Erase(found[LATER])) as view:
        assert gap(view) < 1e-5 * gap(bench.model)


def test_only_an_eraser_erases_and_only_at_home() -> None:
    bench = helpers.bench()
    plain, eraser = fitted(bench)[GATE], fitted(bench, "leace")[GATE]
    for edit, words in (
        (mm.Erase(plain), r"made by 'difference_of_means'.*method='leace'"),
        (mm.Erase(eraser, at=LATER), r"fitted to, resid_post\[0\], not to resid_post\[2\]"),
    ):
        with pytest.raises(EditError, match=words), mm.patched(bench.model, edit):
            pass


@pytest.mark.parametrize("gate", [GATE, LATER])
def test_an_edit_behind_a_gate_has_its_controls_wherever_the_gate_reads(gate) -> None:
    bench = helpers.bench()
    r = fitted(bench, sites=(GATE, LATER))
    inner = mm.AddDirection(r[LATER], alpha=2.0)
    found = mm.controls(mm.OnlyWhere(inner, r[gate], when="memorized"), bench.model)
    own = mm.controls(inner, bench.model)
    assert list(found) == list(own)
    for name, control in found.items():
        torch.testing.assert_close(control.edit.direction.vector, own[name].direction.vector)
        with mm.patched(bench.model, control) as view:
            view.logits(PROMPTS)
        assert view.edit_report().fired


def test_the_controls_of_an_eraser_move_each_token_as_far() -> None:
    bench = helpers.bench()
    eraser = mm.Erase(fitted(bench, "leace"))
    reports = []
    for edit in (eraser, *mm.controls(eraser, bench.model).values()):
        with mm.patched(bench.model, edit) as view:
            view.logits(PROMPTS)
        (fired,) = view.edit_report().fired
        reports.append(fired)
    assert len(reports) == 3
    for other in reports[1:]:
        assert reports[0].distance == pytest.approx(other.distance, rel=1e-4)
        assert reports[0].tokens == other.tokens


@pytest.mark.parametrize("method", ["logistic", "lda", "difference_of_means"])
def test_a_gate_opens_where_the_fitted_probe_changes_its_mind(method) -> None:
    """At a later site than the probe reads; what it kept closed is counted and shared out."""
    bench = helpers.bench()
    probe = fitted(bench, method)[GATE]
    r = fitted(bench, sites=[LATER])[LATER]
    unit, vector = np.asarray(probe.unit), 2.0 * r.vector
    halfway = (probe.toward_mean + probe.away_mean) / 2
    if method == "logistic":
        assert abs(probe.threshold - halfway) > 1e-6
    else:  # of two classes of equal size, lda's too, but for the last bits
        assert probe.threshold == pytest.approx(halfway)
    counts = {True: 0, False: 0}

    def by_hand(p):
        opened = hf_states(bench.hf, bench.ids(p.text), [GATE])[GATE].double().numpy() @ unit
        opened = opened > probe.threshold

        def change(states, at):
            for one in opened:
                counts[bool(one)] += 1
            return states + torch.from_numpy(opened)[:, None] * vector.to(states)

        return hf_logits(bench.hf, bench.ids(p.text), {LATER: [change]})[-1]

    want = torch.stack([by_hand(p) for p in PROMPTS])
    edit = mm.OnlyWhere(mm.AddDirection(r, alpha=2.0), probe, when="generalized")
    with mm.patched(bench.model, edit) as view:
        got = view.logits(PROMPTS)
    close(got, want, 1e-4)
    (fired,) = view.edit_report().fired
    assert (fired.tokens, fired.closed) == (counts[True], counts[False])
    assert min(counts.values()) > 0
    share = counts[False] / sum(counts.values())
    assert fired.closed_share == pytest.approx(share)
    assert f"({share:.1%})" in repr(view.edit_report())


def test_one_gate_holds_for_every_later_site_and_every_cached_step() -> None:
    bench = helpers.bench()
    probe = fitted(bench)[GATE]
    r = fitted(bench, sites=[LATER])[LATER]
    unit = np.asarray(probe.unit)
    sites = [("resid_post", 1), ("mlp_out", 2)]
    opened: list[np.ndarray] = []

    def look(states, at):
        opened.append(states.double().numpy() @ unit > probe.threshold)
        return states

    def change(states, at):
        return states + torch.from_numpy(opened[-1])[:, None] * r.vector.to(states)

    edits = {GATE: [look], **{site: [change] for site in sites}}
    edit = mm.OnlyWhere(mm.AddDirection(r, at=sites), probe, when="generalized")
    with mm.patched(bench.model, edit) as view:
        got = [completion.ids for completion in view.complete(PROMPTS, 4)]
    want = [helpers.hf_greedy(bench.hf, bench.ids(p.text), 4, edits) for p in PROMPTS]
    assert [list(ids) for ids in got] == want
    plain = [helpers.hf_greedy(bench.hf, bench.ids(p.text), 4) for p in PROMPTS]
    assert want != plain


def test_a_gate_that_cannot_be_read_in_time_is_refused() -> None:
    bench = helpers.bench()
    late, both = fitted(bench, sites=[LATER])[LATER], fitted(bench, sites=[GATE, LATER])
    early = fitted(bench)[GATE]
    for edit, words in (
        (mm.OnlyWhere(mm.AddDirection(early), late, when="memorized"), "computes before it"),
        (
            mm.OnlyWhere(mm.AddDirection(early, at="mlp_out"), both, when="memorized"),
            "or a single gate at an earlier one",
        ),
        (
            mm.OnlyWhere(mm.SkipLayers(LATER), early, when="memorized"),
            "needs a gate at its own site",
        ),
    ):
        with pytest.raises(EditError, match=words), mm.patched(bench.model, edit):
            pass


def test_each_site_takes_its_own_direction_or_its_layers() -> None:
    bench = helpers.bench()
    own = fitted(bench, sites=["resid_pre"])
    wide = mm.AddDirection(own, at=["attn_out", ("resid_pre", 2)])
    assert wide.of(mm.Site("attn_out", 1)) is own["resid_pre", 1]
    assert wide.of(mm.Site("resid_pre", 2)) is own["resid_pre", 2]
    assert set(wide.changes(bench.model)) == {("attn_out", k) for k in range(3)} | {
        ("resid_pre", 2)
    }
    few = mm.Directions({own.sites[0]: own[own.sites[0]]})
    edit = mm.AddDirection(few, at="attn_out")
    with (
        pytest.raises(EditError, match=r"No direction of attn_out\[1\] itself"),
        mm.patched(bench.model, edit),
    ):
        pass
    drawn = mm.controls(wide, bench.model)["random direction"]
    for one, other in zip(drawn.direction, own, strict=True):
        assert one.norm == pytest.approx(other.norm)
        assert not torch.equal(one.vector, other.vector)
