"""Families that differ from plain attention: the text and the numbers of plain transformers, or a
refusal by name. What is right is computed by plain transformers, whole texts one at a time, without
a cache."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
import transformers as hf
from models.zoo import VOCAB, tokenizer
from torch import Tensor

import mechmem as mm
from mechmem.models.engine.batching import Feed
from mechmem.models.positions import Positions

IDS = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 3}
SIZES = {"vocab_size": VOCAB, "hidden_size": 64, **IDS}
HEADS = {
    **SIZES,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
RECURRENT = {
    "mamba": lambda: hf.MambaConfig(num_hidden_layers=3, state_size=8, **SIZES),
    "mamba2": lambda: hf.Mamba2Config(
        num_hidden_layers=3, state_size=8, num_heads=8, head_dim=16, n_groups=1, chunk_size=8,
        **SIZES,
    ),
    "falcon_mamba": lambda: hf.FalconMambaConfig(num_hidden_layers=3, state_size=8, **SIZES),
    "rwkv": lambda: hf.RwkvConfig(
        attention_hidden_size=64, intermediate_size=96, num_hidden_layers=3, context_length=256,
        **SIZES,
    ),
    "recurrent_gemma": lambda: hf.RecurrentGemmaConfig(
        intermediate_size=96, num_hidden_layers=3, num_attention_heads=4, lru_width=64,
        attention_window_size=16, **SIZES,
    ),
    "jamba": lambda: hf.JambaConfig(
        num_hidden_layers=4, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, num_experts=2, num_experts_per_tok=1, mamba_d_state=8,
        mamba_dt_rank=4, use_mamba_kernels=False, **HEADS,
    ),
    "bamba": lambda: hf.BambaConfig(
        num_hidden_layers=3, attn_layer_indices=[1], attn_rotary_emb=8, **MAMBA2, **HEADS
    ),
    "lfm2": lambda: hf.Lfm2Config(
        num_hidden_layers=3, layer_types=["conv", "full_attention", "conv"], **HEADS
    ),
    "qwen3_next": lambda: hf.Qwen3NextConfig(
        num_hidden_layers=4, head_dim=16, linear_num_value_heads=4, linear_num_key_heads=2,
        linear_key_head_dim=16, linear_value_head_dim=16, num_experts=4, num_experts_per_tok=2,
        moe_intermediate_size=32, shared_expert_intermediate_size=32, **HEADS,
    ),
    "granite_hybrid": lambda: hf.GraniteMoeHybridConfig(
        num_hidden_layers=3, layer_types=["mamba", "attention", "mamba"], num_local_experts=2,
        num_experts_per_tok=1, shared_intermediate_size=64, position_embedding_type="rope",
        **MAMBA2, **HEADS,
    ),
}  # fmt: skip
FLAT = {
    "opt": lambda: hf.OPTConfig(
        ffn_dim=96, num_hidden_layers=3, word_embed_proj_dim=64, num_attention_heads=4,
        max_position_embeddings=256, **SIZES,
    ),
    "xglm": lambda: hf.XGLMConfig(
        vocab_size=VOCAB, d_model=64, ffn_dim=96, num_layers=3, attention_heads=4,
        max_position_embeddings=256, **IDS,
    ),
    "llama4": lambda: hf.Llama4TextConfig(
        num_hidden_layers=3, intermediate_size_mlp=96, head_dim=16, num_local_experts=2,
        attention_chunk_size=128, **HEADS,
    ),
}  # fmt: skip


def build(config, scale: float = 2.0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = hf.AutoModelForCausalLM.from_config(config).eval()
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(scale)
    return made


def loaded(plain) -> mm.Model:
    try:
        return mm.load_model(plain, tokenizer=tokenizer())
    except mm.MechmemError as error:
        pytest.skip(str(error))


def texts(*lengths: int, seed: int = 0) -> list[str]:
    draw = torch.Generator().manual_seed(seed)
    return [
        " ".join(map(str, torch.randint(0, VOCAB - 4, (n,), generator=draw).tolist()))
        for n in lengths
    ]


@torch.no_grad()
def last_logits(plain, rows: Sequence[Sequence[int]]) -> Tensor:
    found = [plain(torch.tensor([list(ids)]), use_cache=False).logits[0, -1] for ids in rows]
    return torch.stack(found).float()


def greedy(plain, ids: Sequence[int], new: int) -> list[int]:
    text = list(ids)
    for _ in range(new):
        token = int(last_logits(plain, [text])[0].argmax())
        if token == IDS["eos_token_id"]:
            break
        text.append(token)
    return text[len(ids) :]


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.std())


@dataclass
class Step:
    """Adds a vector at some positions."""

    site: mm.Site
    where: Positions
    vector: Tensor

    def apply(self, activation: Tensor, feed: Feed) -> Tensor:
        return activation + feed.mask(self.where)[..., None] * self.vector


# TransformerLens 3 cannot run Qwen3-Next; there it is one ModelError, as below.
RUNNING = [
    pytest.param(name, marks=[pytest.mark.tl4] if name == "qwen3_next" else [])
    for name in RECURRENT
]


@pytest.mark.parametrize("name", RUNNING)
def test_recurrent_and_hybrid_models_write_and_score_as_plain_transformers(name):
    plain = build(RECURRENT[name]())
    model = loaded(plain)
    prompts = texts(3, 17, 5, 9, 24)
    ids = [model.token_ids(text) for text in prompts]
    assert off(model.logits(prompts), last_logits(plain, ids)) < 1e-4
    wanted = [greedy(plain, row, 14) for row in ids]
    assert [done.ids for done in model.complete(prompts, 14)] == wanted
    answers = texts(3, 1, 2, 1, 2, seed=1)
    scores = model.logprobs(prompts, [" " + answer for answer in answers])
    for row, answer, score in zip(ids, answers, scores, strict=True):
        tail = model.token_ids(answer)
        with torch.no_grad():
            logits = plain(torch.tensor([row + tail]), use_cache=False).logits[0].double()
        each = logits.log_softmax(-1)[len(row) - 1 : -1]
        assert float(score) == pytest.approx(
            float(each.gather(1, torch.tensor(tail)[:, None]).sum()), rel=1e-4
        )


@pytest.mark.parametrize(
    "name", ["mamba", "rwkv", "jamba", RUNNING[list(RECURRENT).index("qwen3_next")]]
)
def test_recurrent_models_are_observed_one_by_one_as_in_a_batch(name):
    plain = build(RECURRENT[name]())
    model = loaded(plain)
    prompts = mm.PromptSet(
        mm.Prompt(id=str(k), text=text, memorized=" 7", generalized=" 9", group=str(k))
        for k, text in enumerate(texts(3, 11, 6, 11))
    )
    whole = mm.observe(model, prompts)
    alone = [mm.observe(model, mm.PromptSet([prompt])) for prompt in prompts]
    assert whole.completions == tuple(seen.completions[0] for seen in alone)
    for margin, seen in zip(whole.margins, alone, strict=True):
        assert margin == pytest.approx(seen.margins[0], rel=1e-4)
    for prompt, text in zip(prompts, whole.completions, strict=True):
        ids = greedy(plain, model.token_ids(prompt.text), 32)
        assert model.tokens.decode(ids).startswith(text)


def test_a_model_that_cannot_run_is_refused_by_every_entry_in_one_line():
    config = RECURRENT["granite_hybrid"]()
    config.position_embedding_type = None
    model = loaded(build(config))
    entries = {
        "logits": lambda: model.logits("1 2"),
        "generate": lambda: model.generate("1 2"),
        "logprobs": lambda: model.logprobs("1 2", ["3"]),
        "observe": lambda: mm.observe(
            model, mm.PromptSet([mm.Prompt(id="a", text="1", answer=" 2")])
        ),
        "states": lambda: mm.cache_activations(model, "1 2", sites="resid_post"),
    }
    for entry in entries.values():
        with pytest.raises(mm.MechmemError) as caught:
            entry()
        assert "cannot run" in str(caught.value) or "mechmem check" in str(caught.value)


class TestFlattened:
    """Modules that are handed rows and tokens as one axis."""

    @pytest.mark.parametrize("name", FLAT)
    def test_streams_are_read_as_transformers_gives_them(self, name):
        plain = build(FLAT[name]())
        model, prompts = loaded(plain), texts(3, 9, 5, 7)
        found = mm.cache_activations(model, prompts, sites="resid_post", positions="last")
        for row, text in enumerate(prompts):
            with torch.no_grad():
                states = plain(
                    torch.tensor([model.token_ids(text)]), output_hidden_states=True
                ).hidden_states
            for layer in range(2):
                got = found["resid_post", layer][row, 0]
                assert off(got, states[layer + 1][0, -1]) < 1e-4
        branches = mm.cache_activations(
            model, prompts, sites=["resid_pre", "attn_out", "mlp_out", "resid_post"]
        )
        for layer in range(3):
            parts = [branches[s, layer] for s in ("resid_pre", "attn_out", "mlp_out")]
            assert off(sum(parts), branches["resid_post", layer]) < 1e-4

    @pytest.mark.parametrize("name", FLAT)
    def test_every_stream_holds_or_is_refused_by_name(self, name):
        report = mm.models.check_model(loaded(build(FLAT[name]())))
        assert {"resid_pre", "attn_out", "mlp_out", "resid_post"} <= set(report.streams)
        assert all(found.reason for found in report.findings if found.site in report.refused)

    def test_hidden_units_of_a_flattened_mlp_are_those_of_every_prompt(self):
        plain = build(FLAT["opt"]())
        model, prompts, seen = loaded(plain), texts(3, 9, 5), []
        found = mm.cache_activations(model, prompts, sites=("mlp_post", 1))["mlp_post", 1]
        layer = plain.model.decoder.layers[1]
        hook = layer.fc2.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
        last_logits(plain, [model.token_ids(text) for text in prompts])
        hook.remove()
        assert off(found[:, 0], torch.stack([units[-1] for units in seen])) < 1e-4

    def test_an_edit_of_a_flattened_branch_reaches_the_rows_it_names(self):
        plain = build(FLAT["opt"]())
        model, prompts = loaded(plain), texts(3, 9, 5)
        vector = torch.linspace(-2, 2, 64)
        edit = Step(mm.Site("mlp_out", 1), Positions.parse("last"), vector)
        found = model.with_interventions([edit]).logits(prompts)

        def add(module, args, out):
            out = out.clone()
            out[-1] += vector
            return out

        hook = plain.model.decoder.layers[1].fc2.register_forward_hook(add)
        wanted = last_logits(plain, [model.token_ids(text) for text in prompts])
        hook.remove()
        assert off(found, wanted) < 1e-4
        assert off(found, model.logits(prompts)) > 0.01

    def test_a_post_norm_opt_of_two_widths_is_refused_by_name(self):
        config = hf.OPTConfig(
            ffn_dim=96, num_hidden_layers=3, word_embed_proj_dim=32, do_layer_norm_before=False,
            num_attention_heads=4, max_position_embeddings=256, **SIZES,
        )  # fmt: skip
        model = loaded(build(config))
        report = mm.models.check_model(model)
        assert mm.Site("resid_mid", 1) in report.refused
        with pytest.raises(mm.SiteError, match=r"resid_mid\[1\] cannot be read or edited"):
            mm.cache_activations(model, "1 2", sites=("resid_mid", 1))


ORIGINAL = 24


def longrope(original: int = ORIGINAL):
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [1 + 4.0 * k for k in range(8)],
        "original_max_position_embeddings": original,
    }
    config = hf.Phi3Config(
        num_hidden_layers=2, original_max_position_embeddings=original, rope_parameters=rope,
        **{**HEADS, "max_position_embeddings": 512},
    )  # fmt: skip
    return build(config, scale=3.0)


class TestPositionsThatChangeWithLength:
    def test_short_prompts_beside_long_ones_and_behind_a_shared_beginning(self):
        plain = longrope()
        model = loaded(plain)
        head = texts(20, seed=5)[0]
        prompts = [
            *texts(5, 14, 24, 25, 40), *(f"{head} {tail}" for tail in texts(2, 3, 4, 5, 9, 20))
        ]  # fmt: skip
        ids = [model.token_ids(text) for text in prompts]
        assert off(model.logits(prompts), last_logits(plain, ids)) < 1e-4
        for share in (True, False):
            states = mm.cache_activations(
                model, prompts, sites=("resid_post", 0), share_prefixes=share
            )["resid_post", 0]
            for row, one in enumerate(ids):
                with torch.no_grad():
                    whole = plain(torch.tensor([one]), output_hidden_states=True).hidden_states
                assert off(states[row, 0], whole[1][0, -1]) < 1e-4

    def test_text_is_written_across_the_switch(self):
        plain = longrope()
        model = loaded(plain)
        head = texts(15, seed=5)[0]
        prompts = [*texts(3, 20, 20, 24, 30), *(f"{head} {tail}" for tail in texts(2, 2, 6))]
        wanted = [greedy(plain, model.token_ids(text), 18) for text in prompts]
        assert [done.ids for done in model.complete(prompts, 18)] == wanted

    @pytest.mark.parametrize("where", ["each_step", "last", "all", "generated"])
    def test_edits_act_on_the_same_tokens_when_the_text_is_run_again(self, where):
        plain = longrope()
        model, prompts = loaded(plain), texts(18, 18, 20)
        vector = torch.linspace(-1, 1, 64)
        edit = Step(mm.Site("resid_post", 0), Positions.parse(where), vector)
        view = model.with_interventions([edit])
        for text, done in zip(prompts, view.complete(prompts, 12), strict=True):
            ids = model.token_ids(text)
            start = {"all": 0, "generated": len(ids)}.get(where, len(ids) - 1)
            end = len(ids) if where == "last" else None

            def add(module, args, out, start=start, end=end):
                states = out[0] if isinstance(out, tuple) else out
                states = states.clone()
                states[:, start:end] += vector
                return (states, *out[1:]) if isinstance(out, tuple) else states

            hook = plain.model.layers[0].register_forward_hook(add)
            wanted = greedy(plain, ids, 12)
            hook.remove()
            assert done.ids == wanted

    def test_a_sweep_of_edits_equals_each_alone(self):
        plain = longrope()
        model, prompts = loaded(plain), texts(5, 14, 30, 24, 26, 40)
        vector = torch.linspace(-1, 1, 64)
        where = Positions.parse("last")
        cells = [[], *([Step(mm.Site("resid_post", k), where, vector)] for k in (0, 1))]
        from mechmem.models.engine.grid import many_logits
        from mechmem.models.engine.scoring import many_generate

        encoded = model.tokenize(prompts)
        found = many_logits(model.backend, encoded, cells)
        for cell, logits in zip(cells, found, strict=True):
            alone = [model.with_interventions(cell).logits(text)[0] for text in prompts]
            assert off(logits, torch.stack(alone)) < 1e-4
        assert off(found[0], last_logits(plain, [one.ids for one in encoded])) < 1e-4
        written = many_generate(
            model.backend, encoded, cells, model.tokens.decode, max_new_tokens=8, eos_ids=(3,)
        )
        for cell, row in zip(cells, written, strict=True):
            view = model.with_interventions(cell)
            assert [d.ids for d in row] == [view.complete(t, 8)[0].ids for t in prompts]
        assert [d.ids for d in written[0]] == [greedy(plain, one.ids, 8) for one in encoded]


OTHERWISE = {
    "openai_gpt": lambda: hf.OpenAIGPTConfig(
        vocab_size=VOCAB, n_embd=64, n_layer=2, n_head=4, n_positions=128
    ),
    "falcon_alibi": lambda: hf.FalconConfig(
        num_hidden_layers=2, num_attention_heads=4, alibi=True, new_decoder_architecture=False,
        multi_query=False, bias=True, parallel_attn=False, **SIZES,
    ),
}  # fmt: skip


class TestOtherNumbersThanTransformers:
    @pytest.mark.parametrize("name", OTHERWISE)
    def test_a_model_is_refused_however_it_comes(self, name, tmp_path):
        plain = build(OTHERWISE[name](), scale=3.0)
        plain.save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
        for load in (
            lambda: mm.load_model(plain, tokenizer=tokenizer()),
            lambda: mm.load_model(tmp_path),
        ):
            with pytest.raises(mm.ModelError, match=r"as transformers does: on .* logits differ"):
                load()

    @pytest.mark.parametrize("name", OTHERWISE)
    @pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
    def test_what_half_precision_hides_is_tried_in_float32(self, name, dtype, tmp_path):
        plain = build(OTHERWISE[name](), scale=1.0).to(getattr(torch, dtype))
        plain.save_pretrained(tmp_path)
        tokenizer().save_pretrained(tmp_path)
        before = torch.get_rng_state()
        for load in (
            lambda: mm.load_model(plain, tokenizer=tokenizer()),
            lambda: mm.load_model(tmp_path, dtype=dtype),
        ):
            with pytest.raises(mm.ModelError, match=r"as transformers does: .* differ by"):
                load()
        assert torch.equal(torch.get_rng_state(), before)

    def test_a_falcon_that_is_computed_rightly_is_taken_in_half_precision(self):
        config = OTHERWISE["falcon_alibi"]()
        config.alibi = False
        plain = build(config, scale=1.0).bfloat16()
        model = mm.load_model(plain, tokenizer=tokenizer())
        wanted = last_logits(plain, [model.token_ids("1 2 3")])
        assert off(model.logits("1 2 3"), wanted) < 0.05

    def test_a_bridge_of_ones_own_is_refused_when_a_mask_misleads_it(self, monkeypatch):
        monkeypatch.setattr("mechmem.models.booting.check_faithful", lambda *given: None)
        made = loaded(build(OTHERWISE["openai_gpt"](), scale=3.0))
        with pytest.raises(mm.ModelError, match="attention mask of ones"):
            mm.load_model(made.tl, tokenizer=tokenizer()).logits("1 2")

    def test_hooks_of_the_caller_are_not_called_by_the_comparison(self):
        plain, heard = build(OTHERWISE["openai_gpt"]()), []
        plain.register_forward_hook(lambda *given: heard.append(1))
        with pytest.raises(mm.ModelError):
            mm.load_model(plain, tokenizer=tokenizer())
        assert not heard


class TestDividedWeights:
    """RWKV divides weights of its later blocks in place, at its first pass."""

    @staticmethod
    def plain():
        config = RECURRENT["rwkv"]()
        config.num_hidden_layers, config.rescale_every = 4, 2
        return build(config, 1.2)

    def test_the_fingerprint_is_of_the_weights_that_are_run(self):
        untouched, run = self.plain(), self.plain()
        last_logits(run, [[4, 5, 6]])
        before = untouched.rwkv.blocks[3].attention.output.weight.clone()
        models = [loaded(untouched), loaded(run)]
        bridge = models[1].tl
        inner = bridge.original_model.rwkv
        inner.train()._rescale_layers()  # as a bridge is before anything was run
        inner.eval()
        models.append(mm.load_model(bridge, tokenizer=tokenizer()))
        first = [model.info.fingerprint for model in models]
        for model in models:
            model.logits("1 2 3")
        assert [model.info.fingerprint for model in models] == first == first[:1] * 3
        assert torch.equal(before, untouched.rwkv.blocks[3].attention.output.weight)

    def test_streams_it_does_not_have_are_refused_in_the_table(self):
        report = mm.check_model(loaded(self.plain()))
        reasons = report.table().set_index(["stream", "layer"])["reason"]
        assert "no hook point 'blocks.0.hook_mlp_out'" in reasons["resid_mid", 0]
        assert "no hook point" in reasons["z", 3]
