"""Workers that come and go: claims, what is left is taken over, and the bytes are those of one."""

from __future__ import annotations

import json
import os
import signal
import time
import warnings
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from helpers import bench, contrast_set
from pandas import DataFrame
from test_store import KillAfter, hashes

import mechmem as mm
import mechmem.reports
from mechmem import work_claims
from mechmem.cli import reports
from mechmem.cli.output import Format
from mechmem.cli.status import _table
from mechmem.work_claims import claim_of, claimed, in_turn, is_stale, shared_out
from mechmem.writing import HERE

OPTIONS = {"token_budget": 14, "shard_rows": 4}


def forked(works: list[Callable[[], object]]) -> list[int]:
    """Run side by side, one process each; how each of them ended."""
    children = []
    for work in works:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            status = 7
            try:
                work()
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    return [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]


def left_by_another(claim: Path, host: str, pid: int, age: float = 0.0) -> None:
    claim.write_text(json.dumps({"host": host, "pid": pid}))
    os.utime(claim, (time.time() - age,) * 2)


def ended() -> int:
    """The number of a process that is no more."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


class TestClaims:
    def test_only_one_has_it_and_it_goes_whatever_happens(self, tmp_path) -> None:
        unit = tmp_path / "unit"
        with claimed(unit) as mine, claimed(unit) as also:
            assert (mine, also) == (True, False)
            assert json.loads(claim_of(unit).read_text()) == {"host": HERE, "pid": os.getpid()}
        with pytest.raises(KeyError), claimed(unit):
            raise KeyError
        assert not list(tmp_path.iterdir())

    def test_it_is_touched_while_its_worker_lives(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(work_claims, "TOUCHED_EVERY", 0.02)
        with claimed(tmp_path / "unit"):
            os.utime(claim_of(tmp_path / "unit"), (0, 0))
            time.sleep(0.3)
            assert not is_stale(claim_of(tmp_path / "unit"))

    @pytest.mark.parametrize(
        ("host", "alive", "age", "stale"),
        [
            ("elsewhere", False, 0.0, False),
            ("elsewhere", False, work_claims.STALE_CLAIM + 5, True),
            (HERE, False, 0.0, True),
            (HERE, True, 0.0, False),
            (HERE, True, work_claims.STALE_CLAIM + 5, True),
        ],
    )
    def test_what_is_stale_is_taken_over(self, tmp_path, host, alive, age, stale) -> None:
        claim = claim_of(tmp_path / "unit")
        left_by_another(claim, host, os.getpid() if alive else ended(), age)
        assert is_stale(claim) == stale
        with claimed(tmp_path / "unit") as mine:
            assert mine == stale

    @pytest.mark.parametrize("ahead", [-3600.0, 3600.0])
    @pytest.mark.parametrize("age", [0.0, work_claims.STALE_CLAIM + 5])
    def test_a_clock_that_is_wrong_does_not_matter(self, tmp_path, monkeypatch, ahead, age) -> None:
        left_by_another(claim_of(tmp_path / "unit"), "elsewhere", 1, age)
        own = time.time
        monkeypatch.setattr(time, "time", lambda: own() + ahead)
        with claimed(tmp_path / "unit") as mine:
            assert mine == (age > work_claims.STALE_CLAIM)

    def test_one_that_may_not_be_read_is_free_when_nobody_touches_it(
        self, tmp_path, monkeypatch
    ) -> None:
        """Of another user of the folder."""

        def refused(path: Path) -> bytes:
            raise PermissionError(13, "Permission denied", str(path))

        claim = claim_of(tmp_path / "unit")
        monkeypatch.setattr(Path, "read_bytes", refused)
        for age in (0.0, work_claims.STALE_CLAIM + 5):
            left_by_another(claim, "elsewhere", 1, age)
            assert is_stale(claim) == (age > 0)

    def test_a_link_to_nothing_is_refused_and_not_waited_for(self, tmp_path) -> None:
        claim_of(tmp_path / "unit").symlink_to(tmp_path / "nowhere")
        with (
            pytest.raises(mm.ArtifactError, match=r"unit.claim is a link .*Remove it"),
            claimed(tmp_path / "unit"),
        ):
            pass

    def test_two_that_end_together_write_in_turn(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(work_claims, "LOOKED_EVERY", 0.01)
        alone = tmp_path / "alone"

        def work() -> None:
            for _ in range(20):
                with in_turn(tmp_path / "page"):
                    alone.mkdir()  # fails where somebody else is inside
                    time.sleep(0.005)
                    alone.rmdir()

        assert forked([work, work, work]) == [0, 0, 0]
        assert not list(tmp_path.iterdir())

    def test_it_waits_for_what_others_are_at(self, tmp_path, monkeypatch) -> None:
        monkeypatch.setattr(work_claims, "LOOKED_EVERY", 0.01)
        other, looked = tmp_path / "b", []
        left_by_another(claim_of(other), "elsewhere", 1)

        def missing(unit: Path) -> bool:
            looked.append(unit)
            if looked.count(other) == 20:
                other.touch()  # its worker is done
            return not unit.exists()

        taken = []
        with closing(shared_out([other, tmp_path / "a"], lambda unit: unit, missing)) as units:
            for unit in units:
                unit.touch()
                taken.append(unit.name)
        assert taken == ["a"]
        assert looked.count(other) >= 20


def test_three_workers_of_which_one_is_killed_write_the_bytes_of_one(tmp_path) -> None:
    model, prompts = bench().model, contrast_set()
    mm.extract_activations(model, prompts, tmp_path / "one", **OPTIONS)

    def work(progress: Callable[[int], object]) -> Callable[[], object]:
        return lambda: (
            mm.extract_activations(
                model, prompts, tmp_path / "three", progress=progress, **OPTIONS
            ).complete
            or os._exit(8)
        )

    def steady(rows: int) -> None:
        time.sleep(0.05)

    assert forked([work(KillAfter(1)), work(steady), work(steady)]) == [-signal.SIGKILL, 0, 0]
    assert hashes(tmp_path / "three") == hashes(tmp_path / "one")


def test_workers_that_end_together_write_one_report_after_the_other(tmp_path, monkeypatch) -> None:
    """Each ends with the last unit, so all write to one folder at the same moment."""
    monkeypatch.setattr(work_claims, "LOOKED_EVERY", 0.01)
    study, alone = SimpleNamespace(summary=DataFrame, answer=str, notes=list), tmp_path / "alone"

    def written(study: object, folder: Path) -> Path:
        alone.mkdir()  # fails where somebody else is inside
        time.sleep(0.2)
        alone.rmdir()
        return folder / "report.html"

    monkeypatch.setattr(mm.reports, "write_report", written)
    monkeypatch.setattr(reports, "save_config", lambda folder: None)

    def work() -> None:
        reports.run_and_report(lambda say: study, tmp_path / "out", Format.table)

    assert forked([work, work, work]) == [0, 0, 0]


def test_status_counts_what_is_done_claimed_stale_and_missing(tmp_path) -> None:
    mm.extract_activations(bench().model, contrast_set(), tmp_path, **{**OPTIONS, "shard_rows": 2})
    shards = sorted(tmp_path.glob("part-*/shard-*.safetensors"))
    assert len(shards) > 7
    for second, shard in enumerate(shards):  # a night's pause after the first two
        os.utime(shard, (1000 + second + 30_000 * (second > 1),) * 2)
    tokens = [
        sum(len(part.token_ids[row]) for row in rows)
        for part in mm.ActivationStore(tmp_path).parts for rows in part.rows
    ]  # fmt: skip
    for shard in shards[-3:]:
        shard.unlink()
    left_by_another(claim_of(shards[-1]), "elsewhere", 1)
    left_by_another(claim_of(shards[-2]), "elsewhere", 1, work_claims.STALE_CLAIM + 5)
    (row,) = _table(tmp_path).to_dict("records")
    names = ("units", "done", "claimed", "stale", "missing")
    assert [row[name] for name in names] == [len(shards), len(shards) - 3, 1, 1, 1]
    pace = (tokens[1] + sum(tokens[3:-3])) / (len(shards) - 5)
    assert row["tokens per second"] == pytest.approx(pace)
    assert row["seconds left"] == pytest.approx(sum(tokens[-3:]) / pace)
    with pytest.raises(mm.ArtifactError, match="holds no work that is shared"):
        _table(tmp_path / "nothing")
