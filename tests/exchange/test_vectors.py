"""Directions and shifts out to other tools and in again: files read by the tools' own readers."""

from __future__ import annotations

import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
from gguf import GGUFReader, GGUFWriter
from helpers import (
    as_users_run_it,
    bench,
    close,
    contrast_set,
    differs,
    hand_edited,
    hf_logits,
    sentence,
)
from safetensors.torch import load_file, save_file

import mechmem as mm


@pytest.fixture(scope="module")
def directions() -> mm.Directions:
    acts = mm.cache_activations(bench().model, contrast_set(), sites=["resid_pre", "resid_post"])
    return mm.difference_of_means(acts, toward="generalized")


@pytest.fixture(scope="module")
def scores() -> mm.NeuronScores:
    acts = mm.cache_activations(bench().model, contrast_set(), sites="resid_post")
    return mm.neuron_mean_difference(acts)


def numbers(direction) -> np.ndarray:
    return np.asarray(direction, dtype=np.float32)


def text_of(reader: GGUFReader, key: str) -> str:
    return bytes(reader.get_field(key).parts[-1]).decode()


def by_hand(vectors: dict[int, np.ndarray], text: str) -> torch.Tensor:
    """Logits of the plain transformers model with each vector added after its block."""
    case = bench()

    def adder(value: np.ndarray):
        return lambda states, at: states + torch.tensor(value)

    added = {("resid_post", block): [adder(value)] for block, value in vectors.items()}
    with hand_edited(case.hf, added):
        return hf_logits(case.hf, case.ids(text))[-1]


def test_a_cap_is_no_fixed_vector(scores, tmp_path) -> None:
    edit = mm.ShiftNeurons(scores, top=0.5, positions="all", alpha=5.0, cap=0.1)
    with pytest.raises(mm.EditError, match="cap="):
        mm.export_vectors(edit, tmp_path / "capped.pt", model=bench().model)
    free = mm.ShiftNeurons(scores, top=0.5, positions="all", alpha=5.0)
    assert mm.export_vectors(free, tmp_path / "free.pt", model=bench().model).is_file()


class TestControlVectors:
    def test_the_file_is_laid_out_as_llama_cpp_reads_it(self, directions, tmp_path):
        kept = mm.Directions({d.site: d for d in directions if d.site.stream == "resid_post"})
        file = mm.export_vectors(kept, tmp_path / "r.gguf", layers=[1, 2], alpha=2.0)
        reader = GGUFReader(file)
        assert text_of(reader, "general.architecture") == "controlvector"
        assert text_of(reader, "controlvector.model_hint") == "gpt2"
        assert int(reader.get_field("controlvector.layer_count").parts[-1][0]) == 2
        assert [tensor.name for tensor in reader.tensors] == ["direction.1", "direction.2"]
        for block, tensor in zip((1, 2), reader.tensors, strict=True):
            assert tensor.tensor_type.name == "F32"
            assert list(tensor.shape) == [bench().model.info.d_model]
            close(tensor.data, 2 * numbers(directions["resid_post", block]), 1e-7)

    def test_toward_the_other_class_turns_the_vector_round(self, directions, tmp_path):
        r = directions["resid_post", 2]
        file = mm.export_vectors(r, tmp_path / "r.gguf", toward="memorized")
        reader = GGUFReader(file)
        close(reader.tensors[0].data, -numbers(r), 1e-7)
        assert text_of(reader, "mechmem.toward") == "memorized"

    def test_the_input_of_a_block_is_the_output_of_the_one_before(self, directions, tmp_path):
        file = mm.export_vectors(directions["resid_pre", 2], tmp_path / "r.gguf")
        (tensor,) = GGUFReader(file).tensors
        assert tensor.name == "direction.1"
        close(tensor.data, numbers(directions["resid_pre", 2]), 1e-7)

    def test_what_the_file_adds_is_what_the_edit_adds(self, directions, tmp_path):
        edits = [
            mm.AddDirection(directions["resid_post", 1], alpha=3.0),
            mm.AddDirection(directions["resid_post", 1], alpha=1.0, toward="memorized"),
            mm.AddDirection(directions["resid_post", 2], alpha=2.0),
        ]
        model, text = bench().model, sentence(6)
        file = mm.export_vectors(edits, tmp_path / "r.gguf", model=model)
        held = {int(t.name.split(".")[1]): np.array(t.data) for t in GGUFReader(file).tensors}
        with mm.patched(model, edits) as view:
            edited = view.logits([text])[0]
        close(by_hand(held, text), edited, 1e-4)
        differs(model.logits([text])[0], edited)

    def test_a_neuron_shift_goes_out_as_what_it_adds(self, scores, tmp_path):
        model, text = bench().model, sentence(5)
        edit = mm.ShiftNeurons(scores, top=0.4, alpha=2.0, positions="all")
        held = torch.load(
            mm.export_vectors(edit, tmp_path / "shift.pt", model=model), weights_only=True
        )
        assert held["layer_type"] == "decoder_block"
        blocks = {block: value.numpy() for block, value in held["layer_activations"].items()}
        for block, value in blocks.items():
            difference = scores.mean_difference["resid_post", block][0].numpy()
            moved = value != 0
            assert 0 < moved.sum() < len(value)
            close(value[moved], -2 * difference[moved], 1e-6)  # toward the second class
        with mm.patched(model, edit) as view:
            close(by_hand(blocks, text), view.logits([text])[0], 1e-4)

    @pytest.mark.parametrize(
        ("site", "suffix", "words"),
        [
            (("resid_post", 0), ".gguf", "llama.cpp refuses"),
            (("resid_pre", 0), ".pt", "output of blocks"),
            (("resid_post", 1), ".onnx", "does not say what to write"),
        ],
    )
    def test_what_a_file_cannot_hold_is_refused(self, directions, tmp_path, site, suffix, words):
        with pytest.raises(mm.MechmemError, match=words):
            mm.export_vectors(directions[site], tmp_path / f"r{suffix}")
        assert list(tmp_path.iterdir()) == []

    def test_an_edit_that_is_no_added_vector_is_refused(self, directions, scores, tmp_path):
        r, model = directions["resid_post", 1], bench().model
        refused = {
            "acts at": mm.ShiftNeurons(scores, top=0.1),
            "does not add a fixed vector": mm.ProjectOut(r),
            "preserve_norm": mm.AddDirection(r, preserve_norm=True),
        }
        for words, edit in refused.items():
            with pytest.raises(mm.EditError, match=words):
                mm.export_vectors([edit], tmp_path / "r.gguf", model=model)
        with pytest.raises(mm.EditError, match="needs model="):
            mm.export_vectors(mm.AddDirection(r), tmp_path / "r.gguf")
        with pytest.raises(mm.EditError, match="bring their own"):
            mm.export_vectors(mm.AddDirection(r), tmp_path / "r.gguf", model=model, alpha=2.0)
        with pytest.raises(mm.SiteError, match="None of the layers"):
            mm.export_vectors(r, tmp_path / "r.gguf", layers=[7])


def test_layers_of_a_safetensors_file_are_those_of_its_sites(directions, tmp_path):
    streams = {d.site.stream for d in directions}
    assert len(streams) > 1
    file = mm.export_vectors(directions, tmp_path / "r.safetensors", layers=[1])
    assert set(load_file(file)) == {d.site.key for d in directions if d.site.layer == 1}


def exported(directions, tmp_path, suffix):
    """A file, what went into it, and what reading it back needs to be told."""
    kept = mm.Directions({d.site: d for d in directions if d.site.stream == "resid_post"})
    layers = [1, 2] if suffix == ".gguf" else [0, 1, 2]
    file = mm.export_vectors(kept, tmp_path / f"r{suffix}", layers=layers)
    return file, kept, layers, {"toward": "generalized"} if suffix == ".pt" else {}


class TestImporting:
    @pytest.mark.parametrize("suffix", [".gguf", ".safetensors", ".pt"])
    def test_what_went_out_comes_back(self, directions, tmp_path, suffix):
        file, kept, layers, said = exported(directions, tmp_path, suffix)
        back = mm.import_directions(file, model=bench().model, **said)
        assert back.sites == [("resid_post", layer) for layer in layers]
        for direction in back:
            close(direction, numbers(kept[direction.site]), 1e-7)
            assert direction.toward == "generalized"
            assert direction.away == ("memorized" if not said else "not generalized")
        if suffix != ".pt":
            assert back["resid_post", 1].method == "difference_of_means"

    def test_an_imported_direction_steers_as_the_one_that_it_was(self, directions, tmp_path):
        r, model, text = directions["resid_post", 1], bench().model, [sentence(6)]
        file = mm.export_vectors(r, tmp_path / "r.safetensors")
        back = mm.import_directions(file, model=model)["resid_post", 1]
        logits = []
        for direction in (r, back):
            with mm.patched(model, mm.AddDirection(direction, alpha=3.0)) as view:
                logits.append(view.logits(text)[0])
        close(logits[1], logits[0], 1e-5)

    def test_bare_tensors_need_their_place_said(self, tmp_path):
        model = bench().model
        d, n = model.info.d_model, model.info.n_layers
        rng = np.random.default_rng(0)
        one, table = rng.normal(size=d), rng.normal(size=(n, d))
        np.save(tmp_path / "one.npy", one)
        np.save(tmp_path / "table.npy", table)
        np.savez(tmp_path / "named.npz", layer_0=one, layer_2=-one)
        torch.save({2: torch.tensor(one), 0: torch.tensor(-one)}, tmp_path / "by_layer.pt")
        save_file({"anything": torch.tensor(one)}, tmp_path / "one.safetensors")

        def read(name, **said):
            return mm.import_directions(tmp_path / name, model=model, **said)

        for name in ("one.npy", "one.safetensors"):
            with pytest.raises(mm.PromptError, match="toward="):
                read(name, site=("resid_post", 1))
            with pytest.raises(mm.SiteError, match="site="):
                read(name, toward="a")
            got = read(name, toward="a", away="b", site=("resid_post", -1))
            close(got["resid_post", n - 1], one, 1e-12)
            assert (got["resid_post", n - 1].toward, got["resid_post", n - 1].away) == ("a", "b")
        rows = read("table.npy", toward="a", stream="resid_pre")
        assert rows.sites == [("resid_pre", layer) for layer in range(n)]
        close(rows["resid_pre", 2], table[2], 1e-12)
        with pytest.raises(mm.SiteError, match="3 rows"):
            read("table.npy", toward="a", stream="resid_pre", layers=[0, 1])
        for name in ("named.npz", "by_layer.pt"):
            got = read(name, toward="a", stream="mlp_out")
            assert got.sites == [("mlp_out", 0), ("mlp_out", 2)]
            with pytest.raises(mm.SiteError, match="stream="):
                read(name, toward="a")
            with pytest.raises(mm.SiteError, match="is the place of one"):
                read(name, toward="a", site=("mlp_out", 0))
        close(got["mlp_out", 0], -one, 1e-12)

    def test_what_is_not_known_of_an_imported_direction_is_not_made_up(self, tmp_path):
        model = bench().model
        np.save(tmp_path / "r.npy", np.arange(1.0, model.info.d_model + 1))
        asked = contrast_set()
        site = ("resid_post", 1)
        back = mm.import_directions(
            tmp_path / "r.npy", model=model, toward="a", away="b", site=site, seen=asked
        )
        again = mm.Directions.load(back.save(tmp_path / "kept"))
        r = again[site]
        assert np.isnan([r.toward_mean, r.away_mean]).all()
        assert not r.has_means
        with (
            pytest.raises(mm.EditError, match="not known"),
            mm.patched(model, mm.SetProjection(r)) as view,
        ):
            view.logits([sentence(3)])
        gated = mm.OnlyWhere(mm.AddDirection(r), r, when="a")
        with (
            pytest.raises(mm.EditError, match="threshold="),
            mm.patched(model, gated) as view,
        ):
            view.logits([sentence(3)])
        with pytest.raises(mm.LeakageError):
            mm.evaluate(model, asked, edit=mm.AddDirection(r))

    def test_files_that_are_no_directions_are_refused_in_words(self, tmp_path):
        model = bench().model

        def refused(name, words, kind=mm.ArtifactError, **said):
            with pytest.raises(kind, match=words):
                mm.import_directions(tmp_path / name, model=model, toward="a", **said)

        refused("none.npy", "is missing")
        refused("r.csv", "readable are")
        for name in ("bad.gguf", "bad.pt", "bad.npy", "bad.npz", "bad.safetensors"):
            (tmp_path / name).write_bytes(b"nothing of the kind")
            refused(name, "unpickled|not a safetensors|more than its 19 bytes")
        np.save(tmp_path / "objects.npy", np.array([{}], dtype=object), allow_pickle=True)
        refused("objects.npy", "unpickled")
        torch.save(
            {"layer_activations": {0: torch.ones(2)}, "layer_type": "mlp"}, tmp_path / "m.pt"
        )
        refused("m.pt", "decoder_block")
        torch.save({"a": 1}, tmp_path / "mixed.pt")
        refused("mixed.pt", "more than tensors")
        np.save(tmp_path / "deep.npy", np.ones((2, model.info.n_layers, model.info.d_model)))
        refused("deep.npy", r"save the position that you mean", mm.SiteError, stream="resid_post")
        np.save(tmp_path / "short.npy", np.ones(3))
        refused("short.npy", "shape", mm.SiteError, site=("resid_post", 0))
        np.save(tmp_path / "nan.npy", np.full(model.info.d_model, np.nan))
        refused("nan.npy", "not finite", site=("resid_post", 0))
        np.savez(tmp_path / "twice.npz", a_1=np.ones(2), b_1=np.ones(2))
        refused("twice.npz", "two tensors", mm.SiteError, stream="resid_post")
        writer = GGUFWriter(tmp_path / "model.gguf", "llama")
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        refused("model.gguf", "another kind")

    def test_plain_safetensors_have_a_tensor_per_site(self, directions, tmp_path):
        held = load_file(mm.export_vectors(directions, tmp_path / "r.safetensors"))
        assert set(held) == {site.key for site in directions.sites}
        close(held["resid_pre.0"], numbers(directions["resid_pre", 0]), 1e-7)

    @pytest.mark.parametrize("suffix", [".gguf", ".safetensors", ".pt"])
    def test_a_flipped_bit_is_refused_or_changes_nothing(self, directions, tmp_path, suffix):
        file, _, _, said = exported(directions, tmp_path, suffix)

        def read():
            back = mm.import_directions(file, model=bench().model, **said)
            return [(d.site, d.toward, d.away, d.vector.tolist()) for d in back]

        whole, data, refused = read(), file.read_bytes(), 0
        places = np.random.default_rng(0).integers(0, 8 * len(data), 400)
        for place in places.tolist():
            changed = bytearray(data)
            changed[place // 8] ^= 1 << place % 8
            file.write_bytes(changed)
            try:
                assert read() == whole
            except mm.MechmemError:
                refused += 1
        assert refused > (300 if suffix == ".safetensors" else 40)

    def test_what_is_beyond_float32_is_not_exported(self, directions, tmp_path):
        for suffix in (".safetensors", ".pt", ".gguf"):
            with pytest.raises(
                mm.EditError, match=r"beyond the range of float32 with alpha=1e\+300"
            ):
                mm.export_vectors(directions, tmp_path / f"r{suffix}", alpha=1e300)
            assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("kind", ["list", "text", "lists", "entries", "tensors", "no kind"])
    def test_counts_beyond_the_end_of_a_gguf_file_are_no_loops(self, tmp_path, kind):
        many = 2**33
        head = {"entries": (0, many), "tensors": (many, 0)}.get(kind, (0, 1))
        entry = struct.pack(
            "<Q1sI", 1, b"a", 8 if kind == "text" else 99 if kind == "no kind" else 9
        )
        inside = {"list": struct.pack("<IQ", 0, many), "text": struct.pack("<Q", many),
                  "lists": struct.pack("<IQIQ", 9, 1, 8, many)}  # fmt: skip
        data = b"GGUF" + struct.pack("<IQQ", 3, *head) + entry + inside.get(kind, b"") + b"x" * 20
        (tmp_path / "a.gguf").write_bytes(data)
        with pytest.raises(mm.ArtifactError, match=r"says that it holds more than its"):
            mm.import_directions(tmp_path / "a.gguf", model=bench().model, toward="a")
        with pytest.raises(mm.ModelError, match=r"says that it holds more than its"):
            mm.load_model(tmp_path / "a.gguf")

    @pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
    @pytest.mark.filterwarnings("ignore:TypedStorage is deprecated:UserWarning")
    @pytest.mark.parametrize("kind", ["sparse", "meta", "quantized"])
    def test_tensors_without_plain_numbers_are_refused(self, directions, tmp_path, kind):
        value = torch.ones(bench().model.info.d_model)
        made = {
            "sparse": lambda: value.to_sparse(),
            "meta": lambda: value.to("meta"),
            "quantized": lambda: torch.quantize_per_tensor(value, 0.1, 0, torch.qint8),
        }[kind]()
        torch.save({"resid_post.0": made}, tmp_path / "a.pt")
        with pytest.raises(mm.ArtifactError, match="sparse, quantized or without data"):
            mm.import_directions(tmp_path / "a.pt", model=bench().model, toward="a")
        with as_users_run_it(), pytest.raises(mm.SiteError, match="finite real numbers"):
            replace(directions["resid_post", 0], vector=made)

    @pytest.mark.parametrize("layer", ["²", "٣", "9" * 5000, "-1", ""])
    def test_layers_that_are_no_plain_digits_are_no_layers(self, layer):
        with pytest.raises(mm.SiteError, match="is not a site key"):
            mm.Site.from_key(f"resid_post.{layer}")
