"""`mechmem train`: lab models, again from nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from mechmem.cli.app import command, progress_bar
from mechmem.cli.config import save_config
from mechmem.cli.output import Format, Output, print_result, say


@command()
def train(
    task: Annotated[str, typer.Argument(help="The lab recipe, for example addition-cued.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder to write to; default lab-<task>-seed<seed>.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Draws the data and the first weights.")] = 0,
    strength: Annotated[
        float | None,
        typer.Option(help="addition-cued: how much the cue decides; 0 is the negative control."),
    ] = None,
    output: Output = Format.json,
) -> None:
    """Train a lab model again from nothing.

    Example: mechmem train addition-cued --seed 1
    """
    import pandas as pd

    from mechmem.manifests import read_json
    from mechmem.training.lab.recipes import train_lab_model

    folder = out or Path(f"lab-{task}-seed{seed}")
    with progress_bar(f"training {task}") as bar:

        def step(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        options = {} if strength is None else {"strength": strength}
        train_lab_model(task, folder, seed=seed, progress=step, **options)
    manifest = read_json(folder / "manifest.json", "a manifest")
    save_config(folder)
    measured = manifest["measured"]
    if output is Format.json:
        say(json.dumps(measured, indent=1))
    else:
        rows = pd.DataFrame({"measure": list(measured), "value": list(measured.values())})
        print_result(rows, output)
    say(f"wrote {folder}", err=True)
