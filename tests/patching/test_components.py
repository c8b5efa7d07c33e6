"""Ablation of heads, neurons, branches and layers, against plain PyTorch hooks on the HF model."""

from __future__ import annotations

import helpers
import numpy as np
import pytest
import torch
from helpers import Bench, close, differs, hf_greedy, hf_logits, hf_states

import mechmem as mm
from mechmem.errors import EditError, ModelError, PositionError

KINDS = ("gpt2", "llama")
PROMPTS = helpers.ragged(6)
SOURCE = helpers.contrast_set(5, seed=3)


def logits_by_hand(bench: Bench, edits_for, prompts=PROMPTS) -> np.ndarray:
    """``edits_for(prompt)`` gives the hand edits of that prompt; one prompt at a time."""
    return np.stack(
        [hf_logits(bench.hf, bench.ids(p.text), edits_for(p))[-1].numpy() for p in prompts]
    )


def logits_under(bench: Bench, edit, prompts=PROMPTS) -> torch.Tensor:
    with mm.patched(bench.model, edit) as view:
        return view.logits(prompts)


def put(value: torch.Tensor, columns: slice | list[int] = slice(None)):
    """A hand edit that writes a value into some columns of every token."""

    def edit(states, at):
        out = states.clone()
        out[:, columns] = value
        return out

    return edit


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_set_to_zero_sends_nothing_through_the_output_projection(kind):
    bench = helpers.bench(kind)
    size = 8 if kind == "gpt2" else 4
    zero = put(torch.tensor(0.0), slice(size, 2 * size))
    got = logits_under(bench, mm.AblateHeads({("z", 1): [1]}))
    want = logits_by_hand(bench, lambda p: {("z", 1): [zero]})
    close(got, want)
    differs(got, bench.model.logits(PROMPTS))


@pytest.mark.parametrize("kind", KINDS)
def test_a_head_set_to_its_mean_gets_the_mean_of_the_states_that_were_read(kind):
    bench = helpers.bench(kind)
    size = 8 if kind == "gpt2" else 4
    acts = mm.cache_activations(bench.model, SOURCE, sites=("z", 0), positions="last")
    read = [hf_states(bench.hf, bench.ids(p.text), [("z", 0)])["z", 0][-1] for p in SOURCE]
    mean = torch.stack(read).double().mean(0)[:size]

    def by_hand(prompt):
        last = len(bench.ids(prompt.text)) - 1

        def edit(states, at):
            out = states.clone()
            out[at == last, :size] = mean.float()
            return out

        return {("z", 0): [edit]}

    got = logits_under(bench, mm.AblateHeads({("z", 0): [0]}, mode="mean", source=acts))
    close(got, logits_by_hand(bench, by_hand))
    differs(got, bench.model.logits(PROMPTS))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stream", ["attn_out", "mlp_out", "resid_mid", "mlp_post", "z"])
def test_any_stream_of_any_layer_can_be_set_to_zero(kind, stream):
    bench = helpers.bench(kind)
    got = logits_under(bench, mm.AblateSites((stream, 1)))
    want = logits_by_hand(bench, lambda p: {(stream, 1): [put(torch.tensor(0.0))]})
    close(got, want)
    differs(got, bench.model.logits(PROMPTS))


def test_moments_and_scores_weigh_their_classes_equally_and_activations_their_examples():
    bench = helpers.bench()
    few = mm.PromptSet([*SOURCE][:7])  # four memorized, three generalized
    acts = mm.cache_activations(bench.model, few, sites=("mlp_out", 1))
    moments = mm.cache_moments(bench.model, few, sites=("mlp_out", 1), by="behavior")
    scores = mm.neuron_mean_difference(acts)
    read = {
        p.id: hf_states(bench.hf, bench.ids(p.text), [("mlp_out", 1)])["mlp_out", 1][-1].double()
        for p in few
    }
    one = torch.stack([read[p.id] for p in few if p.behavior == "memorized"]).mean(0)
    other = torch.stack([read[p.id] for p in few if p.behavior == "generalized"]).mean(0)
    plain = torch.stack(list(read.values())).mean(0)
    for source, value in [(acts, plain), (moments, (one + other) / 2), (scores, (one + other) / 2)]:
        edit = mm.AblateSites(("mlp_out", 1), mode="mean", source=source, positions="all")
        want = logits_by_hand(bench, lambda p, v=value: {("mlp_out", 1): [put(v.float())]})
        close(logits_under(bench, edit), want)
    differs(plain, (one + other) / 2)


@pytest.mark.parametrize("mode", ["zero", "mean"])
def test_neurons_named_by_number_are_ablated_at_the_last_token_and_every_generated_one(mode):
    bench = helpers.bench()
    acts = mm.cache_activations(bench.model, SOURCE, sites=("mlp_post", 1))
    chosen = [3, 11, 40]
    read = [
        hf_states(bench.hf, bench.ids(p.text), [("mlp_post", 1)])["mlp_post", 1] for p in SOURCE
    ]
    mean = torch.stack([states[-1] for states in read]).double().mean(0).float()
    value = mean[chosen] if mode == "mean" else torch.tensor(0.0)
    edit = mm.AblateNeurons({("mlp_post", 1): chosen}, mode=mode, source=acts)
    few = PROMPTS[:3]
    with mm.patched(bench.model, edit) as view:
        done = view.complete(few, max_new_tokens=4)
    for prompt, completion in zip(few, done, strict=True):
        ids = bench.ids(prompt.text)

        last = len(ids) - 1

        def hand(states, at, first=last):
            out = states.clone()
            out[(at >= first).nonzero(), torch.tensor(chosen)] = value
            return out

        assert completion.ids == hf_greedy(bench.hf, ids, 4, {("mlp_post", 1): [hand]})
    differs(logits_under(bench, edit), bench.model.logits(PROMPTS))


def test_resampling_takes_the_value_of_a_prompt_of_another_group_at_every_site_the_same():
    bench = helpers.bench()
    acts = mm.cache_activations(bench.model, SOURCE, sites=["attn_out", "mlp_out"])
    edit = mm.AblateSites(["attn_out", "mlp_out"], mode="resample", source=acts, seed=4)
    asked = SOURCE[:6]
    donors = []
    with mm.patched(bench.model, edit) as view:
        after = mm.cache_activations(view, asked, sites=["attn_out", "mlp_out"])
        got = view.logits(asked)
    for row, prompt in enumerate(asked):
        same = [
            k
            for k in range(len(SOURCE))
            if all(torch.equal(after[site][row], acts[site][k]) for site in acts.sites)
        ]
        assert len(same) == 1
        assert SOURCE[same[0]].group != prompt.group
        donors.append(same[0])
    assert len(set(donors)) > 2
    sites = [(s, k) for s in ("attn_out", "mlp_out") for k in range(3)]

    def by_hand(prompt):
        donor = SOURCE[donors[asked.ids.index(prompt.id)]]
        states = hf_states(bench.hf, bench.ids(donor.text), sites)
        last = len(bench.ids(prompt.text)) - 1
        return {site: [_at_last(states[site][-1], last)] for site in sites}

    close(got, logits_by_hand(bench, by_hand, asked))


def _at_last(value: torch.Tensor, last: int):
    def edit(states, at):
        return torch.where((at == last)[:, None], value, states)

    return edit


def test_a_donor_depends_on_seed_and_tokens_not_on_batch_order_or_neighbors():
    model = helpers.bench().model
    acts = mm.cache_activations(model, SOURCE, sites="mlp_out")
    edit = mm.AblateSites("mlp_out", mode="resample", source=acts, seed=1)
    shuffled = mm.cache_activations(model, SOURCE[::-1], sites="mlp_out")
    turned = mm.AblateSites("mlp_out", mode="resample", source=shuffled, seed=1)
    with mm.patched(model, edit) as view:
        together = view.logits(PROMPTS)
        alone = torch.cat([view.logits(mm.PromptSet([p])) for p in PROMPTS])
    with mm.patched(model, turned) as view:
        close(view.logits(PROMPTS), together)
    close(alone, together)
    other = mm.AblateSites("mlp_out", mode="resample", source=acts, seed=2)
    with mm.patched(model, other) as view:
        differs(view.logits(PROMPTS), together)


def test_values_read_in_a_span_go_back_each_to_its_own_token():
    bench = helpers.bench()
    acts = mm.cache_activations(bench.model, SOURCE, sites=("resid_post", 0), positions="cue")
    read = []
    for prompt, tokens in zip(SOURCE, bench.model.tokenize(SOURCE), strict=True):
        states = hf_states(bench.hf, bench.ids(prompt.text), [("resid_post", 0)])["resid_post", 0]
        read.append(states[list(tokens.spans["cue"])])
    mean = torch.stack(read).double().mean(0).float()
    assert mean.shape[0] == 2
    edit = mm.AblateSites(("resid_post", 0), mode="mean", source=acts)

    def by_hand(prompt):
        at_tokens = list(bench.model.tokenize(mm.PromptSet([prompt]))[0].spans["cue"])

        def hand(states, at):
            out = states.clone()
            out[at_tokens] = mean
            return out

        return {("resid_post", 0): [hand]}

    close(logits_under(bench, edit, SOURCE), logits_by_hand(bench, by_hand, SOURCE))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("positions", ["all", "last"])
def test_a_skipped_layer_hands_on_what_it_was_given(kind, positions):
    bench = helpers.bench(kind)
    edit = mm.SkipLayers(("resid_post", 1), positions=positions)

    def by_hand(prompt):
        entered = []
        last = len(bench.ids(prompt.text)) - 1

        def keep(states, at):
            entered.append(states)
            return states

        def skip(states, at):
            here = at >= (0 if positions == "all" else last)
            return torch.where(here[:, None], entered[-1], states)

        return {("resid_pre", 1): [keep], ("resid_post", 1): [skip]}

    got = logits_under(bench, edit)
    close(got, logits_by_hand(bench, by_hand))
    differs(got, bench.model.logits(PROMPTS))


@pytest.mark.parametrize("skip_first", [True, False])
def test_a_skipped_layer_hands_on_what_every_edit_at_its_entry_made_of_it(skip_first):
    bench = helpers.bench()
    acts = mm.cache_activations(bench.model, SOURCE, sites=("resid_pre", 1))
    push = mm.AddDirection(
        mm.difference_of_means(acts, toward="memorized")["resid_pre", 1], alpha=2.0
    )
    skip = mm.SkipLayers(("resid_post", 1))
    both = [skip, push] if skip_first else [push, skip]
    with mm.patched(bench.model, both) as view:
        states = mm.cache_activations(view, PROMPTS, sites=["resid_pre", "resid_post"])
        together = view.logits(PROMPTS)
    assert torch.equal(states["resid_post", 1], states["resid_pre", 1])
    with mm.patched(bench.model, skip) as outer, mm.patched(outer, push) as inner:
        close(inner.logits(PROMPTS), together)
    with mm.patched(bench.model, skip) as view:
        differs(view.logits(PROMPTS), together)


def test_skipping_every_layer_leaves_the_embedding():
    model = helpers.bench().model
    with mm.patched(model, mm.SkipLayers("resid_post")) as view:
        acts = mm.cache_activations(view, PROMPTS, sites=["resid_pre", "resid_post"])
    assert torch.equal(acts["resid_post", 2], acts["resid_pre", 0])


def test_a_skipped_layer_is_skipped_while_text_is_generated():
    bench = helpers.bench()
    few = PROMPTS[:3]
    with mm.patched(bench.model, mm.SkipLayers(("resid_post", 1))) as view:
        done = view.complete(few, max_new_tokens=4)
    for prompt, completion in zip(few, done, strict=True):
        entered = []

        def keep(states, at, entered=entered):
            entered.append(states)
            return states

        hand = {
            ("resid_pre", 1): [keep],
            ("resid_post", 1): [lambda states, at, entered=entered: entered[-1]],
        }
        assert completion.ids == hf_greedy(bench.hf, bench.ids(prompt.text), 4, hand)


def test_an_ablation_in_bfloat16_writes_exactly_the_rounded_value():
    bench = helpers.fresh_bench("gpt2", dtype=torch.bfloat16)
    acts = mm.cache_activations(bench.model, SOURCE, sites=("mlp_out", 0))
    edit = mm.AblateSites(("mlp_out", 0), mode="mean", source=acts, positions="all")
    with mm.patched(bench.model, edit) as view:
        after = mm.cache_activations(view, SOURCE, sites=("mlp_out", 0))
        assert torch.isfinite(view.logits(PROMPTS)).all()
    want = acts["mlp_out", 0].double().mean(0).bfloat16().float()
    assert torch.equal(after["mlp_out", 0], want.expand_as(after["mlp_out", 0]))


def test_a_mean_has_seen_its_prompts_and_another_prompts_value_has_not():
    model = helpers.bench().model
    acts = mm.cache_activations(model, SOURCE, sites="mlp_out")
    fitted = mm.AblateSites("mlp_out", mode="mean", source=acts)
    taken = mm.AblateSites("mlp_out", mode="resample", source=acts)
    assert fitted.seen.groups == set(SOURCE.groups)
    assert not taken.seen.groups
    assert not mm.AblateSites("mlp_out").seen.groups
    with pytest.raises(mm.LeakageError, match="seen"):
        mm.evaluate(model, SOURCE, edit=fitted)
    other = helpers.fresh_bench("gpt2", seed=5).model
    for edit in (fitted, taken):
        with pytest.raises(ModelError, match="fingerprint"), mm.patched(other, edit):
            pass


def test_neurons_of_a_contrast_bring_their_own_means_and_a_source_replaces_them():
    bench = helpers.bench()
    acts = mm.cache_activations(bench.model, SOURCE, sites=("resid_post", 1))
    scores = mm.neuron_mean_difference(acts)
    chosen = scores.top(4)
    index = chosen.index[mm.Site("resid_post", 1)].tolist()
    more = helpers.contrast_set(4, seed=9)
    other = mm.cache_activations(bench.model, more, sites=("resid_post", 1))
    for source, value in [(None, scores.mean["resid_post", 1]), (other, None)]:
        value = other["resid_post", 1].double().mean(0) if value is None else value
        edit = mm.AblateNeurons(chosen, source=source)

        def by_hand(prompt, value=value):
            last = len(bench.ids(prompt.text)) - 1

            def hand(states, at):
                out = states.clone()
                out[last, index] = value[0, index].float()
                return out

            return {("resid_post", 1): [hand]}

        close(logits_under(bench, edit), logits_by_hand(bench, by_hand))


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda a: mm.AblateHeads({("z", 0): [2]}), "heads 0 to 1, so 2 cannot be edited"),
        (lambda a: mm.AblateHeads({("attn_out", 0): [1]}), r"write \('z', 0\)"),
        (lambda a: mm.AblateHeads({("z", 0): []}), "no site to act at"),
        (lambda a: mm.AblateSites("mlp_out", mode="median"), "'zero', 'mean', 'resample'"),
        (lambda a: mm.AblateSites("mlp_out", mode="mean"), "needs source="),
        (lambda a: mm.AblateSites("mlp_out", mode="resample"), "got NoneType"),
        (lambda a: mm.AblateSites("attn_out", mode="mean", source=a), "no values at attn_out"),
        (lambda a: mm.AblateNeurons({("mlp_post", 0): [64]}, mode="zero"), "neurons 0 to 63"),
        (lambda a: mm.AblateNeurons({("mlp_post", 0): [1]}), "needs source="),
        (lambda a: mm.AblateNeurons({}, mode="zero"), "No neuron is chosen"),
        (lambda a: mm.SkipLayers("resid_pre"), "named by its end"),
    ],
)
def test_an_ablation_that_does_not_fit_says_what_would(edit, words):
    model = helpers.bench().model
    acts = mm.cache_activations(model, SOURCE, sites="mlp_out")
    with pytest.raises(EditError, match=words), mm.patched(model, edit(acts)):
        pass


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: mm.AblateHeads({("z", 0): [1.0]}), "so 1.0 cannot be edited"),
        (lambda: mm.AblateHeads({"z": [1]}), r"'z' names \d sites; say which one, .*\('z', \d\)"),
        (lambda: mm.AblateNeurons({("mlp_post", 0): "a"}, mode="zero"), "so 'a' cannot be edited"),
    ],
)
def test_what_names_no_neuron_or_head_is_refused_in_words(make, words):
    with helpers.as_users_run_it(), pytest.raises(EditError, match=words):  # noqa: SIM117
        with mm.patched(helpers.bench().model, make()):
            pass


def test_values_that_are_not_finite_replace_nothing():
    model = helpers.bench().model
    acts = mm.cache_activations(model, SOURCE, sites=("mlp_out", 0))
    acts.states["mlp_out", 0][2, 0, 3] = torch.nan
    for mode in ("mean", "resample"):
        edit = mm.AblateSites(("mlp_out", 0), mode=mode, source=acts)
        with pytest.raises(EditError, match="not finite"), mm.patched(model, edit):
            pass


def test_resampling_within_one_group_is_refused():
    model = helpers.bench().model
    one = mm.PromptSet(SOURCE.by_group()["g0"])
    edit = mm.AblateSites(
        "mlp_out", mode="resample", source=mm.cache_activations(model, one, sites="mlp_out")
    )
    with pytest.raises(EditError, match="Every prompt of the source belongs to group 'g0'"):
        logits_under(helpers.bench(), edit, one)


def test_a_window_on_prompts_with_other_spans_is_refused():
    bench = helpers.bench()
    acts = mm.cache_activations(bench.model, SOURCE, sites=("mlp_out", 0), positions="cue")
    edit = mm.AblateSites(("mlp_out", 0), mode="mean", source=acts)
    prompt = mm.Prompt(id="long", text="w1 w2 w3 w4", spans={"cue": (0, 8)})
    with pytest.raises(PositionError, match="3 tokens at 'cue', but this edit has values for 2"):
        logits_under(bench, edit, mm.PromptSet([prompt]))


@pytest.mark.parametrize(
    ("edit", "name"),
    [
        (mm.AblateHeads({("z", 1): [0]}), "random heads"),
        (mm.AblateSites(("mlp_out", 1)), "random layers"),
        (mm.SkipLayers(("resid_post", 0)), "random layers"),
        (mm.ClampNeurons({("mlp_post", 1): [5, 6]}, maximum=0.0), "random neurons"),
    ],
)
def test_a_control_edits_as_much_but_something_else_drawn_by_seed(edit, name):
    model = helpers.bench().model
    (key,) = mm.controls(edit, model)
    assert key == name
    drawn = [mm.controls(edit, model, seed=seed)[name] for seed in range(6)]
    assert mm.controls(edit, model, seed=3)[name] == drawn[3]
    assert len({str(item) for item in drawn}) > 1
    for control in drawn:
        assert type(control) is type(edit)
        for field in ("heads", "at"):
            if hasattr(edit, field):
                assert getattr(control, field) != getattr(edit, field)
        with mm.patched(model, control) as view:
            view.logits(PROMPTS)
        assert len(view.edit_report()) == 1


def test_no_control_is_left_when_everything_is_ablated():
    model = helpers.bench().model
    with pytest.raises(EditError, match="needs 3 other layers of 'mlp_out', but only 0"):
        mm.controls(mm.AblateSites("mlp_out"), model)


def test_the_same_text_under_another_name_takes_the_same_donor():
    model = helpers.bench().model
    acts = mm.cache_activations(model, SOURCE, sites="mlp_out")
    text = helpers.sentence(6)
    names = [mm.Prompt(id=name, text=text) for name in "abcdef"]
    edit = mm.AblateSites("mlp_out", mode="resample", source=acts)
    with mm.patched(model, edit) as view:
        got = view.logits(mm.PromptSet(names))
    close(got, got[:1].expand_as(got))


@pytest.mark.tl3
@pytest.mark.parametrize("family", ["gpt2", "llama", "gemma2", "gpt_neox"])
def test_a_hooked_transformer_and_a_bridge_agree_on_every_new_edit(family):
    from models.hooked3 import hooked_transformer
    from models.zoo import build, tokenizer

    bridge, hooked = (
        mm.load_model(raw, tokenizer=tokenizer(), prepend_bos=False)
        for raw in (build(family), hooked_transformer(family))
    )
    names = ("memorized", "generalized")
    pairs = mm.PromptSet(
        mm.Prompt(
            id=f"{k}{name}",
            text=" ".join(str((7 * k + 3 * j + len(name)) % 50) for j in range(5 + k)),
            group=str(k),
            behavior=name,
            memorized="1",
            generalized="2",
        )
        for k in range(3)
        for name in names
    )
    results = []
    for model in (bridge, hooked):
        acts = mm.cache_activations(model, pairs, sites=["z", "mlp_out"])
        edits = [
            mm.AblateHeads({("z", 1): [0, 3]}, mode="mean", source=acts),
            mm.AblateSites(("mlp_out", 0), mode="resample", source=acts),
            mm.SkipLayers(("resid_post", 1)),
            mm.ClampNeurons({("mlp_post", 0): [3, 4]}, maximum=-0.1),
        ]
        out = []
        for edit in edits:
            with mm.patched(model, edit) as view:
                out.append(view.logits(pairs).numpy())
            differs(out[-1], model.logits(pairs))
        for method in (mm.activation_patching, mm.attribution_patching):
            out.append(
                method(model, pairs, sites=["resid_post", "z", "attn_out"]).margins["patched"]
            )
        results.append(out)
    for got, want in zip(*results, strict=True):
        close(got, want, tolerance=1e-4)


def test_two_keys_of_one_site_are_taken_together() -> None:
    """Counted from the end, ``-1`` is the last layer as well."""
    bench = helpers.bench()
    last = bench.model.n_layers - 1
    for kind, stream, options in (
        (mm.AblateHeads, "z", {}), (mm.AblateNeurons, "mlp_post", {"mode": "zero"}),
    ):  # fmt: skip
        apart = kind({(stream, -1): [0], (stream, last): [1]}, **options)
        whole = kind({(stream, last): [0, 1]}, **options)
        alone = kind({(stream, last): [1]}, **options)
        assert torch.equal(logits_under(bench, apart), logits_under(bench, whole))
        assert not torch.equal(logits_under(bench, apart), logits_under(bench, alone))
