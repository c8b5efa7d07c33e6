"""P1's two readings against the equations of the paper and the steps of its code, by hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from helpers import (
    HOOKED,
    Bench,
    bench,
    blocks,
    close,
    contrast_set,
    differs,
    sentence,
    tiny_gpt2,
    tiny_llama,
    word_tokenizer,
)
from scipy.stats import pearsonr

import mechmem as mm

PAIRS = contrast_set(14, seed=2)
NAMES = ["p1-paper", "p1-code"]
STEPS = 3


@cache
def _lab(kind: str) -> Bench:
    """Four blocks, so that the code's reading leaves some out and edits several."""
    hf, words = {"gpt2": tiny_gpt2, "llama": tiny_llama}[kind](seed=1, n_layer=4), word_tokenizer()
    if HOOKED:
        from models.hooked3 import hooked_from

        return Bench(hf, words, mm.load_model(hooked_from(hf, kind), tokenizer=words))
    return Bench(hf, words, mm.load_model(hf, tokenizer=words))


@pytest.fixture(params=["gpt2", "llama"])
def lab(request):
    return _lab(request.param)


def _rows(hf, ids: list[int], name: str) -> np.ndarray:
    """``[row, d]`` at the last token: the outputs of all blocks, or transformers' hidden states."""
    outputs: list[np.ndarray] = []

    def keep(module, args, output):
        state = output[0] if isinstance(output, tuple) else output
        outputs.append(state[0, -1].double().numpy())

    handles = [block.register_forward_hook(keep) for block in blocks(hf)]
    with torch.no_grad():
        states = hf(torch.tensor([ids]), output_hidden_states=True, use_cache=False).hidden_states
    for handle in handles:
        handle.remove()
    if name == "p1-paper":
        return np.stack(outputs)
    return np.stack([state[0, -1].double().numpy() for state in states])


def _by_hand(lab, name: str) -> tuple[np.ndarray, np.ndarray]:
    """NMD and Pearson r, ``[row, d]``, of P1's equations in NumPy."""
    states = np.stack([_rows(lab.hf, lab.ids(prompt.text), name) for prompt in PAIRS])
    memorized = np.array([prompt.behavior == "memorized" for prompt in PAIRS])
    nmd = states[memorized].mean(0) - states[~memorized].mean(0)
    r = np.zeros_like(nmd)
    for index in np.ndindex(*nmd.shape):
        column = states[(slice(None), *index)]
        r[index] = 0.0 if np.ptp(column) == 0 else np.corrcoef(column, memorized)[0, 1]
    return nmd, r


def _shifts(lab, name: str, top: float, alpha: float, toward: str) -> dict[int, np.ndarray]:
    """What is added to the output of every block."""
    nmd, r = _by_hand(lab, name)
    number = round(top * r.size) if name == "p1-paper" else int(top * r.size)
    chosen = np.zeros(r.size, dtype=bool)
    chosen[np.argsort(-np.abs(r).ravel(), kind="stable")[:number]] = True
    shift = np.where(chosen.reshape(r.shape), nmd, 0.0) * alpha
    shift = shift if toward == "memorized" else -shift
    if name == "p1-paper":
        return dict(enumerate(shift))
    # The first 25 of 28 blocks, in proportion, and never the last: 3 of 4. Row 0 is the embedding.
    return {block: shift[block + 1] for block in range(3)}


def _cached_logits(hf, ids: list[int], shifts: dict[int, np.ndarray]) -> list[np.ndarray]:
    """Logits of the prompt's last token and of each cached step, greedy, the last position edited
    in every forward call."""

    def adder(shift: np.ndarray) -> Callable[..., object]:
        value = torch.tensor(shift, dtype=torch.float32)

        def add(module, args, output):
            state = (output[0] if isinstance(output, tuple) else output).clone()
            state[:, -1] += value
            return (state, *output[1:]) if isinstance(output, tuple) else state

        return add

    handles = [blocks(hf)[k].register_forward_hook(adder(v)) for k, v in shifts.items()]
    out, fed, cache = [], torch.tensor([ids]), None
    with torch.no_grad():
        for _ in range(STEPS + 1):
            done = hf(fed, past_key_values=cache, use_cache=True)
            out.append(done.logits[0, -1].double().numpy())
            fed, cache = done.logits[:, -1].argmax(-1, keepdim=True), done.past_key_values
    for handle in handles:
        handle.remove()
    return out


def _library_logits(model: mm.Model, text: str, edit: mm.Edit | None) -> list[np.ndarray]:
    """The same from mechmem's own cached generation."""
    seen: list[np.ndarray] = []

    def keep(module, args, output):
        seen.append(output[0, -1].detach().double().numpy())

    handle = model.tl.unembed.register_forward_hook(keep)
    try:
        if edit is None:
            _endless(model).complete([text], STEPS + 1)
        else:
            with mm.patched(model, edit) as view:
                _endless(view).complete([text], STEPS + 1)
    finally:
        handle.remove()
    return seen


def _endless(model: mm.Model) -> mm.Model:
    view = model.with_interventions([])
    view.__dict__["_eos_ids"] = ()
    return view


class TestByHand:
    @pytest.mark.parametrize("name", NAMES)
    def test_scores_are_the_equations_on_the_models_own_states(self, lab, name) -> None:
        scores = mm.p1_preset(name).scores(lab.model, PAIRS)
        nmd, r = _by_hand(lab, name)
        close(torch.cat([scores.mean_difference[site] for site in scores.sites]), nmd)
        close(torch.cat([scores.correlation[site] for site in scores.sites]), r)

    @pytest.mark.parametrize("toward", ["memorized", "generalized"])
    @pytest.mark.parametrize(("top", "alpha"), [(0.10, 5.0), (0.30, 1.0)])
    @pytest.mark.parametrize("name", NAMES)
    def test_prefill_and_three_cached_steps(self, lab, name, top, alpha, toward) -> None:
        preset = mm.p1_preset(name)
        edit = preset.edit(preset.scores(lab.model, PAIRS), top=top, alpha=alpha, toward=toward)
        shifts = _shifts(lab, name, top, alpha, toward)
        assert any(shift.any() for shift in shifts.values())
        text = sentence(5, seed=3)
        want = _cached_logits(lab.hf, lab.ids(text), shifts)
        got = _library_logits(lab.model, text, edit)
        assert len(got) == len(want) == STEPS + 1
        for one, other in zip(got, want, strict=True):
            close(one, other, 1e-5)
        differs(want[0], _library_logits(lab.model, text, None)[0])


class TestThePresets:
    def test_both_grids_are_the_papers(self, lab) -> None:
        for name in NAMES:
            preset = mm.p1_preset(name)
            scores = preset.scores(lab.model, PAIRS)
            grid = preset.grid(scores)
            assert [edit.alpha for edit in grid] == [1.0, 3.0, 5.0] * 2
            tops = [0.05] * 3 + [0.1] * 3
            want = tops if name == "p1-paper" else [int(top * scores.total) for top in tops]
            assert [edit.top for edit in grid] == want

    def test_the_code_edits_25_of_28_blocks_and_never_the_last(self) -> None:
        code, paper = mm.p1_preset("p1-code"), mm.p1_preset("p1-paper")
        assert code.edited_blocks(28) == 25
        assert paper.edited_blocks(28) == 28
        for n in range(2, 81):
            assert 1 <= code.edited_blocks(n) < n
        assert code.rows == "hidden_states"
        assert paper.rows == "outputs"

    def test_the_readings_choose_other_neurons(self) -> None:
        lab = bench("gpt2")
        paper, code = (
            preset.edit(preset.scores(lab.model, PAIRS), top=0.1).shift(lab.model)
            for preset in (mm.p1_preset("p1-paper"), mm.p1_preset("p1-code"))
        )
        assert ("resid_post", 2) not in code
        assert set(paper) != set(code) or any(
            not torch.equal(paper[site], code[site]) for site in code
        )

    def test_an_unknown_name_and_scores_of_other_sites_are_refused(self) -> None:
        lab = bench("gpt2")
        with pytest.raises(mm.MechmemError, match=r"'p2'.*'p1-paper', 'p1-code'"):
            mm.p1_preset("p2")
        scores = mm.p1_preset("p1-paper").scores(lab.model, PAIRS)
        with pytest.raises(mm.EditError, match=r"p1-code ranks.*ln_final.*preset.scores"):
            mm.p1_preset("p1-code").edit(scores)


class TestHiddenStates:
    def test_they_are_transformers_rows_on_padded_prompts(self, lab) -> None:
        acts = mm.hidden_states(lab.model, PAIRS)
        n = len(blocks(lab.hf))
        assert acts.sites[0] == ("resid_pre", 0)
        assert acts.sites[-1] == ("ln_final", n - 1)
        for k, prompt in enumerate(PAIRS):
            close(acts.values[k], _rows(lab.hf, lab.ids(prompt.text), "p1-code"))

    def test_what_cannot_be_read_or_edited_there_is_said(self, lab) -> None:
        with pytest.raises(mm.PositionError, match=r"norm of a mean"):
            mm.hidden_states(lab.model, PAIRS, positions="mean")
        with pytest.raises(mm.SiteError, match=r"'ln_final'.*hidden_states.*resid_post"):
            mm.cache_activations(lab.model, PAIRS, sites="ln_final")
        scores = mm.p1_preset("p1-code").scores(lab.model, PAIRS)
        for edit in (mm.ShiftNeurons(scores, top=1.0), mm.ClampNeurons(scores.top(1.0), 0.0)):
            with (
                pytest.raises(mm.EditError, match=r"'ln_final'.*nothing can be edited.*at="),
                mm.patched(lab.model, edit),
            ):
                pass

    def test_scores_over_them_are_saved_and_read_back(self, tmp_path) -> None:
        lab = bench("llama")
        scores = mm.p1_preset("p1-code").scores(lab.model, PAIRS)
        back = mm.NeuronScores.load(scores.save(tmp_path / "scores"))
        assert back.sites == scores.sites
        assert back.table().equals(scores.table())


class TestConstantColumns:
    """Prompts that end in one token: r of the constant embedding row is NaN, and comes first."""

    PROMPTS = mm.PromptSet(
        mm.Prompt(id=p.id, text=f"{p.text} w9", group=p.group, behavior=p.behavior) for p in PAIRS
    )

    def released(self, lab: Bench, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Which of ``[row, d]`` the released steps choose, and the mean difference."""
        rows = [_rows(lab.hf, lab.ids(p.text), "p1-code") for p in self.PROMPTS]
        flat = np.stack(rows).reshape(len(rows), -1)
        label = np.array([p.behavior == "memorized" for p in self.PROMPTS], dtype=float)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            r = np.array([pearsonr(column, label).statistic for column in flat.T])
        order = np.argsort(np.abs(r))[::-1][:k]
        chosen = np.zeros(flat.shape[1], dtype=bool)
        chosen[order] = True
        nmd = flat[label == 1].mean(0) - flat[label == 0].mean(0)
        return chosen.reshape(rows[0].shape), nmd.reshape(rows[0].shape)

    @pytest.mark.parametrize("top", [0.25, 0.5, 0.9])
    def test_what_is_added_is_what_the_released_steps_add(self, top) -> None:
        lab = _lab("llama")  # no position embedding: the whole row is constant
        preset = mm.p1_preset("p1-code")
        scores = preset.scores(lab.model, self.PROMPTS)
        chosen, nmd = self.released(lab, int(top * scores.total))
        assert chosen[0].all(), "the NaN of the embedding row come first"
        want = {layer: (chosen * nmd)[layer + 1] for layer in range(3)}
        got = preset.edit(scores, top=top, alpha=1.0, toward="memorized").shift(lab.model)
        for layer, shift in want.items():
            own = got.get(mm.Site("resid_post", layer), torch.zeros(1, 16))[0]
            np.testing.assert_allclose(own.numpy(), shift, rtol=1e-5, atol=1e-5)
        slots = preset.slots(scores, top)
        assert slots == {
            "chosen": int(top * scores.total),
            "constant": 16,
            "edited": int(chosen[1:4].sum()),
            "edited_varying": int(chosen[1:4].sum()),
        }

    def test_the_papers_reading_lets_no_constant_neuron_take_a_slot(self) -> None:
        lab = _lab("llama")
        scores = mm.p1_preset("p1-code").scores(lab.model, self.PROMPTS)
        assert int(scores.constant(scores.sites[0]).sum()) == 16
        plain = scores.top(40)
        assert len(plain.index[scores.sites[0]]) == 0

    def test_when_constants_take_every_slot_nothing_is_edited_and_that_is_an_error(self) -> None:
        lab = _lab("llama")
        scores = mm.p1_preset("p1-code").scores(lab.model, self.PROMPTS)
        edit = mm.p1_preset("p1-code").edit(scores, top=0.1)  # 8 of 80 slots, 16 constants
        with pytest.raises(mm.EditError, match="None of the top 8 neurons lies at"):
            edit.shift(lab.model)
