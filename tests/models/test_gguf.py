"""A GGUF file is the model it was written from, and afterwards a model like any other."""

from __future__ import annotations

import sys

import gguf
import pytest
import torch
from models.ggufs import WORDS, write_gguf
from models.plain import plain_pass
from models.zoo import build
from transformers import AutoModelForCausalLM, Qwen2Config

import mechmem as mm
from mechmem.models.gguf_counts import check_counts

IDS = [[4, 9, 13], [28, 5, 6, 7, 8], [11]]
TEXTS = ["".join(WORDS[i] for i in ids).replace("\u0120", " ") for ids in IDS]


@pytest.fixture(scope="module")
def plain():
    config = Qwen2Config(
        num_hidden_layers=2, hidden_size=64, intermediate_size=96, num_attention_heads=4,
        num_key_value_heads=2, vocab_size=64, max_position_embeddings=48, bos_token_id=1,
        eos_token_id=2, pad_token_id=0, tie_word_embeddings=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return model


def expected(model):
    return torch.stack([plain_pass(model, "qwen2", ids)[1][-1].float() for ids in IDS])


@pytest.mark.parametrize("kind", ["F32", "F16", "Q8_0", "Q4_0"])
def test_it_computes_what_its_stored_weights_compute(plain, tmp_path, kind):
    kind = gguf.GGMLQuantizationType[kind]
    # Rows of llama.cpp's blocks are 32 weights long, so that every matrix is packed.
    stored = write_gguf(plain, tmp_path / "m.gguf", kind=kind)
    unpacked = AutoModelForCausalLM.from_config(plain.config, attn_implementation="eager").eval()
    unpacked.load_state_dict({name: torch.tensor(value) for name, value in stored.items()})
    model = mm.load_model(tmp_path / "m.gguf")
    assert [model.token_ids(text) for text in TEXTS] == IDS
    assert float((model.logits(TEXTS) - expected(unpacked)).abs().max()) < 1e-5
    assert model.info.dtype == "float32"
    assert (model.logits(TEXTS) - expected(plain)).abs().max() > 1e-4 or kind == kind.F32


def test_it_can_be_saved_and_loaded_again(plain, tmp_path):
    write_gguf(plain, tmp_path / "m.gguf", kind=gguf.GGMLQuantizationType.Q8_0)
    model = mm.load_model(str(tmp_path / "m.gguf"), dtype="bfloat16")
    assert model.info.dtype == "bfloat16"
    model = mm.load_model(tmp_path / "m.gguf")
    rows = mm.PromptSet(
        mm.Prompt(id=str(n), text=text, label=label)
        for n, (text, label) in enumerate(zip(TEXTS, ("x", "y", "y"), strict=True))
    )
    fitted = mm.difference_of_means(
        mm.cache_activations(model, rows, sites="resid_pre"), by="label", toward="x"
    )
    nothing = mm.AddDirection(fitted["resid_pre", 0], alpha=0.0)
    mm.bake(model, nothing).save_pretrained(tmp_path / "folder")
    model.tokens.tokenizer.save_pretrained(tmp_path / "folder")
    again = mm.load_model(tmp_path / "folder")
    assert float((again.logits(TEXTS) - model.logits(TEXTS)).abs().max()) < 1e-5
    body = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", attn_implementation="eager")
    assert not hasattr(body.config, "quantization_config")
    assert [again.token_ids(text) for text in TEXTS] == IDS


class TestRefused:
    def test_a_file_that_only_begins_like_one(self, tmp_path):
        (tmp_path / "m.gguf").write_bytes(b"GGUF\x03\0\0\0")
        with pytest.raises(
            mm.ModelError, match=r"m\.gguf' cannot be read as a GGUF model.*cut off"
        ):
            mm.load_model(tmp_path / "m.gguf")

    def test_a_file_that_was_cut_off(self, plain, tmp_path):
        write_gguf(plain, tmp_path / "m.gguf")
        data = (tmp_path / "m.gguf").read_bytes()
        (tmp_path / "m.gguf").write_bytes(data[: len(data) - 4096])
        with pytest.raises(mm.ModelError, match=r"cannot be read as a GGUF model.*cut off"):
            mm.load_model(tmp_path / "m.gguf")

    def test_an_architecture_that_transformers_does_not_read(self, plain, tmp_path):
        write_gguf(plain, tmp_path / "m.gguf", architecture="hyperbole")
        with pytest.raises(mm.ModelError, match=r"hyperbole.*hub name"):
            mm.load_model(tmp_path / "m.gguf")

    def test_a_file_without_some_weights(self, plain, tmp_path):
        lost = "model.layers.1.mlp.down_proj.weight"
        write_gguf(plain, tmp_path / "m.gguf", leave_out=(lost,))
        with pytest.raises(mm.ModelError, match=rf"1 of its weights are missing: '{lost}'"):
            mm.load_model(tmp_path / "m.gguf")

    @pytest.mark.parametrize(
        "changes",
        [{"num_hidden_layers": 40}, {"intermediate_size": 10_000}, {"vocab_size": 10_000},
         {"hidden_size": 1024}, {"num_hidden_layers": 10**6}],
        ids=str,
    )  # fmt: skip
    def test_sizes_that_it_does_not_hold(self, plain, tmp_path, changes, monkeypatch):
        write_gguf(plain, tmp_path / "m.gguf", **changes)
        monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", None)  # is not come to
        with pytest.raises(mm.ModelError, match=r"asks for|says num_hidden_layers=1000000"):
            mm.load_model(tmp_path / "m.gguf")

    def test_the_weights_of_a_file_are_counted(self, plain, tmp_path):
        write_gguf(plain, tmp_path / "m.gguf", kind=gguf.GGMLQuantizationType.Q4_0)
        assert check_counts(tmp_path / "m.gguf") == plain.num_parameters()

    def test_without_the_package(self, plain, tmp_path, monkeypatch):
        write_gguf(plain, tmp_path / "m.gguf")
        monkeypatch.setitem(sys.modules, "gguf", None)
        with pytest.raises(mm.ModelError, match=r"pip install 'mechmem\[exchange\]'"):
            mm.load_model(tmp_path / "m.gguf")

    def test_options_without_effect_and_folders_of_such_files(self, plain, tmp_path):
        write_gguf(plain, tmp_path / "m.gguf")
        with pytest.raises(mm.ModelError, match=r"device_map='auto' would have no effect on a"):
            mm.load_model(tmp_path / "m.gguf", device_map="auto")
        with pytest.raises(mm.ModelError, match=r"one of its GGUF files: '.*m\.gguf'"):
            mm.load_model(tmp_path)
        (tmp_path / "notes.txt").write_text("nothing")
        with pytest.raises(mm.ModelError, match=r"is a file, but not a GGUF file"):
            mm.load_model(tmp_path / "notes.txt")
        with pytest.raises(mm.ModelError, match=r"does not exist"):
            mm.load_model(tmp_path / "other.gguf")


def test_a_folder_is_no_gguf_file_whatever_its_name(tmp_path):
    folder = tmp_path / "model.gguf"
    build("llama").save_pretrained(folder)
    with pytest.raises(mm.ModelError, match="No tokenizer can be loaded"):
        mm.load_model(folder)
