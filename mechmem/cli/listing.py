"""`mechmem check` and `mechmem tasks`: what can be asked, and of which models."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from mechmem.cli.app import command, progress_bar
from mechmem.cli.output import Format, Output, print_result, say


@command()
def check(
    model: Annotated[
        str, typer.Argument(help="lab/ or real/ name, folder, .gguf file or hub name.")
    ],
    output: Output = Format.table,
) -> None:
    """Prove by numbers that every site of a model can be read and edited truthfully.

    Exit status 3 when a site is refused.

    Example: mechmem check ./my-model --format csv
    """
    from mechmem.models import check_model, load_model

    with progress_bar("checking every site"):
        report = check_model(load_model(model))
    table = report.table()
    print_result(table, output, float_format="{:.1e}")
    if report.refused:
        say(f"refused: {', '.join(map(str, report.refused))}", err=True)
        raise typer.Exit(3)


@command()
def tasks(output: Output = Format.table) -> None:
    """List the tasks and the lab models that ship.

    Example: mechmem tasks --format json
    """
    import pandas as pd

    from mechmem.models import lab_models
    from mechmem.tasks import available_tasks

    models = lab_models()
    rows = [
        {"task": name, "lab models": " ".join(model for model in models if _is_of(model, name))}
        for name in available_tasks()
    ]
    print_result(pd.DataFrame(rows), output)


def _is_of(model: str, task: str) -> bool:
    """Whether a lab model was trained on a task, by its manifest."""
    from mechmem.models.shipped import LAB_FOLDER

    card = LAB_FOLDER / model.removeprefix("lab/") / "manifest.json"
    return bool(json.loads(card.read_text(encoding="utf-8")).get("task") == task)
