"""What lies on a disk is what was written, or it is refused; two at once are kept apart."""

from __future__ import annotations

import json
import os
import shutil
import time
import traceback
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import bench, close, contrast_set, ragged
from safetensors.torch import load_file, save_file

import mechmem as mm
from mechmem import artifacts
from mechmem.artifacts import load_artifact, save_artifact
from mechmem.caching import parts, shards
from mechmem.cli.status import _table
from mechmem.manifests import sealed
from mechmem.work_claims import claim_of
from mechmem.writing import new_folder, whole_file, write_text

OPTIONS = {"sites": ["resid_post"], "token_budget": 40, "shard_rows": 5}


def together(*works) -> None:
    """Run each in a process of its own, at once."""
    children = []
    for work in works:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            try:
                work()
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * len(works)


def meeting(folder: Path, name: str, others: int = 2):
    """`new_folder`, which takes its place only once the others have planned to take it too."""

    @contextmanager
    def patched(path):
        with new_folder(path) as partial:
            yield partial
            folder.mkdir(exist_ok=True)
            (folder / name).touch()
            while len(list(folder.iterdir())) < others:
                time.sleep(0.001)

    return patched


def renamed(prefix: str, n: int) -> mm.PromptSet:
    return mm.PromptSet(mm.Prompt(id=f"{prefix}{k}", text=p.text) for k, p in enumerate(ragged(n)))


class TestTwoAtOnce:
    def test_two_processes_with_other_prompts_lose_and_mix_up_nothing(self, tmp_path, monkeypatch):
        sets = {name: renamed(name, n) for name, n in (("a", 17), ("b", 11))}
        mm.cache_activations(bench().model, sets["a"], sites=["resid_post"])

        def work(name: str):
            def run() -> None:
                monkeypatch.setattr(parts, "new_folder", meeting(tmp_path / "meet", name))
                mm.extract_activations(bench().model, sets[name], tmp_path / "store", **OPTIONS)

            return run

        together(work("a"), work("b"))
        store = mm.ActivationStore(tmp_path / "store")
        assert store.complete
        assert sorted(store.prompts.ids) == sorted(sets["a"].ids + sets["b"].ids)
        for prompts in sets.values():
            want = mm.cache_activations(bench().model, prompts, sites=["resid_post"])
            close(store.select(prompts).values, want.values, 1e-5)

    def test_moments_of_two_processes_count_every_prompt_once(self, tmp_path, monkeypatch):
        whole = contrast_set()
        halves = (whole[:20], whole[12:])  # eight prompts belong to both
        options = {"by": "behavior", "token_budget": 14, "shard_rows": 4}
        mm.cache_moments(bench().model, whole, by="behavior")

        def work(k: int):
            def run() -> None:
                monkeypatch.setattr(parts, "new_folder", meeting(tmp_path / "meet", str(k)))
                mm.extract_moments(bench().model, halves[k], tmp_path / "m", **options)

            return run

        together(work(0), work(1))
        found = mm.merge_moments(tmp_path / "m")
        assert sum(found.counts.values()) == len(whole)
        want = mm.cache_moments(bench().model, whole, by="behavior")
        for name, sites in want.classes.items():
            for site, own in sites.items():
                close(found.classes[name][site].mean, own.mean, 1e-5)

    def test_a_part_that_appears_after_the_prompts_were_chosen_is_noticed(
        self, tmp_path, monkeypatch
    ):
        own = shards.begin_part
        late = []

        def begin(place, *found):
            if not late:
                late.append(place)
                mm.extract_activations(bench().model, ragged(9), tmp_path, **OPTIONS)
            return own(place, *found)

        monkeypatch.setattr(shards, "begin_part", begin)
        store = mm.extract_activations(bench().model, ragged(14), tmp_path, **OPTIONS)
        assert sorted(store.prompts.ids) == sorted(ragged(14).ids)
        assert [len(part.prompts) for part in store.parts] == [9, 5]

    def test_something_else_in_the_place_of_a_part_is_named(self, tmp_path):
        (tmp_path / "part-0000" / "mine").mkdir(parents=True)
        with pytest.raises(mm.ArtifactError, match=r"part-0000 is in the way"):
            mm.extract_activations(bench().model, ragged(3), tmp_path, **OPTIONS)

    def test_a_shard_of_another_part_is_refused(self, tmp_path):
        for name in "ab":
            mm.extract_activations(
                bench().model, renamed(name, 5), tmp_path / name, sites=["resid_post"]
            )
        shard = next((tmp_path / "a").rglob("shard-*"))
        shutil.copy(shard, tmp_path / "b" / "part-0000" / shard.name)
        with pytest.raises(mm.ArtifactError, match=r"belongs to other prompts.*Remove it and run"):
            mm.ActivationStore(tmp_path / "b").load()

    def test_shards_that_changed_places_are_refused(self, tmp_path):
        store = mm.extract_activations(bench().model, ragged(23), tmp_path, **OPTIONS)
        one, other = store.parts[0].path(0), store.parts[0].path(1)
        held = one.read_bytes()
        one.write_bytes(other.read_bytes())
        other.write_bytes(held)
        with pytest.raises(mm.ArtifactError, match=r"it is shard 1 of .* not 0 of"):
            mm.ActivationStore(tmp_path).load()


class TestASaveIsOneStep:
    def test_a_kill_between_the_two_files_leaves_the_new_save_whole(self, tmp_path, monkeypatch):
        save_artifact(tmp_path / "a", "note", {"x": torch.ones(3)}, {"which": "old"})
        own = os.replace

        def dies(source, target):
            if str(target).endswith(".json"):
                os._exit(9)
            own(source, target)

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            monkeypatch.setattr("mechmem.writing.os.replace", dies)
            save_artifact(tmp_path / "a", "note", {"x": torch.zeros(3)}, {"which": "new"})
        os.waitpid(child, 0)
        tensors, about = load_artifact(tmp_path / "a", "note")
        assert (about["which"], tensors["x"].tolist()) == ("new", [0.0] * 3)
        assert json.loads((tmp_path / "a.json").read_text())["which"] == "old"
        assert list(tmp_path.glob(".*"))
        save_artifact(tmp_path / "b", "note", {}, {})
        assert not list(tmp_path.glob(".*"))  # what the killed one left is swept by the next save

    def test_a_reader_beside_a_writer_sees_one_save(self, tmp_path):
        def save(k: int) -> None:  # of another size every time
            x = torch.full((500 + 400 * (k % 3),), k)
            save_artifact(tmp_path / "a", "note", {"x": x}, {"k": k})

        def write() -> None:
            for k in range(150):
                save(k)
            write_text(tmp_path / "done", "")

        def read() -> None:
            seen = set()
            while not (tmp_path / "done").exists():
                tensors, about = load_artifact(tmp_path / "a", "note")
                assert tensors["x"].unique().tolist() == [about["k"]]
                seen.add(about["k"])
            assert len(seen) > 3

        save(0)
        together(write, read)

    def test_a_save_in_the_middle_of_opening_is_opened_anew(self, tmp_path, monkeypatch):
        """torch maps the file by its name, after its header was read."""
        sizes, own = [2000, 10], artifacts.safe_open

        def save(size: int) -> None:
            save_artifact(tmp_path / "a", "note", {"x": torch.full((size,), size)}, {"k": size})

        def opens(path, framework):
            held = own(path, framework=framework)
            if sizes:
                save(sizes.pop())
                if not sizes:
                    raise RuntimeError("file <a> size <9> is smaller than the required mapping")
            return held

        save(500)
        monkeypatch.setattr(artifacts, "safe_open", opens)
        tensors, about = load_artifact(tmp_path / "a", "note")
        assert (about["k"], len(tensors["x"])) == (2000, 2000)

    def test_a_file_that_changes_whenever_it_is_opened_is_refused(self, tmp_path, monkeypatch):
        def breaks(path, framework):
            raise RuntimeError("file <a> size <9> is smaller than the required mapping")

        save_artifact(tmp_path / "a", "note", {"x": torch.ones(3)}, {})
        monkeypatch.setattr(artifacts, "safe_open", breaks)
        with pytest.raises(mm.ArtifactError, match="cannot be read, it may be cut off: file <a>"):
            load_artifact(tmp_path / "a", "note")

    def test_threads_that_save_to_one_path_do_not_share_a_file(self, tmp_path):
        with whole_file(tmp_path / "a") as one, whole_file(tmp_path / "a") as other:
            assert one != other
            one.write_text("one")
            other.write_text("other")
        assert (tmp_path / "a").read_text() == "one"
        assert [path.name for path in tmp_path.iterdir()] == ["a"]

    def test_a_file_that_is_being_written_is_not_swept(self, tmp_path):
        with whole_file(tmp_path / "a") as partial:
            partial.write_text("half")
            together(lambda: write_text(tmp_path / "b", "") and None)
            write_text(tmp_path / "c", "")
            assert partial.read_text() == "half"


def kept(folder: Path) -> mm.Directions:
    acts = mm.cache_activations(bench().model, contrast_set(), sites=["resid_post"])
    r = mm.difference_of_means(acts, toward="generalized")
    r.save(folder / "r")
    return r


class TestWhatIsLoadedIsWhatWasSaved:
    def test_loaded_tensors_do_not_live_in_the_file(self, tmp_path):
        r = kept(tmp_path)
        back = mm.Directions.load(tmp_path / "r")
        size = (tmp_path / "r.safetensors").stat().st_size
        with (tmp_path / "r.safetensors").open("r+b") as file:
            file.write(bytes(size))
            file.truncate(100)
        site = ("resid_post", 1)
        assert torch.equal(back[site].vector, r[site].vector)

    @pytest.mark.parametrize(
        "change",
        [
            lambda v: torch.full_like(v, torch.nan),
            lambda v: v.float(),
            lambda v: v[:-1],
            lambda v: torch.cat([v, v]),
            lambda v: -v,
            lambda v: v.to(torch.complex64),
        ],
        ids=["NaN", "narrower", "shorter", "longer", "turned", "complex"],
    )
    def test_tensors_that_were_changed_are_refused(self, tmp_path, change):
        kept(tmp_path)
        tensors = load_file(tmp_path / "r.safetensors")
        tensors["resid_post.1"] = change(tensors["resid_post.1"])
        save_file(tensors, tmp_path / "r.safetensors")
        with pytest.raises(mm.ArtifactError, match=r"was changed: 'resid_post\.1'"):
            mm.Directions.load(tmp_path / "r")

    def test_tensors_that_changed_places_are_refused(self, tmp_path):
        kept(tmp_path)
        t = load_file(tmp_path / "r.safetensors")
        t["resid_post.0"], t["resid_post.1"] = t["resid_post.1"], t["resid_post.0"]
        save_file(t, tmp_path / "r.safetensors")
        with pytest.raises(mm.ArtifactError, match="was changed"):
            mm.Directions.load(tmp_path / "r")

    def test_nothing_that_is_not_finite_is_saved_or_made(self, tmp_path):
        r = kept(tmp_path)
        for bad in (torch.nan, torch.inf):
            with pytest.raises(mm.SiteError, match="finite real numbers"):
                mm.Direction(
                    torch.full((16,), bad).double(), mm.Site("resid_post", 1), "a", "b", 0.0, 0.0,
                    r.provenance,
                )  # fmt: skip
            with pytest.raises(mm.ArtifactError, match="'x' is not finite"):
                save_artifact(tmp_path / "a", "note", {"x": torch.tensor([bad])}, {})
        assert not (tmp_path / "a.json").exists()

    def test_every_flipped_bit_is_refused_or_changes_nothing(self, tmp_path):
        r = kept(tmp_path)
        rng = np.random.default_rng(0)
        refused = 0
        for name in ("r.safetensors", "r.json"):
            whole = (tmp_path / name).read_bytes()
            for place in rng.choice(len(whole) * 8, 150, replace=False):
                data = bytearray(whole)
                data[place // 8] ^= 1 << (place % 8)
                (tmp_path / name).write_bytes(data)
                try:
                    back = mm.Directions.load(tmp_path / "r")
                except mm.ArtifactError:
                    refused += 1
                    continue
                assert back.provenance == r.provenance
                for one, other in zip(back, r, strict=True):
                    assert repr(one) == repr(other)
                    assert torch.equal(one.vector, other.vector)
            (tmp_path / name).write_bytes(whole)
        assert refused >= 0.95 * 300


class TestAStore:
    def test_a_flipped_bit_is_refused_once_its_site_is_read(self, tmp_path):
        store = mm.extract_activations(bench().model, ragged(23), tmp_path, **OPTIONS)
        path = store.parts[0].path(1)
        row = store.parts[0].rows[1][0]
        data = bytearray(path.read_bytes())
        data[-10] ^= 4  # in the numbers of one of the last tensors, or in the manifest
        path.write_bytes(data)
        with pytest.raises(mm.ArtifactError):
            mm.ActivationStore(tmp_path).take([row])
        mm.ActivationStore(tmp_path).take([store.parts[0].rows[0][0]])

    def test_without_verifying_only_the_row_is_read(self, tmp_path, monkeypatch):
        mm.extract_activations(bench().model, ragged(23), tmp_path, **OPTIONS)
        asked = []
        monkeypatch.setattr(
            "mechmem.artifacts.TensorFile.verify", lambda held, name, value: asked.append(name)
        )
        mm.ActivationStore(tmp_path, verify=False)["resid_post", 0][3]
        assert asked == []
        store = mm.ActivationStore(tmp_path)
        for _ in range(3):
            store["resid_post", 0][3]
        assert asked == ["resid_post.0"] * 2  # of the first shard, for the width, and of the row's

    def test_prompts_that_were_changed_are_refused(self, tmp_path):
        mm.extract_activations(bench().model, ragged(5), tmp_path, **OPTIONS)
        listing = next(tmp_path.rglob("prompts.jsonl"))
        listing.write_text(listing.read_text().replace("w1", "w2"))
        with pytest.raises(mm.ArtifactError, match="was changed after it was written"):
            mm.ActivationStore(tmp_path)


class TestClaims:
    """A claim on a shard is a file that says whose it is, or is refused: nobody waits for it."""

    @pytest.mark.parametrize("kind", ["pipe", "folder"])
    def test_what_is_no_file_is_named(self, tmp_path, kind):
        store = mm.extract_activations(bench().model, ragged(23), tmp_path, **OPTIONS)
        shard = store.parts[0].path(1)
        shard.unlink()
        claim = claim_of(shard)
        os.mkfifo(claim) if kind == "pipe" else claim.mkdir()
        with pytest.raises(mm.ArtifactError, match=rf"claim is not a file but a {kind}"):
            mm.extract_activations(bench().model, ragged(23), tmp_path, **OPTIONS)
        with pytest.raises(mm.ArtifactError, match=rf"claim is not a file but a {kind}"):
            _table(tmp_path)

    @pytest.mark.parametrize("name", ["part-²", "part-" + "9" * 200, "part-x"])
    def test_folders_with_odd_numbers_are_not_counted(self, tmp_path, name):
        first = mm.extract_activations(bench().model, ragged(5), tmp_path, **OPTIONS)
        shutil.copytree(first.parts[0].folder, tmp_path / name)
        shutil.rmtree(first.parts[0].folder)
        store = mm.extract_activations(bench().model, renamed("x", 3), tmp_path, **OPTIONS)
        assert {part.folder.name for part in store.parts} == {name, "part-0000"}

    @pytest.mark.parametrize(
        "entry",
        [{"units": [[]]}, {"units": [["a\0b"]]}, {"units": [["a" * 5000]]}, {"units": [["../a"]]},
         {"tokens": 10**400}, {"tokens": -1}],
        ids=lambda entry: str(entry)[:30],
    )  # fmt: skip
    def test_a_plan_that_names_no_cells(self, tmp_path, entry):
        plan = {"format": 2, "kind": "sweep plan", "units": [["ab"]], "tokens": 5}
        (tmp_path / "plan-a.json").write_text(json.dumps(sealed(plan)))
        assert len(_table(tmp_path)) == 1
        (tmp_path / "plan-a.json").write_text(json.dumps(sealed({**plan, **entry})))
        with pytest.raises(mm.ArtifactError, match=r"plan-a\.json"):
            _table(tmp_path)

    @pytest.mark.parametrize("rank", ["²", "x", "9" * 5000, "-1"])
    def test_ranks_are_plain_numbers(self, tmp_path, monkeypatch, rank):
        monkeypatch.setenv("RANK", rank)
        with pytest.raises(mm.ModelError, match="RANK must be a whole number"):
            mm.extract_activations(bench().model, ragged(3), tmp_path, **OPTIONS)
