"""The benchmarks themselves work: every one is found, runs, and shows equal results."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import gpu
from benchmarks.__main__ import available, main, run_one
from benchmarks.setting import Options, Timing, paired, result

KEYS = {"benchmark", "shape", "ratio", "target", "holds", "equality", "note"}
IN_PROCESS = ("extraction", "generation", "length", "long_answers", "p1_grid", "prefixes")


def test_the_benchmarks_are_found_by_their_names() -> None:
    assert {*IN_PROCESS, "memory", "processes"} <= set(available())


@pytest.mark.tl4
@pytest.mark.parametrize("name", IN_PROCESS)
def test_a_benchmark_runs_and_its_results_are_equal(name) -> None:
    rows = run_one(name, Options(tiny=True, rounds=1, rivals=False))
    assert rows
    for row in rows:
        assert set(row) >= KEYS
        assert row["equal"], row["equality"]
        assert row["ratio"] > 0


def test_a_ratio_is_the_median_of_the_rounds_ratios() -> None:
    timing = Timing({"a": [1.0, 2.0, 30.0], "b": [1.0, 1.0, 10.0]})
    assert timing.ratio("a", "b") == 2.0  # of 1, 2 and 3; the ratio of the medians would be 2 too
    assert timing.ratio("b", "a") == 0.5
    assert timing.spread("a", "b") == "1.00 to 3.00 over 3 rounds"


def test_every_function_runs_once_before_and_once_in_every_round() -> None:
    calls: list[str] = []
    timing = paired({name: lambda name=name: calls.append(name) for name in "abc"}, rounds=2)
    assert calls == ["a", "b", "c", "a", "b", "c", "b", "c", "a"]
    assert [len(timing.seconds[name]) for name in "abc"] == [2, 2, 2]


@pytest.mark.parametrize(
    ("ratio", "target", "equal", "holds"),
    [
        (1.05, "<= 1.05", True, True),
        (1.06, "<= 1.05", True, False),
        (2.0, ">= 1.9", True, True),
        (1.8, ">= 1.9", True, False),
        (2.0, ">= 1.9", False, False),
        (49.0, "<= 50 MB", True, True),
        (2.0, "", True, None),
    ],
)
def test_a_target_holds_only_with_equal_results(ratio, target, equal, holds) -> None:
    row = result("b", "s", ratio, target, equality="e", equal=equal)
    assert row["holds"] is holds


def test_the_table_is_printed_and_written_and_a_missed_target_is_told(
    tmp_path, capsys, monkeypatch
) -> None:
    rows = [
        result("one", "small", 2.0, ">= 1.9", equality="equal"),
        result("two", "small | wide", 1.0, ">= 1.9", equality="equal", note="slow"),
    ]
    monkeypatch.setattr("benchmarks.__main__.run_one", lambda name, options: rows)
    assert main(["extraction", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "| one | small | 2.00 | >= 1.9 | yes | equal |  |" in printed
    assert "| two | small / wide | 1.00 | >= 1.9 | **no** | equal | slow |" in printed
    assert "Missed: two" in printed
    kept = json.loads((tmp_path / "results.json").read_text())
    assert kept["rows"] == rows
    assert {"date", "processor", "torch"} <= set(kept["about"])
    assert "**no**" in (tmp_path / "results.md").read_text()


@pytest.mark.tl4
def test_the_gpu_benchmark_runs_on_a_tiny_shape_without_a_gpu() -> None:
    rows = gpu.measure(Options(tiny=True, rounds=1), "cpu", torch.bfloat16)
    assert len(rows) == 4
    assert all(row["seconds"] > 0 for row in rows)


def test_an_unknown_name_is_refused_with_those_there_are(capsys) -> None:
    with pytest.raises(SystemExit):
        main(["extraktion"])
    assert "there are extraction, generation" in capsys.readouterr().err
