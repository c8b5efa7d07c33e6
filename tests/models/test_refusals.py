"""Models that are not what they say: refused before anything is measured on them."""

from __future__ import annotations

import copy
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import warnings

import pytest
import torch
import transformers as hf
from helpers import as_users_run_it
from models.parity import prompts
from models.zoo import build, tokenizer
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

import mechmem as mm
from mechmem.models.shipped import LAB_FOLDER
from mechmem.models.sizes import check_held, held_in, warn_of_memory

peft = pytest.importorskip("peft")

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

TEXTS = [" ".join(str(token - 4) for token in ids) for ids in prompts()]


@pytest.fixture
def folder(tmp_path):
    build("llama").save_pretrained(tmp_path / "m")
    tokenizer().save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def configured(folder, **changes):
    file = folder / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def adapter(base, folder, **settings):
    made = peft.get_peft_model(
        build("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"], **settings)
    )
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    made.peft_config["default"].base_model_name_or_path = str(base)
    made.save_pretrained(folder)
    return made.eval()


class TestWeightsThatAreNotThere:
    @pytest.mark.parametrize("key", [
        "model.layers.1.mlp.down_proj.weight", "model.embed_tokens.weight", "lm_head.weight",
    ])  # fmt: skip
    def test_a_missing_weight_is_named(self, folder, key):
        file = folder / "model.safetensors"
        weights = load_file(file)
        del weights[key]
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(mm.ModelError, match=rf"1 of its weights are missing: '{key}'"):
            mm.load_model(folder)

    def test_renamed_weights_are_told_on_both_sides(self, folder):
        file = folder / "model.safetensors"
        weights = {f"x.{name}": value for name, value in load_file(file).items()}
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(mm.ModelError, match=r"weights are missing.*21 on disk belong to no"):
            mm.load_model(folder)

    def test_more_layers_than_weights_are_refused(self, folder):
        configured(folder, num_hidden_layers=3)
        with pytest.raises(mm.ModelError, match=r"weights are missing: 'model\.layers\.2"):
            mm.load_model(folder)
        done = subprocess.run(
            [sys.executable, "-m", "mechmem", "check", str(folder)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.strip().splitlines()[-1].startswith("mechmem: ")
        assert "Traceback" not in done.stderr

    @pytest.mark.parametrize("field", ["num_hidden_layers", "num_experts"])
    def test_a_billion_blocks_are_not_built(self, folder, field):
        configured(folder, **{field: 10**9})
        with pytest.raises(mm.ModelError, match=rf"{field}=1000000000"):
            mm.load_model(folder)


def of_family(family, folder):
    build(family).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


class TestSizesThatTheFilesDoNotHold:
    """Refused before memory is taken: transformers would fill it with random numbers first."""

    @pytest.mark.parametrize(("family", "changes"), [
        ("llama", {"num_hidden_layers": 40}), ("llama", {"intermediate_size": 10_000}),
        ("llama", {"vocab_size": 10_000}), ("llama", {"hidden_size": 1024}),
        ("llama", {"head_dim": 1000}), ("gpt2", {"n_layer": 40}), ("gpt2", {"n_inner": 10_000}),
        ("gpt2", {"n_positions": 10_000}), ("gpt_neox", {"hidden_size": 1024}),
    ], ids=str)  # fmt: skip
    def test_of_a_configuration(self, tmp_path, family, changes, monkeypatch):
        folder = of_family(family, tmp_path / "m")
        held = sum(value.numel() for value in load_file(folder / "model.safetensors").values())
        configured(folder, **changes)
        monkeypatch.setattr(hf.PreTrainedModel, "from_pretrained", None)  # is not come to
        with pytest.raises(
            mm.ModelError, match=f"asks for .* its files hold {held:,} at most"
        ) as e:
            mm.load_model(folder)
        asked = int(re.search(r"asks for ([\d,]+) weights", str(e.value))[1].replace(",", ""))
        config = hf.AutoConfig.from_pretrained(folder)
        assert asked == AutoModelForCausalLM.from_config(config).num_parameters()

    def test_of_pickles_and_packed_weights(self, tmp_path):
        folder = of_family("llama", tmp_path / "m")
        weights = load_file(folder / "model.safetensors")
        (folder / "model.safetensors").unlink()
        torch.save(weights, folder / "pytorch_model.bin")
        assert mm.load_model(folder).n_layers == 2
        size = (folder / "pytorch_model.bin").stat().st_size
        assert held_in(folder, packed=False) == size
        assert held_in(folder, packed=True) == 8 * size
        configured(folder, vocab_size=200_000)
        with pytest.raises(mm.ModelError, match=rf"asks for .* hold {size:,} at most"):
            mm.load_model(folder)

    def test_of_experts_so_many_that_they_are_not_even_counted(self, tmp_path, monkeypatch):
        config = hf.MixtralConfig(
            num_hidden_layers=900, num_local_experts=9_000, hidden_size=32, intermediate_size=48,
            num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
        )  # fmt: skip
        monkeypatch.setattr(hf.AutoModelForCausalLM, "from_config", None)
        with pytest.raises(mm.ModelError, match=r"259,200,000 weights .*num_local_experts=9000"):
            check_held(config, 10**6, "a")

    def test_of_more_than_the_memory_there_is_a_word(self, folder, monkeypatch):
        held = sum(p.numel() for p in load_file(folder / "model.safetensors").values())
        monkeypatch.setattr(os, "sysconf", {"SC_PAGE_SIZE": 2, "SC_PHYS_PAGES": held}.get)
        with pytest.warns(
            mm.MechmemWarning, match=r"take 0.0 GB in float32, .* Load it with dtype='bfloat16' \("
        ):
            mm.load_model(folder, device="cpu")
        for way in ({"dtype": "bfloat16"}, {"device_map": "cpu"}):  # it fits exactly, or is spread
            with warnings.catch_warnings():
                warnings.simplefilter("error", mm.MechmemWarning)
                mm.load_model(folder, **way)
        configured(folder, quantization_config={})
        warn_of_memory(folder, "m", torch.float32, "cpu")

    def test_of_a_prompt_instead_of_a_model(self):
        with pytest.raises(mm.ModelError, match="names no model: File name too long"):
            mm.load_model("How many apples are left? " * 20)

    def test_of_tables(self, tmp_path):
        config = hf.GPTNeoConfig(
            num_layers=2, hidden_size=32, num_heads=4, vocab_size=64,
            attention_types=[[["global"], 2]], max_position_embeddings=100_000,
        )  # fmt: skip
        with pytest.raises(mm.ModelError, match=r"tables of 20,000,000,\d+ numbers .*=100000"):
            check_held(config, 10**7, "a")

    def test_of_the_rank_of_an_adapter(self, folder, tmp_path):
        adapter(folder, tmp_path / "a")
        assert mm.load_model(tmp_path / "a").n_layers == 2
        note = tmp_path / "a" / "adapter_config.json"
        own = json.loads(note.read_text())
        for changes in ({"r": 100_000}, {"rank_pattern": {"q_proj": 100_000}}):
            note.write_text(json.dumps({**own, **changes}))
            with pytest.raises(mm.ModelError, match=r"says (r|q_proj)=100000, and no .* than 32;"):
                mm.load_model(tmp_path / "a")


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A GPT-2, whose configuration has short names of its own."""
    folder = tmp_path_factory.mktemp("gpt2") / "m"
    build("gpt2").save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


class TestFoldersOfStrangers:
    """Whatever a folder holds: one error of ours, at once, and nothing taken for something else."""

    @pytest.mark.parametrize(
        "changes",
        [{"n_layer": value} for value in (0, -1, 1, 9999, "4", 1e30, None, True)]
        + [{"n_embd": "x"}, {"n_embd": 0}, {"n_head": 0}, {"n_head": -4}, {"vocab_size": 0},
           {"eos_token_id": "x"}, {"use_cache": "x"}, {"activation_function": 5},
           {"architectures": 5}, {"quantization_config": 5}, {"model_type": ["a"]}],
        ids=str,
    )  # fmt: skip
    def test_a_configuration_that_fits_no_model(self, lab, tmp_path, changes):
        folder = shutil.copytree(lab, tmp_path / "m")
        configured(folder, **changes)
        with as_users_run_it(), pytest.raises(mm.ModelError):
            mm.load_model(folder)

    def test_weights_for_which_there_is_no_place_are_named(self, lab, tmp_path):
        folder = shutil.copytree(lab, tmp_path / "m")
        configured(folder, n_layer=1)
        with pytest.raises(mm.ModelError, match=r"1[12] on disk belong to no part of it: 'transf"):
            mm.load_model(folder)
        configured(folder, n_layer=2)
        file = folder / "model.safetensors"
        extra = {"transformer.h.0.attn.masked_bias": torch.zeros(())}  # of an older transformers
        save_file({**load_file(file), **extra}, file, metadata={"format": "pt"})
        assert mm.load_model(folder).n_layers == 2

    def test_a_head_of_something_else_is_left_out_with_a_warning(self, lab, tmp_path):
        folder = shutil.copytree(lab, tmp_path / "m")
        file, want = folder / "model.safetensors", mm.load_model(lab).info.fingerprint
        extra = {"v_head.summary.weight": torch.ones(1, 64)}
        save_file({**load_file(file), **extra}, file, metadata={"format": "pt"})
        with pytest.warns(mm.MechmemWarning, match="left out: 'v_head.summary.weight'"):
            assert mm.load_model(folder).info.fingerprint == want

    @pytest.mark.parametrize("text", ["[" * 100_000, "null", "[]", "5", "", '"x"', "\udcff"])
    @pytest.mark.parametrize("name", ["config.json", "adapter_config.json"])
    def test_json_that_is_no_object(self, lab, tmp_path, name, text):
        folder = shutil.copytree(lab, tmp_path / "m")
        if name.startswith("adapter"):
            (folder / "config.json").unlink()
        (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
        with pytest.raises(mm.ModelError, match=name):
            mm.load_model(folder)

    @pytest.mark.parametrize(
        "name",
        ["manifest.json", "model.safetensors", "config.json", "tokenizer.json",
         "generation_config.json"],
    )  # fmt: skip
    def test_a_pipe_is_not_waited_for(self, lab, tmp_path, name):
        folder = shutil.copytree(lab, tmp_path / "m")
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)
        with pytest.raises(mm.ModelError, match=f"{name} is not a file but a pipe"):
            mm.load_model(folder)

    def test_a_manifest_of_another_program_is_none_of_ours(self, lab, tmp_path):
        folder = shutil.copytree(lab, tmp_path / "m")
        for text in ("[" * 100_000, "5", "{"):
            (folder / "manifest.json").write_text(text)
            assert mm.load_model(folder).card == {}

    def test_adapters(self, folder, tmp_path):
        adapter(folder, tmp_path / "a")
        whole = tmp_path / "a" / "adapter_model.safetensors"
        data = whole.read_bytes()
        whole.write_bytes(data[: len(data) // 2])
        with pytest.raises(mm.ModelError, match="Cannot load the adapter"):
            mm.load_model(tmp_path / "a")
        whole.unlink()
        os.mkfifo(whole)
        with pytest.raises(mm.ModelError, match="is not a file but a pipe"):
            mm.load_model(tmp_path / "a")
        whole.unlink()
        (tmp_path / "a" / "adapter_model.bin").write_bytes(pickle.dumps({"x": print}))
        with pytest.raises(mm.ModelError, match="Cannot load the adapter"):
            mm.load_model(tmp_path / "a")
        (tmp_path / "a" / "adapter_model.bin").unlink()
        whole.write_bytes(data)
        note = tmp_path / "a" / "adapter_config.json"
        note.write_text(json.dumps({**json.loads(note.read_text()), "target_modules": "(((("}))
        with pytest.raises(mm.ModelError, match="Cannot load the adapter"):
            mm.load_model(tmp_path / "a")

    @pytest.mark.parametrize(
        "given",
        [{"tokenizer": 5}, {"tokenizer": "gpt2"}, {"prepend_bos": "x"}, {"prepend_bos": 5},
         {"trust_remote_code": "x"}, {"device_map": {"": "cuda"}}],
        ids=str,
    )  # fmt: skip
    def test_options_that_are_none(self, lab, given):
        if "device_map" in given and torch.cuda.is_available():
            pytest.skip("there is one")
        (name,) = given
        with (
            as_users_run_it(),
            pytest.raises(mm.MechmemError, match=rf"{name}|CUDA|cuda"),
        ):
            mm.load_model(lab, **given)


@pytest.mark.filterwarnings("ignore::UserWarning")
class TestAdapters:
    def test_inside_disable_adapter_the_model_is_its_base(self):
        plain = build("llama")
        base = mm.load_model(plain, tokenizer=tokenizer()).logits(TEXTS)
        made = peft.get_peft_model(
            copy.deepcopy(plain),
            peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False),
        ).eval()
        with made.disable_adapter():
            off = mm.load_model(made, tokenizer=tokenizer())
        on = mm.load_model(made, tokenizer=tokenizer())
        assert float((off.logits(TEXTS) - base).abs().max()) < 1e-5
        assert float((on.logits(TEXTS) - base).abs().max()) > 1e-3
        made.merge_adapter()
        with made.disable_adapter():
            again = mm.load_model(made, tokenizer=tokenizer())
        assert float((again.logits(TEXTS) - base).abs().max()) < 1e-5

    def test_half_of_the_adapters_disabled_is_refused(self):
        made = peft.get_peft_model(
            build("llama"), peft.LoraConfig(target_modules=["q_proj", "v_proj"])
        )
        layers = [part for part in made.modules() if hasattr(part, "disable_adapters")]
        layers[-1].enable_adapters(False)
        with pytest.raises(mm.ModelError, match="disabled and others are not"):
            mm.load_model(made, tokenizer=tokenizer())

    def test_one_that_changes_nothing_is_refused(self, folder, tmp_path):
        adapter(folder, tmp_path / "a")
        note = tmp_path / "a" / "adapter_config.json"
        note.write_text(json.dumps({**json.loads(note.read_text()), "lora_alpha": 0}))
        with pytest.raises(mm.ModelError, match="lora_alpha=0"):
            mm.load_model(tmp_path / "a")

    def test_one_that_is_not_finite_is_refused_for_that(self, folder, tmp_path):
        adapter(folder, tmp_path / "a")
        file = tmp_path / "a" / "adapter_model.safetensors"
        weights = load_file(file)
        next(iter(weights.values()))[0, 0] = float("nan")
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(mm.ModelError, match="some of its weights are NaN"):
            mm.load_model(tmp_path / "a").logits(TEXTS)

    @pytest.mark.parametrize("change", ["renamed", "half", "more"])
    def test_keys_that_do_not_fit_are_named(self, folder, tmp_path, change):
        adapter(folder, tmp_path / "a")
        assert mm.load_model(tmp_path / "a")
        file = tmp_path / "a" / "adapter_model.safetensors"
        weights = load_file(file)
        if change == "renamed":
            weights = {n.replace("model.layers", "model.blocks"): v for n, v in weights.items()}
        elif change == "half":
            weights = {name: value for name, value in weights.items() if "layers.0" in name}
        else:
            weights |= {n.replace("q_proj", "k_proj"): v.clone() for n, v in weights.items()}
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(mm.ModelError, match=r"does not fit its base.*base_model_name_or_path"):
            mm.load_model(tmp_path / "a")

    def test_a_resized_vocabulary_says_what_is_wrong(self, folder, tmp_path):
        big = build("llama")
        big.resize_token_embeddings(70)
        made = peft.get_peft_model(big, peft.LoraConfig(
            r=2, target_modules=["q_proj"], modules_to_save=["embed_tokens", "lm_head"],
        ))  # fmt: skip
        made.peft_config["default"].base_model_name_or_path = str(folder)
        made.save_pretrained(tmp_path / "a")
        with pytest.raises(mm.ModelError, match=r"size mismatch.*resized vocabulary"):
            mm.load_model(tmp_path / "a")


class TestNumbersThatAreNone:
    @pytest.fixture(params=[float("nan"), float("inf")])
    def broken(self, request):
        plain = build("llama")
        with torch.no_grad():
            plain.model.layers[1].mlp.down_proj.weight[3, 4] = request.param
        return mm.load_model(plain, tokenizer=tokenizer())

    @pytest.mark.parametrize("entry", [
        lambda m: m.logits(TEXTS), lambda m: m.generate(TEXTS, 2),
        lambda m: m.logprobs(TEXTS, [" 1"] * len(TEXTS)),
        lambda m: mm.cache_activations(m, TEXTS, sites=("resid_post", 1)),
        lambda m: mm.observe(m, mm.PromptSet(
            [mm.Prompt(id="a", text="1 2", memorized="1", generalized="2")])),
        lambda m: mm.observe(m, mm.PromptSet(
            [mm.Prompt(id="a", text="1 2", memorized="1", generalized="2")]), reading="choice"),
    ], ids=["logits", "generate", "logprobs", "states", "observe", "choice"])  # fmt: skip
    def test_every_entry_refuses_them(self, broken, entry):
        with pytest.raises(mm.MechmemError, match=r"NaN"):
            entry(broken)

    def test_single_logits_of_minus_infinity_are_allowed(self):
        model = mm.load_model(build("gpt2"), tokenizer=tokenizer())

        def forbid(module, args, out):
            out = out.clone()
            out[..., 5] = -float("inf")
            return out

        forbid.part_of_model = True
        model.tl.unembed.register_forward_hook(forbid)
        assert torch.isneginf(model.logits("1 2")[0, 5])


def test_autocast_of_the_caller_changes_nothing():
    model = mm.load_model(build("llama"), tokenizer=tokenizer())
    texts, states, want = model.generate(TEXTS, 3), "resid_post", model.logits(TEXTS)
    acts = mm.cache_activations(model, TEXTS, sites=states)
    fresh = mm.load_model(build("llama"), tokenizer=tokenizer())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(fresh.logits(TEXTS), want)
        assert fresh.generate(TEXTS, 3) == texts
        again = mm.cache_activations(fresh, TEXTS, sites=states)
        assert torch.is_autocast_enabled("cpu")
    assert all(torch.equal(again[site], acts[site]) for site in acts.sites)


class TestStrangersCode:
    @pytest.fixture
    def strange(self, folder, tmp_path):
        """A folder that brings code for its configuration, model and tokenizer."""
        trace = tmp_path / "ran"
        code = f"open({str(trace)!r}, 'w').close()\nraise RuntimeError('ran')\n"
        (folder / "strange.py").write_text(code)
        auto = {"AutoConfig": "strange.C", "AutoModelForCausalLM": "strange.M"}
        configured(folder, model_type="strange", auto_map=auto)
        file = folder / "tokenizer_config.json"
        settings = {**json.loads(file.read_text()), "tokenizer_class": "Strange",
                    "auto_map": {"AutoTokenizer": ["strange.T", "strange.T"]}}  # fmt: skip
        file.write_text(json.dumps(settings))
        return folder, trace

    def test_it_is_not_run_and_nobody_is_asked(self, strange, tmp_path, monkeypatch):
        folder, trace = strange
        monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked"))
        adapter(folder, tmp_path / "a")
        for where in (folder, tmp_path / "a"):
            with pytest.raises(mm.ModelError, match="trust_remote_code"):
                mm.load_model(where, tokenizer=tokenizer())
            with pytest.raises(mm.ModelError, match="trust_remote_code"):
                mm.load_model(where)
        with pytest.raises(mm.MechmemError):
            mm.train("addition", tmp_path / "t", model=str(folder))
        assert not trace.exists()
        done = subprocess.run(
            [sys.executable, "-m", "mechmem", "check", str(folder)],
            input="y\ny\ny\n", capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert not trace.exists()
        assert "[y/N]" not in done.stdout + done.stderr

    def test_nor_by_a_tokenizer_that_was_handed_over(self, strange, monkeypatch):
        folder, trace = strange
        monkeypatch.setattr("builtins.input", lambda *a: pytest.fail("asked"))
        own = type("Mine", (hf.PreTrainedTokenizerFast,), {})(
            tokenizer_object=tokenizer()._tokenizer
        )
        own.init_kwargs["auto_map"] = {"AutoTokenizer": [f"{folder}--strange.T"] * 2}
        mm.load_model("lab/addition-cued", tokenizer=own)
        assert not trace.exists()


class TestWeightsAreCopies:
    def test_a_file_that_is_written_in_place_changes_no_model(self, folder):
        file = folder / "model.safetensors"
        model = mm.load_model(folder)
        before = model.logits(["1 2 3"])
        with file.open("r+b") as held:
            held.seek(-1000, os.SEEK_END)
            held.write(bytes(1000))
        assert torch.equal(model.logits(["1 2 3"]), before)
        os.truncate(file, 100)
        assert torch.equal(model.logits(["1 2 3"]), before)

    def test_a_lab_model_is_the_one_that_was_written(self, tmp_path):
        folder = shutil.copytree(LAB_FOLDER / "addition-cued", tmp_path / "lab")
        data = bytearray((folder / "model.safetensors").read_bytes())
        data[-401] ^= 64
        (folder / "model.safetensors").write_bytes(data)
        with pytest.raises(mm.ModelError, match=r"model\.safetensors was changed after"):
            mm.load_model(folder)


class TestWhatTheMachineLacks:
    def test_a_device_that_is_not_there(self, folder):
        if torch.cuda.is_available():
            pytest.skip("there is one")
        for device in ("cuda", "cuda:1", torch.device("cuda")):
            with pytest.raises(mm.ModelError, match=r"no cuda devices. Use device='cpu'"):
                mm.load_model(folder, device=device)
        with pytest.raises(mm.ModelError, match="no meta devices"):
            mm.load_model(folder, device="meta")

    @pytest.mark.parametrize("dtype", ["int8", torch.int8, torch.float8_e4m3fn, torch.complex64])
    def test_dtypes_that_nothing_is_computed_in(self, folder, dtype):
        with pytest.raises(mm.ModelError, match="is not a floating dtype that models compute in"):
            mm.load_model(folder, dtype=dtype)

    @pytest.mark.parametrize("kind", ["gptq", "awq", "bitsandbytes"])
    def test_quantized_folders_name_their_package(self, folder, kind):
        configured(folder, quantization_config={
            "quant_method": kind, "bits": 4, "group_size": 128, "load_in_4bit": True,
        })  # fmt: skip
        with pytest.raises(mm.ModelError, match=r"(?i)requires|install|pip|need"):
            mm.load_model(folder)


def test_what_greedy_leaves_out_is_said(folder):
    file = folder / "generation_config.json"
    asked = {**json.loads(file.read_text()), "repetition_penalty": 1.3, "suppress_tokens": [7]}
    file.write_text(json.dumps(asked))
    with pytest.warns(mm.MechmemWarning, match=r"repetition_penalty=1\.3, suppress_tokens=\[7\]"):
        model = mm.load_model(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder).eval()
    ids = list(prompts()[0])
    for token in model.complete(TEXTS[0], 3)[0].ids:
        with torch.no_grad():
            assert token == int(plain(torch.tensor([ids])).logits[0, -1].argmax())
        ids.append(token)
