"""Settings from a file, printing for people and programs, and what the statuses mean."""

from __future__ import annotations

import io
import json
import os
import shlex
import subprocess
import sys

import pandas as pd
import pytest
import yaml

from mechmem.cli import main


@pytest.fixture
def run(capsys, monkeypatch):
    """The command in this process: status, stdout, stderr."""

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mechmem", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def prompts(tmp_path):
    file = tmp_path / "p.csv"
    file.write_text("id,text,label\na,1 + 1 =,x\nb,2 + 2 =,y\nc,3 + 1 =,x\nd,1 + 4 =,y\n")
    return file


def test_a_file_gives_settings_and_what_is_typed_wins(run, tmp_path):
    file = tmp_path / "tasks.yaml"
    file.write_text("format: csv\n")
    status, out, _ = run("tasks", "--config", file)
    assert status == 0
    assert out.startswith("task,lab models\n")
    status, out, _ = run("tasks", "--config", file, "--format", "json")
    assert status == 0
    assert {"task": "reasoning", "lab models": ""} in json.loads(out)


@pytest.mark.parametrize("suffix", ["yaml", "toml"])
def test_the_settings_that_counted_lie_beside_the_result_and_do_it_again(run, tmp_path, suffix):
    settings = {
        "model": "lab/addition-cued",
        "prompts": str(prompts(tmp_path)),
        "out": str(tmp_path / "one"),
        "sites": ["resid_post.1", "mlp_post.0"],
        "by": "label",
    }
    file = tmp_path / f"extract.{suffix}"
    if suffix == "yaml":
        file.write_text(yaml.safe_dump(settings))
    else:
        file.write_text(
            "".join(f"{key} = {json.dumps(value)}\n" for key, value in settings.items())
        )
    status, out, err = run("extract", "--config", file, "--seed", "3")
    assert status == 0, err
    assert "{'x': 2, 'y': 2}" in out
    saved = yaml.safe_load((tmp_path / "one" / "config.yaml").read_text())
    assert saved == {
        "command": "extract", **settings, "positions": "last", "bootstrap": 0, "seed": 3,
        "engine": "process", "dry_run": False,
    }  # fmt: skip
    again = run("extract", "--config", tmp_path / "one" / "config.yaml", "--out", tmp_path / "two")
    assert again[0] == 0, again[2]
    assert (tmp_path / "two" / "config.yaml").is_file()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("formt: csv", "unknown key 'formt'; did you mean format?"),
        ("colour: red", "unknown key 'colour'; allowed: format"),
        ("command: study", "is for `mechmem study`, not `mechmem tasks`"),
        ("- a list", "must hold names and values"),
        ("a: [", "cannot be read"),
        ("format: xml", "'xml' is not one of 'table', 'json', 'csv'"),
        ("[" * 100_000, "cannot be read"),
        ("seed: 2020-99-99", "cannot be read"),
        ("seed: " + "9" * 10_000, "cannot be read"),
    ],
    ids=lambda value: value[:20],
)
def test_a_wrong_file_is_one_line_that_names_the_key(run, tmp_path, text, words):
    file = tmp_path / "bad.yaml"
    file.write_text(text)
    status, out, err = run("tasks", "--config", file)
    assert status == 2
    assert out == ""
    assert words in err
    assert err.count("\n") == 1


def test_a_file_that_is_no_configuration_is_said_to_be_none(run, tmp_path):
    (tmp_path / "a.ini").write_text("")
    (tmp_path / "a.toml").write_text("a = = 1")
    (tmp_path / "deep.toml").write_text("a = " + "[" * 100_000)
    os.mkfifo(tmp_path / "pipe.yaml")
    for name, words in {
        "deep.toml": "cannot be read",
        "pipe.yaml": "is not a file but a pipe",
        "a.ini": "must end in",
        "a.toml": "cannot be read",
        "no.yaml": "No such",
    }.items():
        status, _, err = run("tasks", "--config", tmp_path / name)
        assert status == 2
        assert words in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["stdy"], "No such command 'stdy'"),
        (["study"], "Missing argument"),
        (["tasks", "--formt", "csv"], "No such option"),
        (["train", "addition-cued", "--seed", "many"], "--seed"),
    ],
)
def test_wrong_usage_is_one_line_and_status_2(run, arguments, words):
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert "--help" in err
    assert err.count("\n") == 1


STUDY = ["study", "reasoning", "--model", "lab/none"]
BAKE = ["bake", "lab/none", "r", "--out", "new", "--edit", "project-out"]


@pytest.mark.parametrize(
    ("arguments", "option", "words"),
    [
        ([*STUDY, "--examples", "x.csv"], "--examples", "give --questions"),
        ([*STUDY, "--max-new-tokens", "8"], "--max-new-tokens", "give --questions"),
        (["study", "cipher", "--max-new-tokens", "8"], "--max-new-tokens", "study reasoning"),
        (["study", "cipher", "--examples", "x.csv"], "--examples", "study reasoning"),
        (["study", "cipher", "--questions", "x.csv"], "--questions", "study reasoning"),
        ([*BAKE, "--alpha", "3"], "--alpha", "take --edit add"),
        ([*BAKE, "--toward", "memory"], "--toward", "take --edit add"),
        (["extract", "lab/none", "p.csv", "--out", "o", "--bootstrap", "9"], "--bootstrap", "--by"),
    ],
)
def test_an_option_that_nothing_would_read_is_refused(
    run, tmp_path, monkeypatch, arguments, option, words
):
    monkeypatch.chdir(tmp_path)
    if arguments[1] == "cipher":
        arguments = [*arguments, "--model", "lab/none"]
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert f"Invalid value for {option}: " in err
    assert words in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_the_help_says_whose_number_of_pairs_is_the_default(run):
    for command in ("study", "sweep"):
        status, out, _ = run(command, "--help")
        assert status == 0
        told = " ".join(out.replace("│", " ").split())
        assert "task makes; default: the lab model's own number, or 600." in told


def test_the_table_of_a_check_can_be_read_by_programs(run):
    status, out, err = run("check", "lab/addition-cued", "--format", "json")
    assert status == 0, err
    rows = json.loads(out)
    assert {row["stream"] for row in rows} > {"resid_post", "mlp_post"}
    status, out, _ = run("check", "lab/addition-cued", "--format", "csv")
    assert len(pd.read_csv(io.StringIO(out))) == len(rows)


def test_the_version_is_the_packages(run):
    import mechmem

    assert run("--version")[:2] == (0, f"mechmem {mechmem.__version__}\n")


def test_a_closed_pipe_ends_it_without_a_word():
    python = shlex.quote(sys.executable)
    command = f"{python} -m mechmem check lab/addition-cued --format csv"
    reader = f"{python} -c 'import sys; print(sys.stdin.readline(), end=str())'"
    shell = f"set -o pipefail; {command} | {reader}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=300)
    assert done.stdout.startswith("stream,layer")
    assert done.returncode in (0, 141)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_a_reader_who_never_read_gives_the_status_of_a_pipe():
    python = shlex.quote(sys.executable)
    shell = f"{python} -m mechmem tasks --format csv | true; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, timeout=300)
    assert done.stdout == "141\n"
    assert done.stderr == ""


@pytest.mark.parametrize("name", ["mechmem", "mechmem.cli"])
def test_importing_costs_next_to_nothing(name):
    heavy = "('torch', 'transformers', 'transformer_lens', 'pandas', 'plotly', 'sklearn', 'scipy')"
    code = f"import sys, {name}; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
