"""Whatever a user brings becomes the same model or is refused; theirs stays as it was."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from models.parity import prompts
from models.plain import plain_pass
from models.zoo import FAMILIES, VOCAB, build, tokenizer
from transformers import (
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

import mechmem as mm
from mechmem.models import STREAMS

TEXTS = [" ".join(str(token - 4) for token in ids) for ids in prompts()]


def expected(plain, family):
    """Logits after every prompt by the plain model, one by one."""
    return torch.stack([plain_pass(plain, family, ids)[1][-1].float() for ids in prompts()])


def saved(plain, folder):
    plain.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tmp_path):
    return saved(build("llama"), tmp_path / "llama")


class TestInMemory:
    @pytest.mark.parametrize("train", [False, True])
    @pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "llama"])
    def test_the_callers_model_is_bit_identical_afterwards(self, tmp_path, family, train):
        plain = build(family)
        plain.set_attn_implementation("sdpa")
        plain.train(train)
        next(plain.parameters()).requires_grad_(False)
        ids = torch.tensor([prompts()[0]])
        state = torch.get_rng_state()
        before = plain.eval()(ids).logits
        plain.train(train)
        torch.set_rng_state(state)
        architectures = plain.config.architectures
        weights = {name: value.clone() for name, value in plain.state_dict().items()}
        grads = [parameter.requires_grad for parameter in plain.parameters()]
        classes = [type(module) for module in plain.modules()]
        model = mm.load_model(plain, tokenizer=tokenizer())
        mm.cache_activations(model, TEXTS, sites="resid_post")
        model.generate(TEXTS, 2)
        assert plain.training is train
        assert plain.config._attn_implementation == "sdpa"
        assert plain.config.architectures == architectures
        assert [type(module) for module in plain.modules()] == classes
        assert [parameter.requires_grad for parameter in plain.parameters()] == grads
        assert torch.equal(torch.get_rng_state(), state)
        assert all(torch.equal(v, weights[name]) for name, v in plain.state_dict().items())
        plain.save_pretrained(tmp_path / "again")
        assert torch.equal(plain.eval()(ids).logits, before)
        again = mm.load_model(tmp_path / "again", tokenizer=tokenizer())
        # A file lays weights out anew, which may change the last bit of a product.
        assert float((again.logits(TEXTS) - model.logits(TEXTS)).abs().max()) < 1e-5

    def test_consume_takes_the_weights_over_instead_of_copying_them(self):
        plain = build("llama")
        places = {parameter.data_ptr() for parameter in plain.parameters()}
        copied = mm.load_model(plain, tokenizer=tokenizer())
        assert not places & {parameter.data_ptr() for parameter in copied.tl.parameters()}
        taken = mm.load_model(plain, tokenizer=tokenizer(), consume=True)
        kept = places & {parameter.data_ptr() for parameter in taken.tl.parameters()}
        assert len(kept) >= len(places) - 1  # TransformerLens 3.9 copies the unembedding
        assert torch.equal(taken.logits(TEXTS), copied.logits(TEXTS))

    @pytest.mark.parametrize("family", FAMILIES)
    def test_a_model_made_from_a_config_loads(self, family):
        plain = build(family)
        plain.config.architectures = None
        model = mm.load_model(plain, tokenizer=tokenizer())
        error = (model.logits(TEXTS) - expected(plain, family)).abs().max()
        assert float(error) < 1e-5

    def test_the_tokenizer_is_asked_for(self):
        with pytest.raises(mm.ModelError, match="needs its tokenizer"):
            mm.load_model(build("llama"))

    def test_dtype_and_device_are_those_asked_for(self):
        model = mm.load_model(build("olmo2"), tokenizer=tokenizer(), dtype="bfloat16", device="cpu")
        assert model.info.dtype == "bfloat16"
        assert {p.dtype for p in model.tl.parameters()} == {torch.bfloat16}
        assert torch.isfinite(model.logits(TEXTS)).all()
        unchanged = mm.load_model(build("llama", torch.bfloat16), tokenizer=tokenizer())
        assert unchanged.info.dtype == "bfloat16"

    def test_placement_belongs_to_whoever_placed_it(self):
        with pytest.raises(mm.ModelError, match=r"device_map.*placed already"):
            mm.load_model(build("llama"), tokenizer=tokenizer(), device_map="cpu")

    @pytest.mark.parametrize("given", [
        {"revision": "x"}, {"hf_config_overrides": {"n_layer": 1}},
        pytest.param({"code_revision": "x"}, marks=pytest.mark.tl4),
    ], ids=str)  # fmt: skip
    def test_what_is_read_from_files_has_been_read(self, given):
        with pytest.raises(mm.ModelError, match="would have no effect on an in-memory model"):
            mm.load_model(build("llama"), tokenizer=tokenizer(), **given)

    @pytest.mark.filterwarnings("ignore")
    def test_a_context_longer_than_the_table_of_positions_is_refused(self):
        with pytest.raises(mm.ModelError, match="n_ctx=49 is more than the 48 positions"):
            mm.load_model(build("gpt2"), tokenizer=tokenizer(), n_ctx=49)
        assert mm.load_model(build("gpt2"), tokenizer=tokenizer(), n_ctx=9).info.n_ctx == 9
        assert mm.load_model(build("llama"), tokenizer=tokenizer(), n_ctx=99).info.n_ctx == 99

    def test_a_module_that_is_no_transformers_model_is_refused(self):
        with pytest.raises(mm.ModelError, match="no `config`"):
            mm.load_model(torch.nn.Linear(2, 2), tokenizer=tokenizer())

    @pytest.mark.parametrize(
        "other",
        [
            lambda: BertForMaskedLM(BertConfig(
                vocab_size=VOCAB, hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                intermediate_size=32)),
            lambda: T5ForConditionalGeneration(T5Config(
                vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)),
        ],
        ids=["bert", "t5"],
    )  # fmt: skip
    def test_other_kinds_of_language_models_are_refused(self, other):
        made = other()
        made.config.architectures = [type(made).__name__]
        with pytest.raises(mm.ModelError, match="not a causal language model"):
            mm.load_model(made, tokenizer=tokenizer())


class TestFolder:
    @pytest.mark.parametrize("family", ["gpt2", "gemma3", "olmo2", "phi3"])
    def test_a_folder_gives_the_plain_models_logits(self, tmp_path, family):
        plain = build(family)
        model = mm.load_model(saved(plain, tmp_path))
        assert float((model.logits(TEXTS) - expected(plain, family)).abs().max()) < 1e-5
        assert model.info.dtype == "float32"
        assert model.info.processing == "raw"

    def test_dtype_by_name_and_by_object(self, folder):
        for dtype in ("bfloat16", torch.bfloat16):
            assert mm.load_model(folder, dtype=dtype).info.dtype == "bfloat16"
        with pytest.raises(mm.ModelError, match=r"'float12' is not a floating dtype.*bfloat16"):
            mm.load_model(folder, dtype="float12")
        with pytest.raises(mm.ModelError, match="'int8' is not a floating dtype"):
            mm.load_model(folder, dtype="int8")

    @pytest.mark.parametrize("map_of", ["cpu", "disk"])
    def test_device_maps_and_offloading_change_no_bit(self, tmp_path, folder, map_of):
        whole = mm.load_model(folder)
        placed = {
            "model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu",
            "model.layers.1": map_of, "model.norm": "cpu", "lm_head": "cpu",
        }  # fmt: skip
        more = {"offload_folder": str(tmp_path / "offload")} if map_of == "disk" else {}
        if more and "offload_folder" not in mm.models.booting.boot_options():
            pytest.skip("this TransformerLens has no offload_folder option")
        parts = mm.load_model(folder, device_map=placed, **more)
        assert torch.equal(parts.logits(TEXTS), whole.logits(TEXTS))
        for stream in STREAMS:
            one, other = (mm.cache_activations(m, TEXTS, sites=stream) for m in (parts, whole))
            assert all(torch.equal(one[site], other[site]) for site in other.sites)

    def test_a_misspelt_option_is_not_swallowed(self, folder):
        with pytest.raises(mm.ModelError, match=r"no option 'dtpye'.*Did you mean 'dtype'"):
            mm.load_model(folder, dtpye="bfloat16")
        with pytest.raises(mm.ModelError, match="no option 'fold_ln'"):
            mm.load_model(folder, fold_ln=True)

    @pytest.mark.parametrize(("changes", "message"), [
        ({"n_layer": 1}, r"names 'n_layer', which is no field .*Fields are .*'num_hidden_layers'"),
        ({"rms_norm_esp": 1e-3}, r".*Did you mean 'rms_norm_eps'\?"),
        (5, "must be a dictionary"),
    ], ids=["another family", "a slip", "a number"])  # fmt: skip
    def test_a_change_of_a_field_that_is_none_is_refused(self, folder, changes, message):
        with pytest.raises(mm.ModelError, match=f"hf_config_overrides {message}"):
            mm.load_model(folder, hf_config_overrides=changes)

    def test_a_change_of_a_field_by_its_other_name_is_refused(self, tmp_path):
        folder = saved(build("gpt2"), tmp_path)
        with pytest.raises(mm.ModelError, match=r"'num_hidden_layers', .* There it is 'n_layer'"):
            mm.load_model(folder, hf_config_overrides={"num_hidden_layers": 1})
        own = mm.load_model(folder).info.fingerprint
        changed = mm.load_model(folder, hf_config_overrides={"layer_norm_epsilon": 0.1})
        assert changed.info.fingerprint != own

    def test_a_folder_has_no_revisions(self, folder):
        with pytest.raises(mm.ModelError, match="revision='x' would have no effect on a folder"):
            mm.load_model(folder, revision="x")

    def test_consume_is_for_models_in_memory(self, folder):
        with pytest.raises(mm.ModelError, match="consume=True is for in-memory models"):
            mm.load_model(folder, consume=True)

    def test_a_folder_without_model_or_tokenizer_is_refused(self, tmp_path):
        with pytest.raises(mm.ModelError, match=r"no config\.json in it"):
            mm.load_model(tmp_path)
        build("llama").save_pretrained(tmp_path)
        with pytest.raises(mm.ModelError, match=r"No tokenizer can be loaded.*save_pretrained"):
            mm.load_model(tmp_path)

    def test_a_hub_name_without_a_network_says_what_it_tried(self):
        with pytest.raises(mm.ModelError, match="nobody/no-such-model"):
            mm.load_model("nobody/no-such-model")

    def test_an_encoder_decoder_folder_is_refused(self, tmp_path):
        config = T5Config(vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=32, num_layers=1, num_heads=2)
        saved(T5ForConditionalGeneration(config), tmp_path)
        with pytest.raises(mm.ModelError, match="not a causal language model"):
            mm.load_model(tmp_path)

    def test_something_else_is_refused(self):
        with pytest.raises(mm.ModelError, match="Cannot load a model from int"):
            mm.load_model(7)


class TestTransformerLens:
    def test_a_bridge_is_taken_as_it_is(self):
        model = mm.load_model(build("llama"), tokenizer=tokenizer())
        again = mm.load_model(model.tl, tokenizer=tokenizer(), prepend_bos=False)
        assert again.tl is model.tl
        assert torch.equal(again.logits(TEXTS), model.logits(TEXTS))
        with pytest.raises(mm.ModelError, match="dtype='bfloat16' would have no effect"):
            mm.load_model(model.tl, dtype="bfloat16")
        with pytest.raises(mm.ModelError, match="would have no effect on a Model"):
            mm.load_model(model, device="cpu")
        assert mm.load_model(model) is model

    def test_renaming_hooks_alone_leaves_the_weights_raw(self):
        model = mm.load_model(build("gpt2"), tokenizer=tokenizer())
        model.tl.enable_compatibility_mode(disable_warnings=True, no_processing=True)
        renamed = mm.load_model(model.tl, tokenizer=tokenizer(), prepend_bos=False)
        assert renamed.info.processing == "raw"

    @pytest.mark.tl3
    def test_a_hooked_transformer_that_was_only_centered_is_not_called_raw(self):
        from models.hooked3 import hooked_transformer

        hooked = hooked_transformer("gpt2")
        assert mm.load_model(hooked, tokenizer=tokenizer()).info.processing == "raw"
        hooked.center_writing_weights(hooked.state_dict())
        centered = hooked.W_E - hooked.W_E.mean(-1, keepdim=True)
        hooked.embed.W_E.data = centered
        assert mm.load_model(hooked, tokenizer=tokenizer()).info.processing == "processed"

    def test_in_train_mode_it_does_not_run(self):
        model = mm.load_model(build("gpt2"), tokenizer=tokenizer())
        model.tl.train()
        with pytest.raises(mm.ModelError, match=r"train mode.*model.eval"):
            model.logits(TEXTS)


peft = pytest.importorskip("peft")


def adapted(family="llama", **settings):
    plain = build(family)
    made = peft.get_peft_model(
        plain, peft.LoraConfig(r=2, target_modules=["q_proj", "down_proj"], **settings)
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    return made.eval()


def by_peft(made):
    """Logits after every prompt by the adapted model itself."""
    with torch.no_grad():
        return torch.stack([made(torch.tensor([ids])).logits[0, -1] for ids in prompts()])


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
class TestAdapters:
    def test_an_adapter_folder_is_merged_into_its_base(self, tmp_path, folder):
        made = adapted()
        made.peft_config["default"].base_model_name_or_path = str(folder)
        made.save_pretrained(tmp_path / "adapter")
        model = mm.load_model(tmp_path / "adapter")
        wanted = by_peft(made)
        base = mm.load_model(folder)
        assert float((model.logits(TEXTS) - wanted).abs().max()) < 1e-5
        assert float((base.logits(TEXTS) - wanted).abs().max()) > 1e-2
        assert model.info.fingerprint != base.info.fingerprint
        assert model.name == str(tmp_path / "adapter")

    def test_a_base_beside_the_adapter_is_found(self, tmp_path):
        made = adapted()
        made.peft_config["default"].base_model_name_or_path = "base"
        made.save_pretrained(tmp_path)
        saved(build("llama"), tmp_path / "base")
        wanted = by_peft(made)
        assert float((mm.load_model(tmp_path).logits(TEXTS) - wanted).abs().max()) < 1e-5

    def test_an_in_memory_adapter_is_merged_on_a_copy(self, tmp_path):
        made = adapted()
        before = {name: value.clone() for name, value in made.state_dict().items()}
        wanted = by_peft(made)
        model = mm.load_model(made, tokenizer=tokenizer())
        assert float((model.logits(TEXTS) - wanted).abs().max()) < 1e-5
        assert all(torch.equal(v, before[name]) for name, v in made.state_dict().items())
        still = by_peft(made)
        assert torch.equal(still, wanted)
        made.save_pretrained(tmp_path)
        assert not mm.models.check_model(model).refused

    def test_a_missing_base_is_named(self, tmp_path):
        made = adapted()
        made.peft_config["default"].base_model_name_or_path = "nobody/no-such-base"
        made.save_pretrained(tmp_path)
        with pytest.raises(mm.ModelError, match="nobody/no-such-base"):
            mm.load_model(tmp_path)
        file = tmp_path / "adapter_config.json"
        file.write_text(
            json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": None})
        )
        with pytest.raises(mm.ModelError, match="names no base model"):
            mm.load_model(tmp_path)

    def test_adapters_that_are_no_weights_are_refused(self):
        config = peft.PromptTuningConfig(
            task_type="CAUSAL_LM", num_virtual_tokens=2, tokenizer_name_or_path=None
        )
        with pytest.raises(mm.ModelError, match="cannot be merged"):
            mm.load_model(peft.get_peft_model(build("llama"), config), tokenizer=tokenizer())


def test_a_copy_that_cannot_be_made_points_to_the_way_out(monkeypatch):
    def refuse(*args):
        raise RuntimeError("no copy of this")

    plain = build("gpt2")
    monkeypatch.setattr(copy, "deepcopy", refuse)
    with pytest.raises(mm.ModelError, match=r"cannot be copied \(no copy of this\).*consume=True"):
        mm.load_model(plain, tokenizer=tokenizer())


def test_a_longer_prompt_than_the_context_is_refused_with_both_numbers():
    plain = GPT2LMHeadModel(GPT2Config(
        n_layer=1, n_embd=32, n_head=4, vocab_size=VOCAB, n_positions=6, bos_token_id=2,
        eos_token_id=3))  # fmt: skip
    model = mm.load_model(plain, tokenizer=tokenizer())
    assert model.info.n_ctx == 6
    assert model.logits("1 2 3 4 5 6").shape == (1, VOCAB)
    with pytest.raises(mm.PromptError, match=r"7 tokens.*at most 6"):
        model.logits("1 2 3 4 5 6 7")


def test_the_zoo_means_llama_when_it_says_llama():
    assert isinstance(build("llama"), LlamaForCausalLM)


@pytest.mark.parametrize(
    "asked",
    [
        {"num_beams": 4}, {"guidance_scale": 1.5}, {"encoder_repetition_penalty": 1.2},
        {"penalty_alpha": 0.6}, {"stop_strings": ["x"]}, {"repetition_penalty": 1.2},
    ],
)  # fmt: skip
def test_what_a_generation_config_asks_for_beside_the_likeliest_token_is_said(asked):
    plain = build("llama")
    for name, value in asked.items():
        setattr(plain.generation_config, name, value)
    with pytest.warns(mm.MechmemWarning, match=f"asks for {next(iter(asked))}="):
        mm.load_model(plain, tokenizer=tokenizer())


def test_quantization_that_would_have_no_effect_is_refused(folder):
    with pytest.raises(mm.ModelError, match=r"quantization_config=.*no effect on an in-memory"):
        mm.load_model(build("llama"), tokenizer=tokenizer(), quantization_config={"bits": 4})
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "nonsense", "bits": 4}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(mm.ModelError, match="quant_method='nonsense', which transformers does not"):
        mm.load_model(folder)
