"""mechmem sweep, report and compare, as typed."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import close
from small_study import small_study

import mechmem as mm
from mechmem.cli import main
from mechmem.cli.reports import again


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["mechmem", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return call


def test_report_and_compare_work_on_folders_alone(run, tmp_path):
    for name in ("a", "b"):
        small_study().save(tmp_path / name)
    status, out, err = run("report", "a", "--format", "json")
    assert status == 0, err
    assert json.loads(out)["answer"] == small_study().answer()
    assert (tmp_path / "a" / "report.html").is_file()
    status, out, err = run("compare", "a", "b", "--out", "both.html", "--format", "csv")
    assert status == 0, err
    judged = "beyond,beyond_low,beyond_high,draws,spread,rank,size,control_size"
    assert out.startswith(f"study,kind,family,toward,{judged},n,groups\n")
    assert (tmp_path / "both.html").is_file()
    assert "folders:\n- a\n- b\n" in (tmp_path / "both.html.config.yaml").read_text()
    status, out, err = run("report", "nowhere")
    assert (status, out) == (1, "")
    assert err.startswith("mechmem: nowhere holds no study")


def test_a_sweep_keeps_its_cells_and_goes_on_there(run, tmp_path):
    (tmp_path / "grid.yaml").write_text(
        "task: addition-cued\nout: swept\npairs: 60\nedit: [direction]\nlayer: [1]\n"
        "alpha: [1.0, 2.0]\ndraws: 1\nformat: json\n"
    )
    status, out, err = run("sweep", "--config", "grid.yaml")
    assert status == 0, err
    rows = json.loads(out)["table"]
    assert {row["kind"] for row in rows} == {"unedited", "edit", "control"}
    assert {row["control"] or "" for row in rows} == {
        "",
        "random direction",
        "covariance direction",
        "alpha 0",
    }
    tried = pd.read_csv(tmp_path / "swept" / "tables" / "validation.csv")
    assert sorted(tried["alpha"]) == [1.0, 1.0, 2.0, 2.0]
    cells = {p: p.stat().st_mtime_ns for p in (tmp_path / "swept" / "cells").rglob("*.json")}
    assert cells
    status, again, _ = run("sweep", "--config", "swept/config.yaml", "--format", "table")
    assert status == 0
    assert "edit minus control" in again
    kept = {p: p.stat().st_mtime_ns for p in (tmp_path / "swept" / "cells").rglob("*.json")}
    assert {path: when for path, when in kept.items() if path in cells} == cells


def test_saved_directions_go_out_and_into_weights(run, tmp_path):
    r = small_study().directions
    r.save(tmp_path / "r")
    status, out, err = run("export", "r", "steer.pt", "--site", "resid_post.1", "--alpha", "2")
    assert (status, out) == (0, "steer.pt\n"), err
    held = torch.load(tmp_path / "steer.pt", weights_only=True)["layer_activations"]
    close(held[1], 2 * np.asarray(r["resid_post", 1]), 1e-6)
    arguments = ("lab/addition-cued", "r", "--out", "new", "--edit", "project-out")
    status, out, err = run("bake", *arguments, "--site", "resid_post.1")
    assert (status, out) == (0, "new\n"), err
    made, model = mm.load_model(tmp_path / "new"), mm.load_model("lab/addition-cued")
    text = [small_study().flips[0].text]
    with mm.patched(model, mm.ProjectOut(r["resid_post", 1], at="everywhere")) as view:
        close(made.logits(text), view.logits(text), 1e-4)
    for name, more, alpha in (("one", (), 1.0), ("three", ("--alpha", "3"), 3.0)):
        arguments = ("lab/addition-cued", "r", "--out", name, "--edit", "add", *more)
        status, out, err = run("bake", *arguments, "--site", "resid_post.1")
        assert (status, out) == (0, f"{name}\n"), err
        made = mm.load_model(tmp_path / name)
        with mm.patched(model, mm.AddDirection(r["resid_post", 1], alpha=alpha)) as view:
            close(made.logits(text), view.logits(text), 1e-4)
    status, _, err = run("export", "r", "steer.gguf", "--site", "resid_post.0")
    assert status == 1
    assert "llama.cpp refuses" in err


def test_a_command_to_type_is_one_that_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: "/bin/mechmem")
    assert again("open", Path("my study")) == "mechmem open 'my study'"
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert again("open", "x").endswith("-m mechmem open x")
