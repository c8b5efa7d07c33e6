"""Several processes, each its share: together the same as one, whoever was killed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

import pytest
from helpers import bench, close, contrast_set
from test_store import KillAfter, hashes, killed

import mechmem as mm
from mechmem.caching.parts import parts_of
from mechmem.caching.shards import dealt, share_of_work
from mechmem.manifests import sealed
from mechmem.models.engine.batching import PlannedBatch
from mechmem.models.engine.forward import plan_passes

OPTIONS = {"token_budget": 14, "shard_rows": 4}
STATS = {**OPTIONS, "by": "behavior", "bootstrap": 8, "covariance": ("resid_post", 1)}


def moments(folder: Path, **options) -> mm.Moments | None:
    return mm.extract_moments(bench().model, contrast_set(), folder, **{**STATS, **options})


def same(one: mm.Moments, other: mm.Moments, tolerance: float) -> None:
    assert one.counts == other.counts
    assert one.provenance == other.provenance
    mine, theirs = one.tensors(), other.tensors()
    assert mine.keys() == theirs.keys()
    for name, value in mine.items():
        close(value, theirs[name], tolerance)


class TestFourProcesses:
    def test_states_have_the_bytes_of_one(self, tmp_path) -> None:
        model, prompts = bench().model, contrast_set()
        mm.extract_activations(model, prompts, tmp_path / "one", **OPTIONS)
        complete = [
            mm.extract_activations(
                model, prompts, tmp_path / "four", rank=rank, world=4, **OPTIONS
            ).complete
            for rank in (2, 0, 3, 1)
        ]
        assert complete == [False, False, False, True]
        assert hashes(tmp_path / "four") == hashes(tmp_path / "one")

    def test_moments_are_those_of_one(self, tmp_path) -> None:
        one = moments(tmp_path / "one")
        found = [moments(tmp_path / "four", rank=rank, world=4) for rank in (1, 3, 0, 2)]
        assert found[:3] == [None] * 3
        same(found[3], one, 1e-12)
        same(mm.merge_moments(tmp_path / "four"), one, 1e-12)
        streamed = mm.cache_moments(
            bench().model, contrast_set(), by="behavior", token_budget=14, bootstrap=8,
            covariance=("resid_post", 1),
        )  # fmt: skip
        same(one, streamed, 1e-12)

    def test_work_is_dealt_out_in_whole_shards_and_nothing_twice(self, tmp_path) -> None:
        done: list[list[int]] = []
        for rank in range(4):
            heard: list[int] = []
            moments(tmp_path, rank=rank, world=4, progress=heard.append)
            done.append(heard)
        assert sum(map(sum, done)) == len(contrast_set())
        assert all(done)

    def test_a_shard_holds_no_more_than_it_may_but_for_a_single_batch(self, tmp_path) -> None:
        model = bench().model
        plan = plan_passes(model.backend, model.tokenize(contrast_set()), 14, pack=True)
        starts = {work.rows[0]: len(work.rows) for work in plan.works}
        for most in (1, 2, 4, 7, 1000):
            folder, options = tmp_path / str(most), {**OPTIONS, "shard_rows": most}
            mm.extract_activations(model, contrast_set(), folder, **options)
            (part,) = parts_of(folder)
            assert list(chain(*part.rows)) == [row for work in plan.works for row in work.rows]
            assert all(len(rows) <= max(most, starts[rows[0]]) for rows in part.rows)
            # And as many as it may: the next batch would have been too much.
            assert all(len(a) + starts[b[0]] > most for a, b in pairwise(part.rows))

    def test_shards_of_falling_size_come_out_even(self) -> None:
        shards = [[PlannedBatch((0,), width)] for width in (185, 148, 126, 109, 81, 53, 6)]
        whole = sum(work.width + 4 for (work,) in shards)
        for ranks in (1, 2, 3, 9):
            own = dealt(shards, ranks, 4.0)
            assert sorted(shard for share in own for shard in share) == list(range(7))
            assert own == dealt(shards, ranks, 4.0)
            loads = [sum(shards[k][0].width + 4 for k in share) for share in own]
            assert max(loads) <= max(1.05 * whole / ranks, 189)
        strided = [sum(shards[k][0].width for k in range(rank, 7, 2)) for rank in (0, 1)]
        assert strided[0] > 1.2 * strided[1]  # as dealing in turn would have it

    def test_a_killed_rank_resumes_from_its_shards(self, tmp_path) -> None:
        one = moments(tmp_path / "one")
        four = tmp_path / "four"
        for rank in (0, 1, 3):
            moments(four, rank=rank, world=4)
        mine = len(list((four / "part-0000").glob("shard-*")))
        killed(lambda: moments(four, rank=2, world=4, progress=KillAfter(3)))
        left = len(list((four / "part-0000").glob("shard-*")))
        with pytest.raises(mm.ArtifactError, match=r"shards are missing.*Run the extraction again"):
            mm.merge_moments(four)
        heard: list[int] = []
        found = moments(four, rank=2, world=4, progress=heard.append)
        assert found is not None
        same(found, one, 1e-12)
        assert hashes(four) == hashes(tmp_path / "one")
        assert left == mine + 1

    def test_parts_that_were_added_later_are_merged_too(self, tmp_path) -> None:
        prompts = contrast_set()
        mm.extract_moments(bench().model, prompts[:10], tmp_path, **STATS)
        found = mm.extract_moments(bench().model, prompts, tmp_path, **STATS)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["part-0000", "part-0001"]
        whole = mm.cache_moments(bench().model, prompts, by="behavior", bootstrap=8)
        for name, sites in whole.classes.items():
            for site, own in sites.items():
                close(found.classes[name][site].mean, own.mean, 1e-5)
                assert found.classes[name][site].count == own.count


class TestTheTwoNumbers:
    def test_they_come_from_the_environment(self, monkeypatch) -> None:
        assert share_of_work() == (0, 1)
        monkeypatch.setenv("RANK", "2")
        monkeypatch.setenv("WORLD_SIZE", "4")
        assert share_of_work() == (2, 4)
        assert share_of_work(0, 1) == (0, 1)

    @pytest.mark.parametrize(
        ("rank", "world", "text"),
        [("4", "4", r"RANK=4 of WORLD_SIZE=4.*0 to WORLD_SIZE - 1"), ("x", "4", r"RANK.*'x'"),
         ("0", "-1", r"WORLD_SIZE.*'-1'")],
    )  # fmt: skip
    def test_numbers_that_make_no_sense(self, monkeypatch, rank, world, text) -> None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(mm.ModelError, match=text):
            share_of_work()

    def test_prompts_of_another_class_by_now_are_not_taken_for_counted(self, tmp_path) -> None:
        moments(tmp_path)
        turned = {"memorized": "generalized", "generalized": "memorized"}
        now = contrast_set().with_behaviors(
            {p.id: turned[p.behavior] for p in contrast_set().filter(lambda p: p.group == "g3")}
        )
        assert moments(tmp_path).counts  # the same again is no other
        with pytest.raises(mm.ArtifactError, match=r"counted already, with another behavior"):
            mm.extract_moments(bench().model, now, tmp_path, **STATS)

    def test_states_under_one_edit_are_not_taken_for_those_under_another(self, tmp_path) -> None:
        """An edit and its control are described alike, and so are two vectors."""
        model, prompts = bench().model, contrast_set()
        acts = mm.cache_activations(model, contrast_set(8, seed=9))
        edit = mm.AddDirection(
            mm.difference_of_means(acts, toward="generalized")["resid_post", 1], positions="last"
        )
        control = edit.controls(model, 0)["random direction"]
        for make in (mm.extract_activations, partial(mm.extract_moments, by="behavior")):
            folder = tmp_path / str(make)[:20].replace(" ", "")
            with mm.patched(model, edit) as view:
                make(view, prompts, folder, **OPTIONS)
                make(view, prompts, folder, **OPTIONS)  # the same goes on
            with mm.patched(model, control) as view, pytest.raises(
                mm.ArtifactError, match=r"other settings.*edits"
            ):  # fmt: skip
                make(view, prompts, folder, **OPTIONS)

    def test_a_span_that_has_moved_is_not_taken_for_read(self, tmp_path) -> None:
        model, text = bench().model, "w1 w2 w3 w4"

        def at(start: int, tail: int = 0) -> mm.PromptSet:
            spans = {"w": (start, start + 2), "tail": (tail, tail + 2)}
            return mm.PromptSet([mm.Prompt(id="a", text=text, spans=spans)])

        mm.extract_activations(model, at(0), tmp_path, positions="w", **OPTIONS)
        mm.extract_activations(model, at(0, tail=6), tmp_path, positions="w", **OPTIONS)
        with pytest.raises(mm.ArtifactError, match=r"'a' are stored already.*tokens at w"):
            mm.extract_activations(model, at(6), tmp_path, positions="w", **OPTIONS)

    def test_what_cannot_be_kept_is_refused_before_anything_is_written(self, tmp_path) -> None:
        with pytest.raises(mm.SiteError, match=r"covariance= asks for 'resid_post\[1\]'"):
            moments(tmp_path / "one", sites=("resid_post", 0))
        with pytest.raises(mm.MechmemError):
            moments(tmp_path / "two", bootstrap=1)
        assert not (tmp_path / "one").exists()
        assert not (tmp_path / "two").exists()

    def test_merging_something_else(self, tmp_path) -> None:
        with pytest.raises(mm.ArtifactError, match=r"holds no shards of moments"):
            mm.merge_moments(tmp_path)
        mm.extract_activations(bench().model, contrast_set(), tmp_path, **OPTIONS)
        with pytest.raises(mm.ArtifactError, match=r"needs no merging.*mm\.ActivationStore"):
            mm.merge_moments(tmp_path)

    def test_a_plan_of_another_kind_is_not_continued(self, tmp_path) -> None:
        moments(tmp_path, rank=0, world=2)
        (file,) = tmp_path.rglob("index.json")
        index = json.loads(file.read_text())
        file.write_text(json.dumps(sealed({**index, "plan": "0" * 16})))
        with pytest.raises(mm.ArtifactError, match=r"was planned differently \(plan 0000"):
            moments(tmp_path, rank=1, world=2)


WORKER = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from helpers import bench, contrast_set
import mechmem as mm

folder = Path(sys.argv[1])
first = int(os.environ["TORCHELASTIC_RESTART_COUNT"]) == 0

def progress(rows):
    if first and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)

mm.extract_moments(
    bench().model, contrast_set(), folder, by="behavior", bootstrap=8,
    covariance=("resid_post", 1), token_budget=14, shard_rows=4, progress=progress,
)
"""


@pytest.mark.slow
def test_torchrun_restarts_a_killed_rank_and_the_result_is_the_same(tmp_path) -> None:
    one = moments(tmp_path / "one")
    script = tmp_path / "worker.py"
    script.write_text(WORKER)
    tests = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--max-restarts=2",
         "--standalone", str(script), str(tmp_path / "two")],
        env={**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "exitcode: -9" in done.stderr
    same(mm.merge_moments(tmp_path / "two"), one, 1e-12)
