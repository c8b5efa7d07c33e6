"""States on disk: the same numbers, read lazily, finished after a kill, never twice."""

from __future__ import annotations

import hashlib
import os
import signal
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import as_users_run_it, bench, close, ragged

import mechmem as mm

SITES = ["resid_post", ("z", 0)]
OPTIONS = {"sites": SITES, "token_budget": 40, "shard_rows": 5}


def stored(folder: Path, n: int = 23, **options) -> mm.ActivationStore:
    return mm.extract_activations(bench().model, ragged(n), folder, **{**OPTIONS, **options})


def labeled(n: int) -> mm.PromptSet:
    return mm.PromptSet(replace(prompt, label=f"l{k % 2}") for k, prompt in enumerate(ragged(n)))


def hashes(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
    }


def killed(work) -> None:
    """Run in a child that ends by SIGKILL, from inside."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(7)  # it was meant to be killed before
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


class KillAfter:
    """Progress that ends the process in the middle of the n-th batch."""

    def __init__(self, batches: int) -> None:
        self.left = batches

    def __call__(self, rows: int) -> None:
        self.left -= 1
        if self.left <= 0:
            os.kill(os.getpid(), signal.SIGKILL)


class TestTheSameNumbers:
    @pytest.mark.parametrize("positions", ["last", "mean", [0, -1]], ids=str)
    def test_as_activations_in_memory(self, tmp_path, positions) -> None:
        store = stored(tmp_path, positions=positions)
        acts = mm.cache_activations(bench().model, ragged(23), sites=SITES, positions=positions)
        assert store.complete
        assert len(store) == 23
        assert store.sites == acts.sites
        assert store.columns == acts.columns
        assert (store.prompts, store.token_ids) == (acts.prompts, acts.token_ids)
        assert store.provenance == acts.provenance
        for site in acts.sites:
            close(store[site][:], acts[site], 1e-5)
            assert store[site].shape == acts[site].shape
        back = store.load()
        assert back.prompts == acts.prompts
        close(back["resid_post", 1], acts["resid_post", 1], 1e-5)

    def test_rows_in_any_order_and_form(self, tmp_path) -> None:
        states = stored(tmp_path)["resid_post", 1]
        whole = states[:]
        for rows in (3, -1, slice(2, 20, 3), [4, 0, 4, 22], torch.tensor([7, 1])):
            assert torch.equal(states[rows], whole[rows])
        mask = torch.arange(23) % 3 == 0
        assert torch.equal(states[mask], whole[mask])
        assert np.array_equal(np.asarray(states), whole.numpy())
        with pytest.raises(IndexError):
            states[23]

    def test_take_select_and_chunks_give_activations(self, tmp_path) -> None:
        store = stored(tmp_path)
        acts = store.load()
        assert torch.equal(store.take([5, 2])["z", 0], acts["z", 0][[5, 2]])
        assert store.take([5, 2]).provenance == acts.take([5, 2]).provenance
        seen = ragged(23)[3:5].with_behaviors({"p3": "memorized", "p4": "generalized"})
        assert store.select(seen).classes("behavior") == ["memorized", "generalized"]
        rows = [prompt for chunk in store.chunks() for prompt in chunk.prompts.ids]
        assert sorted(rows) == sorted(acts.prompts.ids)
        for chunk in store.chunks():
            again = acts.select(chunk.prompts)
            assert torch.equal(chunk["resid_post", 0], again["resid_post", 0])

    def test_prompts_with_other_labels_are_counted_under_these(self, tmp_path) -> None:
        first, then = (
            mm.PromptSet(
                mm.Prompt(id=p.id, text=p.text, label=names[k % 2])
                for k, p in enumerate(ragged(23))
            )
            for names in ("ab", "ba")
        )
        old = mm.extract_activations(bench().model, first, tmp_path, **OPTIONS)
        new = mm.extract_activations(bench().model, then[:9], tmp_path, **OPTIONS)
        assert new.classes("label") == ["ba"[k % 2] if k < 9 else "ab"[k % 2] for k in range(23)]
        here = [name == "b" for name in new.classes("label")]
        want = old.load()["resid_post", 1][here].double().numpy()
        close(new.moments("label").classes["b"]["resid_post", 1].mean, want.mean(0), 1e-12)

    def test_statistics_of_the_classes(self, tmp_path) -> None:
        prompts = mm.PromptSet(
            mm.Prompt(id=p.id, text=p.text, label="ab"[k % 2]) for k, p in enumerate(ragged(23))
        )
        store = mm.extract_activations(bench().model, prompts, tmp_path, **OPTIONS)
        moments, acts = store.moments("label"), store.load()
        for name, start in (("a", 0), ("b", 1)):
            want = acts["resid_post", 1][start::2].double().numpy()
            close(moments.classes[name]["resid_post", 1].mean, want.mean(0), 1e-12)
            close(moments.classes[name]["resid_post", 1].variance, want.var(0, ddof=1), 1e-12)

    def test_stored_precision(self, tmp_path) -> None:
        half = stored(tmp_path / "half", dtype=torch.bfloat16)["resid_post", 0]
        full = stored(tmp_path / "full")["resid_post", 0]
        assert half.dtype is torch.bfloat16
        assert torch.equal(half[:], full[:].bfloat16())

    def test_reading_a_row_does_not_read_the_file(self, tmp_path) -> None:
        """A shard whose other rows were overwritten on disk gives the row as it was asked for."""
        store = stored(tmp_path, shard_rows=100)
        tensor = store._tensor(0, mm.Site("resid_post", 0))
        pages = tensor.untyped_storage().data_ptr()
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines()]
        inside = [
            entry for entry in maps
            if int(entry[0].split("-")[0], 16) <= pages < int(entry[0].split("-")[1], 16)
        ]  # fmt: skip
        assert [entry[-1] for entry in inside] == [str(store.parts[0].path(0))]


class TestAfterAKill:
    @pytest.mark.parametrize("batches", [1, 3, 5])
    def test_the_bytes_are_those_of_an_undisturbed_run(self, tmp_path, batches) -> None:
        stored(tmp_path / "whole")
        folder = tmp_path / "killed"
        killed(lambda: stored(folder, progress=KillAfter(batches)))
        killed(lambda: stored(folder, progress=KillAfter(1)))
        assert hashes(folder) != hashes(tmp_path / "whole")
        assert stored(folder).complete
        assert hashes(folder) == hashes(tmp_path / "whole")

    def test_what_is_there_is_not_made_again(self, tmp_path) -> None:
        whole = stored(tmp_path)
        whole.parts[0].path(1).unlink()
        made: list[int] = []
        stored(tmp_path, progress=made.append)
        assert sum(made) == len(whole.parts[0].rows[1])
        made.clear()
        stored(tmp_path, progress=made.append)
        assert made == []

    def test_a_store_with_gaps_says_so(self, tmp_path) -> None:
        store = stored(tmp_path)
        store.parts[0].path(2).unlink()
        again = mm.ActivationStore(tmp_path)
        assert not again.complete
        assert "1 shards missing" in repr(again)
        row = again.parts[0].rows[2][0]
        with pytest.raises(mm.ArtifactError, match=r"1 shards are missing.*Run the extraction"):
            again["resid_post", 0][row]
        assert again["resid_post", 0][again.parts[0].rows[0][0]].shape == (1, 16)


class TestAppending:
    def test_only_new_prompts_run_and_all_are_there(self, tmp_path) -> None:
        stored(tmp_path, 9)
        before = hashes(tmp_path)
        made: list[int] = []
        store = stored(tmp_path, 23, progress=made.append)
        assert sum(made) == 14
        assert store.prompts == ragged(23)
        assert len(set(store.prompts.ids)) == 23
        acts = mm.cache_activations(bench().model, ragged(23), sites=SITES)
        close(store["z", 0][:], acts["z", 0], 1e-5)
        assert before.items() <= hashes(tmp_path).items()

    def test_a_part_that_was_killed_is_finished_first(self, tmp_path) -> None:
        killed(lambda: stored(tmp_path, 9, progress=KillAfter(2)))
        store = stored(tmp_path, 12)
        assert store.complete
        assert store.prompts == ragged(12)

    def test_prompts_with_another_number_of_positions_are_refused_before_they_run(
        self, tmp_path
    ) -> None:
        def prompts(name: str, words: str) -> mm.PromptSet:
            text = f"w1 {words} w5"
            return mm.PromptSet([mm.Prompt(id=name, text=text, spans={"cue": (3, 3 + len(words))})])

        store = stored(tmp_path, 1)  # makes the model; another folder below
        assert store.complete
        for name, words in (("a", "w2"), ("b", "w3")):
            mm.extract_activations(
                bench().model, prompts(name, words), tmp_path / "cue", sites=SITES, positions="cue"
            )
        before = hashes(tmp_path / "cue")
        with pytest.raises(mm.PositionError, match=r"'cue' means .* in the new prompts"):
            mm.extract_activations(
                bench().model, prompts("c", "w2 w3"), tmp_path / "cue", sites=SITES,
                positions="cue",
            )  # fmt: skip
        assert hashes(tmp_path / "cue") == before

    def test_a_site_that_does_not_hold_leaves_the_folder_as_it_was(
        self, tmp_path, monkeypatch
    ) -> None:
        backend = bench().model.backend
        bad = mm.Site("attn_out", 0)
        mm.cache_activations(bench().model, "w1", sites=[bad])
        found = replace(backend.findings[bad], reason="tried out")
        monkeypatch.setitem(backend.findings, bad, found)
        for run in (mm.extract_activations, partial(mm.extract_moments, by="label")):
            with pytest.raises(mm.SiteError, match="tried out"):
                run(bench().model, labeled(3), tmp_path / "states", sites=[bad])
        assert not (tmp_path / "states").exists()

    def test_an_id_with_another_text_is_refused(self, tmp_path) -> None:
        stored(tmp_path, 5)
        with pytest.raises(mm.ArtifactError, match=r"'p1' are stored already, with other tokens"):
            mm.extract_activations(
                bench().model, mm.PromptSet([mm.Prompt(id="p1", text="w1")]), tmp_path, **OPTIONS
            )

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"sites": "resid_pre"}, "sites"),
            ({"positions": "mean"}, "positions"),
            ({"dtype": torch.float16}, "dtype"),
            ({"token_budget": 41}, "token_budget"),
            ({"shard_rows": 6}, "shard_rows"),
        ],
    )
    def test_other_settings_are_refused(self, tmp_path, change, name) -> None:
        stored(tmp_path, 5)
        with pytest.raises(mm.ArtifactError, match=rf"other settings \({name} there"):
            stored(tmp_path, 5, **change)

    def test_states_after_edits_do_not_mix_with_plain_ones(self, tmp_path) -> None:
        stored(tmp_path, 5)
        edit = mm.SkipLayers(("resid_post", 0)) if hasattr(mm, "SkipLayers") else None
        assert edit is not None
        with (
            mm.patched(bench().model, edit) as view,
            pytest.raises(mm.ArtifactError, match=r"other settings \(edits there \[\]"),
        ):
            mm.extract_activations(view, ragged(5), tmp_path, **OPTIONS)

    def test_another_model_is_refused(self, tmp_path) -> None:
        stored(tmp_path, 5)
        with pytest.raises(mm.ArtifactError, match=r"other settings \(model there"):
            mm.extract_activations(bench("llama").model, ragged(5), tmp_path, **OPTIONS)


class TestRefusals:
    def test_a_folder_of_something_else(self, tmp_path) -> None:
        with pytest.raises(mm.ArtifactError, match=r"holds no stored activations"):
            mm.ActivationStore(tmp_path)
        stored(tmp_path / "a", 5)
        (index,) = (tmp_path / "a").rglob("index.json")
        index.write_text("{")
        with pytest.raises(
            mm.ArtifactError, match=r"cannot be read as part of a store, it may be cut off"
        ):
            mm.ActivationStore(tmp_path / "a")

    @pytest.mark.parametrize("rows", [
        9, [0, 9], [0, -6], 1.5, [1.5], True, [True, False], "x", None, torch.ones(2, 2).long(),
        torch.tensor([True]),
    ], ids=[
        "beyond", "one beyond", "before", "a half", "halves", "True", "a list of bools", "a text",
        "None", "a matrix", "a mask of another length",
    ])  # fmt: skip
    def test_rows_that_are_no_numbers_of_examples(self, tmp_path, rows) -> None:
        store = stored(tmp_path, 5)
        acts, message = store.load(), "no example|asked for by their numbers"
        several = [rows] if isinstance(rows, int) else rows
        for work in (
            lambda: store["z", 0][rows], lambda: store.take(several), lambda: acts.take(several),
        ):  # fmt: skip
            with as_users_run_it(), pytest.raises(mm.PromptError, match=message):
                work()

    def test_a_site_or_prompt_that_is_not_there(self, tmp_path) -> None:
        store = stored(tmp_path, 5)
        with pytest.raises(mm.SiteError, match=r"No states of \('resid_pre', 0\)"):
            store["resid_pre", 0]
        with pytest.raises(mm.PromptError, match=r"No states of prompts 'x'"):
            store.select(mm.PromptSet([mm.Prompt(id="x", text="w1")]))


def test_numpy_sees_states_that_are_kept_in_bfloat16(tmp_path: Path) -> None:
    store = mm.extract_activations(bench().model, ragged(5), tmp_path, dtype=torch.bfloat16)
    seen = np.asarray(store["resid_post", 1])
    assert seen.dtype == np.float32
    np.testing.assert_array_equal(seen, store["resid_post", 1][:].float().numpy())
