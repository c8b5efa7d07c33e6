"""Figures and the command line."""

from __future__ import annotations

from typing import Any

import pandas as pd
import plotly.graph_objects as go
import plotly.io
from fault_scene import Exited, Fault, Scene, command

import mechmem as mm
from mechmem.plotting import dose_response, neuron_map, save_figure


def figure(name: str, **options: Any):
    return lambda s: save_figure(go.Figure(), s.folder / name, **options)


def without_browser(s: Scene) -> None:
    s.file("map.png", "before")

    def write_images(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("Kaleido requires Google Chrome to be installed.")

    s.patch.setattr(plotly.io, "write_images", write_images)
    save_figure(go.Figure(), s.folder / "map.png")


def cli(*arguments: str):
    def trigger(s: Scene) -> None:
        s.patch.chdir(s.folder)
        command(*arguments)

    return trigger


def own_file(content: str):
    def trigger(s: Scene) -> None:
        s.patch.chdir(s.folder)
        s.file("my.csv", content)
        command("study", "my.csv", "--model", "lab/addition-cued", "--out", "out")

    return trigger


def missing_model(s: Scene) -> None:
    s.patch.chdir(s.folder)
    s.file("my-model/config.json", "{}")
    s.file("my.csv", "text,group,memorized,generalized\nw1,g,a,b\nw2,g,a,b\n")
    command("study", "my.csv", "--model", "mymodel", "--out", "out")


def blocked_out(s: Scene) -> None:
    command("demo", "--out", str(s.blocked()))


FAULTS = [
    Fault(
        "save a figure under an unknown ending",
        figure("map.bmp"),
        mm.ArtifactError,
        "A figure cannot be written as 'map.bmp'",
        "end the name in one of …'.html'",
    ),
    Fault(
        "save a figure without an ending",
        figure("map"),
        mm.ArtifactError,
        "A figure cannot be written as 'map'",
        "end the name in one of …'.html'",
    ),
    Fault(
        "save a page that would load its script from elsewhere",
        figure("map.html", plotlyjs="cdn"),
        mm.ArtifactError,
        "got 'cdn'",
        "plotlyjs must be one of 'inline', 'shared' (both open offline)",
    ),
    Fault(
        "save a figure where a file blocks the folder",
        lambda s: save_figure(go.Figure(), s.blocked() / "map.json"),
        mm.ArtifactError,
        "Cannot write …map.json",
        "Choose a folder you can write to.",
    ),
    Fault(
        "save a picture without a browser",
        without_browser,
        mm.ArtifactError,
        "Kaleido requires Google Chrome to be installed",
        "pip install 'mechmem[figures]'… or write .html, .json or .csv, which need nothing.",
    ),
    Fault(
        "draw something that is no result",
        lambda s: dose_response(7),
        mm.MechmemError,
        "got int",
        "draws a result object or its saved table with the columns",
    ),
    Fault(
        "draw an empty table",
        lambda s: neuron_map(s.scores.table().iloc[:0]),
        mm.MechmemError,
        "the table is empty",
        "give it one with rows",
    ),
    Fault(
        "draw a table without its columns",
        lambda s: neuron_map(pd.DataFrame({"x": [1]})),
        mm.MechmemError,
        "missing are",
        "needs the columns",
    ),
    Fault(
        "draw an unknown statistic",
        lambda s: neuron_map(s.scores, statistic="corelation"),
        mm.MechmemError,
        "Unknown statistic 'corelation'",
        "allowed are",
    ),
    Fault(
        "draw in an unknown theme",
        lambda s: neuron_map(s.scores, theme="drak"),
        mm.MechmemError,
        "Unknown theme 'drak'",
        "Did you mean 'dark'?",
    ),
    Fault(
        "misspell a task on the command line",
        cli("study", "additon-cued", "--model", "lab/addition-cued", "--out", "out"),
        Exited,
        "mechmem: Unknown task 'additon-cued'",
        "Did you mean 'addition-cued'?",
    ),
    Fault(
        "misspell a model on the command line",
        cli("study", "addition-cued", "--model", "lab/addition-ceud", "--out", "out"),
        Exited,
        "mechmem: No lab model 'lab/addition-ceud'",
        "Did you mean 'lab/addition-cued'?",
    ),
    Fault(
        "study a file that does not exist",
        cli("study", "none.csv", "--model", "lab/addition-cued", "--out", "out"),
        Exited,
        "mechmem: No file none.csv",
        "give the path of an existing file of prompts.",
    ),
    Fault(
        "study a CSV file without a text column",
        own_file("prompt,group\nw1,g\n"),
        Exited,
        "mechmem: Row 0 has no 'text'",
        "Rename the column that holds the prompt to 'text'.",
    ),
    Fault(
        "study prompts without answers",
        own_file("text,group\n" + "".join(f"{k}+1=,g{k // 2}\n" for k in range(40))),
        Exited,
        "mechmem: Without a task every prompt needs `memorized` and `generalized`",
        "Set them, or pass task=.",
    ),
    Fault(
        "study a CSV file whose cells are parted by semicolons",
        own_file("text;group;memorized;generalized\nw1;g;a;b\n"),
        Exited,
        "mechmem: Row 0 has no 'text'",
        "Its cells seem to be parted by ';': save it with commas.",
    ),
    Fault(
        "study a CSV file with a misspelt column",
        own_file("text,group,memorised,generalized\n1+2=,g,3,4\n"),
        Exited,
        "mechmem: Without a task every prompt needs `memorized` and `generalized`",
        "The column 'memorised': Did you mean 'memorized'?",
    ),
    Fault(
        "study a file of another kind",
        cli("study", "prompts.xlsx", "--model", "lab/addition-cued", "--out", "out"),
        Exited,
        "mechmem: Prompts come as .csv, .jsonl, .parquet, not as 'prompts.xlsx'",
        "save the table as CSV.",
    ),
    Fault(
        "study a model folder that does not exist",
        missing_model,
        Exited,
        "mechmem: There is no folder 'mymodel', and the hub gave nothing by that name",
        "Did you mean 'my-model'?",
    ),
    Fault(
        "write a report where a file blocks the folder",
        blocked_out,
        Exited,
        "mechmem: Cannot write",
        "Choose a folder you can write to.",
    ),
    Fault(
        "train an unknown lab model on the command line",
        cli("train", "subtraction", "--out", "lab"),
        Exited,
        "mechmem: No lab recipe for task 'subtraction'",
        "there are 'addition',",
    ),
]
