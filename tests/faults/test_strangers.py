"""Folders, files and names from strangers: nothing is deleted, run, waited for or obeyed."""

from __future__ import annotations

import ast
import json
import os
import subprocess
import sys
import warnings
import zipfile
from contextlib import redirect_stderr, redirect_stdout
from io import BytesIO, StringIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import bench, contrast_set

import mechmem as mm
from mechmem import cli
from mechmem.analysis import importing
from mechmem.artifacts import save_artifact
from mechmem.cli.output import Format, clean, print_result
from mechmem.manifests import read_json
from mechmem.studies.saving import write_manifest, write_whole
from mechmem.training.record import earlier_files, put_in_place
from mechmem.writing import whole_file, write_text

ESCAPES = "\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\r\x7f"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside of every folder that is written to."""
    path = tmp_path / "home" / "thesis.txt"
    path.parent.mkdir()
    path.write_text("years of work")
    return path


def hostile(tmp_path: Path, victim: Path, *names: str) -> Path:
    """A folder with a link to the victim's, and a manifest that calls what lies there its own."""
    folder = tmp_path / "study"
    folder.mkdir()
    (folder / "tables").symlink_to(victim.parent, target_is_directory=True)
    (folder / "manifest.json").write_text(json.dumps({"files": list(names)}))
    return folder


class TestLinks:
    def test_a_study_saved_over_a_hostile_folder_deletes_nothing_outside(self, tmp_path, victim):
        folder = hostile(tmp_path, victim, "tables/thesis.txt", "../home/thesis.txt", str(victim))

        def parts(draft: Path) -> None:
            write_text(draft / "a.txt", "new")
            write_manifest({}, draft)

        write_whole(parts, folder)
        assert victim.read_text() == "years of work"
        assert (folder / "a.txt").read_text() == "new"

    def test_nothing_is_written_through_a_link_either(self, tmp_path, victim):
        folder = hostile(tmp_path, victim)

        def parts(draft: Path) -> None:
            write_text(draft / "tables" / "thesis.txt", "new")
            write_manifest({}, draft)

        with pytest.raises(mm.ArtifactError, match="is a link that leads out of the folder"):
            write_whole(parts, folder)
        assert victim.read_text() == "years of work"
        assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", "tables"]

    def test_starting_a_training_over_deletes_nothing_outside(self, tmp_path, victim):
        folder = hostile(tmp_path, victim, "tables/thesis.txt", "../home/thesis.txt")
        assert earlier_files(folder / "manifest.json") == []
        made = tmp_path / "made"
        write_text(made / "tables" / "thesis.txt", "new")
        with pytest.raises(mm.ArtifactError, match="leads out of the folder by a link"):
            put_in_place(made, folder, ["tables/thesis.txt"], [])
        assert victim.read_text() == "years of work"

    def test_a_name_that_is_itself_a_link_is_replaced_and_not_followed(self, tmp_path, victim):
        (tmp_path / "a.json").symlink_to(victim)
        save_artifact(tmp_path / "a", "note", {"x": torch.ones(2)}, {})
        assert victim.read_text() == "years of work"
        assert not (tmp_path / "a.json").is_symlink()


class TestFilesThatAreNone:
    def test_a_pipe_is_not_waited_for(self, tmp_path):
        os.mkfifo(tmp_path / "a.safetensors")
        os.mkfifo(tmp_path / "a.json")
        for read in (
            lambda: mm.Directions.load(tmp_path / "a"),
            lambda: read_json(tmp_path / "a.json"),
            lambda: mm.import_directions(
                tmp_path / "a.safetensors", model=bench().model, toward="x"
            ),
        ):
            with pytest.raises(mm.ArtifactError, match=r"is not a file but a pipe"):
                read()

    @pytest.mark.parametrize(
        "text",
        [
            "[" * 100_000,
            '{"a":' * 100_000,
            '{"kind": ' + "9" * 10_000 + "}",
            '{"kind": "x", "kind": "y"}',
            "\ufeff{}",
            '{"kind": "\\ud800"',
            "NaN",
            "",
        ],
        ids=["lists", "objects", "digits", "twice", "mark", "half", "no number", "nothing"],
    )
    def test_a_json_bomb_is_one_line(self, tmp_path, text):
        acts = mm.cache_activations(bench().model, contrast_set(), sites=["resid_post"])
        mm.difference_of_means(acts, toward="generalized").save(tmp_path / "r")
        (tmp_path / "r.json").write_text(text)
        with pytest.raises(mm.ArtifactError):
            mm.Directions.load(tmp_path / "r")

    @pytest.mark.parametrize("suffix", [".npz", ".pt"])
    def test_a_small_file_that_unpacks_to_an_immense_one_is_refused(
        self, tmp_path, monkeypatch, suffix
    ):
        def packed(size: int) -> Path:
            file = tmp_path / f"{size}{suffix}"
            with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as held:
                held.writestr("a.npy", bytes(size))
            return file

        assert packed(1 << 21).stat().st_size < 1 << 14
        monkeypatch.setattr(importing, "LARGEST_TENSORS", 1 << 20)
        opened = []
        monkeypatch.setattr(importing.np, "load", lambda *a, **k: opened.append(a))
        monkeypatch.setattr(importing.torch, "load", lambda *a, **k: opened.append(a))
        with pytest.raises(mm.ArtifactError, match=r"unpacks to 2,097,152 bytes, more than the"):
            mm.import_directions(packed(1 << 21), model=bench().model, toward="x")
        assert opened == []

    def test_an_array_that_says_it_is_immense_is_refused(self, tmp_path):
        head = BytesIO()
        about = {"descr": "<f8", "fortran_order": False, "shape": (1 << 50,)}
        np.lib.format.write_array_header_1_0(head, about)
        (tmp_path / "a.npy").write_bytes(head.getvalue() + bytes(64))
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as held:
            held.write(tmp_path / "a.npy", "a.npy")
        for name in ("a.npy", "a.npz"):
            with pytest.raises(mm.ArtifactError, match="cannot be read as tensors"):
                mm.import_directions(tmp_path / name, model=bench().model, toward="x")


@pytest.mark.parametrize("said", ["basic_ios::clear: iostream error", "PytorchStreamWriter failed"])
def test_what_torch_says_of_a_full_disk_is_one_line_and_other_errors_stay(tmp_path, said):
    write_text(tmp_path / "r.pt", "before")
    for text, expected in ((said, mm.ArtifactError), ("shapes differ", RuntimeError)):
        with pytest.raises(expected), whole_file(tmp_path / "r.pt"):
            raise RuntimeError(text)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["before"]


class TestTerminals:
    def test_what_a_terminal_would_obey_is_written_out(self):
        shown = clean(f"a{ESCAPES}b\tc\nd é 漢 😀")
        assert shown.startswith(r"a\x1b]0;owned\x07\x1b[2J\x9b31m\u202egnp.exe\r\x7fb")
        assert shown.endswith("\tc\nd é 漢 😀")

    def test_every_command_prints_through_it(self):
        for file in Path(cli.__file__).parent.glob("*.py"):
            calls = [
                ast.unparse(node.func)
                for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
                if isinstance(node, ast.Call)
            ]
            allowed = {"output.py": 4, "entry.py": 1}.get(file.name, 0)
            assert calls.count("typer.echo") + calls.count("print") <= allowed, file.name

    @pytest.mark.parametrize("form", ["csv", "spreadsheet"])
    def test_a_formula_runs_in_no_spreadsheet_when_asked(self, capsys, form):
        texts = ["=1+1", "+1", "-1", "@A1", "\t=1", " =1", "1=1"]
        print_result(pd.DataFrame({"text": texts, "n": -1.5}), Format(form))
        back = pd.read_csv(StringIO(capsys.readouterr().out))
        assert list(back["n"]) == [-1.5] * 7  # a number is none
        marked = [*(f"'{text}" for text in texts[:-1]), "1=1"]
        assert list(back["text"]) == (marked if form == "spreadsheet" else texts)

    @pytest.mark.parametrize("form", ["table", "json", "csv", "spreadsheet"])
    def test_a_strangers_study_does_not_reach_the_terminal(self, tmp_path, monkeypatch, form):
        for name in ("one", f"two{ESCAPES}"):
            folder = tmp_path / name
            (folder / "tables").mkdir(parents=True)
            said = {"model": {"name": ESCAPES}, "task": ESCAPES, "seed": 0, "answer": ESCAPES}
            said |= {"verdict": ESCAPES, "study": "behavior"}
            (folder / "manifest.json").write_text(json.dumps(said))
            pd.DataFrame({ESCAPES: [ESCAPES]}).to_csv(folder / "tables" / "summary.csv")
        for arguments in (
            ["report", str(folder), "--format", form],
            [
                "compare",
                str(tmp_path / "one"),
                str(folder),
                "--format",
                form,
                "--out",
                str(tmp_path / "c.html"),
            ],
            ["export", str(folder / "r"), "a.gguf"],
            ["merge", str(folder)],
        ):
            said_there = on_terminal(monkeypatch, *arguments)
            assert not {"\x1b", "\x9b", "\u202e", "\x7f", "\r"} & set(said_there)

    @pytest.mark.parametrize("debug", [[], ["--debug"]])
    def test_a_traceback_does_not_reach_the_terminal_either(self, monkeypatch, debug):
        def breaks(folder: Path) -> None:
            raise RuntimeError(f"broken {folder}")

        monkeypatch.setattr("mechmem.cli.status._table", breaks)
        monkeypatch.setattr(sys, "argv", ["mechmem", "status", f"a{ESCAPES}", *debug])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
        terminal = Terminal()
        with redirect_stdout(terminal), redirect_stderr(terminal):
            with pytest.raises(RuntimeError) as caught:
                cli.main()
            sys.excepthook(caught.type, caught.value, caught.tb)
        assert "RuntimeError: broken a\\x1b]0;owned" in terminal.getvalue()
        assert not {"\x1b", "\x9b", "\u202e", "\x7f", "\r"} & set(terminal.getvalue())

    def test_an_error_of_a_command_shows_no_escapes_after_debug(self):
        command = [sys.executable, "-m", "mechmem.cli", "report", f"{ESCAPES}x", "--debug"]
        done = subprocess.run(command, capture_output=True, timeout=300)
        assert done.returncode == 1
        assert b"Traceback" in done.stderr
        assert rb"\x1b]0;owned" in done.stderr
        assert not {0x1B, 0x07, 0x7F, 0x0D} & set(done.stderr)


class Terminal(StringIO):
    """What a command writes to, when somebody looks at it."""

    def isatty(self) -> bool:
        return True


def on_terminal(patch: pytest.MonkeyPatch, *arguments: str) -> str:
    """What a command writes to a terminal."""
    terminal = Terminal()
    patch.setattr(sys, "argv", ["mechmem", *arguments])
    patch.setattr(sys, "excepthook", sys.excepthook)
    patch.setattr(warnings, "formatwarning", warnings.formatwarning)
    with redirect_stdout(terminal), redirect_stderr(terminal), pytest.raises(SystemExit):
        cli.main()
    assert terminal.getvalue()
    return terminal.getvalue()
