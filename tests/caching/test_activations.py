from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import as_users_run_it, bench, close, differs, hf_states, ragged

import mechmem as mm
from mechmem.models.sites import STREAMS

KINDS = ["gpt2", "llama"]


@pytest.fixture(params=KINDS)
def lab(request):
    return bench(request.param)


def _sites(lab) -> list[tuple[str, int]]:
    return [(stream, layer) for layer in range(lab.model.n_layers) for stream in STREAMS]


class TestEveryStreamAgainstPlainHooks:
    def test_at_the_last_token(self, lab) -> None:
        prompts = ragged(9)
        sites = _sites(lab)
        acts = mm.cache_activations(lab.model, prompts, sites=sites, token_budget=45)
        by_hand = [hf_states(lab.hf, lab.ids(prompt.text), sites) for prompt in prompts]
        for site in sites:
            want = torch.stack([states[site][-1] for states in by_hand])
            close(acts[site].flatten(1), want)

    def test_residual_streams_are_the_hidden_states_of_transformers(self, lab) -> None:
        prompts = ragged(5)
        acts = mm.cache_activations(lab.model, prompts, sites=["resid_pre", "resid_post"])
        for k, prompt in enumerate(prompts):
            with torch.no_grad():
                out = lab.hf(torch.tensor([lab.ids(prompt.text)]), output_hidden_states=True)
            for layer in range(lab.model.n_layers):
                close(acts["resid_pre", layer][k, 0], out.hidden_states[layer][0, -1])
                if layer + 1 < lab.model.n_layers:  # the last one is after the final norm
                    close(acts["resid_post", layer][k, 0], out.hidden_states[layer + 1][0, -1])

    def test_streams_add_up(self, lab) -> None:
        acts = mm.cache_activations(lab.model, ragged(5), sites=_sites(lab))
        for layer in range(lab.model.n_layers):
            close(acts["resid_pre", layer] + acts["attn_out", layer], acts["resid_mid", layer])
            close(acts["resid_mid", layer] + acts["mlp_out", layer], acts["resid_post", layer])

    def test_heads_keep_their_own_axis(self, lab) -> None:
        z = mm.cache_activations(lab.model, ragged(3), sites="z")["z", 0]
        assert z.shape == (3, 1, lab.hf.config.num_attention_heads, z.shape[-1])


class TestPositions:
    SITES = [("resid_post", 0), ("mlp_post", 1), ("resid_mid", 1)]

    def _hand(self, lab, prompts):
        return [hf_states(lab.hf, lab.ids(prompt.text), self.SITES) for prompt in prompts]

    @pytest.mark.parametrize("position", [0, 1, -1, -2])
    def test_integers_count_in_the_prompts_own_tokens(self, lab, position) -> None:
        prompts = ragged(9)
        acts = mm.cache_activations(lab.model, prompts, sites=self.SITES, positions=position)
        for site in self.SITES:
            want = torch.stack([states[site][position] for states in self._hand(lab, prompts)])
            close(acts[site][:, 0], want)

    def test_mean_is_over_the_prompts_own_tokens(self, lab) -> None:
        prompts = ragged(9)
        acts = mm.cache_activations(lab.model, prompts, sites=self.SITES, positions="mean")
        assert acts.columns == ("mean",)
        for site in self.SITES:
            want = torch.stack(
                [states[site].double().mean(0) for states in self._hand(lab, prompts)]
            )
            close(acts[site][:, 0], want)

    def test_spans_and_several_positions_in_the_order_given(self, lab) -> None:
        prompts = mm.PromptSet(
            mm.Prompt(
                id=p.id, text=f"w1 {p.text}", spans={"cue": (0, len(f"w1 {p.text.split()[0]}"))}
            )
            for p in ragged(6)
        )
        acts = mm.cache_activations(
            lab.model, prompts, sites=self.SITES, positions=["cue", 0], token_budget=30
        )
        assert acts.columns == ("cue[0]", "cue[1]", "0")
        for site in self.SITES:
            want = torch.stack([states[site][[1, 2, 0]] for states in self._hand(lab, prompts)])
            close(acts[site], want)
        close(acts.at("cue[1]")["mlp_post", 1], acts["mlp_post", 1][:, 1:2])

    def test_a_missing_position_names_the_prompt_before_anything_runs(self, lab) -> None:
        with pytest.raises(mm.PositionError, match=r"Position 3 is outside prompt 'p2'"):
            mm.cache_activations(lab.model, ragged(3), positions=3)


class TestAfterEdits:
    def test_states_inside_patched_are_those_after_the_edit(self, lab) -> None:
        prompts = ragged(5)
        sites = [("resid_post", 0), ("attn_out", 1), ("resid_post", 1)]
        flips = mm.PromptSet(
            mm.Prompt(id=f"{k}", text=p.text, label="ab"[k % 2]) for k, p in enumerate(ragged(6, 3))
        )
        direction = mm.difference_of_means(
            mm.cache_activations(lab.model, flips), toward="a", by="label"
        )["resid_post", 0]
        with mm.patched(lab.model, mm.AddDirection(direction, alpha=2.0)) as view:
            edited = mm.cache_activations(view, prompts, sites=sites)
        vector = 2.0 * direction.vector.float()
        plain = mm.cache_activations(lab.model, prompts, sites=sites)
        by_hand = [
            hf_states(
                lab.hf,
                lab.ids(prompt.text),
                sites,
                {("resid_post", 0): [lambda states, at: states + vector]},
            )
            for prompt in prompts
        ]
        for site in sites:
            want = torch.stack([states[site][-1] for states in by_hand])
            close(edited[site][:, 0], want)
            differs(plain[site][:, 0], want)

    def test_reading_below_one_of_two_edits_is_no_error(self, lab) -> None:
        prompts = ragged(4)
        labeled = mm.PromptSet(
            mm.Prompt(id=p.id, text=p.text, label="ab"[k % 2]) for k, p in enumerate(prompts)
        )
        found = mm.difference_of_means(
            mm.cache_activations(lab.model, labeled), toward="a", by="label"
        )
        edits = [mm.AddDirection(found["resid_post", layer]) for layer in (0, 1)]
        with mm.patched(lab.model, edits) as view:
            mm.cache_activations(view, prompts, sites=("resid_post", 0))


class TestMemoryAndPrecision:
    @pytest.mark.parametrize("positions", ["last", "mean", [0, -1]])
    def test_no_view_keeps_a_larger_tensor_alive(self, lab, positions) -> None:
        acts = mm.cache_activations(
            lab.model, ragged(9), sites=_sites(lab), positions=positions, token_budget=60
        )
        for site in acts.sites:
            state = acts[site]
            assert state.untyped_storage().nbytes() == state.numel() * state.element_size()
            assert not state.requires_grad

    def test_taking_rows_or_a_position_does_not_change_the_original(self, lab) -> None:
        acts = mm.cache_activations(lab.model, ragged(4), positions=[0, -1])
        before = acts["resid_post", 0].clone()
        acts.take([1, 2])["resid_post", 0].add_(1)
        assert torch.equal(acts["resid_post", 0], before)

    def test_stored_precision(self, lab) -> None:
        prompts = ragged(4)
        half = mm.cache_activations(lab.model, prompts, dtype=torch.bfloat16)
        full = mm.cache_activations(lab.model, prompts)
        assert half["resid_post", 0].dtype is torch.bfloat16
        assert torch.equal(half["resid_post", 0], full["resid_post", 0].bfloat16())


class TestTheObject:
    def test_values_are_one_tensor_in_the_order_asked_for(self, lab) -> None:
        sites = [("resid_post", 1), ("resid_pre", 0)]
        acts = mm.cache_activations(lab.model, ragged(4), sites=sites)
        close(acts.values[:, 0], acts["resid_post", 1][:, 0])
        close(acts.values[:, 1], acts["resid_pre", 0][:, 0])
        with pytest.raises(mm.SiteError, match=r"one position and one width.*Use acts\["):
            mm.cache_activations(lab.model, ragged(4), sites=["mlp_post", "resid_post"]).values  # noqa: B018

    def test_results_come_back_in_the_order_of_the_prompts(self, lab) -> None:
        prompts = ragged(9)
        acts = mm.cache_activations(lab.model, prompts, token_budget=25)
        order = [4, 0, 8, 2]
        some = mm.cache_activations(lab.model, prompts.select([prompts[k].id for k in order]))
        close(some["resid_post", 1], acts.take(order)["resid_post", 1])
        assert some.token_ids == acts.take(order).token_ids
        assert acts.take(order).prompts == some.prompts
        assert acts.take(order).provenance.seen == some.provenance.seen

    def test_save_and_load_give_it_back_whole_and_in_order(self, lab, tmp_path) -> None:
        sites = [("resid_post", 1), ("z", 0), ("resid_pre", 1)]
        prompts = mm.PromptSet(
            mm.Prompt(id=p.id, text=f"w7 {p.text}", spans={"cue": (0, 2)}, meta={"n": 1})
            for p in ragged(4)
        )
        acts = mm.cache_activations(lab.model, prompts, sites=sites, positions=["cue", "last"])
        back = mm.Activations.load(acts.save(tmp_path / "deep" / "acts"))
        assert back.sites == acts.sites
        assert all(torch.equal(back[site], acts[site]) for site in sites)
        assert (back.prompts, back.columns, back.token_ids, back.provenance) == (
            acts.prompts,
            acts.columns,
            acts.token_ids,
            acts.provenance,
        )

    def test_select_replaces_behaviors_and_keeps_states(self, lab) -> None:
        prompts = ragged(4)
        acts = mm.cache_activations(lab.model, prompts)
        seen = prompts[1:3].with_behaviors({"p1": "memorized", "p2": "generalized"})
        chosen = acts.select(seen)
        assert chosen.classes("behavior") == ["memorized", "generalized"]
        assert torch.equal(chosen["resid_post", 0], acts["resid_post", 0][1:3])

    def test_select_refuses_other_texts_with_the_same_ids(self, lab, tmp_path) -> None:
        prompts = ragged(4)
        other = mm.PromptSet(replace(p, text=f"{p.text} w3") for p in prompts[1:2])
        store = mm.extract_activations(lab.model, prompts, tmp_path)
        for states in (mm.cache_activations(lab.model, prompts), store):
            with pytest.raises(mm.PromptError, match=r"of 'p1' are those of other texts"):
                states.select(other)

    def test_numpy_sees_the_numbers(self, lab) -> None:
        acts = mm.cache_activations(lab.model, ragged(3))
        assert np.asarray(acts["resid_post", 0]).shape == (3, 1, 16)


class TestRefusals:
    @pytest.mark.parametrize(
        ("sites", "text"),
        [
            ("resid_pst", r"Unknown stream 'resid_pst'.*'resid_post'.*Did you mean 'resid_post'"),
            (("resid_post", 9), r"Layer 9 of 'resid_post' is out of range.*\d layers"),
            (3, r"got 3; write \('resid_post', 3\)"),
            ([], r"No sites given.*sites='resid_post'"),
            ([("resid_post", "1")], r"is not a site"),
        ],
    )
    def test_a_wrong_site(self, lab, sites, text) -> None:
        with as_users_run_it(), pytest.raises(mm.SiteError, match=text):
            mm.cache_activations(lab.model, ragged(2), sites=sites)

    def test_what_is_not_there(self, lab) -> None:
        acts = mm.cache_activations(lab.model, ragged(2))
        with pytest.raises(mm.SiteError, match=r"No states of \('resid_pre', 0\).*resid_post\[0\]"):
            acts["resid_pre", 0]
        with pytest.raises(mm.PositionError, match=r"No position 'first'.*'last'"):
            acts.at("first")
        with pytest.raises(mm.PromptError, match=r"No states of prompts 'x'"):
            acts.select(mm.PromptSet([mm.Prompt(id="x", text="w1")]))

    def test_classes_that_are_not_there(self, lab) -> None:
        acts = mm.cache_activations(lab.model, ragged(2))
        with pytest.raises(mm.PromptError, match=r"by behavior needs 2 classes.*none.*flips\(\)"):
            acts.classes("behavior")
        with pytest.raises(mm.PromptError, match=r"by label needs 2.*set Prompt\.label"):
            acts.classes("label")
        with pytest.raises(mm.PromptError, match=r"'behavior'.*'label', got 'group'"):
            acts.classes("group")

    def test_nothing_to_cache(self, lab) -> None:
        with pytest.raises(mm.PromptError, match=r"No prompts to cache"):
            mm.cache_activations(lab.model, [])

    def test_a_file_that_is_something_else_or_cut_off(self, lab, tmp_path) -> None:
        path = mm.cache_activations(lab.model, ragged(2)).save(tmp_path / "acts")
        with pytest.raises(mm.ArtifactError, match=r"nothing.*missing"):
            mm.Activations.load(tmp_path / "nothing")
        with pytest.raises(mm.ArtifactError, match=r"holds 'activations', not"):
            mm.Directions.load(path)
        data = path.with_suffix(".safetensors")
        data.write_bytes(data.read_bytes()[:-100])
        with pytest.raises(mm.ArtifactError, match=r"cut off"):
            mm.Activations.load(path)
