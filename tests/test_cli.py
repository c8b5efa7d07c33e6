"""The command line: results on stdout, everything else on stderr, errors in one line."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from importlib import import_module

import pytest

import mechmem as mm
from mechmem.cli.app import progress_bar, step_of

COMMANDS = (
    "bake check compare demo export extract merge open real report status study sweep tasks "
    "train".split()
)


def run(*arguments: str, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mechmem.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **options)


def test_tasks_lists_the_tasks_and_the_lab_models():
    done = run("tasks")
    assert done.returncode == 0
    assert "addition-cued" in done.stdout
    assert "lab/addition-cued" in done.stdout


def test_help_shows_an_example_of_every_command():
    for command in COMMANDS:
        done = run(command, "--help")
        assert done.returncode == 0
        assert f"mechmem {command}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("sweep addition-cued --out a --edit neurons --layer 1", "only --edit direction has one"),
        ("sweep addition-cued --out a --edit direction --top .1", "only --edit neurons has one"),
        ("study addition-cued --out a --join b", "a study is written to one folder"),
        ("study addition-cued --join a --budget 1m", "every worker would shrink the plan"),
        ("study reasoning --read-only --max-new-tokens 9", "where states are read nothing is"),
    ],
)
def test_an_option_that_would_be_ignored_is_refused(arguments, words, tmp_path):
    done = run(
        *arguments.split(),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd(), "COLUMNS": "200"},
    )
    assert done.returncode == 2
    assert words in done.stderr
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["study", "addition-cued", "--model", "lab/none"], ["lab/none", "lab/addition-cued"]),
        (["study", "additon-cued", "--model", "lab/addition-cued"], ["Did you mean"]),
        (["train", "subtraction"], ["subtraction", "addition-cued"]),
        (["study", "missing.csv", "--model", "lab/addition-cued"], ["missing.csv"]),
        (["study", "additon-cued"], ["Did you mean 'addition-cued'"]),
        (["train", "addition-cued", "--seed", "-1"], ["seed must be a whole number from 0", "-1"]),
        (["train", "addition-cued", "--strength", "nan"], ["strength must lie in [0, 1], got nan"]),
        (["train", "addition-cued", "--strength", "7"], ["strength must lie in [0, 1], got 7"]),
        (["open", "--model", "nowhere", "--no-browser"], ["'nowhere'", "no folder"]),
        (["open", "--model", "./nowhere", "--no-browser"], ["nowhere does not exist"]),
    ],
)
def test_an_error_is_one_line_without_a_traceback(arguments, words, tmp_path):
    done = run(*arguments, cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()})
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert last.startswith("mechmem: ")
    assert all(word in last for word in words)
    assert done.stdout == ""


def test_check_prints_every_site_of_a_model_as_csv():
    done = run("check", "lab/addition-cued", "--format", "csv")
    rows = done.stdout.strip().splitlines()
    assert done.returncode == 0, done.stderr
    assert rows[0].startswith("stream,layer,read_error,edit_error")
    assert len(rows) == 1 + 7 * 4
    assert all(",holds," in row for row in rows[1:])
    assert done.stderr.splitlines() == ["checking every site"]  # of a pipe, a line per step
    assert "\r" not in done.stderr


def test_debug_shows_the_traceback(tmp_path):
    done = run("train", "subtraction", "--out", str(tmp_path / "x"), "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize(
    ("arguments", "status"),
    [("tasks", 1), ("tasks --format json", 1), ("--help", 1), ("tasks > /dev/full 2>&1", 1),
     ("tasks >&-", 0)],
)  # fmt: skip
def test_a_full_disk_or_no_output_at_all_is_no_traceback(
    monkeypatch, arguments, status, unbuffered
):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    shell = f"{shlex.quote(sys.executable)} -m mechmem.cli {arguments}"
    shell += "" if ">" in arguments else " > /dev/full"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=300)
    assert done.returncode == status
    if ">" in arguments:
        assert done.stderr == ""
    else:
        assert done.stderr == "mechmem: cannot write the result: No space left on device\n"


def test_an_unwritable_folder_is_found_out_before_the_work(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = run("demo", "--out", str(blocked / "report"))
    assert done.returncode == 1
    assert "Cannot write" in done.stderr.splitlines()[-1]


def test_a_study_of_your_own_prompts_writes_a_report(tmp_path):
    task = mm.get_task("addition-cued")
    task.pairs(80, seed=3).to_csv(tmp_path / "mine.csv")
    out = tmp_path / "out"
    done = run(
        "study", str(tmp_path / "mine.csv"), "--model", "lab/addition-cued", "--out", str(out),
        "--shuffles", "1", "--validation", "24", "--test", "40",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (out / "report.html").is_file()
    assert "memorized" in done.stdout
    assert "Traceback" not in done.stderr


def test_extract_plans_then_reads_and_merge_adds_up(tmp_path):
    task = mm.get_task("addition-cued")
    made = mm.PromptSet(
        mm.Prompt(id=p.id, text=p.text, group=p.group, label="ab"[k % 2])
        for k, p in enumerate(task.pairs(n=8, seed=0))
    )
    file = str(made.to_jsonl(tmp_path / "prompts.jsonl"))
    common = ["extract", "lab/addition-cued", file, "--out"]
    planned = run(*common, str(tmp_path / "no"), "--dry-run")
    assert planned.returncode == 0, planned.stderr
    assert f"{len(made)} prompts" in planned.stdout
    assert not (tmp_path / "no").exists()
    one = run(*common, str(tmp_path / "states"), "--sites", "resid_post.2")
    assert one.returncode == 0, one.stderr
    store = mm.ActivationStore(tmp_path / "states")
    assert (store.sites, len(store)) == ([("resid_post", 2)], len(made))
    for rank in "01":
        env = {**os.environ, "RANK": rank, "WORLD_SIZE": "2"}
        assert run(*common, str(tmp_path / "sums"), "--by", "label", env=env).returncode == 0
    merged = run("merge", str(tmp_path / "sums"), "--out", str(tmp_path / "moments"))
    assert merged.stdout.strip() == '{"a": 8, "b": 8}'
    assert mm.Moments.load(tmp_path / "moments").counts == {"a": 8, "b": 8}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["study", "mine.jsonl"], "need --model"),
        (["study", "mine.csv"], "need --model"),
        (["study", "mine.csv", "--model", "x", "--pairs", "5"], "your own prompts are the pairs"),
        (["study", "reasoning", "--test", "60"], "this study divides its questions itself"),
    ],
)
def test_a_wrong_option_is_a_usage_error(arguments, words):
    done = run(*arguments, env={**os.environ, "COLUMNS": "200"})
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_file_that_lacks_an_answer_is_refused_before_the_model_is_loaded(tmp_path):
    (tmp_path / "mine.csv").write_text("text,group,memorized,generalised\na,1,b,c\nd,1,b,c\n")
    done = run("study", str(tmp_path / "mine.csv"), "--model", "lab/none", "--out", str(tmp_path))
    assert done.returncode == 1
    assert "`generalized`" in done.stderr
    assert "lab/none" not in done.stderr


def test_a_long_step_is_counted_now_and_then(monkeypatch, capsys):
    monkeypatch.setattr(import_module("mechmem.cli.app"), "SILENCE", -1.0)
    with progress_bar("training") as bar:
        bar.update(3)
        bar.set_description_str("training")
        bar.set_description_str("writing")
    assert capsys.readouterr().err.splitlines() == ["training", "training: 3", "writing"]


def test_a_step_is_named_without_the_settings_of_its_edit():
    assert (
        step_of("test, one layer: permuted, {'edit': 'ShiftNeurons'}")
        == "test, one layer: permuted"
    )
    assert step_of("validation, one layer: {'edit': 1}") == "validation, one layer"
