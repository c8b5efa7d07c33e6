"""Activation patching between the members of a pair, against plain hooks and TransformerLens."""

from __future__ import annotations

from dataclasses import replace

import helpers
import numpy as np
import pytest
import torch
from helpers import Bench, close, differs, hf_logits, hf_states
from transformer_lens import patching as tl_patching

import mechmem as mm
from mechmem.errors import EditError, PositionError, PromptError, SiteError

KINDS = ("gpt2", "llama")
PAIRS = helpers.contrast_set(5, seed=2)
SITES = [("resid_mid", 0), ("resid_post", 0), ("z", 1), ("mlp_out", 1), ("mlp_post", 1)]
MARGIN = ("w1", "w2")


def members(prompts=PAIRS, toward="generalized"):
    """Recipient and donor of every pair, in order of the groups."""
    for group in prompts.by_group().values():
        (donor,) = [p for p in group if p.behavior == toward]
        (recipient,) = [p for p in group if p.behavior != toward]
        yield recipient, donor


def margin_of(bench: Bench, last: torch.Tensor, answers=MARGIN) -> float:
    """Log-probability of the first answer minus that of the second, one token each."""
    scores = last.double().log_softmax(-1).numpy()
    one, other = (bench.tokenizer.convert_tokens_to_ids(answer) for answer in answers)
    return float(scores[one] - scores[other])


def tokens_at(bench: Bench, prompt: mm.Prompt, position: str) -> list[int]:
    if position == "last":
        return [len(bench.ids(prompt.text)) - 1]
    assert position == "cue"
    start = prompt.text[: prompt.spans["cue"][0]].count(" ") + 1  # after <bos>
    return [start, start + 1]


def patched_by_hand(bench: Bench, recipient, donor, site, position) -> float:
    given = hf_states(bench.hf, bench.ids(donor.text), [site])[site]

    def hand(states, at):
        out = states.clone()
        out[tokens_at(bench, recipient, position)] = given[tokens_at(bench, donor, position)]
        return out

    return margin_of(bench, hf_logits(bench.hf, bench.ids(recipient.text), {site: [hand]})[-1])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("toward", ["generalized", "memorized"])
def test_patched_margins_are_those_of_a_run_patched_by_hand(kind, toward):
    bench = helpers.bench(kind)
    result = mm.activation_patching(
        bench.model, PAIRS, toward=toward, sites=SITES, positions=["cue", "last"], controls=False
    )
    pairs = list(members(toward=toward))
    assert result.recipients.ids == [recipient.id for recipient, _ in pairs]
    assert result.donors.ids == [donor.id for _, donor in pairs]
    want = [
        [[patched_by_hand(bench, *pair, site, part) for part in ("cue", "last")] for site in SITES]
        for pair in pairs
    ]
    close(result.margins["patched"], want, tolerance=1e-4)
    differs(want, result.recipient_margins[:, None, None] + np.zeros((5, len(SITES), 2)))
    for side, margins in zip((0, 1), (result.recipient_margins, result.donor_margins), strict=True):
        plain = [margin_of(bench, hf_logits(bench.hf, bench.ids(p[side].text))[-1]) for p in pairs]
        close(margins, plain, tolerance=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_last_state_of_the_last_block_recovers_everything_and_earlier_tokens_nothing(
    kind,
):
    model = helpers.bench(kind).model
    last = ("resid_post", model.n_layers - 1)
    result = mm.activation_patching(model, PAIRS, sites=[last], positions=["last", "cue"])
    close(result.at(last, "last"), result.donor_margins, tolerance=1e-5)
    close(result.at(last, "cue"), result.recipient_margins, tolerance=1e-5)
    assert result.recovery(last, "last").value == pytest.approx(1.0, abs=1e-4)
    assert result.recovery(last, "cue").value == pytest.approx(0.0, abs=1e-4)


def test_the_sweep_of_transformerlens_over_layers_and_tokens_finds_the_same():
    bench = helpers.bench()
    texts = [helpers.sentence(5, seed=k) for k in (7, 8)]
    pair = mm.PromptSet(
        mm.Prompt(
            id=str(k), text=text, group="g", behavior=behavior, memorized="w1", generalized="w2"
        )
        for k, (text, behavior) in enumerate(zip(texts, ("memorized", "generalized"), strict=True))
    )
    result = mm.activation_patching(
        bench.model, pair, sites="resid_pre", positions=list(range(6)), controls=False
    )
    corrupted, clean = (torch.tensor([bench.ids(text)]) for text in texts)
    with torch.no_grad():
        _, cache = bench.model.tl.run_with_cache(clean)
        theirs = tl_patching.get_act_patch_resid_pre(
            bench.model.tl,
            corrupted,
            cache,
            lambda logits: torch.tensor(margin_of(bench, logits[0, -1])),
        )
    close(result.margins["patched"][0], theirs.numpy(), tolerance=1e-4)


def test_spans_that_differ_between_pairs_but_not_within_one_are_patched_in_their_pair():
    bench = helpers.bench()
    made = []
    for group, words in enumerate([2, 3, 2]):
        for member, behavior in enumerate(("memorized", "generalized")):
            text = helpers.sentence(6 + member, seed=10 * group + member)
            end = len(" ".join(text.split()[:words]))
            made.append(
                mm.Prompt(
                    id=f"{group}{member}", text=text, group=str(group), behavior=behavior,
                    memorized="w1", generalized="w2", spans={"cue": (0, end)},
                )
            )  # fmt: skip
    site = ("resid_post", 0)
    result = mm.activation_patching(
        bench.model, mm.PromptSet(made), sites=site, positions="cue", controls=False
    )
    for row, (recipient, donor) in enumerate(members(mm.PromptSet(made))):
        given = hf_states(bench.hf, bench.ids(donor.text), [site])[site]
        cue = slice(1, 1 + [2, 3, 2][row])

        def hand(states, at, given=given, cue=cue):
            out = states.clone()
            out[cue] = given[cue]
            return out

        want = margin_of(bench, hf_logits(bench.hf, bench.ids(recipient.text), {site: [hand]})[-1])
        assert result.at(site)[row] == pytest.approx(want, rel=1e-4)


def test_members_whose_positions_differ_in_number_are_refused_by_name():
    prompts = mm.PromptSet(
        mm.Prompt(id=name, text=text, group="g", behavior=behavior, memorized="w1",
                  generalized="w2", spans={"cue": (0, len(text))})
        for name, text, behavior in [("a", "w1 w2", "memorized"), ("b", "w3 w4 w5", "generalized")]
    )  # fmt: skip
    words = "'cue' has 2 tokens in prompt 'a' and 3 in its partner 'b'"
    for method in (mm.activation_patching, mm.attribution_patching):
        with pytest.raises(PositionError, match=words):
            method(helpers.bench().model, prompts, positions=["last", "cue"], controls=False)


@pytest.mark.parametrize("positions", ["mean", "each_step", ["last", "generated"]])
def test_positions_that_no_prompt_token_has_cannot_be_patched(positions):
    with pytest.raises(PositionError, match="names no prompt token to patch"):
        mm.activation_patching(helpers.bench().model, PAIRS, positions=positions)


def test_controls_take_their_donor_from_another_group_and_the_right_class():
    bench = helpers.bench()
    site = ("resid_post", 0)
    result = mm.activation_patching(bench.model, PAIRS, sites=site, seed=1)
    assert set(result.margins) == {"patched", "unrelated", "same behavior"}
    pairs = list(members())
    for row, (recipient, donor) in enumerate(pairs):
        by_name = {"unrelated": 1, "same behavior": 0}
        for name, side in by_name.items():
            others = [pair[side] for k, pair in enumerate(pairs) if k != row]
            possible = [patched_by_hand(bench, recipient, other, site, "last") for other in others]
            gaps = np.abs(np.array(possible) - result.at(site, which=name)[row])
            assert gaps.min() < 1e-4
            own = patched_by_hand(bench, recipient, (recipient, donor)[side], site, "last")
            assert abs(own - result.at(site, which=name)[row]) > 1e-3
    again = mm.activation_patching(bench.model, PAIRS[::-1], sites=site, seed=1)
    order = [again.recipients.ids.index(name) for name in result.recipients.ids]
    for name, values in result.margins.items():
        close(again.margins[name][order], values)
    other = mm.activation_patching(bench.model, PAIRS, sites=site, seed=2)
    differs(other.at(site, which="unrelated"), result.at(site, which="unrelated"))


def test_controls_need_a_second_group():
    one = mm.PromptSet(PAIRS.by_group()["g1"])
    with pytest.raises(PromptError, match="at least two groups"):
        mm.activation_patching(helpers.bench().model, one)
    result = mm.activation_patching(helpers.bench().model, one, controls=False)
    assert set(result.margins) == {"patched"}


def test_answers_of_several_tokens_are_scored_whole_and_the_donor_on_the_recipients_answers():
    bench = helpers.bench()
    prompts = mm.PromptSet(
        replace(p, memorized=f"w{k} w5 w7", generalized=f"w3 w{k + 1}")
        for k, p in enumerate(PAIRS[:4])
    )
    site = ("mlp_out", 0)
    result = mm.activation_patching(bench.model, prompts, sites=site, controls=False)

    def score(prompt, answer, edits) -> float:
        ids, total = bench.ids(prompt.text), 0.0
        for token in bench.ids(answer)[1:]:
            total += float(hf_logits(bench.hf, ids, edits)[-1].double().log_softmax(-1)[token])
            ids = [*ids, token]
        return total

    for row, (recipient, donor) in enumerate(members(prompts)):
        given = hf_states(bench.hf, bench.ids(donor.text), [site])[site][-1]
        last = len(bench.ids(recipient.text)) - 1

        def hand(states, at, given=given, last=last):
            return torch.where((at == last)[:, None], given, states)

        answers = (recipient.memorized, recipient.generalized)
        one, other = (score(recipient, answer, {site: [hand]}) for answer in answers)
        assert result.at(site)[row] == pytest.approx(one - other, rel=1e-4)
        one, other = (score(donor, answer, {}) for answer in answers)
        assert result.donor_margins[row] == pytest.approx(one - other, rel=1e-4)


def test_recovery_is_the_ratio_of_mean_changes_and_its_interval_resamples_groups():
    model = helpers.bench().model
    result = mm.activation_patching(model, PAIRS, sites="mlp_out")
    row = result.table().set_index(["stream", "layer"]).loc[("mlp_out", 1)]
    change = result.at(("mlp_out", 1)) - result.recipient_margins
    gap = result.donor_margins - result.recipient_margins
    assert row["effect"] == pytest.approx(change.mean())
    assert row["recovery"] == pytest.approx(change.mean() / gap.mean())
    assert row["n"] == row["groups"] == 5
    control = result.at(("mlp_out", 1), which="unrelated") - result.recipient_margins
    assert row["unrelated"] == pytest.approx(control.mean() / gap.mean())
    assert {"unrelated_low", "same behavior", "same behavior_high"} <= set(row.index)


def test_a_share_of_nothing_has_no_interval():
    model = helpers.bench().model
    result = mm.activation_patching(model, PAIRS, sites=("mlp_out", 1), controls=False)
    base = result.recipient_margins
    wide = replace(result, donor_margins=base + np.array([3.0, 4.0, 3.5, 4.5, 5.0]))
    share = wide.recovery(("mlp_out", 1))
    assert share.low < share.value < share.high
    crossing = replace(result, donor_margins=base + np.array([3.0, -4.0, 3.5, -4.5, 2.5]))
    share = crossing.recovery(("mlp_out", 1))
    assert np.isfinite(share.value)
    assert np.isnan(share.low)
    assert np.isnan(share.high)


def test_pairs_that_did_not_flip_are_left_out_and_none_at_all_is_refused():
    model = helpers.bench().model
    mixed = mm.PromptSet(replace(p, behavior="memorized") if p.group == "g0" else p for p in PAIRS)
    result = mm.activation_patching(model, mixed, sites=("mlp_out", 0))
    assert result.recipients.groups == ["g1", "g2", "g3", "g4"]
    with pytest.raises(PromptError, match=r"the classes found are 'memorized'.*flips\(\)"):
        mm.activation_patching(model, mixed.filter(lambda p: p.behavior == "memorized"))
    labeled = mm.activation_patching(
        model, mixed, by="label", toward="reasoning", sites=("mlp_out", 0)
    )
    assert len(labeled) == 5
    bare = mm.PromptSet(replace(p, memorized=None) for p in PAIRS)
    with pytest.raises(PromptError, match="needs `memorized` and `generalized`"):
        mm.activation_patching(model, bare)


def test_a_patched_model_can_itself_be_patched_between_pairs():
    bench = helpers.bench()
    with mm.patched(bench.model, mm.AblateSites(("attn_out", 0))) as view:
        result = mm.activation_patching(view, PAIRS, sites=("mlp_out", 0), controls=False)
    zero = {("attn_out", 0): [lambda states, at: torch.zeros_like(states)]}
    for row, (recipient, donor) in enumerate(members()):
        site = ("mlp_out", 0)
        given = hf_states(bench.hf, bench.ids(donor.text), [site], zero)[site][-1]
        last = len(bench.ids(recipient.text)) - 1

        def hand(states, at, given=given, last=last):
            return torch.where((at == last)[:, None], given, states)

        want = hf_logits(bench.hf, bench.ids(recipient.text), {**zero, site: [hand]})[-1]
        assert result.at(site)[row] == pytest.approx(margin_of(bench, want), rel=1e-4)


def test_asking_for_what_was_not_patched_says_what_was():
    result = mm.activation_patching(
        helpers.bench().model, PAIRS, sites=("z", 0), positions=["cue", "last"], controls=False
    )
    with pytest.raises(SiteError, match=r"sites are 'z\[0\]', positions 'cue', 'last'"):
        result.at(("z", 1), "last")
    with pytest.raises(SiteError, match="position None"):
        result.at(("z", 0))
    with pytest.raises(mm.MechmemError, match="there are 'patched'"):
        result.at(("z", 0), "last", which="unrelated")


def test_the_edit_alone_puts_a_named_donors_state_into_a_named_prompt():
    bench = helpers.bench()
    acts = mm.cache_activations(bench.model, PAIRS, sites=["z", "resid_post"])
    donors = {"g0.0": "g3.1", "g1.0": "g0.0"}
    asked = PAIRS.filter(lambda p: p.id in donors)
    edit = mm.PatchActivations(acts, donors, at=("z", 1))
    with mm.patched(bench.model, edit) as view:
        after = mm.cache_activations(view, asked, sites=("z", 1))
    rows = [PAIRS.ids.index(donors[name]) for name in asked.ids]
    assert torch.equal(after["z", 1], acts["z", 1][rows])
    with (
        pytest.raises(EditError, match="No donor is named for prompts 'g2"),
        mm.patched(bench.model, edit) as view,
    ):
        view.logits(PAIRS.filter(lambda p: p.id == "g2.0"))
    with (
        pytest.raises(EditError, match="no activations of donors 'nobody'"),
        mm.patched(bench.model, mm.PatchActivations(acts, {"g0.0": "nobody"})),
    ):
        pass
    (control,) = mm.controls(edit, bench.model).values()
    groups = {p.id: p.group for p in PAIRS}
    assert set(control.donors) == set(donors)
    assert all(groups[control.donors[name]] != groups[donors[name]] for name in donors)
    for seed in range(20):  # nor is anybody given its own states, or those of its rephrasing
        (control,) = mm.controls(edit, bench.model, seed=seed).values()
        assert all(groups[control.donors[name]] != groups[name] for name in donors)


def test_patching_a_prompt_with_its_own_states_changes_nothing():
    model = helpers.bench().model
    acts = mm.cache_activations(model, PAIRS, sites=["resid_mid", "mlp_post"], positions="cue")
    same = mm.PatchActivations(acts, {name: name for name in PAIRS.ids})
    with mm.patched(model, same) as view:
        close(view.logits(PAIRS), model.logits(PAIRS), tolerance=1e-5)
